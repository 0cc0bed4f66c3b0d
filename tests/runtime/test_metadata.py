"""Odd values in metadata.json are read, or refused by a message that names the file."""

import copy
import json
import math
import re
from itertools import islice
from pathlib import Path

import pytest

import fiber.runtime
from fiber.runtime.metadata import FILE
from tests.runtime import unloaded

#: Values of every type, among them those that overflow, and texts that act on a terminal.
ODD = {
    "null": None,
    "true": True,
    "-1": -1,
    "0": 0,
    "1e300": 1e300,
    "infinity": math.inf,
    "not a number": math.nan,
    "10^400": 10**400,
    "2^63": 2**63,
    "empty string": "",
    "NUL": "\0",
    "escape": "\x1b[2J\x1b]0;a\x07",
    "direction marks": "\u202e\u200e\u200f\u061c",
    "lone surrogate": "\ud800",
    "path": "../../etc/passwd",
    "1 MB": "a" * 1_000_000,
    "empty list": [],
    "list": [1, 2, 3],
    "empty object": {},
    "nested": {"a": [[{"\x1b": [None]}]]},
}
#: Names of fields.
ODD_KEYS = ("", "\0", "\x1b[2J", "\u202e", "\ud800", "a" * 100_000)
#: Items of a list that are replaced.
ITEMS = 2
#: Length in characters of the longest message, besides the path of the file.
MAX_MESSAGE = 1500


def places(value, path=()):
    """Yield the place of every value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), ITEMS)):
            yield from places(value[index], (*path, index))


def put(value, path, new):
    """Return a document with a value at a place; its other parts are shared."""
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def mutants(document):
    """Yield documents with an odd value or key at each place, or without what was there."""
    for path in places(document):
        name = ".".join(map(str, path))
        for odd, value in ODD.items():
            yield f"{name} = {odd}", put(document, path, value)
        if path and isinstance(path[-1], str):
            *parents, key = path
            parent = document
            for each in parents:
                parent = parent[each]
            rest = {each: value for each, value in parent.items() if each != key}
            yield f"without {name}", put(document, tuple(parents), rest)
            for number, odd in enumerate(ODD_KEYS):
                renamed = {**rest, odd: parent[key]}
                yield f"{name} has odd name {number}", put(document, tuple(parents), renamed)


def problems(path, read, documents):
    """Write and read documents; return what is wrong with the outcomes, and their counts."""
    found, counts = [], {"read": 0, "refused": 0}
    for name, document in documents:
        # Lone surrogates are written as escapes.
        path.write_text(json.dumps(document))
        try:
            read()
        except (ValueError, OSError) as error:
            counts["refused"] += 1
            if problem := complaint(str(error), path):
                found.append(f"{name}: {problem}: {str(error)[:300]!r}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {str(error)[:300]!r}")
        else:
            counts["read"] += 1
    assert all(counts.values()), counts
    return found


def complaint(message, path):
    """Say what is wrong with a message, or return ""."""
    # Of a file whose size or checksum differs, both are named.
    if str(path.parent) not in message or path.name not in message:
        return "does not name the file"
    if len(message) > MAX_MESSAGE + len(str(path)):
        return f"{len(message)} characters"
    return "" if message.isprintable() else "control characters"


def test_a_complaint():
    path = Path("metadata.json")
    assert complaint("metadata.json: no", path) == ""
    assert "name" in complaint("no", path)
    assert "control" in complaint("metadata.json \u200e", path)
    assert "characters" in complaint("metadata.json" + "a" * 2000, path)


@pytest.fixture(scope="module", params=["fine", "coarse", "METER", "X-Decoder"])
def graphs(request, tmp_path_factory):
    return unloaded.write(request.param, tmp_path_factory.mktemp("graphs"))


#: One of so many mutants is read. A place has 20 or 27 of them: neither number has a divisor in
#: common with these, so that every value is drawn at some places.
SOME, MANY = 29, 7


@pytest.mark.parametrize("every", [SOME, pytest.param(MANY, marks=pytest.mark.slow)])
def test_odd_values_in_metadata_are_read_or_refused(graphs, every):
    path = graphs / FILE
    document = json.loads(path.read_text())
    drawn = islice(mutants(document), 0, None, every)
    found = problems(path, lambda: fiber.runtime.load(graphs, engine="torch"), drawn)
    path.write_text(json.dumps(document))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("detector", "size_divisor"), math.inf, "detector.size_divisor: expected int, got inf"),
        (("detector", "size_divisor"), 2**63, "detector.size_divisor: expected 1 to 65536, got"),
        (("detector", "strides"), [], "detector.strides: expected 1 to 16 strides, got ()"),
        (("detector", "max_log_scale"), math.nan, "detector: boxes are coded with"),
        (("image_transform", "arguments", "std", 0), 10**400, "std: expected 1e-06 to"),
        (("image_transform", "arguments", "filter"), "\x1b", "filter: expected one of 'bilinear'"),
        (("graphs", "image_prefix", "outputs"), [], "outputs: expected tokens, got none"),
        (("graphs", "image_prefix", "outputs", 0, "shape"), [], "outputs.tokens: expected a shape"),
        (("graphs", "pair", "outputs", 0, "shape", 1), 2**63, "token_logits.shape: expected an"),
        (("graphs", "pair", "inputs", 0, "name"), "\u202e", r"names of tensors, got '\u202e'"),
        (("files", "pair.pt2", "sha256"), "\x1b", r"64 hexadecimal digits, got '\x1b'"),
        (("heads", 0), "\0", r"heads: expected names of heads, got '\x00'"),
        (("heads", 0), "itc", "heads: expected some of grounding, which the model has, got itc"),
        (("heads",), [], "heads: expected some of grounding"),
        (("model",), {"family": []}, "model.family: the graphs are of a model of the family []"),
        (("model", "swin", "depths"), [1] * 10_000, "10,000 in all"),
        (("tokenizer",), "pair.onnx", "tokenizer: files has no 'pair.onnx'"),
        (("detector",), None, "detector: expected an object, got None"),
    ],
)
def test_what_is_wrong_is_named(detector, place, value, message):
    folder, document = detector
    (folder / FILE).write_text(json.dumps(put(document, place, value)))
    with pytest.raises(ValueError, match=rf"metadata\.json: .*{re.escape(message)}"):
        fiber.runtime.load(folder, engine="torch")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("masks",), None, "masks: expected an object, got None"),
        (("masks", "templates"), ["a dog"], "masks.templates: expected texts with {} in the place"),
        (("masks", "templates"), [], "masks.templates: expected texts with {}"),
        (("masks", "background"), " ", "masks: expected a background and removed parts"),
        (("masks", "removed", 0), "", "masks: expected a background and removed parts"),
        (("text", "cleaning"), "soap", "text.cleaning: expected '' or one of 'clip', got 'soap'"),
        (("task_transforms", "caption"), 3, "task_transforms.caption: expected an object, got 3"),
        (("task_transforms", "caption", "name"), "x", "task_transforms.caption: expected a name"),
        (("graphs", "pixel_maps", "outputs"), [], "graphs.pixel_maps.outputs: expected map_1, map"),
        (("graphs", "texts", "outputs", 1, "shape"), [2], "the shape of text_vectors must have 2"),
    ],
)
def test_what_is_wrong_with_masks_is_named(segmenter, place, value, message):
    folder, document = segmenter
    (folder / FILE).write_text(json.dumps(put(document, place, value)))
    with pytest.raises(ValueError, match=rf"metadata\.json: .*{re.escape(message)}"):
        fiber.runtime.load(folder, engine="torch")


def test_masks_of_boxes_need_a_stride(tmp_path):
    folder = unloaded.write("fine two blocks", tmp_path)
    document = json.loads((folder / FILE).read_text())
    for value, message in (
        (None, r"mask_stride: expected an integer, got None"),
        (0, "mask_stride: expected 1"),
    ):
        changed = put(document, ("detector", "mask_stride"), value)
        (folder / FILE).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=rf"metadata\.json: .*detector\.{message}"):
            fiber.runtime.load(folder, engine="torch")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = unloaded.write("X-Decoder", tmp_path_factory.mktemp("segmenter"))
    return folder, json.loads((folder / FILE).read_text())


def test_graphs_that_are_missing_are_named(detector):
    folder, document = detector
    for name in ("image_prefix", "pair"):
        left = {key: value for key, value in document["graphs"].items() if key != name}
        (folder / FILE).write_text(json.dumps({**document, "graphs": left}))
        with pytest.raises(ValueError, match=rf"metadata\.json: graphs\.{name}: missing"):
            fiber.runtime.load(folder, engine="torch")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = unloaded.write("fine", tmp_path_factory.mktemp("detector"))
    return folder, json.loads((folder / FILE).read_text())


def test_answers_are_as_many_as_the_logits(tmp_path):
    folder = unloaded.write("METER", tmp_path)
    document = json.loads((folder / FILE).read_text())
    changed = {**document, "answers": document["answers"][1:]}
    (folder / FILE).write_text(json.dumps(changed))
    count = len(document["answers"])
    with pytest.raises(
        ValueError, match=rf"answers: got {count - 1} strings, .* returns {count} logits"
    ):
        fiber.runtime.load(folder, engine="torch")
