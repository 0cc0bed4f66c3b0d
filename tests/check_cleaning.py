"""Find planted near-duplicates among crops of photographs, and planted wrong captions.

    python -m tests.check_cleaning                # three seeds of both
    python -m tests.check_cleaning --choose       # the limit of the distance, on other photographs

Images are crops that do not overlap of Debian's photographs, which `fiber data stamps` downloads,
and its stamps on plain colors. Crops that show hardly anything, whose gray levels have a standard
deviation below 8, are left out: those of a sky or a wall cannot be told apart. Copies are
recompressed, resized, or cropped to 95 % of their sides; with `--flips`, a fourth kind is mirrored.
Of every three photographs, one is for `--choose` only. Wrong captions are those of other generated
scenes. Prints recall and precision, and areas under the curve of the scores of captions; the exit
code is 1 if recall or precision is below .95, or an area at chance.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
from PIL import Image

import fiber
from fiber.bulk.cleaning.dedup import DISTANCE, find_duplicates
from fiber.bulk.cleaning.scores import score_texts
from fiber.bulk.map import map as bulk_map
from fiber.bulk.perceptual_hash import near_pairs
from fiber.data.image_file import ENDINGS
from fiber.env import usable_cores
from fiber.synthetic.scenes import generate
from fiber.synthetic.stamp_assets import debian_backgrounds, debian_stamps, read_collection

KINDS = ("recompressed", "resized", "cropped")
#: Least recall and precision, and least standard deviation of the gray levels of a crop.
LEAST, CONTRAST = 0.95, 8.0
#: Largest side of a photograph that crops are taken from, and number of stamps.
_SIDE, _STAMPS = 3000, 300


def photographs(part: str) -> list[Path]:
    """Those for choosing the limit, or the others."""
    folders = debian_backgrounds()
    every = sorted(p for f in folders for p in f.rglob("*") if p.suffix.lower() in ENDINGS)
    random.Random(0).shuffle(every)
    return every[::3] if part == "choose" else [p for n, p in enumerate(every) if n % 3]


def crops(paths: Sequence[Path], count: int, draws: random.Random) -> list[Image.Image]:
    """Crops of photographs in the cells of a grid."""
    found: list[Image.Image] = []
    # Some are left out.
    each = -(-count * 2 // len(paths))
    for path in paths:
        image = Image.open(path).convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
        columns = max(1, round((each * image.width / image.height) ** 0.5))
        rows = -(-each // columns)
        width, height = image.width / columns, image.height / rows
        for cell in range(rows * columns):
            own = width * draws.uniform(0.7, 1), height * draws.uniform(0.7, 1)
            x = width * (cell % columns) + draws.uniform(0, width - own[0])
            y = height * (cell // columns) + draws.uniform(0, height - own[1])
            crop = image.crop((int(x), int(y), int(x + own[0]), int(y + own[1])))
            if np.asarray(crop.convert("L").resize((32, 32))).std() >= CONTRAST:
                found.append(crop)
    draws.shuffle(found)
    assert len(found) >= count, f"{len(found)} crops; expected {count}"
    return found[:count]


def stamps(count: int, draws: random.Random) -> list[Image.Image]:
    """Cut-outs on plain colors."""
    cutouts = list(read_collection(debian_stamps(), debian_backgrounds()).cutouts)
    draws.shuffle(cutouts)
    found = []
    for each in cutouts[:count]:
        image = Image.open(each.path).convert("RGBA")
        side = round(max(image.size) * 1.2)
        color = tuple(draws.choice([255, 230, 200, 180]) for _ in range(3))
        square = Image.new("RGB", (side, side), color)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2), image)
        found.append(square)
    return found


def copied(image: Image.Image, kind: str, draws: random.Random) -> tuple[Image.Image, int]:
    """A near-duplicate, and its quality as JPEG."""
    if kind == "recompressed":
        return image, draws.randint(20, 60)
    if kind == "resized":
        scale = draws.uniform(0.4, 0.8)
        size = (max(32, round(image.width * scale)), max(32, round(image.height * scale)))
        return image.resize(size), 90
    if kind == "mirrored":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90
    width, height = round(image.width * 0.95), round(image.height * 0.95)
    x, y = draws.randint(0, image.width - width), draws.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height)), 90


def plant(
    folder: Path, part: str, images: int, planted: int, seed: int, kinds: Sequence[str]
) -> None:
    """Write images, and copies of some; the name of a copy begins with that of its image."""
    draws = random.Random(seed)
    few = stamps(min(_STAMPS, images // 8), draws)
    every = [*crops(photographs(part), images - len(few), draws), *few]
    draws.shuffle(every)
    folder.mkdir(parents=True)
    for number, image in enumerate(every):
        image.save(folder / f"{number:05}.jpg", quality=92)
    for place, number in enumerate(draws.sample(range(len(every)), planted)):
        kind = kinds[place % len(kinds)]
        with Image.open(folder / f"{number:05}.jpg") as stored:
            image, quality = copied(stored.convert("RGB"), kind, draws)
        image.save(folder / f"{number:05}-{kind}.jpg", quality=quality)


def original(key: str) -> str:
    return key.partition("-")[0].removesuffix(".jpg")


def recall_and_precision(folder: Path, planted: int) -> tuple[float, float, list[str]]:
    """Compare what `fiber data dedup` wrote with what was planted."""
    rows = pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist()
    gone = [row for row in rows if not row["kept"]]
    right = [row for row in gone if original(row["key"]) == original(row["duplicate_of"])]
    # An image may go in the place of its copy, which has more bytes.
    found = {original(row["key"]) for row in right}
    missed = sorted(
        row["key"] for row in rows if "-" in row["key"] and original(row["key"]) not in found
    )
    return len(found) / planted, len(right) / max(1, len(gone)), missed


def check_duplicates(
    work: Path,
    images: int,
    planted: int,
    seed: int,
    kinds: Sequence[str],
    report: Callable[[str], object],
) -> int:
    """Check one seed; return the number of failures."""
    data, output = work / "images", work / "duplicates"
    plant(data, "check", images, planted, seed, kinds)
    find_duplicates(data, output, flips="mirrored" in kinds)
    recall, precision, missed = recall_and_precision(output, planted)
    of = {kind: sum(f"-{kind}." in key for key in missed) for kind in kinds}
    report(
        f"seed {seed}: {planted} near-duplicates of {images} images: recall {recall:.3f}, precision"
        f" {precision:.3f}; missed: {', '.join(f'{n} {kind}' for kind, n in of.items())}"
    )
    return int(recall < LEAST or precision < LEAST)


def choose(work: Path, images: int, planted: int, report: Callable[[str], object]) -> None:
    """Report recall and precision of pairs by distance, and of embeddings by similarity."""
    data = work / "images"
    plant(data, "choose", images, planted, 99, KINDS)
    bulk_map(data, "hash", work / "hashes")
    bulk_map(data, "embed", work / "embeddings", model=fiber.load("scenes", device="cpu"))

    def read(name: str, column: str) -> tuple[list[str], np.ndarray]:
        table = pyarrow.parquet.ParquetDataset(work / name / "rows").read()
        return [original(key) for key in table["key"].to_pylist()], np.stack(
            table[column].to_numpy()
        )

    names, hashes = read("hashes", "hash")
    first, second, distances, _ = near_pairs(hashes, 0.3)
    are_right = np.array([names[a] == names[b] for a, b in zip(first, second, strict=True)])
    for limit in np.arange(0.05, 0.2, 0.01):
        near = distances <= limit
        recall, precision = are_right[near].sum() / planted, are_right[near].mean()
        report(f"distance {limit:.2f}: recall {recall:.3f}, precision {precision:.3f}")
    names, vectors = read("embeddings", "embedding")
    rows, columns = np.triu_indices(len(vectors), 1)
    products = (vectors @ vectors.T)[rows, columns]
    order = np.argsort(-products)[: 20 * planted]
    are_right = np.array([names[rows[n]] == names[columns[n]] for n in order])
    precisions = np.cumsum(are_right) / np.arange(1, len(order) + 1)
    recalls = np.cumsum(are_right) / planted
    best = recalls[precisions >= LEAST].max(initial=0)
    report(f"embeddings of the packaged model: recall {best:.3f} at precision {LEAST}")


def area(scores: np.ndarray, are_wrong: np.ndarray) -> float:
    """Area under the ROC curve of low scores for wrong captions; half for equal scores."""
    wrong, right = scores[are_wrong], np.sort(scores[~are_wrong])
    higher = len(right) - np.searchsorted(right, wrong, side="right")
    equal = np.searchsorted(right, wrong, side="right") - np.searchsorted(right, wrong)
    return float((higher + equal / 2).sum() / (len(wrong) * len(right)))


def check_captions(
    work: Path, images: int, share: float, seed: int, report: Callable[[str], object]
) -> int:
    """Give some images captions of others; return the number of failures."""
    data, draws = work / "scenes", random.Random(seed)
    generate(data, train=1, val=images, novel=1, seed=seed + 100, workers=usable_cores())
    path = data / "captions_val.json"
    content = json.loads(path.read_text())
    entries = content["annotations"]
    chosen = draws.sample(range(len(entries)), round(share * len(entries)))
    texts = [entries[number]["caption"] for number in chosen]
    planted = set()
    for number, text in zip(chosen, texts[1:] + texts[:1], strict=True):
        if entries[number]["caption"] != text:
            planted.add(number)
        entries[number]["caption"] = text
    path.write_text(json.dumps(content))
    score_texts(data, work / "scores", model="scenes", source="captions", split="val", device="cpu")
    rows = pyarrow.parquet.read_table(work / "scores" / "rows.parquet").to_pylist()
    are_wrong = np.array([row["record"] in planted for row in rows])
    areas = {name: area(np.array([r[name] for r in rows]), are_wrong) for name in ("itm", "itc")}
    flagged = np.array([row["flagged"] for row in rows])
    report(
        f"seed {seed}: {are_wrong.sum()} wrong captions of {len(rows)}: area by ITM"
        f" {areas['itm']:.3f}, by ITC {areas['itc']:.3f}, chance .500; {flagged.sum()} flagged, of"
        f" which {(flagged & are_wrong).sum()} are wrong"
    )
    return sum(value <= 0.5 for value in areas.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--planted", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "'scenes', the model in the package")
    failures = 0
    kinds = (*KINDS, "mirrored") if options.flips else KINDS
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            if options.choose:
                choose(work, options.images, options.planted, print)
                return 0
            given = work, options.images, options.planted, seed, kinds, print
            failures += check_duplicates(*given)
            failures += check_captions(work, options.scenes, 0.1, seed, print)
    print(f"{failures} failures; the limit of the distance is {DISTANCE}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
