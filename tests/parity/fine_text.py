"""Compare the recorded texts of the fine stage: the tokens that name boxes, and prompts.

Tokens are the recorded ones of RoBERTa's vocabulary (`recorded_tokens.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fiber.data.char_spans import CharSpan
from fiber.data.prompts.classes import class_prompt, clean_class_name
from tests.parity.comparison import Comparison, Reading
from tests.parity.fine_prompts import SECTION
from tests.parity.published_spans import published_positive_tokens
from tests.parity.recorded_tokens import RecordedTokens, recorded_tokens
from tests.parity.tolerances import GEOMETRY

#: Longest text of the published model.
MAX_TOKENS = 256
#: Explanations, for readers.
NOTES = ("note", "rule")


def compare_text(path: Path) -> Comparison:
    """Compare `data_text.json`; its class prompts of training, `fine_prompts` compares."""
    recorded = json.loads(path.read_text())
    comparison = Comparison(path.stem)
    tokenizer = recorded_tokens()
    maps = Reading(comparison, "positive_map", recorded.get("positive_map", {}))
    try:
        _exact(comparison, "positive maps", "width", MAX_TOKENS, maps["width"])
        for number, entry in enumerate(maps["cases"]):
            case = Reading(comparison, f"positive_map.{number}", entry)
            _compare_map(comparison, case, tokenizer)
        for entry in recorded["detection_queries"]:
            case = Reading(comparison, f"detection_queries.{entry['name']}", entry)
            _compare_prompt(comparison, case, tokenizer)
    except KeyError as error:
        comparison.group("names", 0.0).add(f"{error} is missing", 1.0)
    known = {"positive_map", "detection_queries", SECTION}
    comparison.not_compared += [*maps.unread(NOTES), *({*recorded} - known)]
    return comparison


def _exact(comparison: Comparison, group: str, name: str, ours: Any, recorded: Any) -> None:
    label = name if ours == recorded else f"{name}: {ours!r:.80}, recorded {recorded!r:.80}"
    comparison.group(group, 0.0).add(label, float(ours != recorded))


def _compare_map(comparison: Comparison, case: Reading, tokenizer: RecordedTokens) -> None:
    """Tokens of every box of one caption."""
    ids, offsets = tokenizer.encode(case["caption"], max_tokens=MAX_TOKENS)
    if "input_ids" in case.content:
        _compare_tokens(comparison, case, tokenizer, ids, offsets)
    else:
        # A caption that is cut is recorded by its length and its end.
        _exact(comparison, "tokens", f"{case.name}.n_tokens", len(ids), case["n_tokens"])
        _exact(comparison, "tokens", f"{case.name}.last_id", ids[-1], case["last_id"])
    ours = [published_positive_tokens(offsets, _spans(spans)) for spans in case["spans"]]
    name = f"{case.name}.positive_tokens"
    _exact(comparison, "positive maps", name, ours, case["positive_tokens"])
    if "normalised_value" in case.content:
        # A row is divided by its sum; ours are not, since the published training undoes it.
        for box, (tokens, value) in enumerate(zip(ours, case["normalised_value"], strict=True)):
            divided = bool(tokens) / (len(tokens) + 1e-6)
            group = comparison.group("rows divided by their sums", GEOMETRY)
            group.add(f"{case.name} box {box}", abs(divided - value))
    comparison.not_compared += case.unread(NOTES)


def _compare_tokens(
    comparison: Comparison,
    case: Reading,
    tokenizer: RecordedTokens,
    ids: list[int],
    offsets: list[CharSpan],
) -> None:
    """Ids, the words that they stand for, and the token of every character."""
    _exact(comparison, "tokens", f"{case.name}.input_ids", ids, case["input_ids"])
    known = [tokenizer.token_ids.get(token) for token in case["tokens"]]
    _exact(comparison, "tokens", f"{case.name}.tokens", ids, known)
    of_characters = [
        next((token for token, (start, end) in enumerate(offsets) if start <= place < end), None)
        for place in range(len(case["caption"]))
    ]
    name = f"{case.name}.char_to_token"
    _exact(comparison, "tokens", name, of_characters, case["char_to_token"])


def _spans(spans: list[list[int]]) -> list[CharSpan]:
    return [(start, end) for start, end in spans]


def _compare_prompt(comparison: Comparison, case: Reading, tokenizer: RecordedTokens) -> None:
    """The caption that asks for classes, and the tokens of each."""
    names = case["names"]
    # Words around the names, where there are some.
    prompt = class_prompt(case["prompt"] if "prompt" in case.content else names)
    _exact(comparison, "prompts", f"{case.name}.caption", prompt.text, case["caption"])
    if "cleaned" in case.content:
        cleaned = [clean_class_name(name) for name in names]
        _exact(comparison, "prompts", f"{case.name}.cleaned", cleaned, case["cleaned"])
    ids, offsets = tokenizer.encode(prompt.text, max_tokens=MAX_TOKENS)
    if "n_tokens" in case.content:
        _exact(comparison, "tokens", f"{case.name}.n_tokens", len(ids), case["n_tokens"])
    # Of some prompts only the first labels are recorded, as pairs; labels count from 1 by default.
    labels = case["labels"] if "labels" in case.content else range(1, len(names) + 1)
    recorded = case["label_to_tokens"]
    pairs = recorded.items() if isinstance(recorded, dict) else recorded
    ours = dict(zip(labels, prompt.token_map(offsets), strict=True))
    published = {
        label: published_positive_tokens(offsets, spans)
        for label, spans in zip(labels, prompt.spans, strict=True)
    }
    for label, tokens in pairs:
        for rule, found in (("tokens", ours), ("published tokens", published)):
            name = f"{case.name} label {label}"
            _exact(comparison, f"{rule} of labels", name, found.get(int(label)), tokens)
    comparison.not_compared += case.unread((*NOTES, "name"))
