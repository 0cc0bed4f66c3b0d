"""Records as JSON objects, one per line of a packed folder's index."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from fiber.data.formats.json_values import MAX_ID, is_integer, is_number
from fiber.data.masks.codec import read_map
from fiber.data.masks.mask import IdMap, Mask, Masks, PackedMask, Polygons, Rle
from fiber.data.record import LazyImages, Record, SharedSpans, TrueObjects
from fiber.messages import shown

#: Fields that many records may share, such as the prompt of all classes.
SHARED = ("text", "labels", "label_spans", "label_ids", "label_groups")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Record)}


def to_entry(record: Record) -> dict[str, Any]:
    """Convert a record to a JSON-serializable dict, omitting images and default values.

    Raises:
        OSError: if an id map, whose content is included, cannot be read.
    """
    values = {name: getattr(record, name) for name in _DEFAULTS if name != "images"}
    entry = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
    if record.masks:
        entry["masks"] = _masks_entry(record.masks)
    if record.objects is not None:
        entry["objects"] = objects = dataclasses.asdict(record.objects)
        for key in ("absent", "incomplete"):
            objects[key] = None if objects[key] is None else sorted(objects[key])
    # Box spans are omitted if they equal those of the labels.
    if entry.get("char_spans") and record.char_spans == _spans_of_labels(record):
        del entry["char_spans"]
    elif record.boxes_xyxy and not record.char_spans:
        entry["char_spans"] = []
    return entry


def _spans_of_labels(record: Record) -> tuple[Any, ...]:
    if not all(label < len(record.label_spans) for label in record.box_labels):
        return ()
    return tuple(record.label_spans[label] for label in record.box_labels)


def from_entry(
    entry: dict[str, Any],
    images: tuple[Any, ...] | LazyImages,
    shared: dict[str, Any] | None = None,
) -> Record:
    """Create a record from the output of `to_entry`, its images, and shared fields.

    `shared` is the output of `read_fields`.

    Raises:
        ValueError: if a field is unknown or invalid, or the fields do not fit each other.
    """
    shared = shared or {}
    fields = {**read_fields(entry, len(shared.get("labels", ()))), **shared}
    count, labels = len(fields.get("labels", ())), fields.get("box_labels", ())
    _check_labels("box_labels", labels, count)
    if (objects := fields.get("objects")) is not None:
        for name in ("labels", "absent", "incomplete"):
            _check_labels(f"objects.{name}", getattr(objects, name) or (), count)
    if "char_spans" not in fields and "label_spans" in fields:
        spans = fields["label_spans"]
        _check_labels("box_labels", labels, len(spans))
        fields["char_spans"] = tuple(spans[label] for label in labels)
    return Record(images=images, **fields)


def read_fields(entry: dict[str, Any], label_count: int = 0) -> dict[str, Any]:
    """Check fields of records in JSON, and convert their lists to tuples.

    `label_count` is the number of labels of an entry that has none of its own.

    Raises:
        ValueError: if a field is unknown, or a value is of another type.
    """
    fields = {}
    for name, value in entry.items():
        if name not in _CHECKS:
            raise ValueError(f"unknown field {shown(name)}")
        _check(name, value, *_CHECKS[name])
        if name != "objects":
            fields[name] = _to_masks(value) if name == "masks" else _tuples(value)
    if "objects" in entry:
        fields["objects"] = _to_objects(
            entry["objects"], len(fields.get("labels", ())) or label_count
        )
    if "label_spans" in fields:
        fields["label_spans"] = SharedSpans(fields["label_spans"])
    return fields


def _masks_entry(masks: Masks) -> Any:
    """Convert masks to JSON values."""
    if isinstance(masks, IdMap):
        fields = {name: value for name, value in masks._asdict().items() if name != "image"}
        return {"png": base64.b64encode(read_map(masks)).decode(), **fields}
    return [_mask_entry(mask) for mask in masks]


def _mask_entry(mask: Mask) -> dict[str, Any]:
    if isinstance(mask, Polygons):
        return {"rings": mask.rings}
    if isinstance(mask, PackedMask):
        return {"bits": base64.b64encode(mask.bits).decode(), "size": mask.size}
    counts = mask.counts
    # The text of a mask is ASCII; the loader reports other bytes.
    return {
        "counts": counts.decode("latin-1") if isinstance(counts, bytes) else counts,
        "size": mask.size,
    }


def _to_masks(value: Any) -> Masks:
    """Convert the output of `_masks_entry`."""
    if isinstance(value, list):
        return tuple(map(_to_mask, value))
    for name, found in value.items():
        if name not in _MAP_CHECKS:
            raise ValueError(f"unknown field masks.{shown(name)}")
        _check(f"masks.{name}", found, *_MAP_CHECKS[name])
    if missing := {"png", "ids"} - value.keys():
        raise ValueError(f"masks have no {min(missing)}; expected the fields of an id map")
    fields = {name: _tuples(found) for name, found in value.items()}
    return IdMap(_from_base64("png", fields.pop("png")), **fields)


def _to_mask(value: Any) -> Mask:
    for kind in _MASK_CHECKS:
        if isinstance(value, dict) and value.keys() == set(kind):
            for name, found in value.items():
                _check(f"masks.{name}", found, *kind[name])
            break
    else:
        raise ValueError(f"masks have {shown(value)}; expected counts, rings or bits")
    fields = {name: _tuples(found) for name, found in value.items()}
    if "rings" in fields:
        return Polygons(**fields)
    if "bits" not in fields:
        return Rle(**fields)
    return PackedMask(_from_base64("bits", fields["bits"]), fields["size"])


def _from_base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise ValueError(f"masks.{name} is no base64: {problem}") from None


def _to_objects(value: dict[str, Any], label_count: int) -> TrueObjects:
    fields = {}
    for name, found in value.items():
        if name not in _OBJECT_CHECKS:
            raise ValueError(f"unknown field objects.{shown(name)}")
        _check(f"objects.{name}", found, *_OBJECT_CHECKS[name])
        fields[name] = _tuples(found)
        if name in ("absent", "incomplete") and found is not None:
            # Larger integers, which are their own hashes, could all probe the same slots of a set.
            _check_labels(f"objects.{name}", found, label_count)
            fields[name] = frozenset(found)
    objects = TrueObjects(**fields)
    counts = {name: len(getattr(objects, name)) for name in _PER_OBJECT}
    if len(set(counts.values())) > 1:
        raise ValueError(f"objects have {shown(counts)} values; expected as many of each")
    return objects


def _check(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    if not fits(value):
        raise ValueError(f"{name} is {shown(value)}; expected {expected}")


def _check_labels(name: str, labels: Collection[int], count: int) -> None:
    if labels and max(labels) >= count:
        raise ValueError(f"{name} has {max(labels)}; expected indices of {count} labels")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_integer, value))


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _is_index(value: Any) -> bool:
    return is_integer(value, 0, 2**31)


def _is_id(value: Any) -> bool:
    return is_integer(value, -MAX_ID)


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check of a list whose items all pass a check."""
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


_Check = tuple[str, Callable[[Any], bool]]
_TEXT: _Check = ("a string", _is_text)
_TEXTS: _Check = ("a list of strings", _are(_is_text))
_SPANS: _Check = ("lists of [start, end] pairs", _are(_are(_is_span)))
_BOXES: _Check = ("a list of boxes of four numbers", _are(_is_box))
_INDICES: _Check = ("a list of indices", _are(_is_index))
#: Description of the expected value of each field, and its check.
_CHECKS: dict[str, _Check] = {
    **dict.fromkeys(("key", "text", "image_id", "group"), _TEXT),
    **dict.fromkeys(("labels", "label_groups", "human_answers", "phrases"), _TEXTS),
    **dict.fromkeys(("char_spans", "label_spans"), _SPANS),
    "boxes_xyxy": _BOXES,
    **dict.fromkeys(("box_labels", "mask_labels"), _INDICES),
    "masks": ("a list of masks, or the ids of a map", lambda v: isinstance(v, list | dict)),
    "mask_crowd": ("a list of true or false", _are(_is_bool)),
    "phrase_masks": ("lists of indices", _are(_are(_is_index))),
    # -1 is no mask; `Record` checks the others.
    "box_masks": ("a list of integers", _are(_is_id)),
    "label_ids": ("a list of integers", _are(_is_id)),
    # `Record` checks the numbers.
    "image_size": ("a list of two integers", _are(is_integer)),
    "objects": ("an object", lambda value: isinstance(value, dict)),
    "answers": ("an object of scores", _are_scores),
    "truth": ("true or false", _is_bool),
}
_SIZE: _Check = ("a list of two integers", _is_span)
#: Checks of the fields of each kind of mask.
_MASK_CHECKS: tuple[dict[str, _Check], ...] = (
    {
        "counts": ("a string or a list of integers", lambda v: _is_text(v) or _are(_is_id)(v)),
        "size": _SIZE,
    },
    {"rings": ("lists of numbers", _are(_are(is_number)))},
    {"bits": ("a string", _is_text), "size": _SIZE},
)
_MAP_CHECKS: dict[str, _Check] = {
    "png": ("a string", _is_text),
    **dict.fromkeys(("ids", "void"), _INDICES),
    "coding": ("'rgb' or 'gray'", lambda v: v in ("rgb", "gray")),
    "may_lack": ("true or false", _is_bool),
}
_OBJECT_CHECKS: dict[str, _Check] = {
    "boxes_xyxy": _BOXES,
    "labels": _INDICES,
    "areas": ("a list of numbers", _are(is_number)),
    "crowd": ("a list of true or false", _are(_is_bool)),
    "absent": ("null or a list of indices", lambda v: v is None or _are(_is_index)(v)),
    "incomplete": _INDICES,
}
#: Fields of `TrueObjects` that have a value for each object.
_PER_OBJECT = ("boxes_xyxy", "labels", "areas", "crowd")
