"""Checkpoints as earlier versions wrote them: one file of weights, and `training.pt`."""

from __future__ import annotations

import json

import torch

from fiber.atomic_io import new_directory
from fiber.checkpoints.model_dir import write_tensors
from fiber.config_io import to_dict
from fiber.training.checkpoint.folder import Position, checkpoint_at, sha256
from fiber.training.checkpoint.layout import CHECKSUMS, OLD_FILES
from fiber.training.trainer import Trainer


def save_old(trainer: Trainer, seconds: float) -> None:
    """What `Trainer.save` was, for one process; every checkpoint is kept."""
    training = {
        "optimizer": trainer.optimizer.state_dict(),
        "average": trainer.average.state_dict() if trainer.average is not None else {},
        "memory": trainer.state.state_dict(),
    }
    position = Position(
        step=trainer.steps_done,
        seconds=seconds,
        images=trainer.meter.images,
        consumed=trainer.loaders.consumed,
        records=trainer.records,
        fingerprints=trainer.fingerprints,
        vocabulary_sha256=trainer.vocabulary_sha256,
        best_step=trainer.best_step,
        best_score=trainer.best_score,
        best_sha256=trainer.best_sha256,
        scores=tuple(trainer.scores),
    )
    final = checkpoint_at(trainer.folder.checkpoints, position.step).folder
    with new_directory(final) as part:
        write_tensors(trainer.model.state_dict(), part / "model.safetensors")
        torch.save(training, part / "training.pt")
        (part / "data.json").write_text(json.dumps(to_dict(position)))
        lines = [f"{sha256(part / name)}  {name}\n" for name in OLD_FILES]
        (part / CHECKSUMS).write_text("".join(lines))
