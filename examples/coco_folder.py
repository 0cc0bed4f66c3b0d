"""Make a folder in COCO format, laid out as people have theirs, from real cut-outs on photographs.

python examples/coco_folder.py runs/own --layout roboflow
fiber train small_detection --data runs/own --output runs/own-model

It stands for a dataset of your own. Layouts: "coco" (annotations/instances_train2017.json and
train2017), "roboflow" (train/_annotations.coco.json), "single" (annotations.json and images, no
validation split). The cut-outs are Debian's, fetched with apt-get and kept in the cache, or yours.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fiber.synthetic.stamp_assets import Cutout, debian_stamps, one_of_each, read_collection
from fiber.synthetic.stamps import generate

#: Layout -> annotation file and folder of pictures of a split, and what it calls its splits.
LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017", {"train": "train", "val": "val"}),
    "roboflow": ("{}/_annotations.coco.json", "{}", {"train": "train", "val": "valid"}),
    "single": ("annotations.json", "images", {"train": ""}),
}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("output", type=Path, help="folder that does not exist yet")
    options.add_argument("--layout", choices=LAYOUTS, default="roboflow")
    options.add_argument("--images", type=int, default=400, help="training pictures")
    options.add_argument("--classes", type=int, default=8)
    options.add_argument("--image-size", type=int, default=240, help="side in pixels")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--stamps", type=Path, help="folder of PNG files beside .txt captions")
    options.add_argument("--backgrounds", type=Path, help="folder of photographs")
    given = options.parse_args()
    if given.classes < 3:
        raise SystemExit(f"--classes {given.classes}: expected 3 or more")
    if given.output.exists():
        raise SystemExit(f"{given.output} exists; name a folder that does not")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        stamps = given.stamps or debian_stamps()
        for cutout in choose(stamps, given.classes, given.seed):
            for suffix in (".png", ".txt"):
                (folder / "stamps").mkdir(exist_ok=True)
                shutil.copy(Path(cutout.path).with_suffix(suffix), folder / "stamps")
        generate(
            folder / "data",
            train=given.images,
            val=max(1, given.images // 5),
            novel=0,
            image_size=given.image_size,
            stamps=folder / "stamps",
            backgrounds=given.backgrounds,
            seed=given.seed,
        )
        file, pictures, splits = LAYOUTS[given.layout]
        for split, name in splits.items():
            lay_out(
                folder / "data",
                split,
                given.output / file.format(name),
                given.output / pictures.format(name),
            )
    print(given.output)


def choose(stamps: Path, classes: int, seed: int) -> Iterable[Cutout]:
    """Choose one cut-out of each of some kinds of things, the largest ones of a random draw."""
    # The generator holds one kind in eight out of its training pictures.
    wanted = classes + 1
    while wanted - max(1, wanted // 8) < classes:
        wanted += 1
    # Photographs do not matter here, but there must be some.
    cutouts = read_collection(stamps, [stamps]).cutouts
    try:
        return one_of_each(cutouts, wanted, seed)
    except ValueError as problem:
        raise SystemExit(f"{stamps}: {problem}") from None


def lay_out(data: Path, split: str, file: Path, pictures: Path) -> None:
    """Write a split of a data folder of `fiber data` as one annotation file and flat pictures."""
    content = json.loads((data / f"instances_{split}.json").read_text())
    pictures.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        name = entry["file_name"].replace("/", "_")
        shutil.copy(data / "images" / entry["file_name"], pictures / name)
        entry["file_name"] = name
    shown = {entry["category_id"] for entry in content["annotations"]}
    content["categories"] = [c for c in content["categories"] if c["id"] in shown]
    file.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
