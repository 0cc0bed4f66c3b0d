"""`StagedModel`: models of several stages behind the methods of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fiber.checkpoints.hub.card import write_card
from fiber.checkpoints.kept import Kept
from fiber.inference.by_head import OWNERS, by_head
from fiber.inference.model import Model, described
from fiber.inference.suggestions import suggest_keywords_of_methods, unknown_attribute
from fiber.models.heads import MissingHeadError
from fiber.tasks import methods_of_others


@suggest_keywords_of_methods
class StagedModel(Model):
    """Models of several stages. Each method runs on the model that has the head for it.

    Args:
        stages: model of each stage, by name.
        kept: card and numbers of all stages, written again by `save`.
    """

    def __init__(self, stages: Mapping[str, Model], kept: Kept | None = None) -> None:
        self.stages = dict(stages)
        self._kept = kept or Kept()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of all stages."""
        return tuple(dict.fromkeys(head for each in self.stages.values() for head in each.heads))

    def with_head(self, head: str, asked: str) -> Model:
        """Return the model of the first stage with a head.

        Raises:
            MissingHeadError: if no stage has it. The message names `asked`, a method or task.
        """
        for model in self.stages.values():
            if head in model.heads:
                return model
        raise MissingHeadError(
            f"{asked} needs the head {head!r}; this model has {', '.join(self.heads)}"
        )

    def need_head(self, head: str, asked: str) -> None:
        """See `Model.need_head`."""
        self.with_head(head, asked)

    def __repr__(self) -> str:
        return f"StagedModel({', '.join(self.stages)}, heads={', '.join(self.heads)})"

    def __getattr__(self, name: str) -> Any:
        stages = self.__dict__.get("stages", {})
        if name in OWNERS and OWNERS[name] in self.heads:
            return getattr(self.with_head(OWNERS[name], name), name)
        if name in ("device", "dtype") and stages:
            return getattr(next(iter(stages.values())), name)
        if stages and (task := methods_of_others().get(name)):
            heads = task.config().heads()
            head = next((head for head in heads if head in self.heads), next(iter(heads), ""))
            return getattr(self.with_head(head, name), name)
        places = [f".stages[{stage!r}].{name}" for stage in stages if hasattr(stages[stage], name)]
        if not places:
            raise unknown_attribute(self, name)
        raise AttributeError(
            f"{name!r} belongs to the model of one stage; use {' or '.join(places)}", name=name
        )

    ground = by_head("ground")
    detect = by_head("detect")
    answer = by_head("answer")
    caption = by_head("caption")
    match = by_head("match")
    reason = by_head("reason")
    entail = by_head("entail")
    embed_images = by_head("embed_images")
    embed_texts = by_head("embed_texts")
    search = by_head("search")

    def to(self, device: torch.device | str) -> StagedModel:
        """Move all stages to a device. See `Model.to`."""
        for model in self.stages.values():
            model.to(device)
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model of each stage to a subfolder. See `Model.save`."""
        folder = Path(folder)
        for name in self._kept.files:
            if (folder / name).exists():
                raise FileExistsError(f"{folder} already contains {name}; expected a new folder")
        for stage, model in self.stages.items():
            model.save(folder / stage)
        self._kept.write(folder)

    def _card(self, repo: str, license_id: str | None, metrics: Mapping[str, Any] | None) -> str:
        lines = [f"{stage}: {described(model)}" for stage, model in self.stages.items()]
        training = [model.origin.kept.training for model in self.stages.values()]
        return write_card(repo, lines, self.heads, training, self._kept, license_id, metrics)
