"""A fine case that has no recordings: its settings, everything else by the rules of recorded ones.

Texts, boxes and settings of detection are those of the committed case. Names of the weights are the
published ones, and so are the base model's shapes. Shapes of what a case records follow from its
settings (`recorded_shapes`); `test_fine_preset.py` holds them against the recorded cases.
"""

from __future__ import annotations

import copy
import json
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.checkpoints.published import published_state
from fiber.models.fiber.detector import FiberDetector
from tests.golden import FINE
from tests.parity.fine_case import LEVELS, FineCase
from tests.published_keys import fine_keys

COMMITTED = FINE / "tiny_v2_sharp.json"

Version = Literal["v2", "v3"]
Shape = tuple[int, ...]

#: Settings that a size changes, over those of the committed case (golden/fine README, Configs).
SIZES: dict[str, dict[str, Any]] = {
    "base": {
        "kind": "base",
        "swint": {
            "EMBED_DIM": 128,
            "NUM_HEADS": [4, 8, 16, 32],
            "WINDOW_SIZE": 12,
            "OUT_CHANNELS": [128, 256, 512, 1024],
        },
        "fpn_out": 256,
        "dyhead_channels": 256,
        "dyhead_num_convs": 6,
        "num_classes_minus_1": 80,
        "lang": {"hidden": 768, "heads": 12, "intermediate": 3072},
        "anchor_sizes": [64, 128, 256, 512, 1024],
    },
    "micro": {
        "kind": "micro",
        "swint": {
            "EMBED_DIM": 8,
            "NUM_HEADS": [1, 2, 4, 8],
            "OUT_CHANNELS": [8, 16, 32, 64],
        },
        "fpn_out": 16,
        "dyhead_channels": 16,
        "group_norm_groups": 4,
        "lang": {"hidden": 16, "heads": 2, "intermediate": 32},
    },
}
#: Parameters of the published base model (specification, 1).
BASE_PARAMETERS = {"v2": 252_055_304, "v3": 252_063_496}
#: The base case has one picture of this (height, width); the micro case has the committed ones.
BASE_PICTURE = (192, 256)


class FinePresetCase(FineCase):
    """A case of its settings alone.

    Args:
        name: "base" or "micro".
        version: of the fusion.
        sharp: multiply some weights, as the committed case does.
    """

    def __init__(self, name: str, version: Version, *, sharp: bool = False) -> None:
        self.name = f"{name}_{version}{'_sharp' if sharp else ''}"
        committed = json.loads(COMMITTED.read_text())
        self.config = _settings(committed["config"], name, version, sharp=sharp)
        parts = ("captions", "annotations", "detection")
        self.content = {part: copy.deepcopy(committed[part]) for part in parts}
        self.inputs = load_file(COMMITTED.with_name("tiny_inputs.safetensors"))
        if name == "base":
            self._keep_first_picture()
        self.tensors, self.gradients, self.edge_losses = {}, {}, {}

    def _keep_first_picture(self) -> None:
        """Keep the first text and its boxes, on a picture of the base case's size."""
        for part in ("captions", "annotations"):
            self.content[part] = self.content[part][:1]
        self.content["annotations"][0]["image_size_hw"] = list(BASE_PICTURE)
        boxes = int(self.inputs["in.boxes_per_image"][0])
        for name in ("in.input_ids", "in.attention_mask", "in.boxes_per_image"):
            self.inputs[name] = self.inputs[name][:1]
        for name in ("in.boxes", "in.labels", "in.positive_map"):
            self.inputs[name] = self.inputs[name][:boxes]
        generator = torch.Generator().manual_seed(0)
        self.inputs["in.images"] = torch.randn(1, 3, *BASE_PICTURE, generator=generator)
        self.inputs["in.image_sizes_hw"] = torch.tensor([BASE_PICTURE])

    def published_state(self) -> dict[str, Tensor]:
        """Draw every weight by its published name.

        Raises:
            ValueError: if those names or shapes are not the model's.
        """
        state = super().published_state()
        ours = {name: tuple(value.shape) for name, value in state.items()}
        published = self.published_shapes()
        wrong = {
            "missing": [name for name in published if name not in ours],
            "unknown": [name for name in ours if name not in published],
            "of another shape": [
                name for name in published if name in ours and published[name] != ours[name]
            ],
        }
        if any(wrong.values()):
            faults = (f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
            raise ValueError(
                f"{self.name}: the published names are not the model's: {'; '.join(faults)}"
            )
        return state

    def published_shapes(self) -> dict[str, Shape]:
        """Shape of every tensor of the published model by its name.

        Of the micro model, which nobody published, names are those whose gradients the committed
        case records, and shapes are the model's own.
        """
        if self.config["kind"] == "base":
            keys = fine_keys(self.config["version"])
            return {name: tuple(shape) for name, (shape, _) in keys.items()}
        with torch.device("meta"):
            state = published_state(FiberDetector(self.fiber_config()))
        parameters = json.loads(COMMITTED.with_name("tiny_v2_sharp_grad_l2.json").read_text())
        names = {*parameters, *(name for name in state if is_buffer(name))}
        if self.config["version"] == "v3":
            names |= {name for name in state if ".norm_i2t_i." in name}
        return {name: tuple(state[name].shape) if name in state else () for name in names}


def is_buffer(name: str) -> bool:
    """Whether a published tensor is no parameter."""
    return name.endswith((".relative_position_index", ".position_ids")) or "cell_anchors" in name


def _settings(
    committed: dict[str, Any], name: str, version: Version, *, sharp: bool
) -> dict[str, Any]:
    """Settings of a size and version."""
    config: dict[str, Any] = {**copy.deepcopy(committed), "version": version}
    for key, value in SIZES[name].items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    if not sharp:
        config["sharp"] = None
    del config["num_params"]
    return config


def recorded_shapes(case: FineCase) -> dict[str, Shape]:
    """Shape of every tensor of the passes that a case may record, by what the published model is.

    Source: golden/fine README, Files; the published model's specification, 2 and 3.
    """
    config = case.config
    batch, _, height, width = case.inputs["in.images"].shape
    length, text_width = case.inputs["in.input_ids"].shape[1], config["lang"]["hidden"]
    swin, channels = config["swint"], config["dyhead_channels"]
    maps = [(height // 4, width // 4)]
    # Each half the one before, rounded up.
    while len(maps) < 6:
        maps.append((-(-maps[-1][0] // 2), -(-maps[-1][1] // 2)))
    shapes: dict[str, Shape] = {}
    for mode in ("train", "test"):
        shapes[f"{mode}.vis.patch_embed"] = (batch, swin["EMBED_DIM"], *maps[0])
        for stage, depth in enumerate(swin["DEPTHS"]):
            stage_width, size = swin["EMBED_DIM"] * 2**stage, maps[stage]
            shapes[f"{mode}.backbone.C{stage + 2}"] = (batch, stage_width, *size)
            for block in range(depth):
                name = f"{mode}.vis.layers.{stage}.blocks.{block}"
                shapes[name] = (batch, size[0] * size[1], stage_width)
        text = (batch, length, text_width)
        shapes[f"{mode}.txt.embeddings"] = text
        shapes |= {f"{mode}.txt.layer.{n}": text for n in range(config["lang"]["layers"])}
        shapes |= {f"{mode}.lang.{name}": text for name in ("hidden", "embedded")}
        shapes[f"{mode}.lang.aggregate"] = (batch, text_width)
        for level, size in zip(LEVELS, maps[1:], strict=True):
            shapes[f"{mode}.fpn.{level}"] = (batch, config["fpn_out"], *size)
            for block in range(config["dyhead_num_convs"]):
                shapes[f"{mode}.dyhead.{block}.{level}"] = (batch, channels, *size)
            head = f"{mode}.head"
            shapes[f"{head}.dot_product_logits.{level}"] = (batch, size[0] * size[1], length)
            shapes[f"{head}.bbox_reg.{level}"] = (batch, 4, *size)
            shapes[f"{head}.centerness.{level}"] = (batch, 1, *size)
            shapes[f"{head}.cls_logits.{level}"] = (batch, config["num_classes_minus_1"], *size)
    places = [height * width for height, width in maps[1:]]
    shapes |= {f"anchors.{name}": (n, 4) for name, n in zip(LEVELS, places, strict=True)}
    shapes["atss.cls_labels"] = (batch, sum(places))
    shapes["atss.reg_targets"] = (batch, sum(places), 4)
    return shapes
