"""Compare our JPEG decoder with libjpeg-turbo's on the whole corpus: `python -m tests.jpeg_corpus`.

Files of 12 bits and of arithmetic coding must be refused as unsupported. Prints counts by feature
and by encoder, and every difference; ends with 1 if there is one, or if there are fewer files than
asked for. Encoders that are absent are named; all come with `pip install simplejpeg imagecodecs
opencv-python-headless jpeglib` and the packages libjpeg-turbo-progs and imagemagick of Debian.
"""

import argparse
import sys
from collections import Counter

from .compare import DAMAGES, differences, instructions
from .encoders import available
from .pictures import PHOTOS, sources
from .plans import files

FEATURES = """
baseline,extended,progressive,restart,4:4:4,4:2:2,4:2:0,4:4:0,4:1:1,uncommon sampling,grey,CMYK,
CMYK without Adobe,YCCK,RGB,16-bit tables,standard tables,odd size,separate scans,
incomplete,truncated,damaged,12-bit,arithmetic,
orientation 1,orientation 2,orientation 3,orientation 4,
orientation 5,orientation 6,orientation 7,orientation 8
""".replace("\n", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--files", type=int, default=1000, help="fewest files (default: %(default)s)"
    )
    parser.add_argument(
        "--each", type=int, default=20, help="fewest of each feature (default: %(default)s)"
    )
    arguments = parser.parse_args()
    encoders, absent = available()
    sets = instructions()
    print(f"encoders: {', '.join(encoders)}; absent: {', '.join(absent) or 'none'}")
    print(f"instructions: {', '.join(sets)}; photographs: {PHOTOS.exists()}")
    features: Counter[str] = Counter()
    by_encoder: Counter[str] = Counter()
    wrong, beside = 0, b""
    for file in files(encoders, sources()):
        if file.features & DAMAGES and "simplejpeg" not in encoders:
            # Not compared, so not counted: their features fall short below.
            continue
        features.update(file.features)
        by_encoder[file.encoder] += 1
        found = list(differences(file, sets, "simplejpeg" in encoders, beside))
        beside = file.data
        for text in found:
            print(f"{file.name}: {text}")
        wrong += bool(found)
    total = by_encoder.total()
    for counts in (by_encoder, features):
        print("\n".join(f"{count:6} {name}" for name, count in sorted(counts.items())))
    print(f"{total} files, {wrong} with differences")
    few = [name for name in FEATURES.split(",") if features[name] < arguments.each]
    if few:
        print(f"fewer than {arguments.each} files: {', '.join(few)}")
    return int(wrong > 0 or bool(few) or total < arguments.files or len(by_encoder) < 4)


if __name__ == "__main__":
    sys.exit(main())
