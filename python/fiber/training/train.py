"""`fiber.train`: resolve a run's inputs and train."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.random import fork_rng

from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.load import read_init
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.checkpoints.vocabulary.sources import TRAIN_ONE, Answers, open_answers
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.data.datasets.resolve import Data
from fiber.data.loader_config import check_threads
from fiber.data.storage.remote import is_url
from fiber.data.storage.remote_pack import remote_pack
from fiber.env import cores_per_process
from fiber.inference.suggestions import suggest_keywords
from fiber.messages import shown
from fiber.progress import say
from fiber.training.checkpoint.folder import newest_checkpoint
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.data import open_data
from fiber.training.distributed.collectives import broadcast_object, wait_for_all
from fiber.training.distributed.heartbeat import (
    LostRankError,
    is_collective_error,
    kill_hung_at_exit,
)
from fiber.training.distributed.preemption import Preempted, StopSignal
from fiber.training.distributed.processes import Processes, joined
from fiber.training.metrics_file import read_metrics
from fiber.training.run_dir import RunFolder, read_run_config
from fiber.training.tracking.callback import Callback
from fiber.training.tracking.kept import KeptData, check_keep, open_kept_data
from fiber.training.tracking.monitor import RunMonitor
from fiber.training.trainer import Trainer
from fiber.training.training_data import TrainingData
from fiber.training.validation import open_validation


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    #: Output folder; `fiber.load(run.folder)` loads the model.
    folder: Path
    #: Configuration, with the vocabulary size and number of answers set from the data.
    config: RunConfig
    #: Entries of metrics.jsonl.
    metrics: list[dict[str, Any]]
    #: What is left of what the initial model knew, if old data is kept: contents of kept.json.
    kept: dict[str, Any] | None = None


@suggest_keywords
def train(
    recipe: str | RunConfig,
    *,
    data: Data,
    output: str | os.PathLike[str],
    validation: Data | None = None,
    keep: Data | None = None,
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as on the command line)
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    device: str | torch.device | None = None,
    threads: int = 0,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Train a model.

    Skipped or truncated data, such as questions without a known answer, is counted and logged.

    Args:
        recipe: recipe name (see `fiber recipes`), .json file with a configuration, or RunConfig.
        data: data folder, annotation file, URL of a packed folder or rows (see
            `fiber.data.open_source`), records, or a dict of records by task.
        output: folder for config.json, metrics.jsonl, curves.png, checkpoints and the model.
        validation: data for selecting the best checkpoint, if the recipe sets `validation.task`.
            Default: the split `validation.split` of `data`, or a part that is held out.
        keep: old data (no records) that the initial model should still know: mixed in by
            `data.keep_share`, and evaluated before and after training (kept.json).
        init: path of the initial weights, which may be the folder of a finished model, a published
            checkpoint (only the backbone is loaded from the other stage), or a file or folder of
            encoder weights: Swin (Microsoft or timm keys), CLIP (OpenAI or transformers keys),
            RoBERTa or BERT (transformers keys). Ignored when resuming.
        resume: continue from the newest checkpoint in `output`, if any; leave a finished run as is.
            A process that torchrun restarts resumes by itself.
        set: config fields to override, by dotted name: {"train.steps": 500}.
        tokenizer: tokenizer, its file or its folder; "train" trains a tokenizer on the texts (only
            for a model from scratch). Default: the tokenizer of `init`, else the data folder's
            tokenizer.json. Ignored when resuming.
        answers: answers of the VQA head in logit order, or a JSON file that lists them. Default:
            those of `init` if they cover the data, else the most frequent ones in the data. Of a
            published file as `init`, which lists none, they are the list. Ignored when resuming.
        device: default: CUDA if available (the local rank's GPU under torchrun), else the CPU.
        threads: data loader threads of a process; 0 shares the machine's cores among its processes.
        callbacks: objects of `fiber.Callback`; see `fiber.training.tracking.trackers`, too.
        quiet: print nothing.

    Raises:
        ValueError: if a config field is invalid, the data does not match the recipe, or the config
            or the data of a resumed run differs.
        FileExistsError: if `output` contains a run and `resume` is False, or is in use.
        FloatingPointError: if a loss or the gradient is not finite.
        MemoryError: on a CPU, if the parameters alone exceed the free memory.
        ConnectionError: if another rank failed, died or hangs; the message names it.
        KeyboardInterrupt: on Ctrl-C, after printing how to resume.
        SystemExit: with code 75 on SIGTERM, SIGHUP or SIGUSR1, after saving the current step.
    """
    check_threads(threads)
    config = resolve_config(recipe, set)
    folder = RunFolder(path=Path(output))
    with _all_ranks(folder, device, config.train.timeout_seconds) as processes:
        resume = resume or broadcast_object(folder.is_restart(), processes)
        quiet = quiet or not processes.is_first
        monitor = RunMonitor(processes, callbacks)
        _fail_if_locked(folder, processes)
        start, options = resolve_inputs(folder, init, tokenizer, answers, resume=resume)
        data = remote_pack(data) if is_url(data) else data
        keep = remote_pack(keep) if is_url(keep) else keep
        divides = validation is None
        config, source = open_run_data(config, data, keep, start, options, holds_out=divides)
        folder.check(config, resume=resume)
        threads = threads or cores_per_process()
        old = open_kept_data(config, source, keep, folder, start, threads)
        wait_for_all(processes)  # Rank 0 next writes what other ranks' checks must not see.
        how: dict[str, Any] = {"init": start, "threads": threads, "quiet": quiet, "resume": resume}
        _train(config, source, folder, processes, monitor, old, data, validation, **how)
        kept = None if old is None else old.finish(folder, processes, quiet=quiet)
    metrics = read_metrics(folder.metrics_file)
    return Run(folder=folder.path, config=config, metrics=metrics, kept=kept)


def open_run_data(
    config: RunConfig,
    data: Data,
    keep: Data | None,
    start: StoredModel | EncoderStates | None,
    options: dict[str, Any],
    *,
    holds_out: bool,
) -> tuple[RunConfig, TrainingData]:
    """Open the data of a run, and fit its configuration to them.

    Args:
        config: configuration that is not fitted.
        data: as for `train`, but no URL.
        keep: old data, as for `train`, but no URL.
        start: initial weights, from `resolve_inputs`.
        options: options of `open_data`, from `resolve_inputs`.
        holds_out: see `open_data`.
    """
    check_keep(config, keep, start)
    source = open_data(config, data, holds_out=holds_out, keep=keep, **options)
    return source.fit_model(config).with_length(source.longest(config)), source


def _train(
    config: RunConfig,
    source: TrainingData,
    folder: RunFolder,
    processes: Processes,
    monitor: RunMonitor,
    old: KeptData | None,
    data: Data,
    validation: Data | None,
    *,
    init: StoredModel | EncoderStates | None,
    threads: int,
    quiet: bool,
    resume: bool,
) -> None:
    """Train a run that is not finished, after its initial model was evaluated on old data."""
    log = (lambda message: None) if quiet else say
    if resume and folder.is_finished:
        log(f"{folder.path}: the run is already finished; nothing was trained")
        return
    chooser, reason = open_validation(config, source, data, validation, folder.checkpoints)
    if reason:
        log(reason)
    own: dict[str, Any] = {"init": init, "validation": chooser, "threads": threads}
    with _surroundings(folder, config, processes, resume=resume, quiet=quiet):
        facts = {} if old is None else old.start(folder, processes)
        trainer = Trainer(config, source, folder, processes, monitor, quiet=quiet, **own)
        if old is not None:
            old.write(facts, processes)
        trainer.run()


def resolve_config(recipe: str | RunConfig, changes: Mapping[str, Any] | None) -> RunConfig:
    """Build the configuration of a recipe or of a file, with changes; errors as for `train`."""
    if not isinstance(recipe, (str, RunConfig)):
        raise TypeError(
            f"recipe: expected a name (`fiber recipes` lists them), a .json file or a RunConfig,"
            f" got {type(recipe).__name__} {shown(recipe)}"
        )
    if changes is not None and not isinstance(changes, Mapping):
        raise TypeError(
            f"set: expected a dict, such as {{'train.steps': 500}}, got {shown(changes)}"
        )
    if isinstance(recipe, str):
        is_file = recipe.endswith(".json")
        recipe = read_run_config(Path(recipe)) if is_file else load_recipe(recipe)
    return replace_fields(recipe, dict(changes or {}))


def resolve_inputs(
    folder: RunFolder,
    init: str | os.PathLike[str] | None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    answers: Answers | None,
    *,
    resume: bool,
) -> tuple[StoredModel | EncoderStates | None, dict[str, Any]]:
    """Resolve the initial weights and the options of `open_data`; arguments as for `train`."""
    vocabulary, named = folder.vocabulary() if resume else None, answers
    if vocabulary is not None:
        # Before the data are read: other answers change the size of the model and its questions.
        folder.check_newest_vocabulary()
        # A resumed run ignores the arguments.
        init, tokenizer, answers = folder.stored_init(), None, vocabulary.answers or None
    start = read_init(init) if init is not None else None
    if isinstance(start, StoredModel):
        if named is not None and not start.answers:
            # A published file does not list its head's answers. Those of a resumed run may come
            # from its data, so they do not apply.
            start = dataclasses.replace(start, answers=open_answers(named))
        if vocabulary is None and start.tokenizer is not None:
            vocabulary = Vocabulary(start.tokenizer, start.answers, start.classes)
        if tokenizer == TRAIN_ONE:
            raise ValueError(
                f"tokenizer {TRAIN_ONE!r} cannot be used with the weights of {start.path}, which"
                " were trained with a different tokenizer; pass the tokenizer of that model"
            )
    options = {"tokenizer": tokenizer, "answers": answers, "known": vocabulary}
    return start, {**options, "from_scratch": start is None}


@contextmanager
def _all_ranks(
    folder: RunFolder, device: str | torch.device | None, timeout_seconds: float
) -> Iterator[Processes]:
    """Join the process group; explain the failure of a collective by the rank that caused it."""
    with (
        StopSignal(at_once=True),
        joined(device, timeout_seconds=timeout_seconds) as processes,
        _named_peers(folder, processes),
    ):
        yield processes


@contextmanager
def _named_peers(folder: RunFolder, processes: Processes) -> Iterator[None]:
    heartbeat = processes.heartbeat
    try:
        yield
    except BaseException as error:
        if heartbeat is None:
            raise
        if not isinstance(error, LostRankError) and not is_collective_error(error):
            heartbeat.report(error)
            raise
        # The agent soon ends this process by SIGTERM, since another one died.
        with StopSignal():
            lost = error if isinstance(error, LostRankError) else heartbeat.explain(error)
        kill_hung_at_exit(lost.peers)
        if lost.is_bad_input:
            raise LostRankError(lost.peers) from error
        newest = newest_checkpoint(folder.checkpoints)
        hint = f"--resume continues after step {newest.step if newest else 0} in {folder.path}"
        raise LostRankError(lost.peers, f"{lost}; {hint}") from error


@contextmanager
def _surroundings(
    folder: RunFolder, config: RunConfig, processes: Processes, *, resume: bool, quiet: bool
) -> Iterator[None]:
    """Keep the caller's random state, say how to resume after a stop, and lock the folder."""
    devices = [processes.device] if processes.device.type == "cuda" else []
    # Rank 0 writes the folder.
    lock = folder.locked() if processes.is_first else nullcontext()
    with fork_rng(devices), _resume_hint(folder, quiet=quiet), lock:
        if processes.is_first:  # Another process may have trained here since.
            folder.check(config, resume=resume)
        yield


def _fail_if_locked(folder: RunFolder, processes: Processes) -> None:
    """Fail before weights and data are read, which may take long, if the folder is locked."""
    if processes.is_first:
        folder.check_unlocked()


@contextmanager
def _resume_hint(folder: RunFolder, *, quiet: bool) -> Iterator[None]:
    """On Ctrl-C or a signal, print how to resume the run."""
    try:
        yield
    except (KeyboardInterrupt, Preempted) as stop:
        if not quiet:
            newest = newest_checkpoint(folder.checkpoints)
            say(
                f"stopped{f' by {stop.signal}' if isinstance(stop, Preempted) else ''}; --resume"
                " (resume=True) continues after step"
                f" {newest.step if newest else 0} in {folder.path}"
            )
        raise
