"""Documents of masks, which are decoded after they are read: run lengths, polygons, id maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data import decode_masks, open_source
from tests.data.masks.generated_masks import png
from tests.fuzz.generated.documents import Document, json_document
from tests.fuzz.generated.text_tables import text_document, tsv

_KIND = "masks"
#: Height and width of all images.
_SIZE = (24, 32)
_IMAGE = {"id": 0, "file_name": "0.jpg", "height": _SIZE[0], "width": _SIZE[1]}
#: Number of ids in a map.
_IDS = 200


def _decoded(source: str) -> Callable[[Path], object]:
    """Return a function that reads all records and decodes their masks.

    An error of decoding has the record, as the loader's does, and here the folder.
    """

    def read(folder: Path) -> None:
        for record in open_source(source, folder, "train"):
            try:
                decode_masks(record.masks, *_SIZE)
            except ValueError as error:
                raise ValueError(f"{folder}: {record.key}: {error}") from None

    return read


def _pixels() -> np.ndarray:
    """A map of the ids from 0 on, in rows."""
    return (np.arange(_SIZE[0] * _SIZE[1]) % _IDS).reshape(_SIZE)


def _coco(mask: Callable[[int], Any]) -> Callable[[int], dict[str, Any]]:
    """All masks in one image, alternately of things and crowds."""

    def tree(count: int) -> dict[str, Any]:
        fields = {"image_id": 0, "category_id": 0, "bbox": [1, 2, 9, 9], "area": 9.0}
        masks = [
            {"id": n, **fields, "segmentation": mask(n), "iscrowd": 0} for n in range(count + 1)
        ]
        categories = [{"id": 0, "name": "cup"}]
        return {"images": [_IMAGE], "annotations": masks, "categories": categories}

    return tree


def _runs(number: int) -> dict[str, Any]:
    counts = [9 + number % 9, _SIZE[0] * _SIZE[1] - 9 - number % 9]
    return {"counts": "S36b000000ma0" if number % 2 else counts, "size": list(_SIZE)}


def _rings(number: int) -> list[list[float]]:
    return [[1, 2, 20.5, 2, 20.5, 20, 1, 20], [5, 5, 9, 9, 5, 9.5 + number % 9]]


def _write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "0.jpg").touch()


def _panoptic(count: int) -> dict[str, Any]:
    """Segments of the map that `_write_map` writes: those that the map has, and no others."""
    segments = [{"id": n, "category_id": 0, "iscrowd": n % 2} for n in range(1, _IDS)]
    annotation = {"image_id": 0, "file_name": "0.png", "segments_info": segments}
    others = [{**_IMAGE, "id": n + 1} for n in range(count)]
    return {
        "images": [_IMAGE, *others],
        "annotations": [annotation, *({**annotation, "image_id": n + 1} for n in range(count))],
        "categories": [{"id": 0, "name": "cup", "isthing": 1}],
    }


def _write_map(folder: Path) -> None:
    _write_images(folder)
    maps = folder / "panoptic_train"
    maps.mkdir()
    ids = _pixels().astype(np.uint8)
    (maps / "0.png").write_bytes(png(np.stack([ids, 0 * ids, 0 * ids], -1)))


def _classes(count: int) -> list[list[Any]]:
    """The table of classes of label maps."""
    head = ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    return [head, *([n, 0.5, 1, 1, n % 2, f"class {n}, other"] for n in range(1, count % 250 + 2))]


def _write_label_maps(folder: Path) -> None:
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        (folder / kind / "training").mkdir(parents=True)
        (folder / kind / "training" / f"0.{suffix}").touch()
    pixels = np.minimum(_pixels(), 1).astype(np.uint8)
    (folder / "annotations" / "training" / "0.png").write_bytes(png(pixels))


def documents() -> list[Document]:
    """Every kind of mask."""

    def masks(name: str, mask: Callable[[int], Any]) -> Document:
        tree = _coco(mask)
        return json_document(
            _KIND, "instances_train.json", tree, _decoded("instances"), _write_images, name
        )

    return [
        masks("run lengths", _runs),
        masks("polygons", _rings),
        json_document(
            _KIND, "panoptic_train.json", _panoptic, _decoded("panoptic"), _write_map, "id maps"
        ),
        text_document(
            "objectInfo150.txt", _classes, tsv, _decoded("label_maps"), _write_label_maps,
            kind=_KIND,
        ),
    ]  # fmt: skip
