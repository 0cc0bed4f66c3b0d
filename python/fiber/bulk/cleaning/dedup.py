"""`fiber data dedup`: near-duplicates among the images of a source, and which of them is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiber.bulk.cleaning.sheet import (
    BLACK,
    COLUMNS,
    GOES,
    ROWS,
    STAYS,
    SheetImage,
    save_sheet,
    spread,
)
from fiber.bulk.cleaning.tables import (
    SHEET,
    RecordTable,
    check_output,
    image_rows,
    read_record_table,
    vectors_of,
    write_cleaned,
)
from fiber.bulk.duplicates import connected, similar_pairs
from fiber.bulk.map import Progress, summary
from fiber.bulk.map import map as bulk_map
from fiber.bulk.output import DESCRIPTION, read_complete
from fiber.bulk.parquet import require_arrow
from fiber.bulk.perceptual_hash import MAX_DISTANCE, near_pairs
from fiber.data.record import AnyPath, RecordSet
from fiber.messages import shown

#: Default largest distance of near-duplicates (`python -m tests.check_cleaning --choose`).
DISTANCE = 0.1
#: Largest ratio of the aspect ratios of near-duplicates: hashes are of images squeezed to a square.
_ASPECT = 1.1
#: Folders of hashes and of embeddings in the output.
_HASHES, _EMBEDDINGS = "hashes", "embeddings"
#: Columns of all images, and of those in clusters.
_OF_IMAGES = ("record", "key", "image", "height", "width")
_OF_DUPLICATES = (
    *("cluster", "kept", "duplicate_of", "distance", "similarity", "mirrored", "reason"),
)
_LIMITS = ("max_pixels", "max_decode_bytes")


@dataclass(frozen=True)
class _Near:
    """Why two images are near."""

    distance: float | None = None
    similarity: float | None = None
    mirrored: bool = False

    @property
    def order(self) -> tuple[float, float]:
        """The nearest image comes first."""
        return (
            MAX_DISTANCE if self.distance is None else self.distance,
            -(self.similarity or 0.0),
        )


def find_duplicates(
    data: AnyPath,
    output: AnyPath,
    *,
    distance: float | None = DISTANCE,
    flips: bool = False,
    similarity: float | None = None,
    model: Any = None,
    source: str | None = None,
    split: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Find near-duplicates among images, and choose which of them are kept.

    Two images are near if their perceptual hashes are within `distance` and their aspect ratios
    within 10 % of each other, or if their embeddings
    have a cosine similarity of at least `similarity`. Images that are connected make a cluster. In
    each, images are taken by size: most pixels first, then most bytes, then the first record; one
    that is near an image that is kept is a duplicate of it. Hashes and embeddings stay in `output`,
    so that another call with other limits is fast.

    Args:
        data: as of `fiber.map`; or the folder that `fiber map --task hash` wrote.
        output: folder for `rows.parquet` and `clean.json` (docs/bulk.md).
        distance: largest distance of two hashes, above 0 and at most 0.5; None to use none.
        flips: also compare with mirrored images.
        similarity: least cosine similarity of two embeddings, above 0 and at most 1.
        model: model of the embeddings, or its path or name.
        source: as of `fiber.map`.
        split: as of `fiber.map`.
        threads: as of `fiber.map`.
        progress: as of `fiber.map`.
        options: limits of decoding, and options of loading the model.

    Returns:
        "images", "clusters", "duplicates" and "errors", the number of images that cannot be read.

    Raises:
        FileExistsError: if the output has other files.
        FileNotFoundError: if the data do not exist.
        ModuleNotFoundError: if pyarrow is not installed.
        TypeError: if a limit is no number.
        ValueError: if a limit is out of range, or as of `fiber.map`.
    """
    arrow, _ = require_arrow("fiber data dedup")
    _check_limits(distance, similarity, model)
    folder, hashes = Path(output), Path(data)
    check_output(folder, "dedup", (_HASHES, _EMBEDDINGS))
    settings: dict[str, Any] = {"threads": threads, "progress": progress}
    if not (hashes / DESCRIPTION).exists():
        hashes = folder / _HASHES
        own = {name: value for name, value in options.items() if name in _LIMITS}
        bulk_map(data, "hash", hashes, source=source, split=split, **settings, **own)
    about = read_complete(hashes, "hash")["source"]
    table = read_record_table(hashes)
    records = table.opened()
    images = _Images(table, records)
    near: _Pairs = {}
    if distance is not None:
        near |= _near_by_hashes(images, distance, flips)
    if similarity is not None:
        settings |= {"source": about["source"], "split": "+".join(about["splits"]) or None}
        embedded = folder / _EMBEDDINGS
        bulk_map(about["data"], "embed", embedded, model=model, **settings, **options)
        _add_embeddings(near, images, read_record_table(embedded), similarity)
    rows = _rows(images, near)
    counts = {
        "images": len(rows["record"]),
        "clusters": len({each for each in rows["cluster"] if each is not None}),
        "duplicates": rows["kept"].count(False),
        "errors": int(summary(hashes)["total"]["errors"]),
    }
    limits = {"distance": distance, "flips": flips, "similarity": similarity}
    content = {"source": about, "options": limits, "counts": counts}
    write_cleaned(folder, "duplicates", arrow.table(rows, schema=_schema(arrow)), content)
    _save_sheet(folder / SHEET, rows, records)
    return {"output": str(folder), **counts}


def _check_limits(distance: Any, similarity: Any, model: Any) -> None:
    for name, value, most in (
        ("distance", distance, MAX_DISTANCE),
        ("similarity", similarity, 1),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {shown(value)}")
        if not 0 < value <= most:
            raise ValueError(f"{name} must be above 0 and at most {most}, got {shown(value)}")
    if distance is None and similarity is None:
        raise ValueError("expected a distance, a similarity or both, got neither")
    if similarity is not None and model is None:
        raise ValueError("similarity is of embeddings; pass the model, too")
    if similarity is None and model is not None:
        raise ValueError("a model is for embeddings; pass the least similarity, too")


class _Images:
    """The images of a table, each once: records may share them."""

    def __init__(self, table: RecordTable, records: RecordSet) -> None:
        rows = image_rows(table, records)
        chosen = list(rows.values())
        #: Number of each image, by split and name.
        self.numbers = {name: number for number, name in enumerate(rows)}
        self.splits = [split for split, _ in rows]
        #: (n, 216) float32.
        self.hashes = vectors_of(table, "hash", chosen)
        table_rows = table.rows.select(_OF_IMAGES).take(chosen)
        self.columns = {name: table_rows[name].to_pylist() for name in _OF_IMAGES}
        #: (n,) first row with the same hash. Of equal ones, which may be many, one is compared.
        first_rows: dict[bytes, int] = {}
        keys = (each.tobytes() for each in self.hashes)
        self.same_hash = np.array([first_rows.setdefault(k, row) for row, k in enumerate(keys)])
        self.records = records

    def size(self, row: int) -> tuple[int, int]:
        """Return the number of pixels and of bytes."""
        stored = self.records[self.columns["record"][row]].images[0]
        count = len(stored) if isinstance(stored, bytes) else os.stat(stored).st_size  # noqa: PTH116
        return self.columns["height"][row] * self.columns["width"][row], count


#: Why two images are near, by the first rows with their hashes, the smaller one first.
_Pairs = dict[tuple[int, int], _Near]


def _near_by_hashes(images: _Images, distance: float, flips: bool) -> _Pairs:
    aspects = np.divide(images.columns["width"], images.columns["height"])
    chosen = np.unique(images.same_hash)
    found = near_pairs(images.hashes[chosen], distance, flips=flips)
    near: _Pairs = {}
    for a, b, far, is_mirrored in zip(*(each.tolist() for each in found), strict=True):
        pair = (int(chosen[a]), int(chosen[b]))
        if abs(np.log(aspects[pair[0]] / aspects[pair[1]])) > np.log(_ASPECT):
            continue
        if pair not in near or far < near[pair].order[0]:
            near[pair] = _Near(far, mirrored=is_mirrored)
    return near


def _add_embeddings(near: _Pairs, images: _Images, table: RecordTable, similarity: float) -> None:
    # An image may have no hash, or no embedding.
    there = image_rows(table, images.records)
    names = [name for name in images.numbers if name in there]
    numbers = np.array([images.numbers[name] for name in names], np.int64)
    vectors = vectors_of(table, "embedding", [there[name] for name in names])
    # Products are rounded to float32.
    for first, second, products in similar_pairs(vectors, similarity - 1e-6):
        a, b = images.same_hash[numbers[first]], images.same_hash[numbers[second]]
        for low, high, value in zip(
            np.minimum(a, b).tolist(), np.maximum(a, b).tolist(), products.tolist(), strict=True
        ):
            own = near.get((low, high), _Near())
            if low != high and (own.similarity is None or value > own.similarity):
                near[low, high] = _Near(own.distance, value, own.mirrored)


def _rows(images: _Images, near: _Pairs) -> dict[str, list[Any]]:
    """Return the columns of the table."""
    same_hash: list[int] = images.same_hash.tolist()
    count = len(same_hash)
    rows: dict[str, list[Any]] = {**images.columns, "split": images.splits}
    rows |= {name: [None] * count for name in _OF_DUPLICATES} | {"kept": [True] * count}
    neighbors: dict[int, dict[int, _Near]] = {}
    for (a, b), why in near.items():
        neighbors.setdefault(a, {})[b] = why
        neighbors.setdefault(b, {})[a] = why
    for cluster, group in enumerate(connected(count, [*near, *enumerate(same_hash)])):
        sizes = {row: images.size(row) for row in group}
        #: Image that is kept, by the first row with its hash.
        kept: dict[int, int] = {}
        for row in sorted(group, key=lambda row: (-sizes[row][0], -sizes[row][1], row)):
            own = {same_hash[row]: _Near(0.0), **neighbors.get(same_hash[row], {})}
            others = [other for other in own if other in kept]
            rows["cluster"][row] = cluster
            if not others:
                kept[same_hash[row]] = row
                continue
            nearest = min(others, key=lambda other: (*own[other].order, other))
            best, why = kept[nearest], own[nearest]
            rows["kept"][row] = False
            rows["duplicate_of"][row] = images.columns["key"][best]
            rows["distance"][row] = why.distance
            rows["similarity"][row] = why.similarity
            rows["mirrored"][row] = why.mirrored
            rows["reason"][row] = _reason(sizes[row], sizes[best])
    return rows


def _save_sheet(path: Path, rows: dict[str, list[Any]], records: RecordSet) -> None:
    """Draw clusters at regular distances: what is kept, and what goes."""
    clusters: dict[int, list[int]] = {}
    for row, cluster in enumerate(rows["cluster"]):
        if cluster is not None:
            clusters.setdefault(cluster, []).append(row)
    groups = [clusters[number] for number in sorted(clusters)]
    shown_groups = [groups[number] for number in spread(len(groups), ROWS)]
    tiles = []
    for group in shown_groups:
        group.sort(key=lambda row: not rows["kept"][row])
        tiles.append([_tile(rows, row, records) for row in group[:COLUMNS]])
    title = (
        f"{rows['kept'].count(False)} near-duplicates in {len(groups)} clusters; here are"
        f" {len(tiles)} clusters, a row for each"
    )
    save_sheet(path, title, tiles)


def _tile(rows: dict[str, list[Any]], row: int, records: RecordSet) -> SheetImage:
    image = records[rows["record"][row]].images[0]
    size = f"{rows['width'][row]} x {rows['height'][row]}"
    key = Path(rows["key"][row]).name
    if rows["kept"][row]:
        return SheetImage(image, (("kept", STAYS), (f"{size}  {key}", BLACK)))
    values = [
        f"{n} {rows[n][row]:.3f}" for n in ("distance", "similarity") if rows[n][row] is not None
    ]
    values += ["mirrored"] if rows["mirrored"][row] else []
    return SheetImage(
        image,
        (
            (f"goes: {rows['reason'][row]}", GOES),
            (", ".join(values), GOES),
            (f"{size}  {key}", BLACK),
        ),
    )


def _reason(own: tuple[int, int], kept: tuple[int, int]) -> str:
    if own[0] != kept[0]:
        return "fewer pixels"
    return "fewer bytes" if own[1] != kept[1] else "later record"


def _schema(arrow: Any) -> Any:
    types = {
        "record": arrow.int64(),
        "height": arrow.int32(),
        "width": arrow.int32(),
        "cluster": arrow.int32(),
        "kept": arrow.bool_(),
        "mirrored": arrow.bool_(),
        "distance": arrow.float32(),
        "similarity": arrow.float32(),
    }
    names = (*_OF_IMAGES, "split", *_OF_DUPLICATES)
    return arrow.schema([(name, types.get(name, arrow.string())) for name in names])
