"""What a caller sees when data are wrong: the type, the record and the file."""

from types import SimpleNamespace

import pytest

from fiber import DecodeError, _core
from fiber._core import ImageTransform, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], 261)


#: Fields of masks of a record without any.
NO_MASKS = dict.fromkeys(
    ("masks", "mask_labels", "mask_crowd", "phrases", "phrase_masks", "box_masks"), ()
)


def run(tokenizer, *, task="grounding", **changes):
    """Send one record through the loader."""
    record = {
        "key": "coco/391895",
        "epoch": 0,
        "index": 0,
        "images": (),
        "text": "a cup",
        "image_id": "a",
        "boxes_xyxy": [],
        "char_spans": [],
        "answers": None,
        "truth": None,
        "image_size": None,
    } | changes
    loader = _core.Loader(
        task,
        tokenizer,
        ImageTransform.squash(4),
        max_tokens=8,
        seed=0,
        mlm_probability=0.15,
        mirrored_answers=[],
        threads=1,
        keep=2,
        on_error="raise",
        accept_truncated=False,
        scaled_decoding=False,
        apply_orientation=False,
        background=None,
        dtype="float32",
        layout="chw",
    )
    session = loader.open()
    record = {**NO_MASKS, **record}
    own = {name: record.pop(name) for name in ("epoch", "index", "images", "answers")}
    session.submit([_core.LoaderRecord.from_record(SimpleNamespace(**record), **own)])
    return session.next()


def test_a_missing_file_is_a_file_not_found_error(tokenizer):
    with pytest.raises(FileNotFoundError) as caught:
        run(tokenizer, images=["images/x.jpg"])
    assert caught.value.filename == "images/x.jpg"
    expected = "[Errno 2] record 'coco/391895': No such file or directory: 'images/x.jpg'"
    assert str(caught.value) == expected


def test_a_broken_file_is_a_decode_error(tokenizer, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"")
    with pytest.raises(DecodeError) as caught:
        run(tokenizer, images=[path])
    known = "JPEG, PNG, WebP, GIF, BMP or TIFF"
    expected = f"record 'coco/391895': {path}: empty file; expected a {known} file"
    assert str(caught.value) == expected
    with pytest.raises(DecodeError, match=r"^record 'coco/391895': starts with bytes 78 79"):
        run(tokenizer, images=[b"xy"])
    assert issubclass(DecodeError, ValueError)


def test_a_folder_is_an_os_error(tokenizer, tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        run(tokenizer, images=[tmp_path])
    assert caught.value.filename == str(tmp_path) and "coco/391895" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("image_text", {}, "images: 0 images; expected 1 for this task"),
        ("reasoning", {"images": [b""]}, "images: 1 images; expected 2 for this task"),
        ("reasoning", {"images": [b"", b""]}, "truth: missing; expected True or False"),
        (
            "grounding",
            {"images": [b""], "boxes_xyxy": [(0, 0, 1, 1)]},
            "char_spans: 0 entries for 1 boxes; expected one for each box",
        ),
    ],
)
def test_what_a_task_misses_is_named(tokenizer, task, changes, message):
    with pytest.raises(ValueError) as caught:
        run(tokenizer, task=task, **changes)
    assert str(caught.value) == f"record 'coco/391895': {message}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", 3),
        ("images", "one.png"),
        ("images", [3]),
        ("text", 3),
        ("image_id", None),
        ("boxes_xyxy", [(0, 0, 1)]),
        ("char_spans", [[(0, "1")]]),
        ("answers", "yes"),
        ("truth", 1),
        ("image_size", (1, 2, 3)),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_its_record(tokenizer, field, value):
    key = value if field == "key" else "coco/391895"
    with pytest.raises(TypeError, match=rf"^record '{key}': {field}\b"):
        run(tokenizer, **{"images": [b""], field: value})


@pytest.mark.parametrize("wrong", [{"index": -1}, {"epoch": "one"}], ids=str)
def test_a_number_of_a_record_is_checked(tokenizer, wrong):
    with pytest.raises((TypeError, OverflowError)) as caught:
        run(tokenizer, images=[b""], **wrong)
    notes = "".join(getattr(caught.value, "__notes__", ()))
    assert next(iter(wrong)) in f"{caught.value} {notes}"


def test_a_field_that_is_missing_is_named():
    own = {"epoch": 0, "index": 0, "images": (), "answers": None}
    fields = {"key": "a", "text": "", "image_id": "a", "boxes_xyxy": (), "char_spans": ()}
    fields |= {"truth": None, "image_size": None, **NO_MASKS}
    assert _core.LoaderRecord.from_record(SimpleNamespace(**fields), **own).key == "a"
    for name in fields:
        without = {other: value for other, value in fields.items() if other != name}
        with pytest.raises(AttributeError, match=f"'{name}'"):
            _core.LoaderRecord.from_record(SimpleNamespace(**without), **own)


def test_an_unknown_task(tokenizer):
    with pytest.raises(ValueError, match=r"batch_type: .*'captions'; expected 'image"):
        run(tokenizer, task="captions")
