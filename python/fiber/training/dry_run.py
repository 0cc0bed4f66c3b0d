"""`fiber train --print-config` and `--dry-run`: what a run would be, without its folder."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.random import fork_rng

from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.vocabulary.sources import Answers
from fiber.data import Tokenizer
from fiber.data.datasets.resolve import Data
from fiber.data.storage.remote import is_url
from fiber.data.storage.remote_pack import remote_pack
from fiber.env import cores_per_process
from fiber.progress import say
from fiber.training.config.run import RunConfig
from fiber.training.distributed.processes import joined
from fiber.training.run_dir import RunFolder
from fiber.training.tracking.kept import open_kept_data
from fiber.training.train import open_run_data, resolve_config, resolve_inputs
from fiber.training.trainer import Trainer
from fiber.training.training_data import TrainingData
from fiber.training.validation import open_validation


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What the first steps of a run gave."""

    #: Configuration, as `config.json` of the run would have it.
    config: RunConfig
    #: Steps that were run: the first ones, until each task was trained once.
    steps: int
    #: Unweighted losses by name, means over the steps.
    losses: dict[str, float]
    #: Losses of a model that ignores its inputs, of those that have one.
    chance: dict[str, float]
    #: L2 norm of the last step's gradient before clipping.
    gradient_norm: float
    #: Largest memory so far: of the GPU, or of this process on a CPU.
    peak_bytes: int


def dry_run(
    recipe: str | RunConfig,
    *,
    data: Data,
    output: str | os.PathLike[str] | None = None,
    validation: Data | None = None,
    keep: Data | None = None,
    init: str | os.PathLike[str] | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as on the command line)
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    device: str | torch.device | None = None,
    threads: int = 0,
    quiet: bool = False,
) -> DryRun:
    """Check data and model, and train until each task has had a step; write no run.

    Arguments are those of `fiber.train`. `output`, the folder that the run would have, is checked
    and stays as it is.

    Raises:
        ValueError, FileExistsError, FloatingPointError, MemoryError: see `fiber.train`.
    """
    config, start, source = _fit(recipe, set, data, validation, keep, init, tokenizer, answers)
    if output is not None:
        RunFolder(path=Path(output)).check(config, resume=False)
    data = remote_pack(data) if is_url(data) else data
    with (
        tempfile.TemporaryDirectory() as made,
        joined(device, timeout_seconds=config.train.timeout_seconds) as processes,
        fork_rng([processes.device] if processes.device.type == "cuda" else []),
    ):
        folder = RunFolder(path=Path(made) / "run")
        chooser, reason = open_validation(config, source, data, validation, folder.checkpoints)
        if reason and not quiet:
            say(reason)
        threads = threads or cores_per_process()
        own: dict[str, Any] = {"init": start, "validation": chooser, "threads": threads}
        trainer = Trainer(config, source, folder, processes, quiet=quiet, **own)
        waiting, norm = {*config.tasks.active()}, torch.zeros(())
        while waiting and trainer.steps_done < config.train.steps:
            waiting -= {*config.tasks.of_step(trainer.steps_done)}
            norm = trainer.next_step()
        entry, priors = trainer.meter.close(trainer.steps_done, 0.0, norm), trainer.priors
        return DryRun(
            config=config,
            steps=trainer.steps_done,
            losses=entry["losses"],
            chance={name: priors[name] for name in entry["losses"] if name in priors},
            gradient_norm=entry["gradient_norm"],
            peak_bytes=_peak_bytes(processes.device),
        )


def fitted_config(
    recipe: str | RunConfig,
    *,
    data: Data,
    validation: Data | None = None,
    keep: Data | None = None,
    init: str | os.PathLike[str] | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as on the command line)
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
) -> RunConfig:
    """Return the configuration that `config.json` of a run would have.

    The vocabulary size, the number of answers and, if `train.epochs` is set, that of steps are
    those of the data. `fiber.train` takes it, or a file with it, as its recipe. Arguments and
    errors are those of `fiber.train`.
    """
    return _fit(recipe, set, data, validation, keep, init, tokenizer, answers)[0]


def _fit(
    recipe: str | RunConfig,
    changes: Mapping[str, Any] | None,
    data: Data,
    validation: Data | None,
    keep: Data | None,
    init: str | os.PathLike[str] | None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    answers: Answers | None,
) -> tuple[RunConfig, StoredModel | EncoderStates | None, TrainingData]:
    """Open the data and the initial weights of a new run, as `fiber.train` does."""
    config = resolve_config(recipe, changes)
    start, options = resolve_inputs(RunFolder(path=Path()), init, tokenizer, answers, resume=False)
    data = remote_pack(data) if is_url(data) else data
    keep = remote_pack(keep) if is_url(keep) else keep
    held_out = validation is None
    config, source = open_run_data(config, data, keep, start, options, holds_out=held_out)
    with tempfile.TemporaryDirectory() as made:
        open_kept_data(config, source, keep, RunFolder(path=Path(made)), start, threads=1)
    return config, start, source


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
