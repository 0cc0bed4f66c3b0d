"""A recorded X-Decoder case: its config, its weights by the published rule, its inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.checkpoints.published import load_mapped
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.models.xdecoder.class_texts import class_texts, with_background
from fiber.models.xdecoder.config import DecoderConfig, XDecoderConfig
from fiber.models.xdecoder.keys import ignored_xdecoder_key, xdecoder_keys
from fiber.models.xdecoder.segmenter import XDecoder
from tests.golden import XDECODER
from tests.parity.coarse_case import draw
from tests.parity.comparison import Comparison
from tests.parity.tolerances import XDecoderTolerances, xdecoder_tolerances

#: Statistics that pixels are normalized by, in units of bytes.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: Names of the state dict that the rule does not draw.
NOT_DRAWN = ("sem_seg_head.predictor.self_attn_mask", "criterion.empty_weight")
#: Patterns of the weight rule (README): tables of deviation 1, and norm weights around 1.
_TABLES = re.compile(r"(query_feat|query_embed|level_embed|pos_embed_caping)\.weight$")
_NORMS = re.compile(r"(^|\.)(norm\d*|ln_1|ln_2|ln_final|decoder_norm)\.weight$")
#: Tensors that every case must have; what else it has is compared, too.
_TENSORS = (
    *("input.image0", "input.image1", "input.vlp0", "input.vlp1"),
    *("text.ids", "text.mask", "text.class_emb", "text.classes"),
    *("backbone.res2", "backbone.res5", "pixel.mask_features", "seg.pred0.attn_mask"),
    *("seg.image0.mask_logits", "ground.similarity", "ground.mask_logits"),
)


class XDecoderCase:
    """What `<name>.json` and its companions hold.

    Attributes:
        path: of the settings.
        config: the recorded settings.
        records: per recorded tensor its shape, stride and absolute maximum.
        scalars: recorded numbers, ids and segments.
        weights_check: published name -> [shape, sum, L2 norm, first values].
    """

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.path = path
        self.name = path.stem
        self.config: dict[str, Any] = content["config"]
        self.records: dict[str, dict[str, Any]] = content["tensors"]
        self.scalars: dict[str, Any] = content["scalars"]
        self._stored = load_file(path.with_suffix(".safetensors"))
        check = path.with_name(f"{self.name}_weights_check.json")
        self.weights_check: dict[str, list[Any]] = json.loads(check.read_text())
        texts = path.with_name("texts.json")
        # Folders without the list have no other texts than the committed one.
        texts = texts if texts.exists() else XDECODER / "texts.json"
        self._ids: dict[str, list[int]] = json.loads(texts.read_text())["ids"]
        self.start_id, self.end_id = self._ids[""]

    @property
    def is_backbone(self) -> bool:
        """Whether only the image encoder was recorded, in the form of Focal-L."""
        return "backbone" in self.config

    @property
    def tolerances(self) -> XDecoderTolerances:
        """What its class of cases allows."""
        return xdecoder_tolerances(self.config)

    def name_faults(self) -> list[str]:
        """Name what one of the case's files has and another lacks, and what none of them has."""
        described, stored = set(self.records), set(self._stored)
        if self.is_backbone:
            # Its images are not described.
            stored -= {"input.image0", "input.image1"}
        needed = ("backbone.res2", "backbone.res5") if self.is_backbone else _TENSORS
        return [
            *(f"{name}: described, not stored" for name in sorted(described - stored)),
            *(f"{name}: stored, not described" for name in sorted(stored - described)),
            *(f"{name}: not recorded" for name in sorted(set(needed) - described)),
        ]

    def stored(self, name: str) -> Tensor:
        """A recorded tensor, flat: every stride-th value, all bits of a mask."""
        value, record = self._stored[name].reshape(-1), self.records[name]
        if not record.get("packed"):
            return value
        bits = np.unpackbits(value.numpy())[: int(np.prod(record["shape"]))]
        return torch.from_numpy(bits).bool()

    def sample(self, name: str, ours: Tensor) -> Tensor:
        """Take from our tensor what was stored of the recorded one, if its shape is the same."""
        record = self.records[name]
        if list(ours.shape) != record["shape"]:
            return ours
        return ours.reshape(-1)[:: record.get("stride") or 1]

    def text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of texts, padded to the length of the text encoder."""
        length = self.xdecoder_config().max_tokens
        ids = torch.full((len(texts), length), self.end_id)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            own = self._ids[text]
            ids[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = True
        return ids, mask

    def class_texts(self) -> list[tuple[str, ...]]:
        """Texts of every class and of the background: all templates, or the first."""
        count = None if self.scalars["classes_from"] == "templates" else 1
        return [class_texts(name)[:count] for name in with_background(self.config["names"])]

    def images(self, kind: str, numbers: Sequence[int]) -> Tensor:
        """Recorded images, normalized, and padded with zeros to a multiple of 32 and each other."""
        images = [self._stored[f"input.{kind}{number}"] for number in numbers]
        height, width = (
            -(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (0, 1)
        )
        padded = torch.zeros(len(images), 3, height, width)
        for row, image in enumerate(images):
            own = ((image.float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
            padded[row, :, : own.shape[1], : own.shape[2]] = own
        return padded

    def focalnet(self) -> FocalNetConfig:
        """The recorded settings of the image encoder as ours."""
        c = self.config
        if self.is_backbone:
            return FocalNetConfig(
                block="norm_inside",
                embed_dim=c["embed_dim"],
                depths=tuple(c["depths"]),
                focal_levels=c["levels"],
                focal_window=c["window"],
            )
        cfg, published = c["cfg"], FocalNetConfig()
        return FocalNetConfig(
            embed_dim=cfg.get("MODEL.BACKBONE.FOCAL.EMBED_DIM", published.embed_dim),
            depths=tuple(cfg.get("MODEL.BACKBONE.FOCAL.DEPTHS", published.depths)),
            drop_path=0.0,
        )

    def xdecoder_config(self) -> XDecoderConfig:
        """The recorded settings as ours; what they do not change is as published."""
        cfg, published = self.config["cfg"], XDecoderConfig()

        def setting(name: str, default: int) -> int:
            return cfg.get(f"MODEL.{name}", default)

        width = setting("TEXT.WIDTH", published.width)
        heads = setting("DECODER.NHEADS", published.decoder.num_heads)
        hidden = setting("DECODER.DIM_FEEDFORWARD", published.decoder.ffn_width)
        layers = setting("ENCODER.TRANSFORMER_ENC_LAYERS", published.pixel_decoder.num_layers)
        return XDecoderConfig(
            focalnet=self.focalnet(),
            clip_text=ClipTextConfig(
                width=width,
                num_blocks=setting("TEXT.LAYERS", published.clip_text.num_blocks),
                num_heads=setting("TEXT.HEADS", published.clip_text.num_heads),
            ),
            pixel_decoder=PixelDecoderConfig(num_layers=layers, num_heads=heads, ffn_width=hidden),
            decoder=DecoderConfig(
                num_queries=setting("DECODER.NUM_OBJECT_QUERIES", published.decoder.num_queries),
                num_layers=setting("DECODER.DEC_LAYERS", published.decoder.num_layers + 1) - 1,
                num_heads=heads,
                ffn_width=hidden,
                mask_width=setting("ENCODER.MASK_DIM", published.decoder.mask_width),
            ),
        )

    @property
    def caption_steps(self) -> int:
        """Number of recorded steps of a caption."""
        return self.config["cfg"].get("MODEL.DECODER.CAPTIONING.STEP", 50)

    def published_state(self) -> dict[str, Tensor]:
        """Draw every weight by the README's rule, under its published name.

        Names and shapes are those of `<name>_weights_check.json`, never our model's own.
        """
        return {name: self.drawn(name) for name in self.weights_check if name not in NOT_DRAWN}

    def drawn(self, name: str) -> Tensor:
        """Draw one weight."""
        weights = self.config if self.is_backbone else self.config["weights"]
        if name.endswith("logit_scale"):
            return torch.tensor(weights["logit_scale"])
        value = draw(name, self.weights_check[name][0])
        if not _TABLES.search(name):
            value = value * weights["std"]
        if _NORMS.search(name):
            value = 1 + value
        if name.endswith(("gamma_1", "gamma_2")):
            value = 0.5 + value
        for pattern, factor in weights.get("multiply", {}).items():
            if re.search(pattern, name):
                value = value * factor
        return value

    def model(self) -> XDecoder:
        """Build the model, and load it as published files are loaded."""
        config = self.xdecoder_config()
        model = XDecoder(config)
        ignored = lambda name: ignored_xdecoder_key(name, config)  # noqa: E731
        load_mapped(model, self.published_state(), xdecoder_keys(config), ignored)
        return model.eval()


def compare_tensors(
    comparison: Comparison, case: XDecoderCase, group: str, found: dict[str, Tensor], allowed: float
) -> None:
    """Compare those of our tensors that were recorded."""
    for name, value in found.items():
        if name not in case.records or name in comparison.compared:
            continue
        record, stored, ours = case.records[name], case.stored(name), case.sample(name, value)
        if not stored.numel():
            comparison.compared.add(name)
            comparison.group(group, allowed).add(name, float(value.numel()))
            continue
        if stored.dtype == torch.bool and ours.shape == stored.shape:
            comparison.compared.add(name)
            share = (ours != stored).sum().item() / max(1, stored.numel())
            comparison.group(f"{group} (bits)", case.tolerances.bits).add(name, share)
            continue
        # Without maxima, errors are absolute below 1 and relative above.
        absmax = record.get("absmax", stored.double().abs().max().item())
        comparison.tensor(group, name, ours, stored, allowed, absmax)


def compare_bits(
    comparison: Comparison,
    case: XDecoderCase,
    prefix: str,
    own: Sequence[Tensor],
    bits: Sequence[Tensor],
) -> None:
    """Compare the attention masks of a pass with recorded or exact ones, all bits together."""
    names = [f"{prefix}.pred{number}.attn_mask" for number in range(len(own))]
    comparison.compared |= set(names)
    group = comparison.group("attention masks", case.tolerances.bits)
    if [each.numel() for each in own] != [each.numel() for each in bits]:
        group.add(f"{prefix}: {len(own)} masks of other sizes", float("nan"))
        return
    wrong = sum((a.flatten() != b.flatten()).sum().item() for a, b in zip(own, bits, strict=True))
    group.add(prefix, wrong / sum(each.numel() for each in bits))
