"""`fiber map --plan`: time and size of a run over many images, from a few of its records."""

from __future__ import annotations

import io
import itertools
import time
from typing import Any

from fiber.bulk.annotator import Annotator
from fiber.bulk.map import BATCH_SIZE, compute_batches
from fiber.bulk.output import columns_table, row_schema
from fiber.bulk.parquet import require_arrow
from fiber.bulk.sources import open_records
from fiber.data.record import AnyPath

#: Maximum number of records that are computed for a plan.
PLAN_RECORDS = 256
#: Numbers of cores for which hours are listed.
_CORES = (1, 8, 64, 1024)


def plan(
    data: AnyPath,
    task: str,
    images: int,
    *,
    model: Any = None,
    source: str | None = None,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> dict[str, Any]:
    """Compute the first records of a source on one core, and return the cost of `images` records.

    Arguments and errors are those of `fiber.map`.

    Returns:
        "images_per_second" of one core with its "measured" number of records, "core_hours", "hours"
        by number of cores, "bytes" of the results, "files" and "records_per_file".
    """
    require_arrow("fiber map --plan")
    annotator = Annotator(model, task, **options)
    splits = split.split("+") if split else ()
    records = open_records(data, annotator.task, [*annotator.shared], source=source, splits=splits)
    annotator.check(records.kind)
    units = records.units()
    first = list(itertools.islice(itertools.chain.from_iterable(units), PLAN_RECORDS))
    schema = row_schema(annotator.task, annotator.vector_width)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    began, computed = time.perf_counter(), 0
    for found, errors, _ in compute_batches(annotator, records, first, batch_size, threads=1):
        computed += len(errors)
        for name, values in columns.items():
            pairs = zip(found[name], errors, strict=True)
            values += [value for value, error in pairs if error is None]
    seconds = time.perf_counter() - began
    written = io.BytesIO()
    _, parquet = require_arrow("fiber map --plan")
    parquet.write_table(columns_table(columns, schema), written)
    # Without the footer of the file, which is the same for one row and for many.
    parquet.write_table(schema.empty_table(), empty := io.BytesIO())
    size = (written.tell() - empty.tell()) / max(1, len(columns["record"]))
    per_file = max(1, round(len(records.records) / len(units)))
    rate = computed / seconds
    core_hours = images / rate / 3600
    return {
        "images": images,
        "measured": computed,
        "images_per_second": round(rate, 2),
        "core_hours": round(core_hours, 3),
        "hours": {str(cores): round(core_hours / cores, 3) for cores in _CORES},
        "bytes": round(size * images),
        "bytes_per_image": round(size, 1),
        "files": -(-images // per_file),
        "records_per_file": per_file,
    }
