"""`fiber data inspect`: what a data folder holds, and which of its files are broken."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fiber.data import coco_folders, load_image, sources
from fiber.data.annotations import FILES
from fiber.data.left_out import counted
from fiber.data.records import Record

#: Classes of a file that are named with their boxes.
_CLASSES = 12
#: Faults of one kind that are named one by one.
_NAMED = 10
_READERS: dict[str, Callable[..., Any]] = {
    "captions": sources.captions,
    "phrases": sources.phrases,
    "referring": sources.referring,
    "questions": sources.questions,
    "detection": coco_folders.coco_detection,
    "reasoning": sources.reasoning,
    "swapped": sources.swapped,
}


def inspect(folder: Path) -> int:
    """Print counts and faults; gives the exit code: 1 if there are faults.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no annotation file that we read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = _annotation_files(folder)
    if not found:
        names = ", ".join(name.format(split="SPLIT") for name in FILES.values())
        raise ValueError(f"{folder}: no annotation file in this folder; expected some of {names}")
    description = folder / "dataset.json"
    if description.is_file():
        made = json.loads(description.read_text(encoding="utf-8")).get("parameters", {})
        print(", ".join(f"{name} {value}" for name, value in made.items()))
    faults: list[str] = []
    pictures: dict[str, Counter[str]] = {}
    for split, kinds in found.items():
        shown = pictures.setdefault(split, Counter())
        print(f"\n{split}")
        for kind in kinds:
            try:
                records = _READERS[kind](folder, split)
            except (ValueError, OSError) as error:
                faults.append(str(error))
                print(f"  {kind:<10} unreadable")
                continue
            shown.update(str(image) for record in records for image in record.images)
            print(f"  {kind:<10} {_summary(records)}")
    print("\npictures")
    for split, shown in pictures.items():
        sizes, broken = _check_pictures(sorted(shown))
        faults += broken
        print(f"  {split:<10} {len(shown)} pictures, {_sizes(sizes)}, {len(broken)} broken")
    for fault in faults[:_NAMED]:
        print(f"fault: {fault}")
    if len(faults) > _NAMED:
        print(f"and {len(faults) - _NAMED} more")
    return 1 if faults else 0


def _annotation_files(folder: Path) -> dict[str, list[str]]:
    """Find the kinds of annotations of every split; "train" comes first, then the rest by name."""
    found: dict[str, list[str]] = {}
    for kind, template in FILES.items():
        pattern = re.escape(template).replace(r"\{split\}", "(.+)")
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(pattern, path.name)
            if match and kind in _READERS:
                found.setdefault(match.group(1), []).append(kind)
    # Boxes in the layouts of other tools; a split may be a part of another one's file.
    for split in ("train", "val", "test"):
        if coco_folders.find(folder, split) is not None and "detection" not in found.get(split, ()):
            found.setdefault(split, []).append("detection")
    return dict(sorted(found.items(), key=lambda item: (item[0] != "train", item[0])))


def _summary(records: Any) -> str:
    boxes = sum(len(record.boxes_xyxy) for record in records)
    words = [len(record.text.split()) for record in records]
    parts = [f"{len(records)} records"]
    if words:
        parts.append(f"{min(words)} to {max(words)} words")
    if boxes:
        parts.append(f"{boxes} boxes")
    if getattr(records, "classes", ()):
        # From the most to the least frequent; what no box shows is not learned.
        shown = Counter(r.labels[label] for r in records for label in r.box_labels)
        counts = [(name, shown[name]) for name in records.classes]
        counts.sort(key=lambda item: -item[1])
        named = [f"{name} {count}" for name, count in counts]
        some = named if len(named) <= _CLASSES else [*named[: _CLASSES - 1], "...", named[-1]]
        parts.append(f"{len(named)} classes ({', '.join(some)})")
    answers = Counter(answer for record in records if (answer := _best_answer(record)) is not None)
    if answers:
        common = ", ".join(f"{answer} {count}" for answer, count in answers.most_common(3))
        parts.append(f"{len(answers)} answers ({common}, ...)")
    truths = Counter(record.truth for record in records if record.truth is not None)
    if truths:
        parts.append(f"{truths[True]} true, {truths[False]} false")
    parts += [counted(count, what) for what, count in sorted(records.counts.items())]
    return "; ".join([", ".join(parts), *records.notes])


def _best_answer(record: Record) -> str | None:
    answers = record.answers
    return max(answers, key=lambda answer: answers[answer]) if answers else None


def _check_pictures(paths: list[str]) -> tuple[Counter[tuple[int, int]], list[str]]:
    """Decode every picture; gives how often each (height, width) occurs, and what is broken."""
    sizes: Counter[tuple[int, int]] = Counter()
    broken = []
    with ThreadPoolExecutor() as pool:
        for size, fault in pool.map(_check_picture, paths):
            if fault:
                broken.append(fault)
            elif size:
                sizes[size] += 1
    return sizes, broken


def _check_picture(path: str) -> tuple[tuple[int, int] | None, str]:
    try:
        height, width = load_image(path).shape[:2]
    except FileNotFoundError:
        return None, f"picture {path} does not exist"
    except OSError as error:
        return None, f"picture {path} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return None, str(error)
    return (height, width), ""


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none that can be read"
    smallest, largest = min(sizes), max(sizes)
    (height, width), _ = sizes.most_common(1)[0]
    if smallest == largest:
        return f"all {width} x {height} pixels"
    heights, widths = [h for h, _ in sizes], [w for _, w in sizes]
    return (
        f"{min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high,"
        f" most often {width} x {height}"
    )
