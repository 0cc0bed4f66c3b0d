"""fiber's public API: `fiber.data.DataLoader` and `Tokenizer`.

Image batches also contain tokenized captions with MLM masks, or prompts with positive maps.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fiber.data import DataLoader, ImageTransform, Record, Tokenizer

from . import task as tasks
from .task import SIZE, Epoch, PeerTask
from .texts import batches_of_texts

_DTYPES = {"int64": torch.int64, "bool": torch.bool}


def open_peer(task: PeerTask) -> Epoch:
    """Open the loader or the tokenizer."""
    if task.work in ("captions", "offsets", "prompt"):
        return _texts(task)
    torch.set_num_threads(1)
    fine = task.work == "fine"
    loader = DataLoader(
        [_record(task, index) for index in range(len(task.files))],
        "grounding" if fine else "image_text",
        tokenizer=Tokenizer.from_file(task.tokenizer),
        transform=_transform(task.work),
        batch_size=task.batch_size,
        max_tokens=tasks.MAX_TOKENS,
        threads=task.threads,
        scaled_decoding=task.scaled,
        image_dtype="uint8" if task.output == "uint8" else "float32",
    )
    return lambda number: (
        (batch.images, batch.boxes_xyxy) if fine else batch.images for batch in loader.epoch(number)
    )


def _record(task: PeerTask, index: int) -> Record:
    text = task.texts[index % len(task.texts)]
    record = Record(key=str(index), images=(task.files[index],), text=text)
    if task.work != "fine":
        return record
    boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in task.boxes[index])
    first_word = (0, len(text.split()[0]))
    return replace(record, boxes_xyxy=boxes, char_spans=((first_word,),) * len(boxes))


def _transform(work: str) -> ImageTransform:
    if work == "squash":
        return ImageTransform.squash(SIZE)
    if work == "crop":
        return ImageTransform.random_resized_crop(SIZE, scale=tasks.SCALE, ratio=tasks.RATIO)
    return ImageTransform.shorter_side(
        [tasks.SHORTER],
        tasks.LONGEST,
        flip_probability=0.5,
        divisor=tasks.DIVISOR,
        channel_order="bgr",
        mean=[m / 255 for m in tasks.FINE_MEAN],
        std=[s / 255 for s in tasks.FINE_STD],
    )


def _texts(task: PeerTask) -> Epoch:
    tokenizer = Tokenizer.from_file(task.tokenizer)
    if task.work == "prompt":
        spans = [[(start, end)] for start, end in task.char_spans[0]]
        return batches_of_texts(
            task, lambda texts: [tokenizer.positive_map(text, spans) for text in texts]
        )
    offsets = task.work == "offsets"

    def encode(texts: list[str]) -> tuple[torch.Tensor, ...]:
        arrays = tokenizer.encode_batch(
            texts, max_tokens=tasks.MAX_TOKENS, pad_to=tasks.MAX_TOKENS, offsets=offsets
        )
        return tuple(
            torch.frombuffer(array, dtype=_DTYPES[array.dtype]).view(array.shape)
            for array in arrays.values()
        )

    return batches_of_texts(task, encode)
