"""Registry entry of METER."""

from __future__ import annotations

from fiber.models.architecture import Architecture
from fiber.models.meter import infer_config, keys
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.preprocess import check_tokenizer, image_options, meter_transform

ARCHITECTURES = (
    Architecture(
        family="meter",
        title="METER",
        config_class=MeterConfig,
        network=MeterImageText,
        recognizes=keys.is_meter,
        published_key="state_dict",
        published_channel_order="rgb",
        first_convolution=keys.FIRST_CONVOLUTION,
        infer_config=infer_config.meter_config,
        stored_config=infer_config.stored_config,
        keys=keys.meter_keys,
        stored_sizes=infer_config.stored_sizes,
        # Attention and MLPs of the encoders and the fusion, whatever kinds a model has.
        lora_targets=(
            *("backbone.*.qkv", "backbone.*.query", "backbone.*.key_value", "backbone.*.output"),
            "backbone.*.mlp.*",
        ),
        ignored_key=keys.ignored_meter_key,
        encoders=keys.ENCODERS,
        resize=keys.resize_tables,
        main_sizes=infer_config.main_sizes,
        transform=lambda config, task: meter_transform(config),
        image_options=image_options,
        check_tokenizer=check_tokenizer,
        describe=infer_config.describe,
    ),
)
