"""The training loop: one step trains one task, from the first step to the finished model.

Every random draw of step k (dropout, hard negatives) depends on (seed, rank, k) only, and the data
on the position in each stream. So a run that goes on from a checkpoint repeats the numbers of one
that was never interrupted, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiber.checkpoints.init_from import initialise
from fiber.checkpoints.load import Towers, read_start
from fiber.checkpoints.model_dir import StoredModel, Words, write_weights
from fiber.checkpoints.vocabulary import TRAIN_ONE, Answers, open_answers
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.data.datasets.resolve import Data
from fiber.models.registry import build_model
from fiber.training.checkpoint import Position, newest_checkpoint, write_checkpoint
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.data import TrainingData, open_data
from fiber.training.distributed import (
    Processes,
    average_gradients,
    broadcast_parameters,
    first_rank_says,
    joined,
    wait_for_all,
)
from fiber.training.machine_memory import check_memory
from fiber.training.meters import Window
from fiber.training.objective_state import Memory
from fiber.training.objectives import Draw, task_losses
from fiber.training.optim import (
    MovingAverage,
    build_optimizer,
    count_falls,
    freeze,
    has_stalled,
    lr_factor,
    set_learning_rate,
)
from fiber.training.progress import Progress, readable_seconds, say
from fiber.training.run_dir import RunFolder, read_metrics
from fiber.training.scst import CaptionRewards, caption_rewards
from fiber.training.split_backward import Backward
from fiber.training.task_loaders import TaskStreams
from fiber.training.validation import Validation, open_validation


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    #: Its folder; `fiber.load(run.folder)` gives the model.
    folder: Path
    #: What was trained, with the vocabulary and answers of the data filled in.
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

    What a run takes less of than it was given is counted and told: questions without an answer of
    the model, broken pictures where data.on_error is "skip", texts without words, texts that are
    cut at model.max_tokens.

    Args:
        recipe: a recipe's name (`fiber recipes` lists them) or a RunConfig.
        data: a data folder or an annotation file that `fiber.data.open_source` reads, one
            set of records of your own, or a dict with one for each task.
        output: folder of the run: config.json, metrics.jsonl, curves.png, checkpoints, the model.
        validation: records that the finished model is chosen by, where the recipe says what is
            measured (`validation.task`); default: the split `validation.split` of `data`.
        init: what to start from: folder of a finished model or a published checkpoint, of which the
            other stage takes the backbone; or a file with a Swin (as Microsoft or timm name it) or
            a RoBERTa (transformers), or a folder with such files. A resumed run keeps its own.
        resume: go on from the newest whole checkpoint in `output`, from step 0 if there is none,
            and do nothing if the run is finished.
        set: fields of the configuration to change, by dotted name: {"train.steps": 500}.
        tokenizer: one, its file, or a folder with it; default: that of `init`, else the data
            folder's tokenizer.json; "train": a model from nothing gets one that is trained on the
            texts. A resumed run keeps its own.
        answers: of the VQA head, in the order of its logits, or a JSON file with a list of them;
            default: those of `init` if the data have no others, else the most frequent ones of the
            data. An `init` that does not name its own (a published file) is taken to have these. A
            resumed run keeps its own.
        device: default CUDA where there is one, else the CPU. Under torchrun every process takes
            the GPU of its local rank.
        threads: of the data loader; 0 uses every core.
        quiet: print nothing.

    Raises:
        ValueError: for a wrong field, data that do not fit, a resume under another configuration.
        FileExistsError: if `output` holds a run and `resume` is False.
        FloatingPointError: if a loss is no longer finite.
        MemoryError: on a CPU whose free memory the parameters alone would exceed.
        KeyboardInterrupt: on Ctrl-C, after saying how to go on.
    """
    config = load_recipe(recipe) if isinstance(recipe, str) else recipe
    config = replace_fields(config, dict(set or {}))
    folder = RunFolder(path=Path(output))
    known, named = folder.words() if resume else None, answers
    if known is not None:
        # What a run started with stays, whatever is named now.
        init, tokenizer, answers = folder.stored_init(), None, known.answers or None
    start = read_start(init) if init is not None else None
    if isinstance(start, StoredModel) and named is not None and not start.answers:
        # A published file does not name the answers that its head was trained on. Answers that were
        # counted from the data, as a resumed run may have them, are not those.
        start = dataclasses.replace(start, answers=open_answers(named))
    if known is None and isinstance(start, StoredModel) and start.tokenizer is not None:
        known = Words(start.tokenizer, start.answers, start.classes)
    if tokenizer == TRAIN_ONE and isinstance(start, StoredModel):
        raise ValueError(
            f"tokenizer {TRAIN_ONE!r} makes new tokens, and the weights of {start.path} belong to"
            " others; name the tokenizer of that model"
        )
    with joined(device) as processes:
        source = open_data(
            config,
            data,
            tokenizer=tokenizer,
            answers=answers,
            known=known,
            from_nothing=start is None,
        )
        config = source.fit_model(config).with_length(max(source.counts().values()))
        folder.check(config, resume=resume)
        # No rank may see the files that the first one is about to write.
        wait_for_all(processes)
        quiet = quiet or not processes.is_first
        if resume and folder.is_finished:
            if not quiet:
                say(f"{folder.path}: the run is finished already; nothing was trained")
        else:
            rewards = caption_rewards(config, source)
            chooser, unchosen = open_validation(
                config, source, data, validation, folder.checkpoints
            )
            if unchosen and not quiet:
                say(unchosen)
            try:
                # The caller's random numbers are not touched.
                with torch.random.fork_rng(
                    [processes.device] if processes.device.type == "cuda" else []
                ):
                    _train(
                        config,
                        source,
                        folder,
                        processes,
                        start=start,
                        rewards=rewards,
                        chooser=chooser,
                        threads=threads,
                        quiet=quiet,
                    )
            except KeyboardInterrupt:
                if not quiet:
                    newest = newest_checkpoint(folder.checkpoints)
                    say(
                        f"stopped; resume (--resume, resume=True) goes on from step"
                        f" {newest.step if newest else 0} in {folder.path}"
                    )
                raise
    return Run(folder=folder.path, config=config, metrics=read_metrics(folder.metrics_file))


def _train(
    config: RunConfig,
    source: TrainingData,
    folder: RunFolder,
    processes: Processes,
    *,
    start: StoredModel | Towers | None,
    rewards: CaptionRewards | None,
    chooser: Validation | None,
    threads: int,
    quiet: bool,
) -> None:
    device, settings = processes.device, config.train

    # The model: from nothing, from another model or from a checkpoint.
    check_memory(config, processes)
    torch.manual_seed(settings.seed)
    model = build_model(config.model).to(device)
    model.backbone.gradient_checkpointing = settings.gradient_checkpointing
    if processes.is_first:
        folder.open(config, source.words, str(start.path) if start else None, source.path)
    wait_for_all(processes)
    checkpoint = newest_checkpoint(folder.checkpoints)
    if start is not None and checkpoint is None:
        report = initialise(model, start, source.words.answers)
        if not quiet:
            say(f"weights from {start.path}:\n{report}")
    freeze(model, config.optim.frozen)
    optimizer = build_optimizer(model, config.optim)
    average = MovingAverage(model, settings.ema_decay) if settings.ema_decay else None
    memory = Memory.of(config, device, rewards)
    counts = source.counts() | ({"validation": len(chooser.records)} if chooser else {})
    position = Position(records=counts)
    if checkpoint is not None:
        position = checkpoint.position(expected=position)
        if chooser is not None and processes.is_first:
            chooser.check(position)
        state = checkpoint.restore(model, device)
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        memory.load_state_dict(state.get("memory", {}))
    broadcast_parameters(model, processes)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()

    # The data: every task from its own position.
    streams = TaskStreams(config, source, processes, consumed=position.consumed, threads=threads)
    tasks, rotation = config.tasks.active(), config.tasks.rotation()
    window = Window(processes, images=position.images, seconds=position.seconds)
    best_step, best_score = position.best_step, position.best_score
    scores, stop_after = list(position.scores), config.validation.stop_after
    began = time.monotonic() - position.seconds
    if not quiet:
        origin = str(start.path) if start is not None else "random weights"
        say(_first_words(config, source, processes, model, position.step, origin))
        for line in source.left_out:
            say(line)

    with Progress(steps=settings.steps, start=position.step, quiet=quiet) as progress:
        for step in range(position.step, settings.steps):
            if has_stalled(scores, stop_after):
                progress.say(f"none of the last {stop_after} measurements came up to the best one")
                break
            name = rotation[step % len(rotation)]
            weights = tasks[name].weights()
            backward = _weighted(weights, settings.accumulation, device)
            factor = lr_factor(step, settings.steps, config.optim, scores)
            has_fallen = count_falls(scores, config.optim.plateau_patience) > 0
            is_bounded = config.optim.schedule == "plateau" and has_fallen
            set_learning_rate(
                optimizer,
                config.optim.lr * factor,
                least=config.optim.plateau_least_lr if is_bounded else 0.0,
            )
            torch.manual_seed(_step_seed(settings.seed, step, processes.rank))
            memory.begin_step(step, model)

            # Forward and backward, once for each accumulated pass.
            optimizer.zero_grad(set_to_none=True)
            for part in range(settings.accumulation):
                batch = streams.next_batch(name).to(device)
                draw = Draw(settings.seed, step * settings.accumulation + part)
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
                ):
                    losses = task_losses(name, model, batch, config.tasks, draw, memory, backward)
                window.add(losses, images=math.prod(batch.images.shape[:-3]) * processes.world_size)

            # One update with the mean gradient of all ranks.
            average_gradients(parameters, processes)
            limit = config.optim.clip_norm or math.inf
            norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
            optimizer.step()
            if average is not None:
                average.update(model)
            done = step + 1
            progress.advance()

            # A line of metrics, a checkpoint.
            is_last = done == settings.steps
            is_saved = bool(settings.checkpoint_every) and done % settings.checkpoint_every == 0
            seconds = time.monotonic() - began
            if is_last or is_saved or done % settings.log_every == 0:
                entry = window.close(
                    step=done, seconds=seconds, optimizer=optimizer, model=model, gradient_norm=norm
                )
                if chooser is not None and (is_last or is_saved):
                    score = math.nan
                    if processes.is_first:
                        state = average.weights(model) if average else model.state_dict()
                        with torch.autocast(
                            device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
                        ):
                            measured = chooser.measure(model, state, threads)
                        score = measured["score"]
                        if not best_step or score >= best_score:
                            best_step, best_score = done, score
                            chooser.keep(state, done)
                        entry["validation"] = measured
                        progress.say(
                            f"step {done}: {chooser.task} on {config.validation.split}"
                            f" {score:.4f}, best {best_score:.4f} at step {best_step}"
                        )
                    scores.append(first_rank_says(score, processes))
                if processes.is_first:
                    folder.add_metrics(entry)
                    progress.show(entry)
            if is_saved and not is_last and processes.is_first:
                write_checkpoint(
                    folder.checkpoints,
                    model=model,
                    training={
                        "optimizer": optimizer.state_dict(),
                        "average": average.state_dict() if average is not None else {},
                        "memory": memory.state_dict(),
                    },
                    position=Position(
                        step=done,
                        seconds=seconds,
                        images=window.images,
                        consumed=streams.consumed,
                        records=counts,
                        best_step=best_step,
                        best_score=best_score,
                        scores=tuple(scores),
                    ),
                    keep=settings.keep_checkpoints,
                )
                if chooser is not None:
                    # Only now does no checkpoint need the one before.
                    chooser.forget_others(best_step)

    # The finished model.
    if processes.is_first:
        folder.draw()
        if chooser is not None:
            chooser.finish(best_step, folder.model_file)
        else:
            write_weights(folder.path, average.weights(model) if average else model.state_dict())
    if not quiet:
        for line in streams.left_out():
            say(line)
        kept = f" (the weights of step {best_step})" if chooser is not None else ""
        say(f"finished after {readable_seconds(time.monotonic() - began)}: {folder.path}{kept}")
    wait_for_all(processes)


def _weighted(weights: Mapping[str, float], parts: int, device: torch.device) -> Backward:
    """Make what runs the weighted sum of losses backward, as one of `parts` passes of a step."""

    def backward(losses: dict[str, Tensor]) -> None:
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        # The backward pass takes its types from the forward pass.
        with torch.autocast(device.type, enabled=False):
            (total / parts).backward()

    return backward


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one step on one rank."""
    return ((seed * 1_000_003 + step) * 4_099 + rank) % 2**63


def _first_words(
    config: RunConfig,
    source: TrainingData,
    processes: Processes,
    model: nn.Module,
    step: int,
    origin: str,
) -> str:
    """Say what is about to happen."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    records = ", ".join(f"{name} {count}" for name, count in source.counts().items())
    where = f"{processes.world_size} x {processes.device.type}"
    begin = f"going on after step {step}" if step else f"starting from {origin}"
    return (
        f"{begin}: {config.model.stage} model of {millions:.1f} million parameters on {where},"
        f" {config.train.steps} steps of {config.data.batch_size} samples; records: {records}"
    )
