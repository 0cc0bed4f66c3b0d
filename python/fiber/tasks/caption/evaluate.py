"""Evaluate captions against references."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from pathlib import PurePath
from typing import Any

from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, by_image
from fiber.metrics.captions import caption_scores
from fiber.models.caption_abilities import WritesCaptions
from fiber.models.fiber.beam_search import CAPTION_BEAMS, beam_search, written_tokens


def caption(context: EvalContext, records: list[Record]) -> EvalResult:
    """Caption each image and compare the caption with all of the image's references.

    Computes BLEU-4, ROUGE-L and CIDEr-D on tokens from `metrics.captions.caption_tokens`. Document
    frequencies come from the references, as in COCO's evaluation.

    Predictions are in COCO's result format. `image_id` is the number at the end of the image's file
    name (391895 for COCO_val2014_000000391895.jpg). If there is no such number, or if two images
    share the number, `image_id` is the record's `image_id`.
    """
    model, groups = context.able(WritesCaptions, "task 'caption'"), by_image(records)

    def write(batch: Any, shown: list[Record], at: int) -> list[str]:
        tokens = model.image_tokens(batch.images)
        found = beam_search(
            model, tokens, num_beams=CAPTION_BEAMS, max_tokens=model.config.max_tokens
        )
        rows = found.token_ids.tolist()
        return [context.tokenizer.decode(written_tokens(ids)).strip() for ids in rows]

    images = [shown[0] for shown in groups.values()]
    captions = list(chain.from_iterable(context.run_batches(images, "image_text", write)))
    predictions = [
        {"image_id": number, "caption": text}
        for number, text in zip(_image_numbers(list(groups)), captions, strict=True)
    ]
    references = [[record.text for record in shown] for shown in groups.values()]
    return EvalResult(caption_scores(captions, references), predictions)


def _image_numbers(image_ids: list[str]) -> list[int | str]:
    """Return the unique number that ends each image's file name, or else the full image id."""
    found = [re.search(r"\d+$", PurePath(image_id).stem) for image_id in image_ids]
    numbers = [int(match[0]) if match else None for match in found]
    times = Counter(numbers)
    return [
        image_id if number is None or times[number] > 1 else number
        for number, image_id in zip(numbers, image_ids, strict=True)
    ]
