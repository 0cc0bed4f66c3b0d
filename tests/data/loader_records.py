"""Records, and a loader of them, that the tests of the loader share."""

import io
import itertools

import numpy as np
from PIL import Image

from fiber.data import DataLoader, ImageTransform, Record

TEXT = "the left cup is next to the right dog"


def png(index: int, height: int = 24, width: int = 32) -> bytes:
    """Noise of its own for each index."""
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def record(index: int, **changes) -> Record:
    fields = {
        "key": f"r{index}",
        "images": (png(index),),
        "text": " ".join(TEXT.split()[: 1 + index % 9]),
        "answers": {"left": 1.0, "yes": 0.5},
        "truth": index % 2 == 0,
        "boxes_xyxy": ((1.0, 2.0, 20.0, 22.0),),
        "char_spans": (((0, 3),),),
    }
    return Record(**{**fields, **changes})


RECORDS = [record(index) for index in range(23)]
CROP = ImageTransform.random_resized_crop(16)


def make(tokenizer, records=RECORDS, batch_type="image_text", **options) -> DataLoader:
    defaults = {"transform": CROP, "batch_size": 4, "max_tokens": 12, "threads": 2}
    return DataLoader(records, batch_type, tokenizer=tokenizer, **{**defaults, **options})


def take(batches, count: int) -> list:
    """The first batches of a stream, which is then closed."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def samples(batches) -> list[tuple]:
    """Every sample as plain values, without padding, so that batches of any size compare."""
    rows = []
    for batch in batches:
        for i, key in enumerate(batch.keys):
            real = batch.text_mask[i]
            rows.append(
                (
                    key,
                    batch.images[i].numpy().tobytes(),
                    batch.token_ids[i][real].tolist(),
                    batch.masked_ids[i][real].tolist(),
                    batch.mlm_labels[i][real].tolist(),
                )
            )
    return rows
