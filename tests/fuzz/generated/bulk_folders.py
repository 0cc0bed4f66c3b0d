"""Documents of folders of `fiber map`, `fiber index` and `fiber data score`."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fiber.bulk.cleaning.tables import FILE as CLEANING_FILE
from fiber.bulk.cleaning.tables import TABLE, read_record_table, vectors_of
from fiber.bulk.index import Index
from fiber.bulk.output import (
    DESCRIPTION,
    columns_table,
    join_errors,
    read_complete,
    row_schema,
    unit_file,
    write_description,
    write_table,
)
from fiber.bulk.store import FILE as INDEX_FILE
from fiber.bulk.store import write_segment
from fiber.bulk.tasks import TASKS
from tests.fuzz import seeds
from tests.fuzz.generated.documents import Document, json_document

#: Name of a document, since a label map is called map.json, too.
_UNITS = f"{DESCRIPTION} of embeddings"
#: Images of a folder, and components of their embeddings.
_IMAGES, _WIDTH = ("a.png", "b.png", "c.png"), 4
_VECTORS = np.eye(len(_IMAGES), _WIDTH, dtype=np.float32)


def _columns() -> dict[str, list[Any]]:
    count = len(_IMAGES)
    return {
        "record": list(range(count)),
        "key": list(_IMAGES),
        "image": list(_IMAGES),
        "height": [8] * count,
        "width": [8] * count,
        "text": [None] * count,
    }


def _source(count: int) -> dict[str, Any]:
    """Where the images of the folder are; splits have no meaning for them."""
    splits = [f"split{number}" for number in range(count)]
    rest = {"records": len(_IMAGES), "units": 1, "fingerprint": "0" * 16}
    return {"data": "images", "source": "images", "splits": splits, **rest}


def _description(count: int) -> dict[str, Any]:
    """map.json of embeddings."""
    return {
        "format": "fiber.map",
        "version": 1,
        "task": "embed",
        "model": {"name": "coarse", "fingerprint": "0" * 64},
        "source": _source(count),
        "texts": {"from": "none"},
        "options": {"batch_size": 32, "device": "cpu"},
        "versions": {"fiber": "1"},
    }


def _write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    for name in _IMAGES:
        (folder / "images" / name).write_bytes(seeds.image())


def _prepare_units(folder: Path) -> None:
    _write_images(folder)
    schema = row_schema(TASKS["embed"], _WIDTH)
    write_table(unit_file(folder, 0), columns_table({**_columns(), "embedding": _VECTORS}, schema))


def _read_units(folder: Path) -> None:
    """Read embeddings as an index, a filter and another `fiber map` do."""
    about = read_complete(folder, "embed")
    assert join_errors(folder, about["source"]["units"]) is not None
    vectors_of(read_record_table(folder), "embedding", range(len(_IMAGES)))
    shutil.rmtree(folder / "index", ignore_errors=True)
    Index.create(folder / "index", folder)
    # Of another run: the message lists what differs.
    write_description(folder, {**_description(1), "source": about["source"]})


_COLUMNS_FILE, _DELETED = "000000", "deleted-000001.npy"


def _index(count: int) -> dict[str, Any]:
    # Few splits each, so that the document grows linearly.
    sources = [_source(number % 4) for number in range(count + 1)]
    names = ("data", "source", "splits", "fingerprint")
    return {
        "format": "fiber.index",
        "version": 1,
        "model": {"name": "coarse", "fingerprint": "0" * 64},
        "width": _WIDTH,
        "sources": [{name: source[name] for name in names} for source in sources],
        "segments": [{"name": _COLUMNS_FILE, "rows": len(_IMAGES)}],
        "deleted": _DELETED,
    }


def _prepare_index(folder: Path) -> None:
    _write_images(folder)
    numbers = pa.array([0] * len(_IMAGES), pa.int32())
    schema = row_schema(TASKS["embed"], _WIDTH)
    columns = columns_table({**_columns(), "embedding": _VECTORS}, schema)
    columns = columns.drop_columns(["embedding"]).append_column("source", numbers)
    write_segment(folder, _COLUMNS_FILE, _WIDTH, [(_VECTORS, columns)])
    np.save(folder / _DELETED, np.array([False, True]))


def _read_index(folder: Path) -> None:
    # Where the relative path of the images leads.
    with contextlib.chdir(folder):
        index = Index.open(folder)
        hits = index.search(_VECTORS[0], len(_IMAGES), where="width > 0")
        for hit in hits:
            index.image(hit)
        index.duplicates()


def _cleaning(count: int) -> dict[str, Any]:
    """clean.json of scores."""
    about = {"format": "fiber.cleaning", "version": 1, "kind": "scores"}
    counts = {f"count{number}": number for number in range(count)}
    return {**about, "source": _source(count), "options": {"least_itm": 0.5}, "counts": counts}


def _prepare_cleaning(folder: Path) -> None:
    _write_images(folder)
    schema = row_schema(TASKS["match"])
    columns = {**_columns(), "score": [0.5] * len(_IMAGES), "truncated": [False] * len(_IMAGES)}
    write_table(folder / TABLE, columns_table(columns, schema))


def _read_cleaning(folder: Path) -> None:
    with contextlib.chdir(folder):
        table = read_record_table(folder)
        table.splits(table.opened())


def documents() -> list[Document]:
    """map.json, index.json and clean.json, with the Parquet files that go with them."""
    return [
        json_document("bulk", DESCRIPTION, _description, _read_units, _prepare_units, _UNITS),
        json_document("bulk", INDEX_FILE, _index, _read_index, _prepare_index),
        json_document("bulk", CLEANING_FILE, _cleaning, _read_cleaning, _prepare_cleaning),
    ]
