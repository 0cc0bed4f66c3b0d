"""`fiber data score`: how well the text of each record fits its image, and which fit others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fiber.bulk.annotator import Annotator, without_truncation_warnings
from fiber.bulk.cleaning.sheet import BLACK, GOES, STAYS, SheetImage, save_sheet
from fiber.bulk.cleaning.tables import (
    SHEET,
    RecordTable,
    check_output,
    image_names,
    image_rows,
    read_record_table,
    vectors_of,
    write_cleaned,
)
from fiber.bulk.map import Progress, summary
from fiber.bulk.map import map as bulk_map
from fiber.bulk.output import read_complete
from fiber.bulk.parquet import require_arrow
from fiber.bulk.store import nearest_rows
from fiber.data.record import AnyPath, RecordSet

#: Probability by ITM below which a text does not match its image.
LEAST_ITM = 0.5
#: Folders of results of `fiber map` in the output.
_MATCHES, _EMBEDDINGS = "matches", "embeddings"
#: Columns of the table.
_COLUMNS = (
    *("record", "key", "image", "split", "text", "truncated"),
    *("itm", "itc", "other", "other_itc", "flagged"),
)
#: Texts that are compared with all images at a time, and pairs on the sheet.
_TEXTS, _PAIRS = 1024, 24


def score_texts(
    data: AnyPath,
    output: AnyPath,
    *,
    model: Any,
    source: str | None = None,
    split: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score how well the text of each record fits its image, by ITC and by ITM.

    A record is flagged if ITM says that its text does not match its image, with a probability below
    0.5, and its text is nearer to another image by ITC. What was computed stays in `output`, so an
    interrupted call goes on.

    Args:
        data: as of `fiber.map`, with captions, referring expressions or phrases.
        output: folder for `rows.parquet` and `clean.json` (docs/bulk.md).
        model: path or name of a model with ITC and ITM, or a model.
        source: as of `fiber.map`.
        split: as of `fiber.map`.
        threads: as of `fiber.map`.
        progress: as of `fiber.map`, called for ITM and then for ITC.
        options: limits of decoding, and options of loading the model.

    Returns:
        "records", "flagged" and "errors", the number of records that cannot be scored.

    Raises:
        FileExistsError: if the output has other files.
        FileNotFoundError: if the data do not exist.
        MissingHeadError: if the model lacks ITC or ITM.
        ModuleNotFoundError: if pyarrow is not installed.
        ValueError: as of `fiber.map`.
    """
    arrow, _ = require_arrow("fiber data score")
    folder = Path(output)
    check_output(folder, "score", (_MATCHES, _EMBEDDINGS))
    embedder = Annotator(model, "embed", **options)
    matcher = Annotator(embedder.model, "match")
    # Both heads are there before the first image is read.
    _ = embedder.stage, matcher.stage
    settings: dict[str, Any] = {"threads": threads, "progress": progress}
    settings |= {"model": embedder.model, **embedder.limits}
    matches, embeddings = folder / _MATCHES, folder / _EMBEDDINGS
    bulk_map(data, "match", matches, source=source, split=split, **settings)
    about = read_complete(matches, "match")["source"]
    own_split = "+".join(about["splits"]) or None
    bulk_map(data, "embed", embeddings, source=about["source"], split=own_split, **settings)
    table, embedded = read_record_table(matches), read_record_table(embeddings)
    records = table.opened()
    rows = _rows(table, embedded, records, embedder.stage)
    counts = {
        "records": len(table.rows),
        "flagged": sum(rows["flagged"]),
        "errors": int(summary(matches)["total"]["errors"]),
    }
    content = {"source": about, "options": {"least_itm": LEAST_ITM}, "counts": counts}
    found = arrow.table({name: rows[name] for name in _COLUMNS}, schema=_schema(arrow))
    write_cleaned(folder, "scores", found, content)
    _save_sheet(folder / SHEET, rows, embedded, records)
    return {"output": str(folder), **counts}


def _rows(
    table: RecordTable, embedded: RecordTable, records: RecordSet, stage: Any
) -> dict[str, list[Any]]:
    """Return the columns of the table, and the row of the other image in `embedded`."""
    rows = {name: table.rows[name].to_pylist() for name in ("record", "key", "image", "text")}
    rows["split"] = table.splits(records)
    rows["itm"] = table.rows["score"].to_pylist()
    rows["truncated"] = table.rows["truncated"].to_pylist()
    # Records may share images, of which each is compared once.
    there = image_rows(embedded, records)
    chosen = list(there.values())
    number_of = {name: number for number, name in enumerate(there)}
    own = np.array([number_of[name] for name in image_names(table, records)], np.int64)
    images = vectors_of(embedded, "embedding", chosen)
    matrices, keys = [images.astype(np.float16)], embedded.rows["key"].to_pylist()
    rows |= {name: [] for name in ("itc", "other", "other_itc", "other_row")}
    for start in range(0, len(own), _TEXTS):
        some = own[start : start + _TEXTS]
        with without_truncation_warnings():
            texts = stage.embed_texts(rows["text"][start : start + _TEXTS])
        rows["itc"] += (texts * images[some]).sum(1).tolist()
        found, scores = nearest_rows(matrices, texts, 2, None)
        for number, best, products in zip(some, found, scores, strict=True):
            others = np.flatnonzero(best != number)[:1]
            other = chosen[best[others[0]]] if len(others) else None
            rows["other_row"].append(other)
            rows["other"].append(None if other is None else keys[other])
            rows["other_itc"].append(float(products[others[0]]) if len(others) else None)
    scores = zip(rows["itm"], rows["itc"], rows["other_itc"], strict=True)
    rows["flagged"] = [
        itm < LEAST_ITM and other is not None and other > itc for itm, itc, other in scores
    ]
    return rows


def _schema(arrow: Any) -> Any:
    types = {"record": arrow.int64(), "truncated": arrow.bool_(), "flagged": arrow.bool_()}
    types |= {name: arrow.float32() for name in ("itc", "itm", "other_itc")}
    return arrow.schema([(name, types.get(name, arrow.string())) for name in _COLUMNS])


def _save_sheet(
    path: Path, rows: dict[str, list[Any]], embedded: RecordTable, records: RecordSet
) -> None:
    """Draw flagged records, the least probable first, each beside the image that fits better."""
    flagged = [row for row, flag in enumerate(rows["flagged"]) if flag]
    flagged.sort(key=lambda row: rows["itm"][row])
    tiles: list[SheetImage] = []
    for row in flagged[:_PAIRS]:
        own = f"itm {rows['itm'][row]:.2f}, itc {rows['itc'][row]:.2f}"
        image = records[rows["record"][row]].images[0]
        tiles.append(SheetImage(image, ((own, GOES), (rows["text"][row], BLACK))))
        other = embedded.rows["record"][rows["other_row"][row]].as_py()
        fits = (f"fits better: itc {rows['other_itc'][row]:.2f}", STAYS)
        tiles.append(SheetImage(records[other].images[0], (fits,)))
    pairs = [tiles[start : start + 4] for start in range(0, len(tiles), 4)]
    title = (
        f"{len(flagged)} of {len(rows['record'])} texts are flagged; here are the"
        f" {len(tiles) // 2} least probable, each beside an image that fits better"
    )
    save_sheet(path, title, pairs, columns=4)
