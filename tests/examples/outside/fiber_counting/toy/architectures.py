"""The entry of the family, which pyproject.toml names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiber_counting.toy.config import ToyConfig
from fiber_counting.toy.network import ToyNetwork
from torch import Tensor

from fiber.config_io import from_dict, to_dict
from fiber.data import ImageTransform
from fiber.models.architecture import Architecture
from fiber.models.encoders.keys import KeyMap, weight_and_bias


def _keys(config: ToyConfig) -> KeyMap:
    """Map our keys to those of files that `fiber convert --to published` writes and reads."""
    return {
        **weight_and_bias("backbone.patches", "toy_encoder.patches"),
        **weight_and_bias("backbone.layers.1", "toy_encoder.first"),
        **weight_and_bias("backbone.layers.3", "toy_encoder.second"),
        **weight_and_bias("count_head", "toy_head"),
    }


def _infer_config(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> ToyConfig:
    return from_dict(ToyConfig, stored.get("toy", {}))


ARCHITECTURES = (
    Architecture(
        family="toy",
        title="Toy",
        config_class=ToyConfig,
        network=ToyNetwork,
        recognizes=lambda names: any(name.startswith("toy_encoder.") for name in names),
        first_convolution="backbone.patches.weight",
        infer_config=_infer_config,
        stored_config=lambda config: {"toy": to_dict(config)},
        keys=_keys,
        main_sizes=lambda config: {"width": config.width, "most_objects": config.most_objects},
        transform=lambda config, task: ImageTransform.squash(
            config.image_size, channel_order=config.channel_order
        ),
        describe=lambda config: f"toy model of width {config.width}",
    ),
)
