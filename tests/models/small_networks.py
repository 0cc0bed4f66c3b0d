"""A small network of every family and kind, and a call of each of its heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fiber
from fiber.models.registry import build_model
from fiber.recipes.small import small_meter
from tests.models.xdecoder.small_model import small_model

#: Networks by name: the packaged ones, and METER with one of its choices changed.
NETWORKS: dict[str, dict[str, Any]] = {
    "coarse": {},
    "fine": {},
    "METER": {},
    "METER BERT": {"text_encoder": "bert"},
    "METER Swin": {"image_encoder": "swin"},
    "METER merged": {"kind": "merged_attention"},
    "X-Decoder": {},
}


def network(name: str, dropout: float = 0.0) -> Any:
    """Build one of `NETWORKS`; the packaged ones have their trained weights."""
    torch.manual_seed(0)
    if name.startswith("METER"):
        return build_model(_meter_config(dropout, **NETWORKS[name]))
    if name == "X-Decoder":
        return _with_masks(dropout)
    packaged: Any = fiber.load(f"scenes/{name}")
    config = packaged.config
    config = dataclasses.replace(
        config, roberta=dataclasses.replace(config.roberta, dropout=dropout)
    )
    built = build_model(config)
    built.load_state_dict(packaged.network.state_dict())
    return built


def _meter_config(dropout: float, **choices: str) -> Any:
    config = small_meter().model
    text = {"dropout": dropout}
    if choices.get("text_encoder") == "bert":
        own = dataclasses.asdict(config.roberta)
        text |= {name: own[name] for name in ("vocab_size", "width", "num_layers", "num_heads")}
        text["ffn_width"] = own["ffn_width"]
        encoders = {"bert": dataclasses.replace(config.bert, **text)}
    else:
        encoders = {"roberta": dataclasses.replace(config.roberta, **text)}
    if choices.get("image_encoder") == "swin":
        encoders["swin"] = dataclasses.replace(
            config.swin, embed_dim=20, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=2
        )
    cross = dataclasses.replace(
        config.cross, dropout=dropout, kind=choices.pop("kind", config.cross.kind)
    )
    heads = ("itm", "mlm", "vqa", "nlvr2", "snli", "rank")
    heads = dataclasses.replace(config.image_text, heads=heads)
    return dataclasses.replace(config, cross=cross, image_text=heads, **encoders, **choices)


def _with_masks(dropout: float) -> Any:
    """Build a network that finds masks; what it drops are whole branches of its blocks."""
    made: Any = small_model().network
    config = made.config
    focalnet = dataclasses.replace(config.focalnet, drop_path=dropout)
    built = build_model(dataclasses.replace(config, focalnet=focalnet))
    built.load_state_dict(made.state_dict())
    return built


def inputs(config: Any, batch: int = 2, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images, token ids and a mask with some padding."""
    draw = torch.Generator().manual_seed(1)
    size = getattr(config, "image_size", 96)
    images = torch.randn(batch, 3, size, size, generator=draw)
    ids = torch.randint(5, config.vocab_size - 5, (batch, length), generator=draw)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[-1, length - 3 :] = False
    return images, ids.where(mask, 1), mask


def heads(config: Any) -> dict[str, Callable[[nn.Module], Tensor]]:
    """Return a function for each head, from a network (or a wrapper of it) to its outputs."""
    images, ids, mask = inputs(config)
    if "grounding" in config.heads:

        def detect(model: nn.Module) -> Tensor:
            output = model(images, ids, mask)
            parts = (*output.token_logits, *output.box_deltas, *output.centerness_logits)
            return torch.cat([part.flatten(1) for part in parts], 1)

        return {"grounding": detect}

    def of(head: str) -> Callable[[nn.Module], Tensor]:
        given = torch.stack([images, images.flip(0)], 1) if head == "nlvr2" else images
        return lambda model: model(given, ids, mask, head)

    if "mask" in config.heads:
        return {**{head: of(head) for head in config.heads}, "mask": _masks(images, ids, mask)}
    return {head: of(head) for head in config.heads}


def _masks(images: Tensor, ids: Tensor, mask: Tensor) -> Callable[[nn.Module], Tensor]:
    """Find classes of several texts each, and phrases."""
    classes = (
        torch.stack([ids, ids.flip(1), ids + 1]),
        torch.stack([mask, mask.flip(1), mask]),
    )

    def find(model: Any) -> Tensor:
        found = model(images, *classes, "mask")
        memory, texts = model.read_image(images), model.encode_text(ids, mask)
        tokens = texts.tokens[mask][None].expand(len(images), -1, -1)
        phrases = model.phrase_masks(memory, texts, tokens)
        return torch.cat([part.flatten(1) for part in (*found, *phrases)], 1)

    return find
