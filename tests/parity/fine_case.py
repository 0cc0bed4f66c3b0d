"""A recorded fine case: its config, its weights by the published rule, its inputs."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.checkpoints.published import load_published, published_state, unstack
from fiber.config import DetectorConfig, FiberConfig, FusionConfig, RobertaConfig, SwinConfig
from fiber.data.batch import GroundingBatch
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.keys import fine_keys

LEVELS = ("P3", "P4", "P5", "P6", "P7")
_NORM = re.compile(r"(norm\w*|LayerNorm|bn)\.weight$|rpn\.head\.scales\.\d+\.scale$")


class FineCase:
    """What `<name>.json` and its companions hold.

    A companion's name starts with the case's name; the longest case name that fits owns it.

    Attributes:
        content: `<name>.json`.
        config: the recorded settings.
        tensors: everything recorded in safetensors files.
        gradients: published name -> L2 norm, or None where there is no gradient.
        edge_losses: variant -> loss -> value.

    Raises:
        FileNotFoundError: if the pictures and texts of the case are not beside it.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.content: dict[str, Any] = json.loads(path.read_text())
        self.config: dict[str, Any] = self.content["config"]
        inputs = path.with_name(f"{self.config['kind']}_inputs.safetensors")
        if not inputs.exists():
            raise FileNotFoundError(
                f"{inputs} does not exist; expected the pictures and texts of {path.name}"
            )
        self.inputs = load_file(inputs)
        cases = [other.stem for other in path.parent.glob("*.json") if _is_case(other)]
        self.tensors: dict[str, Tensor] = {}
        for file in sorted(path.parent.glob("*.safetensors")):
            owners = [case for case in cases if _belongs(file.stem, case)]
            if owners and max(owners, key=len) == self.name:
                self.tensors |= load_file(file)
        self.gradients: dict[str, float | None] = _json(path, "grad_l2")
        self.edge_losses: dict[str, dict[str, float]] = _json(path, "edge_losses")

    def fiber_config(self) -> FiberConfig:
        """The recorded settings as ours."""
        c = self.config
        swin, lang = c["swint"], c["lang"]
        scales = {
            size / stride
            for size, stride in zip(c["anchor_sizes"], c["anchor_strides"], strict=True)
        }
        (anchor_scale,) = scales
        roberta = RobertaConfig(
            vocab_size=lang["vocab"],
            width=lang["hidden"],
            num_layers=lang["layers"],
            num_heads=lang["heads"],
            ffn_width=lang["intermediate"],
            max_positions=lang["max_pos"],
            layer_norm_eps=lang["ln_eps"],
        )
        base = FiberConfig(
            swin=SwinConfig(
                embed_dim=swin["EMBED_DIM"],
                depths=tuple(swin["DEPTHS"]),
                num_heads=tuple(swin["NUM_HEADS"]),
                window_size=swin["WINDOW_SIZE"],
                mlp_ratio=swin["MLP_RATIO"],
                drop_path=swin["DROP_PATH_RATE"],
            ),
            roberta=roberta,
            fusion=FusionConfig(num_fused_layers=6),
            detector=DetectorConfig(
                channels=c["dyhead_channels"],
                num_blocks=c["dyhead_num_convs"],
                norm_groups=c["group_norm_groups"],
                anchor_scale=anchor_scale,
                strides=tuple(c["anchor_strides"]),
                num_unused_classes=c["num_classes_minus_1"],
                atss_top_k=c["atss_topk"],
            ),
        )
        return base.fine(version=c["version"], max_tokens=256)

    def published_state(self) -> dict[str, Tensor]:
        """Draw every weight by the README's rule, under its published name."""
        state = published_state(FiberDetector(self.fiber_config()))
        for name, value in state.items():
            if value.is_floating_point() and "cell_anchors" not in name:
                state[name] = self._drawn(name, tuple(value.shape))
        return state

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
        value = torch.randn(shape, generator=generator) * 0.02
        if _NORM.search(name):
            value = value + 1
        if name.endswith(("alpha_i2t", "alpha_t2i")):
            value = value + 0.5
        for pattern, factor in self.config["sharp"] or ():
            if re.search(pattern, name):
                value = value * factor
        return value

    def model(self) -> FiberDetector:
        """Build the model and fill it through the converter that users use."""
        model = FiberDetector(self.fiber_config())
        load_published(model, self.published_state())
        return model.eval()

    def batch(self) -> GroundingBatch:
        """The training inputs; recorded boxes have inclusive corners, ours are half-open."""
        inputs = self.inputs
        sizes = inputs["in.image_sizes_hw"]
        return GroundingBatch(
            keys=tuple(str(index) for index in range(len(sizes))),
            images=inputs["in.images"],
            image_sizes=sizes,
            original_sizes=sizes,
            token_ids=inputs["in.input_ids"],
            text_mask=inputs["in.attention_mask"].bool(),
            boxes_xyxy=inputs["in.boxes"] + torch.tensor([0.0, 0.0, 1.0, 1.0]),
            boxes_per_image=inputs["in.boxes_per_image"],
            positive_map=inputs["in.positive_map"].bool(),
        )

    def detection_text(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of the detection prompt, one row for each picture."""
        count = len(self.inputs["in.images"])
        ids, mask = self.inputs["test.input_ids"], self.inputs["test.attention_mask"].bool()
        return ids.expand(count, -1), mask.expand(count, -1)

    def published_grads(self, model: FiberDetector) -> dict[str, Tensor | None]:
        """Gradients of a model by published name; one of ours may be several published ones."""
        published: dict[str, Tensor | None] = {}
        keys = fine_keys(model.config)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                published |= dict.fromkeys(keys[name])
            else:
                published |= unstack({name: parameter.grad}, {name: keys[name]})
        return published


def without_boxes_of(batch: GroundingBatch, images: set[int]) -> GroundingBatch:
    """The same batch, some of whose pictures have lost their boxes."""
    owners = torch.repeat_interleave(torch.arange(len(batch)), batch.boxes_per_image)
    kept = torch.tensor([int(owner) not in images for owner in owners], dtype=torch.bool)
    counts = batch.boxes_per_image.clone()
    counts[list(images)] = 0
    return dataclasses.replace(
        batch,
        boxes_xyxy=batch.boxes_xyxy[kept],
        positive_map=batch.positive_map[kept],
        boxes_per_image=counts,
    )


def _json(case: Path, ending: str) -> dict[str, Any]:
    path = case.with_name(f"{case.stem}_{ending}.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _is_case(path: Path) -> bool:
    content = json.loads(path.read_text())
    return isinstance(content, dict) and "config" in content


def _belongs(file: str, case: str) -> bool:
    return file == case or file.startswith(f"{case}_")
