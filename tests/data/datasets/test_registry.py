"""The table of sources: every row is complete, and a row is all that a new source needs."""

import ast
import inspect
import json
import subprocess
import sys
import tarfile
from pkgutil import resolve_name

import pytest

from fiber.data.datasets.registry import KINDS, SOURCES, Layout, Source, layouts_of
from fiber.data.datasets.resolve import open_source
from fiber.data.formats.rows import FIELDS
from fiber.data.tools.discover import kinds_of, parts_of
from fiber.data.tools.pack import pack
from fiber.tasks.fields import TaskConfig
from tests.data.shards import picture
from tests.data.signed_packs import sign


def test_the_table_imports_no_reader():
    code = (
        "import sys, fiber.data.datasets.registry;"
        " print([name for name in sys.modules if name.startswith('fiber.data.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table = ["datasets", "datasets.registry", "formats", "formats.layout"]
    assert sorted(ast.literal_eval(done.stdout)) == [f"fiber.data.{name}" for name in table]


@pytest.mark.parametrize("name", SOURCES)
def test_all_that_a_row_names_is_there(name):
    source = SOURCES[name]
    assert source.rows in ("", *FIELDS) and source.of in ("", *KINDS)
    layouts = layouts_of(name)
    for target in filter(None, (source.find, *(layout.accepts for layout in layouts))):
        assert callable(resolve_name(target))
    readers = [layout.reader for layout in layouts] + [source.row_reader]
    for reader in dict.fromkeys(filter(None, readers)):
        parameters = inspect.signature(resolve_name(reader)).parameters
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        assert takes_all or not set(source.options) - set(parameters)
        others = {"on_error", "shots", "objects"} - set(source.options)
        assert not others.intersection(parameters)


def test_tasks_name_all_sources_but_those_of_evaluations():
    TaskConfig(sources=tuple({*SOURCES} - {"swapped"})).check("tasks.mine")
    with pytest.raises(ValueError, match=r"tasks\.mine\.sources.*'swapped'"):
        TaskConfig(sources=("captions", "swapped")).check("tasks.mine")


WRONG = {"id": 1, "image_id": 1, "bbox": [2, 3, 90, 10], "area": 900, "iscrowd": 0}
FITS = {"id": 2, "image_id": 1, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 0}


def expressions(*boxes, **annotation):
    spans = {"tokens_positive": [[0, 5]], "category_id": 1, **annotation}
    image = {"id": 1, "file_name": "1.png", "height": 32, "width": 32, "caption": "a dog"}
    return {"images": [image], "annotations": [{**box, **spans} for box in boxes]}


@pytest.fixture
def folder(data):
    (data.folder / "images" / "1.png").write_bytes(picture(1))
    return data


def test_a_new_source_is_a_row(folder, monkeypatch):
    content = expressions(WRONG, FITS, segments=[])
    folder("masks_train.json", content)
    path = folder("other.json", content)
    assert kinds_of(path) == {"phrases"}
    with pytest.raises(ValueError, match="masks"):
        TaskConfig(sources=("masks",)).check("tasks.mine")
    row = Source(
        layouts=(Layout("fiber.data.datasets.mdetr:referring", "masks", ("masks_{split}.json",)),),
        marks=(("json.images.caption", "json.annotations.segments"),),
        options=("on_error",),
    )
    for table in (SOURCES, KINDS):
        monkeypatch.setitem(table, "masks", row)
    TaskConfig(sources=("masks",)).check("tasks.mine")
    assert kinds_of(path) == {"masks"}
    assert [part[:2] for part in parts_of(folder.folder)] == [("masks", "train")]
    with pytest.raises(FileNotFoundError, match="masks_val"):
        open_source("masks", folder.folder, "val")
    with pytest.raises(ValueError, match=r"masks_train\.json.*\[0\]"):
        open_source("masks", folder.folder, "train")
    pack(folder.folder, folder.folder / "packed", on_error="skip")
    (record,) = open_source("masks", folder.folder / "packed", "train")
    assert record.text == "a dog" and len(record.boxes_xyxy) == 2


def test_named_datasets_are_packed_as_their_kind(folder):
    for name in ("finetune_refcoco_train.json", "finetune_refcoco+_train.json"):
        folder(name, expressions(WRONG, FITS))
    parts = [(name, "train") for name in ("refcoco", "refcocoplus")]
    assert [part[:2] for part in parts_of(folder.folder)] == parts
    packed = folder.folder / "packed"
    with pytest.raises(ValueError, match=r"finetune_refcoco_train\.json.*\[0\]"):
        pack(folder.folder, packed)
    pack(folder.folder, packed, on_error="skip")
    with tarfile.open(packed / "train-000000.tar") as shard:
        fields = json.load(shard.extractfile("000000000.json"))
    assert [each["text"] for each in fields["referring"]] == ["a dog", "a dog"]
    assert "captions" not in fields
    assert open_source("refcocoplus", packed, "train")[0].text == "a dog"


def test_an_unknown_source_of_a_pack_is_an_error(folder):
    folder("train.jsonl", [{"image": "images/1.png", "text": "a dog"}])
    packed, again = folder.folder / "packed", folder.folder / "again"
    description = pack(folder.folder, packed)
    for entry in (*description["parts"], *description["indexes"]):
        entry["source"] = entry["source"].replace("captions", "no source")
    sign(packed, description)
    with pytest.raises(ValueError, match="unknown source 'no source'"):
        pack(packed, again)
