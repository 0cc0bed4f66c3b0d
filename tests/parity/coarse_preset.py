"""A case that has no recordings: its settings, everything else by the rules of the recorded ones.

Names and shapes of the weights are the published ones. Shapes of what a case records follow from
its settings (`recorded_shapes`); `test_preset.py` holds them against the recorded cases.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from tests.golden import COARSE
from tests.parity.coarse_case import FEATURE_QUEUES, CoarseCase, draw
from tests.published_keys import coarse_keys

#: The case of the published model (golden/coarse README, Configs).
BASE: dict[str, Any] = {
    "std": 0.02,
    "B": 2,
    "L": 40,
    "V": 50265,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "heads": [4, 8, 16, 32],
    "image": 384,
    "hidden": 768,
    "t_layers": 12,
    "t_heads": 12,
    "fuse": 6,
    "vqa": 3129,
    "queue": 8,
    "lens": [40, 17],
    "maxpos": 514,
}
MICRO = COARSE / "micro.json"

#: Widths of the recorded beam searches, and their longest caption with <s> and </s>.
BEAMS = {"base": ((3,), 8), "micro": ((3, 5), 16)}
#: Captions of each picture that are sampled for CIDEr-D.
SAMPLES = 2
#: Places of the queue that are written at the start.
WRITTEN = 5
#: Label that the losses leave out.
_NO_LABEL = -100


class PresetCase(CoarseCase):
    """A case of its settings alone.

    Args:
        name: "base" or "micro".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.config, self.weights_check = _settings_and_weights(name)
        self.scalars = {"input.queue_ptr": WRITTEN, "input.queue_total": WRITTEN}
        self.grads = {}
        widths, longest = BEAMS[name]
        shapes = recorded_shapes(self.config, widths, longest)
        self.records = {
            tensor: {"shape": list(shape), "stride": 1} for tensor, shape in shapes.items()
        }
        self._stored = _drawn_inputs(self.config)


def _settings_and_weights(name: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Settings of a case, and the shape of every weight by its published name."""
    if name == "micro":
        check = json.loads(MICRO.with_name("micro_weights_check.json").read_text())
        return json.loads(MICRO.read_text())["config"], check
    return BASE, {key: [shape] for key, (shape, _) in coarse_keys().items()}


def recorded_shapes(
    settings: dict[str, Any], beams: tuple[int, ...], longest: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a case records, by what the published model is.

    Args:
        settings: of a case.
        beams: widths of its beam searches.
        longest: their longest caption, <s> and </s> included.

    Source: golden/coarse README, Files and names; the published model's specification, 1 and 2.
    """
    batch, length, width = settings["B"], settings["L"], settings["hidden"]
    side, queue, vocabulary = settings["image"], settings["queue"], settings["V"]
    # The last map, of 1/32 of the picture's side.
    tokens, channels = (side // 32) ** 2, 8 * settings["embed_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        f"input.{name}": (batch, length)
        for name in ("text_ids", "text_masks", "text_ids_mlm", "text_labels_mlm")
    }
    for name in ("image", "image_1", "false_image"):
        shapes[f"input.{name}"] = (batch, 3, side, side)
    shapes |= {f"input.{name}": (width, queue) for name in FEATURE_QUEUES}
    shapes["input.image_input_queue"] = (queue, 3, side, side)
    shapes["input.text_input_queue"] = shapes["input.text_input_mask_queue"] = (queue, length)
    for mode in ("itc", "fused", "caption"):
        shapes |= _tower_shapes(settings, mode)
        image_width = channels if mode == "caption" else width
        name = "caption.image_embeds" if mode == "caption" else f"{mode}.image_feats"
        shapes[name] = (batch, tokens, image_width)
        shapes[f"{mode}.text_feats"] = (batch, length, width)
    shapes |= {
        "itc.image_cls": (batch, width),
        "itc.text_cls": (batch, width),
        "itc.neg_weights_i2t": (batch, batch + WRITTEN),
        "itc.neg_weights_t2i": (batch, batch + WRITTEN),
        "itc.text_neg": (batch, length),
        "itc.text_mask_neg": (batch, length),
        "fused.cls_feats": (batch, 2 * width),
        "fused.itm_logits": (batch, 2),
        "fused.rank_output": (batch, 1),
        "fused.vqa_logits": (batch, settings["vqa"]),
        "mlm.logits": (batch, length, vocabulary),
        "itm_hardneg.logits": (3 * batch, 2),
        "itm_hardneg.labels": (3 * batch,),
        "itm.logits": (batch, 2),
        "itm.labels": (batch,),
        "nlvr2.logits": (batch, 2),
        "caption.cls_feats": (batch, width),
        "caption.logits": (batch, length, vocabulary),
        "caption.labels": (batch, length),
        "cider.sampled_text_ids": (SAMPLES * batch, longest),
        "after_enqueue.image_queue": (width, queue),
        "after_enqueue.text_input_queue": (queue, length),
    }
    return shapes | {f"beam{beam}.text_ids": (batch, longest - 1) for beam in beams}


def _tower_shapes(settings: dict[str, Any], mode: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what every block and layer gives in a mode."""
    batch, side = settings["B"], settings["image"] // 4
    shapes: dict[str, tuple[int, ...]] = {}
    shape = shapes[f"{mode}.vit.patch_embed"] = (batch, side**2, settings["embed_dim"])
    for stage, depth in enumerate(settings["depths"]):
        shapes |= {f"{mode}.vit.stage{stage}.block{block}": shape for block in range(depth)}
        if stage < 3:
            shape = (batch, shape[1] // 4, 2 * shape[2])
            shapes[f"{mode}.vit.stage{stage}.downsample"] = shape
        # Fused blocks are not run through their stage's module.
        if mode != "fused":
            shapes[f"{mode}.vit.stage{stage}"] = shape
    if mode == "itc":
        shapes[f"{mode}.vit.norm"] = shape
    text = (batch, settings["L"], settings["hidden"])
    shapes[f"{mode}.txt.embeddings"] = text
    return shapes | {f"{mode}.txt.layer{n}": text for n in range(settings["t_layers"])}


def _drawn_inputs(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Inputs that a recorded case stores, under their recorded names."""
    length, queue = settings["L"], settings["queue"]
    generator = torch.Generator().manual_seed(0)
    ids, mask = _texts(settings["lens"], length, settings["V"], generator)
    # Every third word is masked; <s> at place 0 and </s> never are.
    places = torch.arange(length)
    picked = mask & (ids != 2) & (places % 3 == 2)
    queue_ids, queue_mask = _texts(
        [max(2, length - n) for n in range(queue)], length, settings["V"], generator
    )
    stored = {
        "text_ids": ids,
        "text_masks": mask.long(),
        "text_ids_mlm": ids.masked_fill(picked, settings["V"] - 1),
        "text_labels_mlm": ids.masked_fill(~picked, _NO_LABEL),
        "text_input_queue": queue_ids,
        "text_input_mask_queue": queue_mask.long(),
    }
    for name in FEATURE_QUEUES:
        columns = draw(f"input.{name}", (settings["hidden"], queue))
        stored[name] = columns / columns.norm(dim=0)
    labels = torch.arange(settings["B"]) % 2
    return {f"input.{name}": value for name, value in stored.items()} | {
        "itm.labels": labels.float()
    }


def _texts(
    lengths: list[int], longest: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw texts of those lengths with <s> and </s>; ids and mask, (texts, longest)."""
    ids = torch.randint(3, vocabulary - 1, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids[:, 0] = 0
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 2
    return ids.masked_fill(~mask, 1), mask
