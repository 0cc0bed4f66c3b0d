"""Convert user inputs to tensors for a network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.inference.inputs import ArrayInputs
from fiber.models.model_config import text_cleaning
from fiber.models.registry import ModelConfig, check_tokenizer, inference_transform


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
            lambda task: inference_transform(config, task),
            tokenizer,
            config.max_tokens,
            limits,
            cleaning=text_cleaning(config),
        )
        self.device = device

    def _threads(self) -> int:
        return torch.get_num_threads()

    def _converters(self) -> tuple[Callable[[np.ndarray], Tensor], Callable[[np.ndarray], Tensor]]:
        return lambda values: torch.from_numpy(values).to(self.device), torch.from_numpy
