"""A recorded METER case: its config, its weights by the published rule, its inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.checkpoints.published import load_mapped, unstack
from fiber.config import ClipConfig, RobertaConfig, SwinConfig
from fiber.data.batch import RankingBatch
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.keys import ignored_meter_key, meter_keys, resize_tables
from tests.parity.coarse_case import draw
from tests.parity.tolerances import MeterTolerances, meter_tolerances

#: Heads of each recorded model, by task.
TASKS: dict[str, tuple[str, ...]] = {
    "pretrain": ("itm", "mlm"),
    "vqa": ("vqa",),
    "nlvr2": ("nlvr2",),
    "snli": ("snli",),
    "irtr": ("itm", "rank"),
}
#: Recorded losses of each task.
LOSSES: dict[str, tuple[str, ...]] = {
    "pretrain": ("mlm", "itm"),
    "vqa": ("vqa",),
    "nlvr2": ("nlvr2",),
    "snli": ("snli",),
    "irtr": ("irtr", "itm"),
}
#: Tensors that every case must have; what else it has is compared, too.
_TENSORS = (
    *(f"input.text_{part}" for part in ("ids", "masks", "ids_mlm")),
    *(f"pair.{part}" for part in ("text_feats", "image_feats", "cls")),
    *(f"edge.{part}" for part in ("text_ids", "text_masks", "text_feats", "image_feats", "cls")),
    *("input.text_labels_mlm", "pretrain.itm_labels", "irtr.itm_labels"),
    *("pretrain.mlm_logits", "pretrain.itm_logits", "irtr.score", "irtr.itm_logits"),
    *(f"{task}.{task}_logits" for task in ("vqa", "nlvr2", "snli")),
)
#: Images that are drawn by the weight rule.
IMAGES = ("image", "image_0", "image_1", "false_image_0", "image_resized")
#: Rows of the position table of the text encoder, which nothing recorded tells.
MAX_POSITIONS = "text_transformer.embeddings.position_embeddings.weight"


class MeterCase:
    """What `<name>.json` and its companions hold.

    Attributes:
        config: the recorded settings.
        records: per recorded tensor its shape, stride and absolute maximum.
        scalars: recorded losses.
        grads: task.loss -> published name -> [L2 norm, sum], or None where there is no gradient.
        steps: recorded optimizer steps by task.
    """

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.name = path.stem
        self.config: dict[str, Any] = content["config"]
        self.records: dict[str, dict[str, Any]] = content["tensors"]
        self.scalars: dict[str, float] = content["scalars"]
        self.grads: dict[str, dict[str, list[float] | None]] = content["grads"]
        self.steps: dict[str, dict[str, Any]] = content["train_steps"]
        self._stored = load_file(path.with_suffix(".safetensors"))
        check = path.with_name(f"{self.name}_weights_check.json")
        self.weights_check: dict[str, list[Any]] = json.loads(check.read_text())
        groups = path.with_name(f"{self.name}_optimizer_groups.json")
        self.groups: dict[str, list[dict[str, Any]]] = json.loads(groups.read_text())

    @property
    def tolerances(self) -> MeterTolerances:
        """What its class of cases allows."""
        return meter_tolerances(self.config)

    def name_faults(self) -> list[str]:
        """Name what one of the case's files has and another lacks, and what none of them has."""
        described, stored = set(self.records), set(self._stored)
        false_texts = range(self.config["false_texts"])
        needed = {f"input.false_text_{n}_{part}" for n in false_texts for part in ("ids", "masks")}
        return [
            *(f"{name}: described, not stored" for name in sorted(described - stored)),
            *(f"{name}: stored, not described" for name in sorted(stored - described)),
            *(f"{name}: not recorded" for name in sorted(needed.union(_TENSORS) - described)),
            *(fault for task in TASKS for fault in self._faults_of_task(task)),
        ]

    def _faults_of_task(self, task: str) -> Iterator[str]:
        """Name what a task lacks: losses, steps, and what must be recorded of each parameter."""
        losses = LOSSES[task]
        for loss in losses:
            for name in (f"{task}.loss.{loss}", f"{task}.train.loss.{loss}"):
                if name not in self.scalars:
                    yield f"{name}: not recorded"
        groups, steps = self.groups.get(task), self.steps.get(task)
        if groups is None or steps is None:
            yield f"{task}: no optimizer groups" if groups is None else f"{task}: no steps"
            return
        parameters = {name for group in groups for name in group["names"]}
        checked = {entry.removesuffix(f" @{task}") for entry in self.weights_check}
        for name in sorted(parameters - checked):
            if not name.startswith("rank_output."):
                yield f"{name}: no entry of the weights check"
        entries = {
            f"gradients of {task}.{loss}": self.grads.get(f"{task}.{loss}") for loss in losses
        }
        entries[f"{task} parameters after steps"] = steps.get("params_after")
        for what, names in entries.items():
            if names is None:
                yield f"{what}: not recorded"
                continue
            yield from (f"{name}: not in the {what}" for name in sorted(parameters - set(names)))
            yield from (f"{name}: in the {what} alone" for name in sorted(set(names) - parameters))
        expected = {*(f"{loss}_loss" for loss in losses), "total"}
        found, rates = steps.get("losses", []), steps.get("lr_factor", [])
        if len(found) != len(rates) + 1 or any(set(each) != expected for each in found):
            yield f"{task}: expected {', '.join(sorted(expected))} before and after each step"

    def stored(self, name: str) -> Tensor:
        """A recorded tensor as it is stored: every stride-th value of the flat tensor."""
        return self._stored[name]

    def sample(self, name: str, ours: Tensor) -> Tensor:
        """Take from our tensor what was stored of the recorded one."""
        record = self.records[name]
        if list(ours.shape) != record["shape"] or record["stride"] == 1:
            return ours
        return ours.reshape(-1)[:: record["stride"]]

    def input(self, name: str) -> Tensor:
        """An input: images are drawn by the rule, everything else is stored."""
        if name in IMAGES:
            size = self.config["resize" if name == "image_resized" else "image"]
            return draw(f"input.{name}", (self.config["B"], 3, size, size))
        return self._stored[f"input.{name}"]

    def text(self, name: str = "text") -> tuple[Tensor, Tensor]:
        """Token ids and mask of the texts, or of "false_text_N"."""
        if name == "text":
            return self.input("text_ids"), self.input("text_masks").bool()
        return self.input(f"{name}_ids"), self.input(f"{name}_masks").bool()

    def ranking_batch(self, images: Tensor) -> RankingBatch:
        """The texts and the recorded false ones as a batch of training."""
        ids, mask = self.text()
        numbers = range(self.config["false_texts"])
        false_texts = [self.text(f"false_text_{number}") for number in numbers]
        sizes = torch.full((len(ids), 2), self.config["image"])
        return RankingBatch(
            keys=tuple(map(str, range(len(ids)))),
            images=images,
            image_sizes=sizes,
            original_sizes=sizes,
            token_ids=ids,
            text_mask=mask,
            image_ids=torch.arange(len(ids)),
            masked_ids=ids,
            mlm_labels=torch.full_like(ids, -100),
            false_ids=torch.stack([own for own, _ in false_texts], 1),
            false_mask=torch.stack([own for _, own in false_texts], 1),
        )

    def meter_config(self, task: str) -> MeterConfig:
        """The recorded settings as ours."""
        c, tower, text = self.config, self.config["tower"], self.config["text"]
        encoders: dict[str, Any] = {}
        if c["kind"] == "clip":
            width = tower["width"]
            encoders["clip"] = ClipConfig(
                patch_size=tower["patch"],
                width=width,
                num_blocks=tower["layers"] - 1,
                num_heads=width // 64,
            )
        else:
            encoders["swin"] = SwinConfig(
                embed_dim=tower["embed_dim"],
                depths=tuple(tower["depths"]),
                num_heads=tuple(tower["num_heads"]),
                window_size=c["image"] // 32,
                drop_path=0.0,
            )
        return MeterConfig(
            image_size=c["image"],
            max_tokens=c["L"],
            image_encoder=c["kind"],
            roberta=RobertaConfig(
                vocab_size=c["V"],
                width=text["hidden_size"],
                num_layers=text["num_hidden_layers"],
                num_heads=text["num_attention_heads"],
                ffn_width=text["intermediate_size"],
                max_positions=self.weights_check[MAX_POSITIONS][0][0],
                dropout=0.0,
            ),
            cross=CrossConfig(
                width=c["hidden"],
                num_heads=c["heads"],
                num_layers=c["top"],
                ffn_width=4 * c["hidden"],
                dropout=0.0,
            ),
            image_text=MeterHeadsConfig(heads=TASKS[task], num_answers=c["A"]),
            **encoders,
        )

    def published_state(self, task: str) -> dict[str, Tensor]:
        """Draw every weight of a task's model by the README's rule, under its published name.

        Names and shapes are those of `<name>_weights_check.json`, never our model's own.
        """
        groups = (group["names"] for group in self.groups[task])
        return {name: self.drawn(name, task) for names in groups for name in names}

    def drawn(self, name: str, task: str) -> Tensor:
        """Draw one weight; those of `rank_output` are row 1 of the ITM head."""
        if name.startswith("rank_output."):
            part = name.removeprefix("rank_output.")
            return self.drawn(f"itm_score.fc.{part}", task)[1:2].clone()
        own = f"{name} @{task}"
        shape = self.weights_check[own if own in self.weights_check else name][0]
        value = draw(name, shape) * self.config["std"]
        return 1.0 + value if name.endswith(".weight") and _is_norm(name) else value

    def model(self, task: str, image_size: int | None = None) -> MeterImageText:
        """Build the model of a task, and load it as published files are loaded."""
        config, state = self.meter_config(task), self.published_state(task)
        if image_size is not None:
            config = config.with_image_size(image_size)
            state = resize_tables(state, config)
        model = MeterImageText(config)
        load_mapped(model, state, meter_keys(config), lambda name: ignored_meter_key(name, config))
        return model.eval()

    def published_grads(self, model: MeterImageText) -> dict[str, Tensor | None]:
        """Gradients of a model by published name; one of ours may be several published ones."""
        published: dict[str, Tensor | None] = {}
        keys = meter_keys(model.config)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                published |= dict.fromkeys(keys[name])
            else:
                published |= unstack({name: parameter.grad}, {name: keys[name]})
        return published


def published_pieces(model: MeterImageText) -> dict[str, Tensor]:
    """Return views of a model's tensors by published name."""
    state = model.state_dict()
    return {
        theirs: piece
        for ours, names in meter_keys(model.config).items()
        for theirs, piece in zip(names, state[ours].chunk(len(names)), strict=True)
    }


def _is_norm(name: str) -> bool:
    """Whether a published name is a LayerNorm's; classifiers hold theirs at index 1."""
    module = name.rsplit(".", 1)[0]
    last = module.rsplit(".", 1)[-1]
    return last.startswith(("LayerNorm", "norm", "ln_")) or module.endswith("_classifier.1")


def is_noise(name: str) -> bool:
    """Whether the true gradient of a published parameter is 0.

    Softmax does not change with the bias of keys, nor the ranking loss with that of scores.
    """
    return name.endswith(".key.bias") or name == "rank_output.bias"


def is_moved_by_noise(name: str) -> bool:
    """Whether optimizer steps move a published parameter, or a third of it, by noise.

    AdamW makes steps of full size of gradients that are rounding errors: those of `is_noise`, and
    of the keys in a joint bias of queries, keys and values.
    """
    return is_noise(name) or name.endswith((".in_proj_bias", ".qkv.bias"))


def vqa_targets(case: MeterCase) -> Tensor:
    """Soft scores of the answers of the four questions (README, Inputs)."""
    labels = [[1, 5], [2], [3, 9, 0], [4]]
    scores = [[1.0, 0.3], [0.6], [0.9, 0.3, 1.0], [0.3]]
    targets = torch.zeros(len(labels), case.config["A"])
    for row, (own, values) in enumerate(zip(labels, scores, strict=True)):
        targets[row, own] = torch.tensor(values)
    return targets
