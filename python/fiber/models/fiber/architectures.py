"""Registry entries of FIBER, one per stage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from fiber.config import FiberConfig
from fiber.models.architecture import Architecture
from fiber.models.encoders.position_interpolation import resize_bias_tables
from fiber.models.fiber import infer_config, keys, preprocess
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText


def _resize_windows(state: Mapping[str, Tensor], config: FiberConfig) -> Mapping[str, Tensor]:
    return resize_bias_tables(state, config.swin.window_size)


#: Creates a FIBER entry, with the arguments that both stages share.
_fiber = partial(
    Architecture,
    family="fiber",
    config_class=FiberConfig,
    first_convolution=keys.FIRST_CONVOLUTION,
    stored_config=infer_config.stored_config,
    encoders=keys.ENCODERS,
    resize=_resize_windows,
    main_sizes=infer_config.main_sizes,
    stored_sizes=infer_config.stored_sizes,
    # Attention and MLPs of the encoders and the fusion, whatever kinds a model has.
    lora_targets=(
        *("backbone.*.qkv", "backbone.*.query", "backbone.*.key_value", "backbone.*.output"),
        "backbone.*.mlp.*",
    ),
    describe=infer_config.describe,
)

ARCHITECTURES = (
    _fiber(
        stage="coarse",
        title="coarse FIBER",
        network=FiberImageText,
        recognizes=lambda names: any(name.startswith(keys.COARSE_IMAGE) for name in names),
        published_key="state_dict",
        published_channel_order="rgb",
        infer_config=infer_config.coarse_config,
        keys=keys.coarse_keys,
        ignored_key=keys.ignored_coarse_key,
        default_values=keys.coarse_defaults,
        transform=lambda config, task: preprocess.coarse_transform(config),
    ),
    _fiber(
        stage="fine",
        title="fine FIBER",
        network=FiberDetector,
        recognizes=lambda names: any(name.startswith("fusion_backbone.") for name in names),
        published_key="model",
        published_channel_order="bgr",
        infer_config=infer_config.fine_config,
        keys=keys.fine_keys,
        ignored_key=keys.ignored_fine_key,
        from_published=keys.from_published_fine,
        to_published=keys.to_published_fine,
        transform=lambda config, task: preprocess.fine_transform(config),
    ),
)
