"""RefCOCO, RefCOCO+ and RefCOCOg as published (Yu et al. 2016): the files that REFER reads.

    refs(unc).p       [{"ann_id": 1, "split": "testA", "sentences": [{"sent": "left dog"}]}, ...]
    instances.json    COCO instances of the images of all splits

The pickles are read without importing or calling anything that they name.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from fiber.atomic_io import check_regular_file
from fiber.data.formats.annotation_file import AnnotationFile, read_json
from fiber.data.formats.json_values import id_key, split_problem, surrogate_problem
from fiber.data.formats.jsonl import MAX_SPLITS
from fiber.inert_pickle import PICKLE_ERRORS, HostileFileError, read_pickle
from fiber.messages import printable, shown, shown_names

KIND = "RefCOCO, REFER's files"
#: Names of the files of references, the published choice of each dataset first, and of the objects.
NAMES, OBJECTS = ("refs(unc).p", "refs(umd).p", "refs(google).p"), "instances.json"
#: Maximum number of characters of a sentence, and of sentences of a reference. Pickles can name one
#: long value many times.
_MAX_TEXT, _MAX_SENTENCES = 4096, 1000

#: Sentences by the id of their object.
_Sentences = dict[Any, list[dict[str, Any]]]


def find(path: Path) -> dict[str, Path]:
    """Return the splits of a file of references, or of a folder, which has one; {} for others.

    Raises:
        ValueError: if the file is damaged.
    """
    names = [path.name] if path.is_file() else NAMES
    folder = path.parent if path.is_file() else path
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None or not is_references(file) or not (folder / OBJECTS).is_file():
        return {}
    return dict.fromkeys(_read(file), file)


def is_references(path: Path) -> bool:
    """Return whether a path has the name of a file of references."""
    return path.name.startswith("refs(") and path.suffix == ".p"


def read_refer(path: Path, split: str) -> AnnotationFile:
    """Read the objects of a split, in COCO's form, with their `sentences`.

    Args:
        path: refs(*).p, with instances.json beside it.
        split: such as "train" or "testA".

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the pickle is damaged or calls something, or a reference is invalid or names
            no object of instances.json; the error names the file and the reference.
    """
    found = _read(path)
    _parse.cache_clear()
    if split not in found:
        raise ValueError(f"{path} has no split {shown(split)}; it has {shown_names(sorted(found))}")
    file = read_json(path.parent / OBJECTS, KIND).require_list("images")
    left, images = dict(found[split]), set()
    for entry in file.walk("annotations"):
        sentences = left.pop(file.id_key(entry, "id"), None)
        # What a file of expressions would have there is of other objects.
        entry["sentences"] = sentences or []
        if sentences:
            images.add(id_key(file.get(entry, "image_id", int, str)))
    if left:
        ids = shown_names(left, 3)
        raise ValueError(
            f"{path}: the references of {split} name the objects {ids}, which {file.path} lacks"
        )
    # Others are of other splits.
    file.keep("images", lambda entry: file.id_key(entry, "id") in images)
    file.keep("annotations", lambda entry: id_key(file.get(entry, "image_id", int, str)) in images)
    return file


def _read(path: Path) -> dict[str, _Sentences]:
    """Return the sentences of each split."""
    check_regular_file(path)
    return _parse(path, path.read_bytes())


# A split is read after its layout was found by the same content, and the published files are large.
@lru_cache(maxsize=1)
def _parse(path: Path, data: bytes) -> dict[str, _Sentences]:
    expected = "expected a list of references"
    try:
        content, _ = read_pickle(BytesIO(data), max_operations=len(data) + 1)
    except HostileFileError as error:
        raise ValueError(
            f"{path} tries to run code when loaded: it calls {error}, which was not run; {expected}"
        ) from error
    except PICKLE_ERRORS as error:
        reason = printable(str(error), 200)
        raise ValueError(f"{path} is no pickle: {reason}; {expected}") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} has {shown(content)}; {expected}")
    references = AnnotationFile(path, KIND, {"references": content})
    found: dict[str, _Sentences] = {}
    for reference in references.walk("references"):
        split = references.get(reference, "split", str)
        if (problem := split_problem(split)) is not None:
            raise references.error(f"has {problem}")
        if split not in found and len(found) == MAX_SPLITS:
            raise references.error(f"has split {shown(split)}, after {MAX_SPLITS} other splits")
        key = id_key(references.get(reference, "ann_id", int))
        found.setdefault(split, {}).setdefault(key, []).extend(_sentences(references, reference))
    return found


def _sentences(file: AnnotationFile, reference: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the texts of a reference, as those of files of expressions."""
    entries = file.get(reference, "sentences", list)
    if len(entries) > _MAX_SENTENCES:
        raise file.error(f"has {len(entries):,} 'sentences'; expected at most {_MAX_SENTENCES:,}")
    texts = []
    for entry in file.objects(reference, "sentences"):
        key = "sent" if "sent" in entry else "raw"
        text = file.get(entry, key, str)
        if len(text) > _MAX_TEXT:
            raise file.error(
                f"has a {key!r} of {len(text):,} characters; expected at most {_MAX_TEXT:,}"
            )
        if (problem := surrogate_problem(text)) is not None:
            raise file.error(problem)
        texts.append({"sent": file.text(entry, key)})
    return texts
