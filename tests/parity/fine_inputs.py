"""Compare the inputs of a fine case with the texts and boxes that they were made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiber.data.prompts.classes import SEPARATOR, class_prompt
from tests.parity.comparison import Comparison
from tests.parity.fine_case import FineCase
from tests.parity.published_spans import published_positive_tokens
from tests.parity.recorded_tokens import RecordedTokens, recorded_tokens

#: Parts of `<name>.json` that are read, and those that are never compared (golden/fine README).
READ = ("annotations", "atss_num_positive_per_image", "captions", "config", "detection", "losses")
READ_NUMBERS = ("loss_total",)
NEVER_COMPARED = ("atss_margins", "detection_stability", "threads", "time")
#: <pad> of RoBERTa.
PAD_ID = 1


def unknown_parts(case: FineCase) -> list[str]:
    """Name the parts of a case's JSON that nothing reads."""
    return [
        name
        for name in case.content
        if name not in (*READ, *READ_NUMBERS) and not name.startswith(NEVER_COMPARED)
    ]


def compare_inputs(comparison: Comparison, case: FineCase) -> None:
    """Compare boxes, labels, token ids and positive maps."""
    inputs, count = case.inputs, len(case.inputs["in.images"])
    annotations = case.content["annotations"][:count]
    boxes = [box for each in annotations for box in each["boxes"]]
    labels = [label for each in annotations for label in each["labels"]]
    made = {
        "in.boxes": torch.tensor(boxes).reshape(-1, 4),
        "in.labels": torch.tensor(labels),
        "in.boxes_per_image": torch.tensor([len(each["boxes"]) for each in annotations]),
        "in.image_sizes_hw": torch.tensor([each["image_size_hw"] for each in annotations]),
    }
    captions = [each["caption"] for each in annotations]
    error = float(captions != case.content["captions"][:count])
    comparison.group("inputs", 0.0).add("captions", error)
    tokenizer = recorded_tokens()
    made |= _texts(case, tokenizer, captions, annotations)
    prompt = class_prompt(case.content["detection"]["caption"].split(SEPARATOR))
    _, offsets = tokenizer.encode(prompt.text)
    recorded = list(case.content["detection"]["label_to_token"].values())
    error = float(prompt.token_map(offsets) != recorded)
    comparison.group("inputs", 0.0).add("label_to_token", error)
    for name, value in made.items():
        same = value.shape == inputs[name].shape and bool((value == inputs[name]).all())
        comparison.group("inputs", 0.0).add(name, float(not same))


def _texts(
    case: FineCase,
    tokenizer: RecordedTokens,
    captions: list[str],
    annotations: list[dict[str, Any]],
) -> dict[str, Tensor]:
    """Ids and masks of all texts, and the tokens of every box."""
    length = case.inputs["in.input_ids"].shape[1]
    encoded = [tokenizer.encode(caption, max_tokens=length) for caption in captions]
    rows = [
        published_positive_tokens(offsets, [(start, end) for start, end in spans])
        for (_, offsets), each in zip(encoded, annotations, strict=True)
        for spans in each["spans"]
    ]
    maps = torch.zeros(len(rows), length)
    for row, tokens in zip(maps, rows, strict=True):
        row[tokens] = 1
    ids = torch.full((len(captions), length), PAD_ID)
    for row, (found, _) in zip(ids, encoded, strict=True):
        row[: len(found)] = torch.tensor(found)
    found, _ = tokenizer.encode(case.content["detection"]["caption"], max_tokens=length)
    asked = torch.full((1, length), PAD_ID)
    asked[0, : len(found)] = torch.tensor(found)
    return {
        "in.input_ids": ids,
        "in.attention_mask": (ids != PAD_ID).long(),
        "in.positive_map": maps,
        "test.input_ids": asked,
        "test.attention_mask": (asked != PAD_ID).long(),
    }
