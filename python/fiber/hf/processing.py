"""`FiberVLProcessor`: images and texts to the inputs of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from fiber.data import Tokenizer
from fiber.data.texts.cleaning import CLEANERS
from fiber.messages import caller_level, printable, shown


class FiberVLProcessor(ProcessorMixin):
    """Image processor and tokenizer of a model.

    Args:
        image_processor: a `FiberVLImageProcessor`.
        tokenizer: a fast tokenizer of transformers, whose `model_max_length` is the model's.
        kwargs: see `ProcessorMixin`.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        return_tensors: str | None = "pt",
        task: str | None = None,
    ) -> BatchFeature:
        """Prepare images, texts, or both. A text that is too long is truncated with a warning.

        Args:
            images: see `FiberVLImageProcessor.preprocess`.
            text: a text, a list of n texts, or a list of lists of T texts, such as the prompts of
                classes; they are padded to the longest one.
            return_tensors: "pt", or "np" for arrays.
            task: see `FiberVLImageProcessor.preprocess`.

        Returns:
            `pixel_values` and `image_sizes`, `input_ids` and `attention_mask`, which are (n, L), or
            (n, T, L) for lists of lists.

        Raises:
            TypeError: if a text is no str.
            ValueError: if neither images nor texts are given, lists differ in length, or there is
                no such task.
        """
        if images is None and text is None:
            raise ValueError("processor: expected images, text or both, got neither")
        data: dict[str, Any] = {}
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors, task=task)
        if text is not None:
            texts: list[Any] = [text] if isinstance(text, str) else list(text)
            shape = (len(texts),)
            if texts and all(isinstance(each, (list, tuple)) for each in texts):
                shape = (len(texts), len(texts[0]))
                if any(len(each) != shape[1] for each in texts) or not shape[1]:
                    lengths = [len(each) for each in texts]
                    raise ValueError(
                        f"text: expected lists of one length, got {shown(lengths)} texts"
                    )
                texts = [each for own in texts for each in own]
            for index, each in enumerate(texts):
                if not isinstance(each, str):
                    raise TypeError(f"text[{index}] is {shown(each)}; expected a str")
            if clean := CLEANERS.get(getattr(self.image_processor, "text_cleaning", "")):
                texts = [clean(each).text for each in texts]
            encoded = self.tokenizer(
                texts, return_tensors=return_tensors, padding=True, truncation=True
            )
            self._warn_truncated(texts, encoded["attention_mask"].sum(1).tolist())
            for name in ("input_ids", "attention_mask"):
                data[name] = encoded[name].reshape(*shape, -1)
        return BatchFeature(data)

    def _warn_truncated(self, texts: Sequence[str], counts: Sequence[int]) -> None:
        limit = self.tokenizer.model_max_length
        for text, count in zip(texts, counts, strict=True):
            if count >= limit and len(self.tokenizer(text)["input_ids"]) > count:
                warnings.warn(
                    f"text {printable(text, 60)!r}... is truncated to the model's maximum of"
                    f" {limit} tokens",
                    UserWarning,
                    stacklevel=caller_level(),
                )


def fiber_tokenizer(tokenizer: Any) -> Tokenizer:
    """Return a fast tokenizer of transformers as one of fiber.

    Raises:
        TypeError: if it is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}; expected a fast tokenizer of transformers,"
            " such as AutoTokenizer.from_pretrained(folder)"
        )
    return Tokenizer.from_json(
        backend.to_str(), pad_token=tokenizer.pad_token, mask_token=tokenizer.mask_token
    )
