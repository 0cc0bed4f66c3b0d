"""Convert user inputs to tensors for a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.inference.inputs import ArrayInputs, TextBatch
from fiber.models.registry import (
    ModelConfig,
    architecture_of,
    check_tokenizer,
    inference_transform,
)


class Inputs(ArrayInputs):
    """Image and text preprocessing for a network: `ArrayInputs` whose batches are tensors.

    Args:
        config: config of the network.
        tokenizer: tokenizer of the network, if it has one.
        device: device of tensors; sizes of images stay on the CPU.
        limits: see `ArrayInputs`.

    Raises:
        ValueError: if the network cannot use the tokenizer.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        device: torch.device,
        limits: DecodeLimits = DEFAULT_LIMITS,
    ) -> None:
        if tokenizer is not None:
            check_tokenizer(tokenizer, config)
        self.config = config
        super().__init__(
            lambda task: inference_transform(config, task), tokenizer, config.max_tokens, limits
        )
        self.device = device

    def cleaned(self, text: str) -> str:
        """Return a text as it is tokenized: cleaned, if the family does."""
        clean = architecture_of(self.config).clean_text
        return text if clean is None else clean(text).text

    def texts(self, texts: Sequence[str], *, warn_truncated: bool = True) -> TextBatch:
        """Tokenize texts, cleaned if the family does; see `ArrayInputs.texts`.

        Spans of tokens refer to the texts as given.
        """
        clean = architecture_of(self.config).clean_text
        if clean is None:
            return super().texts(texts, warn_truncated=warn_truncated)
        cleaned = [clean(text) for text in texts]
        batch = super().texts([each.text for each in cleaned], warn_truncated=warn_truncated)
        offsets = [
            [each.original_span(span) for span in spans]
            for each, spans in zip(cleaned, batch.offsets, strict=True)
        ]
        return replace(batch, offsets=offsets)

    def _threads(self) -> int:
        return torch.get_num_threads()

    def _converters(self) -> tuple[Callable[[np.ndarray], Tensor], Callable[[np.ndarray], Tensor]]:
        return lambda values: torch.from_numpy(values).to(self.device), torch.from_numpy
