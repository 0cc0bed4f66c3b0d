"""`fiber.train`: resolve the inputs of a run and train it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fiber.checkpoints.load import EncoderStates, read_init
from fiber.checkpoints.model_dir import StoredModel, Vocabulary
from fiber.checkpoints.vocabulary import TRAIN_ONE, Answers, open_answers
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.data.datasets.resolve import Data
from fiber.progress import say
from fiber.training.checkpoint import newest_checkpoint
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.data import TrainingData, open_data
from fiber.training.distributed import joined, wait_for_all
from fiber.training.run_dir import RunFolder, read_metrics
from fiber.training.trainer import Trainer
from fiber.training.validation import open_validation


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    #: Its folder; `fiber.load(run.folder)` loads the model.
    folder: Path
    #: Configuration of the run, with the vocabulary and the answers of its data.
    config: RunConfig
    #: The lines of metrics.jsonl.
    metrics: list[dict[str, Any]]


def train(
    recipe: str | RunConfig,
    *,
    data: Data,
    output: str | os.PathLike[str],
    validation: Data | None = None,
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (the word of the command line)
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    device: str | torch.device | None = None,
    threads: int = 0,
    quiet: bool = False,
) -> Run:
    """Train a model.

    Skipped data is counted and reported: questions without an answer of the model, broken images if
    data.on_error is "skip", texts without words, texts truncated at model.max_tokens.

    Args:
        recipe: name of a recipe (`fiber recipes` lists them) or a RunConfig.
        data: data folder or annotation file that `fiber.data.open_source` reads, a set of records,
            or a dict with one of these sets for each task.
        output: folder of the run: config.json, metrics.jsonl, curves.png, checkpoints, the model.
        validation: records to select the best checkpoint by, if the recipe sets `validation.task`;
            default: the split `validation.split` of `data`.
        init: weights to start from: folder of a finished model, a published checkpoint (the other
            stage takes its backbone), or a file, or folder of files, with a Swin (Microsoft or timm
            keys) or a RoBERTa (transformers keys). A resumed run keeps its own.
        resume: continue from the newest complete checkpoint in `output`, from step 0 if there is
            none; a finished run is left as it is.
        set: fields of the configuration to change, by dotted name: {"train.steps": 500}.
        tokenizer: tokenizer, its file or its folder; "train" trains one on the texts, for a model
            from scratch. Default: that of `init`, else tokenizer.json of the data folder. A resumed
            run keeps its own.
        answers: answers of the VQA head in the order of its logits, or a JSON file with such a
            list. Default: those of `init` if they cover the data, else the most frequent ones of
            the data. If `init` does not name its answers (a published file), it is assumed to have
            these. A resumed run keeps its own.
        device: default: CUDA if available, else the CPU. Under torchrun each process uses the GPU
            of its local rank.
        threads: number of threads of the data loader; 0 uses all cores.
        quiet: print nothing.

    Raises:
        ValueError: for an invalid field, data that do not fit, or a resume with another config.
        FileExistsError: if `output` holds a run and `resume` is False.
        FloatingPointError: if a loss or the gradient is not finite.
        MemoryError: on a CPU, if the parameters alone exceed the free memory.
        KeyboardInterrupt: on Ctrl-C, after a message how to resume.
    """
    config = load_recipe(recipe) if isinstance(recipe, str) else recipe
    config = replace_fields(config, dict(set or {}))
    folder = RunFolder(path=Path(output))
    inputs = _resolve_inputs(folder, init, tokenizer, answers, resume=resume)
    with joined(device) as processes:
        quiet = quiet or not processes.is_first
        config, source = _open_training_data(config, data, inputs)
        folder.check(config, resume=resume)
        wait_for_all(processes)  # Rank 0 writes files next that the check must not see.
        if resume and folder.is_finished:
            if not quiet:
                say(f"{folder.path}: the run is finished already; nothing was trained")
        else:
            chooser, reason = open_validation(config, source, data, validation, folder.checkpoints)
            if reason and not quiet:
                say(reason)
            with _isolated_rng(processes.device), _resume_hint(folder, quiet=quiet):
                Trainer(
                    config,
                    source,
                    folder,
                    processes,
                    init=inputs.init,
                    validation=chooser,
                    threads=threads,
                    quiet=quiet,
                ).run()
    return Run(folder=folder.path, config=config, metrics=read_metrics(folder.metrics_file))


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Inputs of a run: of the run that is resumed, of the model it starts from, or named."""

    #: Weights to start from.
    init: StoredModel | EncoderStates | None
    #: Vocabulary of the resumed run or of `init`.
    vocabulary: Vocabulary | None
    tokenizer: Tokenizer | str | os.PathLike[str] | None
    answers: Answers | None


def _resolve_inputs(
    folder: RunFolder,
    init: str | os.PathLike[str] | None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    answers: Answers | None,
    *,
    resume: bool,
) -> _Inputs:
    """Find weights, tokenizer and answers to start with; arguments as for `train`.

    Raises:
        ValueError: if a tokenizer shall be trained for a model that has one.
    """
    vocabulary, named = folder.vocabulary() if resume else None, answers
    if vocabulary is not None:
        # A run keeps what it started with, whatever is named now.
        init, tokenizer, answers = folder.stored_init(), None, vocabulary.answers or None
    start = read_init(init) if init is not None else None
    if isinstance(start, StoredModel):
        if named is not None and not start.answers:
            # A published file does not name the answers of its head. Those of a resumed run may
            # have been counted from its data, and are not these.
            start = dataclasses.replace(start, answers=open_answers(named))
        if vocabulary is None and start.tokenizer is not None:
            vocabulary = Vocabulary(start.tokenizer, start.answers, start.classes)
        if tokenizer == TRAIN_ONE:
            raise ValueError(
                f"tokenizer {TRAIN_ONE!r} makes new tokens, and the weights of {start.path} belong"
                " to others; name the tokenizer of that model"
            )
    return _Inputs(init=start, vocabulary=vocabulary, tokenizer=tokenizer, answers=answers)


def _open_training_data(
    config: RunConfig, data: Data, inputs: _Inputs
) -> tuple[RunConfig, TrainingData]:
    """Open the data, and fit the model and the length of the run to them."""
    source = open_data(
        config,
        data,
        tokenizer=inputs.tokenizer,
        answers=inputs.answers,
        known=inputs.vocabulary,
        from_scratch=inputs.init is None,
    )
    return source.fit_model(config).with_length(max(source.counts().values())), source


@contextmanager
def _isolated_rng(device: torch.device) -> Iterator[None]:
    """Restore the caller's random state afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _resume_hint(folder: RunFolder, *, quiet: bool) -> Iterator[None]:
    """On Ctrl-C, print where the run can be resumed."""
    try:
        yield
    except KeyboardInterrupt:
        if not quiet:
            newest = newest_checkpoint(folder.checkpoints)
            say(
                f"stopped; resume (--resume, resume=True) continues after step"
                f" {newest.step if newest else 0} in {folder.path}"
            )
        raise
