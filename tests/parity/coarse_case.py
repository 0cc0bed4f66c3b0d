"""A recorded coarse case: its config, its weights by the published rule, its inputs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.checkpoints.published import load_published, unstack
from fiber.config import (
    IMAGE_TEXT_HEADS,
    FiberConfig,
    FusionConfig,
    ImageTextConfig,
    RobertaConfig,
    SwinConfig,
)
from fiber.losses.itc_queue import PairQueue
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import coarse_keys

#: Published names that the weight rule does not draw.
_NOT_DRAWN = ("relative_position_index", "attn_mask", "position_ids", "_queue", "queue_")

#: Inputs that are drawn; the stored samples of them check the rule.
PICTURES = ("image", "image_1", "false_image", "image_input_queue")
#: Inputs that are drawn, and stored whole where they are small enough.
FEATURE_QUEUES = ("image_queue", "text_queue")


class CoarseCase:
    """What `<name>.json` and its companions hold.

    Attributes:
        config: the recorded settings.
        records: per recorded tensor its shape, stride and absolute maximum.
        scalars: recorded numbers.
        grads: task -> published name -> [L2 norm, sum], or None where there is no gradient.
    """

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.name = path.stem
        self.config: dict[str, Any] = content["config"]
        self.records: dict[str, dict[str, Any]] = content["tensors"]
        self.scalars: dict[str, Any] = content["scalars"]
        self.grads: dict[str, dict[str, list[float] | None]] = content["grads"]
        self._stored = load_file(path.with_suffix(".safetensors"))
        check = path.with_name(f"{self.name}_weights_check.json")
        self.weights_check = json.loads(check.read_text())

    def name_faults(self) -> list[str]:
        """Name what one of the case's files has and another lacks."""
        described, stored = set(self.records), set(self._stored)
        inputs = {name for name in self.weights_check if name.startswith("input.")}
        drawn = {f"input.{name}" for name in PICTURES}
        return [
            *(f"{name}: described, not stored" for name in sorted(described - stored)),
            *(f"{name}: stored, not described" for name in sorted(stored - described)),
            *(f"{name}: unknown in the weights check" for name in sorted(inputs - drawn)),
        ]

    def stored(self, name: str) -> Tensor:
        """A recorded tensor as it is stored: every stride-th value of the flat tensor."""
        return self._stored[name]

    def sample(self, name: str, ours: Tensor) -> Tensor:
        """Take from our tensor what was stored of the recorded one, and its shape."""
        record = self.records[name]
        if list(ours.shape) != record["shape"]:
            return ours
        if record["stride"] == 1:
            return ours
        return ours.reshape(-1)[:: record["stride"]]

    def input(self, name: str) -> Tensor:
        """An input: pictures are drawn by the rule, everything else is stored."""
        record = self.records[f"input.{name}"]
        if name in PICTURES:
            return draw(f"input.{name}", record["shape"])
        if name in FEATURE_QUEUES and record["stride"] > 1:
            columns = draw(f"input.{name}", record["shape"])
            return columns / columns.norm(dim=0)
        return self._stored[f"input.{name}"].reshape(record["shape"])

    def fiber_config(self) -> FiberConfig:
        """The recorded settings as ours."""
        c = self.config
        return FiberConfig(
            image_size=c["image"],
            max_tokens=c["L"],
            swin=SwinConfig(
                embed_dim=c["embed_dim"],
                depths=tuple(c["depths"]),
                num_heads=tuple(c["heads"]),
                window_size=c["image"] // 32,
                drop_path=0.0,
            ),
            roberta=RobertaConfig(
                vocab_size=c["V"],
                width=c["hidden"],
                num_layers=c["t_layers"],
                num_heads=c["t_heads"],
                ffn_width=4 * c["hidden"],
                max_positions=c["maxpos"],
                dropout=0.0,
            ),
            fusion=FusionConfig(num_fused_layers=c["fuse"]),
            image_text=ImageTextConfig(heads=IMAGE_TEXT_HEADS, num_answers=c["vqa"]),
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every published parameter, by name."""
        return {
            name: tuple(entry[0])
            for name, entry in self.weights_check.items()
            if not name.startswith("input.") and not any(part in name for part in _NOT_DRAWN)
        }

    def published_state(self) -> dict[str, Tensor]:
        """Draw every weight by the README's rule, under its published name.

        Names and shapes are those of `<name>_weights_check.json`, never our model's own.
        """
        std = self.config["std"]
        state = {}
        for name, shape in self.parameter_shapes().items():
            if name.startswith("rank_output"):
                continue
            drawn = draw(name, shape) * std
            if name == "temp":
                drawn = torch.tensor(0.07)
            elif name.endswith(("alpha_i2t", "alpha_t2i")):
                drawn = 0.5 + drawn
            elif name.endswith(".weight") and _is_norm(name):
                drawn = 1.0 + drawn
            state[name] = drawn
        for part in ("weight", "bias"):
            if f"itm_score.fc.{part}" in state:
                state[f"rank_output.{part}"] = state[f"itm_score.fc.{part}"][1:].clone()
        return state

    def model(self) -> FiberImageText:
        """Build the model and fill it through the converter that users use."""
        model = FiberImageText(self.fiber_config())
        load_published(model, self.published_state())
        return model.eval()

    def queue(self, dtype: torch.dtype = torch.float32) -> PairQueue:
        """The queue of the contrastive loss as it was at the start, its numbers in `dtype`.

        All of its columns are filled, but only the recorded total counts as written.
        """
        size, length = self.config["image"], self.config["queue"]
        queue = PairQueue(
            length,
            width=self.config["hidden"],
            image_size=(size, size),
            max_tokens=self.config["L"],
        )
        queue.image_vectors = self.input("image_queue").T.contiguous().to(dtype)
        queue.text_vectors = self.input("text_queue").T.contiguous().to(dtype)
        queue.images = self.input("image_input_queue").to(dtype)
        queue.token_ids = self.input("text_input_queue").clone()
        queue.text_mask = self.input("text_input_mask_queue").bool()
        # The published code has no such numbers: below 0 they are no pair's of the batch.
        queue.image_ids = -1 - torch.arange(length)
        queue.text_ids = queue.image_ids.clone()
        queue.pointer = self.scalars["input.queue_ptr"]
        queue.total = self.scalars["input.queue_total"]
        return queue

    def published_grads(self, model: FiberImageText) -> dict[str, Tensor | None]:
        """Gradients of a model by published name; one of ours may be several published ones."""
        published: dict[str, Tensor | None] = {}
        keys = coarse_keys(model.config)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                published |= dict.fromkeys(keys[name])
            else:
                published |= unstack({name: parameter.grad}, {name: keys[name]})
        return published


def draw(name: str, shape: Sequence[int]) -> Tensor:
    """Draw a tensor by its name, from N(0, 1)."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator)


def _is_norm(name: str) -> bool:
    """Whether a published name is a LayerNorm's; classifiers hold theirs at index 1."""
    module = name.rsplit(".", 1)[0]
    last = module.rsplit(".", 1)[-1]
    return last in ("LayerNorm", "norm", "norm1", "norm2", "norm_i2t_i") or module in (
        "vqa_classifier.1",
        "nlvr2_classifier.1",
    )
