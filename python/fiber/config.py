"""Model configuration: frozen dataclasses, validated on construction, and presets.

A `FiberConfig` fully determines a model except for its weights. The coarse (image-text) and fine
(image-text-box) stages share one backbone; they differ in `FusionConfig` and in the heads.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fiber.config_io import IS_STORED, check_ranges, nearest, require
from fiber.messages import shown

#: Heads of a coarse-stage model, in construction order.
IMAGE_TEXT_HEADS = ("itc", "itm", "mlm", "vqa", "nlvr2", "caption")

#: Range of channels, heads and other dimensions, far above any published model.
_DIMENSION = (1, 2**16)
#: Range of the number of layers of a module.
_DEPTH = (1, 1000)
#: Range of image sizes in pixels.
_PIXELS = (1, 2**16)
#: Range of the number of tokens or classes.
_COUNT = (1, 2**24)
#: Range of positive factors.
_FACTOR = (1e-6, 1e6)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Hyperparameters of the image encoder (Swin Transformer)."""

    #: Patch size in pixels; also the stride of the first stage.
    patch_size: int = 4
    #: Channels of the first stage; each later stage doubles them.
    embed_dim: int = 128
    #: Number of blocks per stage.
    depths: tuple[int, ...] = (2, 2, 18, 2)
    #: Number of attention heads per stage.
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    #: Window size in tokens. The published coarse-stage models use image_size / 32.
    window_size: int = 12
    #: MLP hidden dim as a multiple of the channels.
    mlp_ratio: float = 4.0
    #: Stochastic depth rate of the last block; rates increase linearly from 0.
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        ranges = {
            "patch_size": (1, 1024),
            "embed_dim": _DIMENSION,
            "depths": _DEPTH,
            "num_heads": _DIMENSION,
            "window_size": (1, 1024),
            "mlp_ratio": (1 / 64, 64),
            "drop_path": (0, 1),
        }
        check_ranges(self, "swin.", ranges)
        require(
            len(self.depths) == len(self.num_heads) == 4,
            f"swin: expected 4 depths and num_heads, got {shown((self.depths, self.num_heads))}",
        )
        for stage, (channels, heads) in enumerate(zip(self.channels, self.num_heads, strict=True)):
            require(
                channels % heads == 0,
                f"swin: num_heads[{stage}] must divide the {channels} channels of stage {stage},"
                f" got {heads}",
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Hyperparameters of the image encoder of CLIP (Vision Transformer)."""

    #: Patch size in pixels.
    patch_size: int = 16
    #: Channels of a token.
    width: int = 768
    #: Number of blocks. The published image encoder has 12; METER leaves out the last.
    num_blocks: int = 11
    #: Number of attention heads per block.
    num_heads: int = 12
    #: MLP hidden dim as a multiple of the channels.
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        ranges = {
            "patch_size": (1, 1024),
            "width": _DIMENSION,
            "num_blocks": _DEPTH,
            "num_heads": _DIMENSION,
            "mlp_ratio": (1 / 64, 64),
        }
        check_ranges(self, "clip.", ranges)
        require(
            self.width % self.num_heads == 0,
            f"clip: num_heads must divide width, got {self.num_heads} and {self.width}",
        )


@dataclass(frozen=True, kw_only=True)
class RobertaConfig:
    """Hyperparameters of the text encoder (RoBERTa)."""

    #: Prefix of the fields in messages.
    section: ClassVar[str] = "roberta."

    #: Vocabulary size; ids 0, 1 and 2 are <s>, <pad> and </s>, and the last id is <mask>.
    vocab_size: int = 50265
    #: Embedding dimension.
    width: int = 768
    #: Number of Transformer layers.
    num_layers: int = 12
    #: Number of attention heads per layer.
    num_heads: int = 12
    #: Hidden dimension of the feed-forward layers.
    ffn_width: int = 3072
    #: Number of rows of the position embedding; real tokens never use rows 0 and 1 (<pad>).
    max_positions: int = 514
    #: Dropout after embeddings, attention and feed-forward layers, and on attention weights.
    dropout: float = 0.1
    #: Epsilon of every LayerNorm.
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        ranges = {
            # <pad> is token 1.
            "vocab_size": (2, 2**24),
            "width": _DIMENSION,
            "num_layers": _DEPTH,
            "num_heads": _DIMENSION,
            "ffn_width": (1, 2**20),
            "max_positions": (3, 2**20),
            "dropout": (0, 1),
            "layer_norm_eps": (0, 1),
        }
        check_ranges(self, self.section, ranges)
        require(
            self.width % self.num_heads == 0,
            f"{self.section}num_heads must divide width, got {self.num_heads} and {self.width}",
        )

    @property
    def max_tokens(self) -> int:
        """Maximum text length in tokens, including <s> and </s>."""
        return self.max_positions - 2

    @property
    def mask_id(self) -> int:
        """Id of <mask>."""
        return self.vocab_size - 1


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Fusion of the two encoders. The backbones of the two stages differ only in this config."""

    #: Number of (image block, text layer) pairs with cross-attention, taken from the end of both
    #: encoders.
    num_fused_layers: int = 6
    #: Apply a LayerNorm before the image-to-text query (published: yes, except in fine v2).
    normalize_query: bool = True
    #: Apply the last text layer's output LayerNorm in `encode_pair` (fine: yes, coarse: no).
    normalize_last_text: bool = False
    #: Shift windows even on maps that fit into one window (fine: yes, coarse: no).
    shift_small_maps: bool = False
    #: Initial value of every gate: 0 in published training, > 0 for models trained from scratch.
    gate_start: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.num_fused_layers >= 0,
            f"fusion: num_fused_layers must be >= 0, got {self.num_fused_layers}",
        )
        check_ranges(self, "fusion.", {"gate_start": (-1e6, 1e6)})


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Heads of the coarse-stage model."""

    #: Subset of `IMAGE_TEXT_HEADS`.
    heads: tuple[str, ...] = ("itc", "itm", "mlm")
    #: Number of answers of the VQA classifier.
    num_answers: int = 3129
    #: Initial value of the learned temperature of the ITC loss.
    temperature: float = 0.07

    def __post_init__(self) -> None:
        check_ranges(self, "image_text.", {"num_answers": _COUNT, "temperature": _FACTOR})
        for head in self.heads:
            require(
                head in IMAGE_TEXT_HEADS,
                f"image_text.heads: expected any of {', '.join(IMAGE_TEXT_HEADS)}, got"
                f" {shown(head)}",
            )


#: Number of attention heads of the pixel decoder of masks.
MASK_HEADS = 8


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Feature pyramid, dynamic head (DyHead) and anchors of the fine-stage model."""

    #: Channels of the feature pyramid and of the head.
    channels: int = 256
    #: Number of blocks of the dynamic head; with 0, the head reads the levels of the pyramid.
    num_blocks: int = 6
    #: Number of groups in the head's GroupNorms.
    norm_groups: int = 16
    #: Size of the square anchor as a multiple of the level's stride.
    anchor_scale: float = 8.0
    #: Shorter side and maximum longer side of images at inference, in pixels.
    shorter_side: int = 800
    max_size: int = 1333
    #: Strides in pixels of the pyramid levels P3 to P7.
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    #: Channels of an unused layer, kept so that published checkpoints round-trip exactly.
    num_unused_classes: int = 80
    #: Apply DropBlock to two pyramid levels in training (published: yes).
    drop_block: bool = True
    #: Number of ATSS candidates per level and ground-truth box.
    atss_top_k: int = 9
    #: Channels of mask features; 0: no masks. Published models have none.
    mask_width: int = field(default=0, metadata={IS_STORED: bool})

    def __post_init__(self) -> None:
        ranges = {
            **dict.fromkeys(("channels", "norm_groups"), _DIMENSION),
            "num_blocks": (0, 1000),
            "mask_width": (0, 2**16),
            "anchor_scale": _FACTOR,
            **dict.fromkeys(("shorter_side", "max_size", "strides"), _PIXELS),
            **dict.fromkeys(("num_unused_classes", "atss_top_k"), _COUNT),
        }
        check_ranges(self, "detector.", ranges)


@dataclass(frozen=True, kw_only=True)
class FiberConfig:
    """Config of a FIBER model: encoders, fusion and the heads of one stage."""

    #: "coarse": the image-text model; "fine": the detector.
    stage: Literal["coarse", "fine"] = "coarse"
    #: Input height and width of the coarse stage, in pixels.
    image_size: int = 384
    #: Input channel order (published fine-stage models: "bgr").
    channel_order: Literal["rgb", "bgr"] = "rgb"
    #: Maximum text length in tokens, including <s> and </s>.
    max_tokens: int = 40
    #: Initialization of linear weights in encoders, fusion and coarse-stage heads. "published":
    #: N(0, 0.02), with which small encoders hardly mix tokens and learn nothing in a short run.
    #: "fan_in": std scaled by fan-in to match N(0, 0.02) at 768 inputs; also initializes the
    #: feature pyramid, and a run the coarse-stage heads from the data (`benches/starts.py`).
    weight_start: Literal["published", "fan_in"] = "published"
    swin: SwinConfig = field(default_factory=SwinConfig)
    roberta: RobertaConfig = field(default_factory=RobertaConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    image_text: ImageTextConfig = field(default_factory=ImageTextConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        require(
            self.stage in ("coarse", "fine"),
            f"stage: expected 'coarse' or 'fine', got {shown(self.stage)}",
        )
        require(
            self.channel_order in ("rgb", "bgr"),
            f"channel_order: expected 'rgb' or 'bgr', got {shown(self.channel_order)}",
        )
        check_ranges(self, "", {"image_size": _PIXELS, "max_tokens": (2, 2**20)})
        require(
            self.max_tokens <= self.roberta.max_tokens,
            f"max_tokens must be at most {self.roberta.max_tokens}, the maximum of the text"
            f" encoder, got {self.max_tokens}",
        )
        fused, depths = self.fusion.num_fused_layers, self.swin.depths
        low, high = depths[3], min(self.roberta.num_layers, depths[2] + depths[3])
        require(
            fused == 0 or low <= fused <= high,
            f"fusion.num_fused_layers: expected 0 or {low} (all of stage 4) to {high}, got {fused}",
        )
        if self.stage == "fine":
            self._check_detector()

    def _check_detector(self) -> None:
        detector, patch_size = self.detector, self.swin.patch_size
        # P3 comes from the second stage of the image encoder, whose stride is twice the patch size.
        strides = tuple(patch_size * 2 ** (level + 1) for level in range(5))
        require(
            detector.strides == strides,
            f"detector.strides: expected {strides}, for swin.patch_size {patch_size}, got"
            f" {shown(detector.strides)}",
        )
        # Without blocks and masks, there are no GroupNorms.
        has_groups = detector.num_blocks > 0 or detector.mask_width > 0
        require(
            not has_groups or detector.channels % detector.norm_groups == 0,
            f"detector.norm_groups: expected a divisor of detector.channels ({detector.channels}),"
            f" got {detector.norm_groups}",
        )
        require(
            detector.mask_width == 0 or detector.channels % MASK_HEADS == 0,
            f"detector.channels: expected a multiple of the {MASK_HEADS} heads of the pixel"
            f" decoder, got {detector.channels}",
        )

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads; the fine stage has "grounding", and may have "grounding_mask"."""
        masks = ("grounding_mask",) if self.detector.mask_width else ()
        return self.image_text.heads if self.stage == "coarse" else ("grounding", *masks)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the text encoder."""
        return self.roberta.vocab_size

    @property
    def num_answers(self) -> int:
        """Number of answers of the VQA head."""
        return self.image_text.num_answers

    @property
    def mlm_units(self) -> tuple[str, ...]:
        """Units that MLM may mask."""
        return ("token", "word", "position")

    @property
    def has_row_draws(self) -> bool:
        """True, since dropout may be drawn by row."""
        return True

    def with_vocabulary(self, vocab_size: int) -> FiberConfig:
        """Return a copy of the config with a new vocabulary size."""
        roberta = dataclasses.replace(self.roberta, vocab_size=vocab_size)
        return dataclasses.replace(self, roberta=roberta)

    def with_answers(self, count: int) -> FiberConfig:
        """Return a copy of the config with a new number of answers of the VQA head."""
        image_text = dataclasses.replace(self.image_text, num_answers=count)
        return dataclasses.replace(self, image_text=image_text)

    def check_published(self, prefix: str = "") -> None:
        """Check what only published runs need of a config: nothing."""

    def with_image_size(self, image_size: int) -> FiberConfig:
        """Return a copy of a coarse-stage config with a new input size and a scaled window size.

        Raises:
            ValueError: if this is a fine-stage config, or the window size would not be an integer.
        """
        require(
            "grounding" not in self.heads,
            f"image_size {image_size}: fine-stage models take images of any size",
        )
        step = self.image_size // math.gcd(self.image_size, self.swin.window_size)
        require(
            image_size > 0 and image_size % step == 0,
            f"image_size {image_size}: expected a multiple of {step}, for an integer window size",
        )
        window_size = self.swin.window_size * image_size // self.image_size
        swin = dataclasses.replace(self.swin, window_size=window_size)
        return dataclasses.replace(self, image_size=image_size, swin=swin)

    def fine(
        self,
        *,
        version: Literal["v2", "v3"] = "v3",
        max_tokens: int | None = None,
        shift_small_maps: bool = True,
    ) -> FiberConfig:
        """Return the fine-stage config with the same encoders.

        `version` is that of the published checkpoints: "v3" normalizes queries, "v2" does not.
        """
        require(version in ("v2", "v3"), f"version: expected 'v2' or 'v3', got {shown(version)}")
        return dataclasses.replace(
            self,
            stage="fine",
            max_tokens=max_tokens or self.max_tokens,
            fusion=dataclasses.replace(
                self.fusion,
                normalize_query=version == "v3",
                normalize_last_text=True,
                shift_small_maps=shift_small_maps,
            ),
        )


#: Configs by name. `base` is the published model; the others can be trained from scratch on a CPU.
PRESETS: dict[str, FiberConfig] = {
    "base": FiberConfig(),
    "small": FiberConfig(
        image_size=96,
        weight_start="fan_in",
        max_tokens=32,
        swin=SwinConfig(
            embed_dim=20,
            depths=(1, 1, 4, 1),
            num_heads=(1, 2, 4, 8),
            window_size=6,
            mlp_ratio=3.0,
            drop_path=0.0,
        ),
        roberta=RobertaConfig(
            vocab_size=512,
            width=80,
            num_layers=5,
            num_heads=4,
            ffn_width=192,
            max_positions=130,
            dropout=0.0,
        ),
        fusion=FusionConfig(num_fused_layers=5, gate_start=0.5),
        image_text=ImageTextConfig(
            heads=("itc", "itm", "mlm", "vqa"), num_answers=32, temperature=0.15
        ),
        detector=DetectorConfig(
            channels=48,
            num_blocks=0,
            norm_groups=8,
            anchor_scale=3.0,
            shorter_side=96,
            max_size=168,
            drop_block=False,
        ),
    ),
    "micro": FiberConfig(
        image_size=64,
        max_tokens=16,
        swin=SwinConfig(
            embed_dim=16, depths=(1, 1, 2, 2), num_heads=(1, 2, 2, 4), window_size=2, drop_path=0.0
        ),
        roberta=RobertaConfig(
            vocab_size=320,
            width=32,
            num_layers=4,
            num_heads=2,
            ffn_width=64,
            max_positions=66,
            dropout=0.0,
        ),
        fusion=FusionConfig(num_fused_layers=3, gate_start=0.5),
        image_text=ImageTextConfig(heads=IMAGE_TEXT_HEADS, num_answers=16),
        detector=DetectorConfig(
            channels=32,
            num_blocks=1,
            norm_groups=4,
            anchor_scale=3.0,
            shorter_side=64,
            max_size=96,
            drop_block=False,
        ),
    ),
}


def preset(name: str, *, stage: Literal["coarse", "fine"] = "coarse") -> FiberConfig:
    """Look up a preset. Raises ValueError, suggesting the nearest names, if it does not exist."""
    if name not in PRESETS:
        raise ValueError(f"preset {shown(name)} does not exist; {nearest(name, PRESETS)}")
    config = PRESETS[name]
    if stage == "coarse":
        return config
    if name == "base":
        return config.fine(max_tokens=256)
    # On the small maps of small models, shifted windows would be mostly padding.
    return config.fine(shift_small_maps=False)
