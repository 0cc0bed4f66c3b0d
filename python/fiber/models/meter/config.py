"""Configuration of METER models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fiber.config import ClipConfig, RobertaConfig, SwinConfig
from fiber.config_io import check_ranges, nearest, require
from fiber.messages import shown
from fiber.models.encoders.bert_config import BertConfig
from fiber.models.meter.released import head_hint

#: Heads of a METER model, in construction order. "snli": entailment of a text by an image; "rank":
#: score of a pair for retrieval.
METER_HEADS = ("itm", "mlm", "vqa", "nlvr2", "snli", "rank")


@dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """Fusion of the outputs of both encoders."""

    #: "co_attention": a stack of layers for each side, which read the outputs of the level below of
    #: both sides (published). "merged_attention": one stack on the tokens of both sides, as the
    #: paper describes it; the authors released neither code nor weights of it.
    kind: Literal["co_attention", "merged_attention"] = "co_attention"
    #: Channels of the fused tokens of both sides.
    width: int = 768
    #: Number of layers.
    num_layers: int = 6
    #: Number of attention heads per layer.
    num_heads: int = 12
    #: Hidden dimension of the feed-forward layers.
    ffn_width: int = 3072
    #: Dropout after attention and feed-forward layers, and on attention weights.
    dropout: float = 0.1
    #: Epsilon of every LayerNorm.
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        require(
            self.kind in ("co_attention", "merged_attention"),
            f"cross.kind: expected 'co_attention' or 'merged_attention', got {shown(self.kind)}",
        )
        ranges = {
            "width": (1, 2**16),
            "num_layers": (0, 1000),
            "num_heads": (1, 2**16),
            "ffn_width": (1, 2**20),
            "dropout": (0, 1),
            "layer_norm_eps": (0, 1),
        }
        check_ranges(self, "cross.", ranges)
        require(
            self.width % self.num_heads == 0,
            f"cross: num_heads must divide width, got {self.num_heads} and {self.width}",
        )


@dataclass(frozen=True, kw_only=True)
class MeterHeadsConfig:
    """Heads of a METER model."""

    #: Subset of `METER_HEADS`.
    heads: tuple[str, ...] = ("itm", "mlm")
    #: Number of answers of the VQA classifier.
    num_answers: int = 3129

    def __post_init__(self) -> None:
        check_ranges(self, "image_text.", {"num_answers": (1, 2**24)})
        for head in self.heads:
            require(
                head in METER_HEADS,
                f"image_text.heads: expected any of {', '.join(METER_HEADS)}, got {shown(head)}",
            )


@dataclass(frozen=True, kw_only=True)
class MeterConfig:
    """Config of a METER model: two encoders, fusion on top of them, and heads."""

    family: Literal["meter"] = "meter"
    #: Input height and width in pixels.
    image_size: int = 288
    #: Maximum text length in tokens, including <s> and </s>.
    max_tokens: int = 50
    #: Initialization of linear weights outside pretrained encoders. "published": N(0, 0.02).
    #: "fan_in": std scaled by fan-in, also in the encoders, for small models from scratch.
    weight_start: Literal["published", "fan_in"] = "published"
    #: Which of `clip` and `swin` the image encoder is.
    image_encoder: Literal["clip", "swin"] = "clip"
    clip: ClipConfig = field(default_factory=ClipConfig)
    swin: SwinConfig = field(default_factory=SwinConfig)
    #: Which of `roberta` and `bert` the text encoder is. All published models have RoBERTa.
    text_encoder: Literal["roberta", "bert"] = "roberta"
    roberta: RobertaConfig = field(default_factory=RobertaConfig)
    bert: BertConfig = field(default_factory=BertConfig)
    cross: CrossConfig = field(default_factory=CrossConfig)
    image_text: MeterHeadsConfig = field(default_factory=MeterHeadsConfig)

    def __post_init__(self) -> None:
        require(self.family == "meter", f"family: expected 'meter', got {shown(self.family)}")
        require(
            self.image_encoder in ("clip", "swin"),
            f"image_encoder: expected 'clip' or 'swin', got {shown(self.image_encoder)}",
        )
        require(
            self.text_encoder in ("roberta", "bert"),
            f"text_encoder: expected 'roberta' or 'bert', got {shown(self.text_encoder)}",
        )
        check_ranges(self, "", {"image_size": (1, 2**16), "max_tokens": (2, 2**20)})
        require(
            self.max_tokens <= self.text.max_tokens,
            f"max_tokens must be at most {self.text.max_tokens}, the maximum of the text"
            f" encoder, got {self.max_tokens}",
        )
        self._check_image_size(self.image_size)

    @property
    def size_step(self) -> int:
        """Number that divides every image size: the stride of the image encoder in pixels."""
        if self.image_encoder == "clip":
            return self.clip.patch_size
        return self.swin.patch_size * 8

    @property
    def image_width(self) -> int:
        """Channels of the image encoder's output."""
        return self.clip.width if self.image_encoder == "clip" else self.swin.channels[-1]

    @property
    def text(self) -> RobertaConfig:
        """Config of the text encoder."""
        return self.roberta if self.text_encoder == "roberta" else self.bert

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        return self.image_text.heads

    @property
    def channel_order(self) -> Literal["rgb", "bgr"]:
        """Input channel order."""
        return "rgb"

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the text encoder."""
        return self.text.vocab_size

    @property
    def num_answers(self) -> int:
        """Number of answers of the VQA head."""
        return self.image_text.num_answers

    @property
    def num_token_types(self) -> int:
        """Number of token types: text, image, and the second image of NLVR2."""
        return 3 if "nlvr2" in self.heads else 2

    @property
    def mlm_units(self) -> tuple[str, ...]:
        """Units that MLM may mask; words and positions are those of byte-level BPEs."""
        return ("token",) if self.text_encoder == "bert" else ("token", "word", "position")

    @property
    def has_row_draws(self) -> bool:
        """True if dropout may be drawn by row.

        With merged attention, the weights of a pair have other places if its texts are padded to
        another length.
        """
        return self.cross.kind != "merged_attention"

    @property
    def pair_heads(self) -> tuple[str, ...]:
        """Heads that rank pairs for retrieval, best first."""
        return ("rank", "itm")

    def head_hint(self, head: str) -> str:
        """Say which released files have a head, or that METER has no such head."""
        return head_hint(head)

    def with_vocabulary(self, vocab_size: int) -> MeterConfig:
        """Return a copy of the config with a new vocabulary size."""
        if self.text_encoder == "bert":
            bert = dataclasses.replace(self.bert, vocab_size=vocab_size)
            return dataclasses.replace(self, bert=bert)
        roberta = dataclasses.replace(self.roberta, vocab_size=vocab_size)
        return dataclasses.replace(self, roberta=roberta)

    def with_answers(self, count: int) -> MeterConfig:
        """Return a copy of the config with a new number of answers of the VQA head."""
        image_text = dataclasses.replace(self.image_text, num_answers=count)
        return dataclasses.replace(self, image_text=image_text)

    def check_published(self, prefix: str = "") -> None:
        """Check what only published runs need of a config.

        Args:
            prefix: put before names of fields in messages.

        Raises:
            ValueError: if the image encoder is a Swin whose windows do not fit the image size.
        """
        window, step = self.swin.window_size, self.size_step
        require(
            self.image_encoder != "swin" or window * step == self.image_size,
            f"{prefix}swin.window_size {window} with {prefix}image_size {self.image_size}: METER's"
            f" windows have image_size / {step} tokens; expected {prefix}image_size"
            f" {window * step} or {prefix}swin.window_size {self.image_size // step}",
        )

    def with_image_size(self, image_size: int) -> MeterConfig:
        """Return a copy of the config with a new input size; windows of Swin scale with it.

        Raises:
            ValueError: if the size is not a multiple of `size_step`.
        """
        self._check_image_size(image_size)
        swin = self.swin
        if self.image_encoder == "swin":
            swin = dataclasses.replace(swin, window_size=image_size // self.size_step)
        return dataclasses.replace(self, image_size=image_size, swin=swin)

    def _check_image_size(self, image_size: int) -> None:
        step = self.size_step
        require(
            image_size > 0 and image_size % step == 0,
            f"image_size {image_size}: expected a multiple of {step}"
            f" ({'the patch size' if self.image_encoder == 'clip' else 'the stride of Swin'})",
        )


#: Published models by image encoder, all with RoBERTa base: CLIP-ViT B/16 and B/32, and Swin base
#: and large. Image sizes are those of pre-training; B/32 and Swin large were not released.
METER_PRESETS: dict[str, MeterConfig] = {
    "clip16": MeterConfig(),
    "clip32": MeterConfig(image_size=224, clip=ClipConfig(patch_size=32)),
    "swin_base": MeterConfig(image_size=384, image_encoder="swin"),
    "swin_large": MeterConfig(
        image_size=384,
        image_encoder="swin",
        swin=SwinConfig(embed_dim=192, num_heads=(6, 12, 24, 48)),
    ),
}
#: Text encoders of METER by name.
METER_TEXT_ENCODERS: dict[str, RobertaConfig] = {
    "roberta_base": RobertaConfig(),
    "roberta_large": RobertaConfig(width=1024, num_layers=24, num_heads=16, ffn_width=4096),
    "bert_base": BertConfig(),
}


def meter_preset(name: str, *, text_encoder: str = "roberta_base") -> MeterConfig:
    """Look up a preset, with a text encoder of `METER_TEXT_ENCODERS`.

    Raises:
        ValueError: if either does not exist; the message suggests the nearest names.
    """
    if name not in METER_PRESETS:
        raise ValueError(
            f"METER preset {shown(name)} does not exist; {nearest(name, METER_PRESETS)}"
        )
    if text_encoder not in METER_TEXT_ENCODERS:
        raise ValueError(
            f"text encoder {shown(text_encoder)} does not exist;"
            f" {nearest(text_encoder, METER_TEXT_ENCODERS)}"
        )
    encoder = METER_TEXT_ENCODERS[text_encoder]
    if isinstance(encoder, BertConfig):
        return dataclasses.replace(METER_PRESETS[name], text_encoder="bert", bert=encoder)
    return dataclasses.replace(METER_PRESETS[name], roberta=encoder)
