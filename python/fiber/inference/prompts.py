"""Build the prompts of `Model.detect` and `Model.ground` for each image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fiber.data.char_spans import CharSpan, check_span
from fiber.data.prompts.classes import (
    ClassLike,
    ClassName,
    Prompt,
    as_class,
    caption_prompt,
    class_prompts,
)
from fiber.data.text_lengths import is_longer
from fiber.inference.inputs import Inputs, as_texts, not_empty, one_for_each, one_list_for_each
from fiber.inference.noun_phrases import caption_phrases, noun_phrases


def detection_prompts(
    classes: Any, count: int, inputs: Inputs, classes_per_prompt: int | None
) -> list[list[Prompt]]:
    """Concatenate classes into prompts.

    Args:
        classes: one list for all images, or one for each.
        count: number of images.
        inputs: preprocessing of the model.
        classes_per_prompt: maximum classes per prompt; 0 or None: as many as fit.

    Returns:
        Prompts of each image.

    Raises:
        TypeError, ValueError: for an empty list, or for an invalid, empty, too long or duplicate
            class.
    """
    given: Any = [classes] if _is_class(classes) else as_texts(classes, "class")
    if all(_is_class(each) for each in given):
        if count and not given:
            raise ValueError("classes: expected one or more, got none")
        return [_class_prompts(given, inputs, classes_per_prompt)] * count if count else []
    if len(given) != count:
        raise ValueError(
            f"{len(given)} lists of texts for {count} pictures; expected one list of class names"
            " for all pictures, or one list for each"
        )
    prompts = []
    for index, each in enumerate(given):
        if _is_class(each) or not each:
            raise ValueError(f"class list {index} is {each!r}; expected a list of one or more")
        prompts.append(_class_prompts(list(each), inputs, classes_per_prompt))
    return prompts


def grounding_prompts(
    phrases: Any, caption: Any, spans: Any, count: int, inputs: Inputs
) -> list[list[Prompt]]:
    """Build the prompts of each of `count` images; the other arguments are those of `Model.ground`.

    Warns if a text is truncated, with the number of phrases that are lost.
    """
    if spans is not None and (phrases is not None or caption is None):
        raise ValueError(
            "ground: spans say which characters of the caption name something; expected caption"
            " with spans, or phrases without them"
        )
    lists = None if phrases is None else one_list_for_each(phrases, count, "phrase")
    if caption is None and lists is None:
        raise ValueError("ground: give phrases, a caption, or both")
    captions = [] if caption is None else one_for_each(caption, count, "caption")
    if spans is not None and caption is not None:
        # Spans refer to captions that are not stripped.
        captions = [caption] * count if isinstance(caption, str) else list(caption)
    span_lists = None if spans is None else _spans_for_each(spans, caption, count)
    prompts = []
    for index in range(count):
        if span_lists is not None:
            prompts.append([_marked_caption(captions[index], span_lists[index])])
        elif captions:
            prompts.append([_caption_prompt(captions[index], lists[index] if lists else None)])
        elif lists is not None:
            prompts.append(_phrase_prompts(lists[index]))
    for prompt in {prompt.text: prompt for each in prompts for prompt in each}.values():
        _warn_truncated(prompt, inputs)
    return prompts


def _is_class(given: Any) -> bool:
    return isinstance(given, (str, ClassName, Mapping))


def _class_prompts(
    classes: Sequence[ClassLike], inputs: Inputs, classes_per_prompt: int | None
) -> list[Prompt]:
    """Concatenate classes into prompts; raise for duplicates (case-sensitive)."""
    named, first = [], dict[ClassName, int]()
    for number, given in enumerate(classes):
        each = as_class(given.strip() if isinstance(given, str) else given, number)
        if each in first:
            raise ValueError(
                f"class {number} ({each.name!r}) is class {first[each]} again; expected each class"
                " once"
            )
        first[each] = number
        named.append(each)
    return class_prompts(
        named,
        inputs.needed_tokenizer(),
        inputs.config.max_tokens,
        max_classes=classes_per_prompt or None,
    )


def _phrase_prompts(phrases: Sequence[str]) -> list[Prompt]:
    """Make one prompt for each phrase, so that its boxes do not depend on the other phrases.

    Boxes are scored by the tokens of the first noun phrase only, "the star" in "the star left of
    the ring", as referring expressions are in training and evaluation.
    """
    prompts = []
    for number, phrase in enumerate(not_empty(phrases, "phrase")):
        head = next(iter(noun_phrases(phrase)), (0, len(phrase)))
        prompts.append(Prompt(phrase, (phrase,), ((head,),), number))
    return prompts


def _caption_prompt(caption: str, phrases: Sequence[str] | None) -> Prompt:
    """Make the prompt of a caption and its phrases; default: those of `caption_phrases`.

    Raises:
        ValueError: for a caption without phrases, or a phrase that does not occur in it.
    """
    if phrases is None:
        found = caption_phrases(caption)
        if not found:
            raise ValueError(
                f"caption {caption[:60]!r} holds no phrase that names a thing; give phrases or"
                " spans if it does"
            )
        labels = tuple(caption[start:end] for start, end in found)
        return Prompt(caption, labels, tuple((span,) for span in found))
    return caption_prompt(caption, not_empty(phrases, "phrase"))


def _spans_for_each(spans: Any, caption: Any, count: int) -> list[Any]:
    """Return the spans of each image: one list for a single caption, else one for each."""
    if isinstance(caption, str):
        return [spans] * count
    if isinstance(spans, str) or not isinstance(spans, Sequence) or len(spans) != count:
        size = len(spans) if isinstance(spans, Sequence) else f"a {type(spans).__name__}"
        raise ValueError(
            f"spans: expected a list of spans for each of {count} captions, got {size}"
        )
    return list(spans)


def _marked_caption(caption: str, spans: Any) -> Prompt:
    """Make the prompt of a caption and spans, each (start, end) or a list of these."""
    if isinstance(spans, str) or not isinstance(spans, Sequence) or not spans:
        raise ValueError(
            f"spans of the caption {caption[:60]!r}: expected a list of one or more (start, end),"
            f" got {spans!r:.60}"
        )
    phrases: list[tuple[CharSpan, ...]] = []
    for number, given in enumerate(spans):
        parts = given if isinstance(given, Sequence) and _all_sequences(given) else [given]
        if not parts:
            raise ValueError(f"span {number} is {given!r}; expected (start, end)")
        phrases.append(tuple(check_span(caption, part, number) for part in parts))
    labels = [" ".join(caption[start:end] for start, end in parts) for parts in phrases]
    return Prompt(caption, tuple(labels), tuple(phrases))


def _all_sequences(given: Sequence[Any]) -> bool:
    return all(isinstance(part, Sequence) and not isinstance(part, str) for part in given)


def _warn_truncated(prompt: Prompt, inputs: Inputs) -> None:
    """Warn if a prompt is truncated, with the phrases that are lost."""
    tokenizer, limit = inputs.needed_tokenizer(), inputs.config.max_tokens
    if not is_longer(prompt.text, tokenizer, limit):
        return
    whole = prompt.token_map(tokenizer.encode(prompt.text)[1])
    read = prompt.token_map(tokenizer.encode(prompt.text, max_tokens=limit)[1])
    behind = [label for label, tokens in zip(prompt.labels, read, strict=True) if not tokens]
    parted = [
        label
        for label, some, every in zip(prompt.labels, read, whole, strict=True)
        if 0 < len(some) < len(every)
    ]
    costs = []
    if behind:
        costs.append(
            f"{len(behind)} of its {len(prompt.labels)} phrases lie behind them and are not looked"
            f" for, first {behind[0][:60]!r}"
        )
    if parted:
        costs.append(f"of {parted[0][:60]!r} a part is read")
    cost = "; ".join(costs) or "all of its phrases are read"
    warnings.warn(
        f"the model reads the first {limit} tokens only of {prompt.text[:60]!r}...: {cost}",
        UserWarning,
        stacklevel=4,
    )
