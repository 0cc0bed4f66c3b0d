"""Configuration of the model: frozen dataclasses, checked when built, and the presets.

Everything that a checkpoint needs to be rebuilt is a `FiberConfig`. The coarse (image-text) and
the fine (image-text-box) stage share one backbone; they differ in fields of `FusionConfig` and in
the heads.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest, require

#: Heads that a coarse model can carry, in the order in which they are built.
IMAGE_TEXT_HEADS = ("itc", "itm", "mlm", "vqa", "nlvr2", "caption")


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Sizes of the image tower (Swin Transformer)."""

    #: Side of a patch in pixels; also the stride of the first stage.
    patch_size: int = 4
    #: Channels of the first stage; every later stage doubles them.
    embed_dim: int = 128
    #: Blocks of each of the four stages.
    depths: tuple[int, ...] = (2, 2, 18, 2)
    #: Attention heads of each stage.
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    #: Side of an attention window in tokens. The published coarse models use image_size / 32.
    window_size: int = 12
    #: Width of the MLP as a multiple of the channels.
    mlp_ratio: float = 4.0
    #: Stochastic depth of the last block; it grows linearly from 0 over all blocks.
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        require(
            len(self.depths) == len(self.num_heads) == 4,
            f"swin: expected 4 depths and 4 num_heads, got {self.depths} and {self.num_heads}",
        )
        for stage, (channels, heads) in enumerate(zip(self.channels, self.num_heads, strict=True)):
            require(
                channels % heads == 0,
                f"swin: stage {stage} has {channels} channels, not a multiple of {heads} heads",
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))


@dataclass(frozen=True, kw_only=True)
class RobertaConfig:
    """Sizes of the text tower (RoBERTa)."""

    #: Tokens in the vocabulary; ids 0, 1, 2 are <s>, <pad>, </s> and the last one is <mask>.
    vocab_size: int = 50265
    #: Width of a token.
    width: int = 768
    #: Transformer layers.
    num_layers: int = 12
    #: Attention heads of each layer.
    num_heads: int = 12
    #: Width of the feed-forward layer.
    ffn_width: int = 3072
    #: Rows of the position table; two of them (0 and the pad's) never hold a real token.
    max_positions: int = 514
    #: Dropout after embeddings, attention and feed-forward, and on attention weights.
    dropout: float = 0.1
    #: Epsilon of every LayerNorm.
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require(
            self.width % self.num_heads == 0,
            f"roberta: width {self.width} is not a multiple of num_heads {self.num_heads}",
        )

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, <s> and </s> included."""
        return self.max_positions - 2

    @property
    def mask_id(self) -> int:
        """Id of <mask>."""
        return self.vocab_size - 1


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the two towers are joined; all that differs between the stages' backbones."""

    #: Pairs of (image block, text layer) that exchange features; they are the last of both towers.
    num_fused_layers: int = 6
    #: LayerNorm before the query of the image-to-text attention (published coarse code and fine
    #: v3: yes, fine v2: no).
    normalize_query: bool = True
    #: Apply the output LayerNorm of the last text layer in `encode_pair` (fine: yes, coarse: no).
    normalize_last_text: bool = False
    #: Shift windows also on maps that are not larger than a window (fine: yes, coarse: no).
    shift_small_maps: bool = False
    #: Value of every gate of a new model: 0 as published, above 0 for models trained from
    #: nothing.
    gate_start: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.num_fused_layers >= 0,
            f"fusion: num_fused_layers must be 0 or more, got {self.num_fused_layers}",
        )


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Heads of the coarse model."""

    #: Heads to build, of `IMAGE_TEXT_HEADS`.
    heads: tuple[str, ...] = ("itc", "itm", "mlm")
    #: Answers of the VQA classifier.
    num_answers: int = 3129
    #: Start of the learned temperature of the contrastive loss.
    temperature: float = 0.07

    def __post_init__(self) -> None:
        for head in self.heads:
            require(
                head in IMAGE_TEXT_HEADS,
                f"image_text.heads: {head!r} is not one of {', '.join(IMAGE_TEXT_HEADS)}",
            )


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Pyramid, dynamic head and anchors of the fine model."""

    #: Channels of the pyramid and of the head.
    channels: int = 256
    #: Blocks of the dynamic head.
    num_blocks: int = 6
    #: Groups of its GroupNorms.
    norm_groups: int = 16
    #: Side of the square anchor as a multiple of the level's stride.
    anchor_scale: float = 8.0
    #: Pictures that a finished model looks at get this shorter side in pixels ...
    shorter_side: int = 800
    #: ... as long as their longer side does not exceed this.
    max_size: int = 1333
    #: Strides of the levels P3 to P7 in pixels.
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    #: Channels of the published model's unused class convolution, kept so that its checkpoints
    #: load and save exactly.
    num_unused_classes: int = 80
    #: DropBlock on two pyramid levels while training (published: yes).
    drop_block: bool = True
    #: Candidates of each level and box in the ATSS assignment.
    atss_top_k: int = 9


@dataclass(frozen=True, kw_only=True)
class FiberConfig:
    """A whole model: towers, fusion and the heads of one stage."""

    #: "coarse" is the image-text model, "fine" the detector.
    stage: Literal["coarse", "fine"] = "coarse"
    #: Side of the square training picture of the coarse stage, in pixels.
    image_size: int = 384
    #: Order of the colour channels that the first convolution expects (published fine models: bgr).
    channel_order: Literal["rgb", "bgr"] = "rgb"
    #: Longest text in tokens, <s> and </s> included.
    max_tokens: int = 40
    #: Start of the linear weights of towers, fusion and coarse heads: "published" draws from
    #: N(0, 0.02), "fan_in" keeps what that gives at a width of 768: else narrow towers hardly mix
    #: their tokens, and learn nothing in a short run.
    weight_start: Literal["published", "fan_in"] = "published"
    swin: SwinConfig = field(default_factory=SwinConfig)
    roberta: RobertaConfig = field(default_factory=RobertaConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    image_text: ImageTextConfig = field(default_factory=ImageTextConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        require(
            self.stage in ("coarse", "fine"), f"stage: expected coarse or fine, got {self.stage!r}"
        )
        require(
            self.channel_order in ("rgb", "bgr"),
            f"channel_order: expected rgb or bgr, got {self.channel_order!r}",
        )
        require(
            self.max_tokens <= self.roberta.max_tokens,
            f"max_tokens {self.max_tokens} exceeds the {self.roberta.max_tokens} positions of the"
            " text tower",
        )
        fused, depths, layers = (
            self.fusion.num_fused_layers,
            self.swin.depths,
            self.roberta.num_layers,
        )
        require(
            fused == 0 or depths[3] <= fused <= min(layers, depths[2] + depths[3]),
            f"fusion.num_fused_layers is {fused}; expected 0 or {depths[3]} (all of stage 4) to"
            f" {min(layers, depths[2] + depths[3])}",
        )

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads on the backbone; the fine model has one, "grounding"."""
        return self.image_text.heads if self.stage == "coarse" else ("grounding",)

    def with_vocabulary(self, vocab_size: int) -> FiberConfig:
        """The same model for another tokenizer."""
        return dataclasses.replace(
            self, roberta=dataclasses.replace(self.roberta, vocab_size=vocab_size)
        )

    def with_image_size(self, image_size: int) -> FiberConfig:
        """The same coarse model for other pictures: its windows cover the same share of them.

        Raises:
            ValueError: for the fine stage, which takes pictures of any size, or a size that does
                not give whole windows.
        """
        require(
            "grounding" not in self.heads,
            f"image_size {image_size}: the fine model takes pictures of any size, its windows stay"
            f" {self.swin.window_size} tokens wide",
        )
        step = self.image_size // math.gcd(self.image_size, self.swin.window_size)
        require(
            image_size > 0 and image_size % step == 0,
            f"image_size {image_size}: expected a multiple of {step}, so that windows are whole",
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
        """The detector on this backbone; v3 is the form that the published coarse code matches."""
        require(version in ("v2", "v3"), f"version: expected v2 or v3, got {version!r}")
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


#: Sizes by name. `base` is the published model; the others train from nothing on a CPU.
PRESETS: dict[str, FiberConfig] = {
    "base": FiberConfig(),
    "small": FiberConfig(
        image_size=96,
        weight_start="fan_in",
        max_tokens=32,
        swin=SwinConfig(
            embed_dim=32, depths=(1, 1, 4, 2), num_heads=(1, 2, 4, 8), window_size=6, drop_path=0.0
        ),
        roberta=RobertaConfig(
            vocab_size=512,
            width=128,
            num_layers=6,
            num_heads=4,
            ffn_width=512,
            max_positions=130,
            dropout=0.0,
        ),
        fusion=FusionConfig(num_fused_layers=4, gate_start=0.5),
        image_text=ImageTextConfig(heads=("itc", "itm", "mlm", "vqa"), num_answers=32),
        detector=DetectorConfig(
            channels=96,
            num_blocks=1,
            norm_groups=8,
            anchor_scale=3.0,
            shorter_side=96,
            max_size=160,
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
    """Look a preset up by name.

    Raises:
        ValueError: if there is no such preset, with the nearest names.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} does not exist; {nearest(name, PRESETS)}")
    config = PRESETS[name]
    if stage == "coarse":
        return config
    if name == "base":
        return config.fine(max_tokens=256)
    # On the small maps of small models a shifted, padded window is mostly padding.
    return config.fine(shift_small_maps=False)
