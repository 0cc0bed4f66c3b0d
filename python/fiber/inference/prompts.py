"""Build the prompts for each image in `Model.detect` and `Model.ground`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from fiber.inference.inputs import (
    ArrayInputs,
    as_texts,
    check_has_order,
    is_list,
    not_empty,
    one_for_each,
    one_list_for_each,
)
from fiber.inference.noun_phrases import caption_phrases, noun_phrases
from fiber.inference.phrase_lists import warn_of_lists
from fiber.messages import caller_level, shown


def detection_prompts(
    classes: Any,
    count: int,
    inputs: ArrayInputs,
    classes_per_prompt: int | None,
    negatives: Any = None,
) -> tuple[list[list[Prompt]], list[int]]:
    """Join classes into prompts for each of `count` images; also return the numbers of classes.

    `classes` is a single list for all images, or one list per image. `classes_per_prompt` is the
    maximum number of classes per prompt, or 0 or None for as many as fit. `negatives`, for all
    images, follow the classes and are not counted.

    Raises:
        TypeError, ValueError: if a list is empty, or a class is invalid, empty, too long or a
            duplicate.
    """
    given: Any = [classes] if _is_class(classes) else as_texts(classes, "class")
    others = _negatives(negatives, "class")
    if not any(map(is_list, given)):
        if count and not given:
            raise ValueError("expected one or more classes, got none")
        _warn_of_lists([given])
        if not count:
            return [], []
        prompts = _class_prompts([*given, *others], inputs, classes_per_prompt)
        return [prompts] * count, [len(given)] * count
    for index, each in enumerate(given):
        check_has_order(each, f"class list {index}")
        if not is_list(each) or not each:
            like = "" if is_list(each) else ", as other items are lists"
            raise ValueError(
                f"class list {index} is {shown(each)}; expected a list of one or more classes{like}"
            )
    if len(given) != count:
        raise ValueError(
            f"got {len(given)} lists of class names for {count} image{'s' * (count != 1)};"
            " expected one list for all images, or one list per image"
        )
    lists = [_class_prompts([*each, *others], inputs, classes_per_prompt) for each in given]
    _warn_of_lists(given)
    return lists, [len(each) for each in given]


def with_negatives(
    prompts: Sequence[Sequence[Prompt]], negatives: Any, inputs: ArrayInputs
) -> list[list[Prompt]]:
    """Append a prompt for each negative phrase to those of each image.

    Raises:
        TypeError, ValueError: if the negatives are no texts, or one is empty.
    """
    added = _phrase_prompts(_negatives(negatives, "phrase"))
    for prompt in added:
        _warn_truncated(prompt, inputs)
    found = []
    for own in prompts:
        count = sum(len(prompt.labels) for prompt in own)
        renumbered = [replace(each, first_label=count + n) for n, each in enumerate(added)]
        found.append([*own, *renumbered])
    return found


def _negatives(given: Any, what: str) -> list[Any]:
    """Return negatives as a list, which is not empty unless none are given."""
    if given is None:
        return []
    found = [given] if _is_class(given) else as_texts(given, f"negative {what}")
    if not found or any(map(is_list, found)):
        raise ValueError(
            f"negatives is {shown(given)}; expected one or more texts, for all images, or None"
        )
    return list(found)


def _warn_of_lists(lists: Sequence[Sequence[Any]]) -> None:
    """Warn of a class that looks like a list; among several classes, it is a name."""
    warn_of_lists([classes[0] for classes in lists if len(classes) == 1], "class")


def grounding_prompts(
    phrases: Any, caption: Any, spans: Any, count: int, inputs: ArrayInputs
) -> list[list[Prompt]]:
    """Build the prompts for each of `count` images. Other arguments are as in `Model.ground`.

    If a text is truncated, a warning names the affected phrases.
    """
    if spans is not None and (phrases is not None or caption is None):
        raise ValueError("ground: spans can only be used with a caption and without phrases")
    lists = None if phrases is None else one_list_for_each(phrases, count, "phrase")
    if caption is None and lists is None:
        raise ValueError(
            "ground: expected phrases, a caption or both, got neither; name what to find, as in"
            ' ground(image, ["a red mug", "the laptop"])'
        )
    captions = [] if caption is None else one_for_each(caption, count, "caption")
    if spans is not None and caption is not None:
        # Spans are indices into the captions as given, before stripping.
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
    if caption is None and lists is not None:
        warn_of_lists(list(dict.fromkeys(text for each in lists for text in each)), "phrase")
    for prompt in {prompt.text: prompt for each in prompts for prompt in each}.values():
        _warn_truncated(prompt, inputs)
    return prompts


def _is_class(given: Any) -> bool:
    return isinstance(given, (str, ClassName, Mapping))


def _class_prompts(
    classes: Sequence[ClassLike], inputs: ArrayInputs, classes_per_prompt: int | None
) -> list[Prompt]:
    """Join classes into prompts. Raises ValueError for (case-sensitive) duplicates."""
    first: dict[ClassName, int] = {}
    for number, given in enumerate(classes):
        each = as_class(given.strip() if isinstance(given, str) else given, number)
        if each in first:
            raise ValueError(
                f"duplicate class {shown(each.name)} (classes {first[each]} and {number});"
                " expected each class once"
            )
        first[each] = number
    return class_prompts(
        list(first),
        inputs.needed_tokenizer(),
        inputs.max_tokens,
        max_classes=classes_per_prompt or None,
    )


def _phrase_prompts(phrases: Sequence[str]) -> list[Prompt]:
    """Build one prompt per phrase, so that a phrase's boxes do not depend on other phrases.

    As for referring expressions in training and evaluation, boxes are scored only by the tokens of
    the first noun phrase, such as "the star" in "the star left of the ring".
    """
    prompts = []
    for number, phrase in enumerate(not_empty(phrases, "phrase")):
        head = next(iter(noun_phrases(phrase)), (0, len(phrase)))
        prompts.append(Prompt(phrase, (phrase,), ((head,),), number))
    return prompts


def _caption_prompt(caption: str, phrases: Sequence[str] | None) -> Prompt:
    """Build the prompt for a caption and its phrases, by default those from `caption_phrases`.

    Raises:
        ValueError: if the caption has no phrases, or a phrase does not occur in it.
    """
    if phrases is None:
        found = caption_phrases(caption)
        if not found:
            raise ValueError(
                f"no noun phrase found in caption {caption[:60]!r}; pass phrases or spans"
            )
        labels = tuple(caption[start:end] for start, end in found)
        return Prompt(caption, labels, tuple((span,) for span in found))
    return caption_prompt(caption, not_empty(phrases, "phrase"))


def _spans_for_each(spans: Any, caption: Any, count: int) -> list[Any]:
    """Return one list of spans per image. A single caption has a single list for all images."""
    if isinstance(caption, str):
        return [spans] * count
    if isinstance(spans, str) or not isinstance(spans, Sequence) or len(spans) != count:
        size = len(spans) if isinstance(spans, Sequence) else f"a {type(spans).__name__}"
        raise ValueError(
            f"spans: expected one list of spans for each of {count} captions, got {size}"
        )
    return list(spans)


def _marked_caption(caption: str, spans: Any) -> Prompt:
    """Build the prompt for a caption and its spans. A span is (start, end) or a list of these."""
    if isinstance(spans, str) or not isinstance(spans, Sequence) or not spans:
        raise ValueError(
            f"spans for caption {caption[:60]!r}: expected a list of one or more (start, end)"
            f" pairs, got {shown(spans)}"
        )
    phrases: list[tuple[CharSpan, ...]] = []
    for number, given in enumerate(spans):
        parts = given if isinstance(given, Sequence) and _all_sequences(given) else [given]
        if not parts:
            raise ValueError(f"span {number} is {shown(given)}; expected (start, end)")
        phrases.append(tuple(check_span(caption, part, number) for part in parts))
    labels = [" ".join(caption[start:end] for start, end in parts) for parts in phrases]
    return Prompt(caption, tuple(labels), tuple(phrases))


def _all_sequences(given: Sequence[Any]) -> bool:
    return all(isinstance(part, Sequence) and not isinstance(part, str) for part in given)


def _warn_truncated(prompt: Prompt, inputs: ArrayInputs) -> None:
    """Warn if a prompt is truncated, and name the affected phrases."""
    tokenizer, limit = inputs.needed_tokenizer(), inputs.max_tokens
    if not is_longer(prompt.text, tokenizer, limit):
        return
    whole = prompt.token_map(tokenizer.encode(prompt.text)[1])
    read = prompt.token_map(tokenizer.encode(prompt.text, max_tokens=limit)[1])
    phrases = list(zip(prompt.labels, read, whole, strict=True))
    lost = [label for label, tokens, _ in phrases if not tokens]
    cut = [label for label, tokens, every in phrases if 0 < len(tokens) < len(every)]
    effects = []
    if lost:
        effects.append(
            f"{len(lost)} of {len(phrases)} phrases are dropped, starting with {lost[0][:60]!r}"
        )
    if cut:
        effects.append(f"phrase {cut[0][:60]!r} is cut short")
    effect = "; ".join(effects) or "no phrase is affected"
    warnings.warn(
        f"text {prompt.text[:60]!r}... is truncated to the model's maximum of {limit} tokens:"
        f" {effect}",
        UserWarning,
        stacklevel=caller_level(),
    )
