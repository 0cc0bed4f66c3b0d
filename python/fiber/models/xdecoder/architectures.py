"""Registry entry of X-Decoder."""

from __future__ import annotations

from fiber.models.architecture import Architecture
from fiber.models.xdecoder import infer_config, keys
from fiber.models.xdecoder.config import XDecoderConfig
from fiber.models.xdecoder.preprocess import check_tokenizer, xdecoder_transform
from fiber.models.xdecoder.segmenter import XDecoder

ARCHITECTURES = (
    Architecture(
        family="xdecoder",
        title="X-Decoder",
        config_class=XDecoderConfig,
        network=XDecoder,
        recognizes=keys.is_xdecoder,
        published_key=None,
        published_channel_order="rgb",
        first_convolution=keys.FIRST_CONVOLUTION,
        infer_config=infer_config.xdecoder_config,
        stored_config=infer_config.stored_config,
        keys=keys.xdecoder_keys,
        stored_sizes=infer_config.stored_sizes,
        # MLPs of every part, focal modulation, and attention of the text encoder. Projections of
        # queries, keys and values are parameters in the decoders, whose outputs have adapters.
        lora_targets=(
            *("*.mlp.*", "*.output", "backbone.text.blocks.*.qkv"),
            "backbone.image.*.modulation.projection",
        ),
        ignored_key=keys.ignored_xdecoder_key,
        to_published=keys.with_buffers,
        encoders=(keys.UNICL,),
        main_sizes=infer_config.main_sizes,
        transform=xdecoder_transform,
        check_tokenizer=check_tokenizer,
        describe=infer_config.describe,
    ),
)
