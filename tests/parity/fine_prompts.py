"""Compare sampled training prompts with the recorded ones of `data_text.json`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.char_spans import CharSpan
from fiber.data.prompts.classes import ClassName, Prompt, class_prompt
from fiber.data.prompts.published import BACKGROUND, keep_positives, optimized_order
from fiber.data.prompts.rules import ClassRule, PromptRules
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import Record
from tests.parity.comparison import Comparison
from tests.parity.recorded_tokens import RecordedTokens, recorded_tokens

SECTION = "od_to_grounding"
#: Names of class ids 1 to 6, which the record has cleaned.
NAMES = ("person", "traffic_light", "hair_drier", "dog_(pet)", "cup", "wine_glass")
WORDING = [ClassName("fish", prefix=" "), ClassName("jellyfish", suffix=" which is soft")]
#: Longest text without <s> and </s>.
BUDGET = 254


def compare_drawn_prompts(path: Path) -> Comparison:
    """Compare every case of the section `od_to_grounding`.

    Those with seeds are only examples to the record's makers, since they depend on the order in
    which Python's and numpy's generators are asked; ours is the published order.

    Args:
        path: data_text.json.
    """
    content = json.loads(path.read_text())
    comparison = Comparison("class prompts of training")
    exact = comparison.group(SECTION, 0.0)
    seeded = _Seeded(recorded_tokens(), content["detection_queries"])
    for number, case in enumerate(content[SECTION]):
        name = f"{number} {case['fn']}"
        match case["fn"]:
            case "simple":
                wrong = _differences(*_in_order("simple"), case)
            case "simple_caption_prompt":
                wrong = _differences(class_prompt(WORDING), [1, 2], case)
            case "optimized_disable_shuffle":
                wrong = _differences(*_in_order("optimized"), case)
            case "optimized_with_released_CONTROL_PROB":
                wrong = int(_is_refused(case) != (case["outcome"] == "AssertionError"))
            case "check_for_positive_overflow":
                wrong = _overflow_differences(case)
            case "optimized_seeded":
                wrong = seeded.differences(case)
            case other:
                comparison.not_compared.append(f"{SECTION}: {other}")
                continue
        exact.add(name, float(wrong))
    return comparison


def _in_order(rule: ClassRule) -> tuple[Prompt, list[int]]:
    """Return the prompt of a rule without shuffling, and its class ids."""
    record = Record(key="0", images=("0.jpg",), text="", labels=NAMES)
    rules = PromptRules(class_rule=rule, shuffle_classes=False)
    sampled = SampledPrompts([record], recorded_tokens(), max_tokens=BUDGET + 2, rules=rules)[0]
    prompt = Prompt(sampled.text, sampled.labels, sampled.label_spans)
    return prompt, [NAMES.index(label) + 1 for label in sampled.labels]


def _differences(prompt: Prompt, order: list[int], case: Mapping[str, Any]) -> int:
    """Count differences in the text, the boxes that are kept, and the span of each."""
    spans: dict[int, CharSpan] = dict(zip(order, (span for (span,) in prompt.spans), strict=True))
    wrong = int(prompt.text != case["caption"])
    annotations = case["annotations"]
    kept = [label for label in case["labels"] if label in spans]
    wrong += int(kept != [annotation["category_id"] for annotation in annotations])
    for annotation in annotations:
        span = spans.get(annotation["category_id"])
        wrong += int(annotation["tokens_positive"] != [list(span or ())])
    for label, position in case.get("label_to_positions", {}).items():
        wrong += int(list(spans.get(int(label), ())) != position)
    if "n_categories" in case:
        wrong += int(len(spans) != case["n_categories"])
        wrong += int((0 in spans) != case["has_background"])
    return wrong


def _is_refused(case: Mapping[str, Any]) -> bool:
    """Return whether the published rule rejects the probabilities of a case."""
    try:
        PromptRules(class_rule="optimized", negative_chances=case["control_probabilities"])
    except ValueError:
        return True
    return False


def _overflow_differences(case: Mapping[str, Any]) -> int:
    """Count what differs in the classes that the budget keeps; all recorded ones are as long."""
    (each,) = set(case["tokens_per_label"])
    kept, length = keep_positives(
        range(1, case["n_in"] + 1),
        "x" * (case["n_in"] + 1),
        count_tokens=lambda text: each,
        budget=BUDGET,
        generator=random.Random(case["seed"]),
    )
    wrong = int(sorted(kept) != case["kept_labels"]) + int(len(kept) != case["n_kept"])
    return wrong + int(length != case["length_returned"])


class _Seeded:
    """Cases that draw: COCO's classes, with the background as 0."""

    def __init__(self, tokenizer: RecordedTokens, queries: list[dict[str, Any]]) -> None:
        self.tokenizer = tokenizer
        (coco,) = (query for query in queries if query["name"] == "coco80")
        self.names = (BACKGROUND, *coco["names"])

    def differences(self, case: Mapping[str, Any]) -> int:
        generator = random.Random(case["seed"])
        kept, positive_tokens = keep_positives(
            case["labels"],
            self.names,
            count_tokens=self._count,
            budget=BUDGET,
            generator=generator,
        )
        order = optimized_order(
            [label for label in case["labels"] if label in kept],
            self.names,
            chances=case["control_probabilities"],
            max_negatives=case["random_sample_negative"],
            count_tokens=self._count,
            budget=BUDGET,
            positive_tokens=positive_tokens,
            generator=generator,
            numpy_generator=np.random.RandomState(case["seed"]),
        )
        prompt = class_prompt([self.names[label] for label in order])
        wrong = int(positive_tokens != case["positive_caption_length"])
        wrong += int(self._count(prompt.text) + 2 != case["n_tokens_with_specials"])
        return wrong + _differences(prompt, order, case)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text)[0]) - 2
