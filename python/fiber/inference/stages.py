"""`StagedModel`: models of several stages behind the methods of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fiber.checkpoints.hub.card import write_card
from fiber.checkpoints.kept import Kept
from fiber.inference.by_head import Stages
from fiber.inference.model import Model, described
from fiber.inference.suggestions import suggest_keywords_of_methods
from fiber.tasks import methods_of_others


@suggest_keywords_of_methods
class StagedModel(Stages, Model):
    """Models of several stages. Each method runs on the model that has the head for it.

    Args:
        stages: model of each stage, by name.
        kept: card and numbers of all stages, written again by `save`.
    """

    def __init__(self, stages: Mapping[str, Model], kept: Kept | None = None) -> None:
        self.stages = dict(stages)
        self._kept = kept or Kept()

    def __getattr__(self, name: str) -> Any:
        stages = self.__dict__.get("stages", {})
        if name in ("device", "dtype") and stages:
            return getattr(next(iter(stages.values())), name)
        if stages and (task := methods_of_others().get(name)):
            heads = task.config().heads()
            head = next((head for head in heads if head in self.heads), next(iter(heads), ""))
            return getattr(self.with_head(head, name), name)
        return super().__getattr__(name)

    def to(self, device: torch.device | str) -> StagedModel:
        """Move all stages to a device. See `Model.to`."""
        for model in self.stages.values():
            model.to(device)
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model of each stage to a subfolder. See `Model.save`."""
        folder = Path(folder)
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file; expected a folder for the models")
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
