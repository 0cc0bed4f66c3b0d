"""The training loop.

The random numbers of step k (dropout, hard negatives) depend only on (seed, rank, k), and the data
depends only on the position in each task's stream. A resumed run is therefore bit-identical to an
uninterrupted one with the same world size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.model_dir import StoredModel
from fiber.models.registry import Network, build_model
from fiber.progress import Progress, readable_seconds, say
from fiber.training.adapters import RunAdapters, write_finished
from fiber.training.checkpoint.folder import (
    VALIDATION,
    Position,
    RunCheckpoint,
    best_file,
    best_steps,
    checkpoint_at,
    newest_checkpoint,
    sha256,
)
from fiber.training.checkpoint.state import TrainingState
from fiber.training.checkpoint.writer import CheckpointWriter
from fiber.training.compiled import CompiledBackbone, check_compile
from fiber.training.config.run import RunConfig
from fiber.training.data import fingerprint
from fiber.training.data_init import initialize_model, warn_of_frozen
from fiber.training.distributed.agreement import agree, check_shared
from fiber.training.distributed.collectives import (
    broadcast_object,
    broadcast_parameters,
    wait_for_all,
    wait_for_work,
)
from fiber.training.distributed.preemption import Preempted, StopSignal
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.strategy import choose_strategy
from fiber.training.machine_memory import check_memory
from fiber.training.meters import Meter, PriorWatch, prior_losses
from fiber.training.micro_batch import MicroBatches
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ForwardPasses
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from fiber.training.optim import (
    MovingAverage,
    build_optimizer,
    count_falls,
    freeze,
    has_stalled,
    lr_factor,
    set_learning_rate,
)
from fiber.training.optim.clip import clip_gradients
from fiber.training.run_dir import RunFolder
from fiber.training.task_loaders import TaskLoaders
from fiber.training.tracking.callback import RunContext
from fiber.training.tracking.monitor import RunMonitor
from fiber.training.tracking.summary import describe_run
from fiber.training.training_data import TrainingData
from fiber.training.validation import Validation


class Trainer:
    """Train one model and write its run folder.

    `run` is the training loop; `train_step` runs a single step. The model is validated and saved
    every `train.checkpoint_every` steps. `average` is the EMA of the weights, if configured.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        folder: RunFolder,
        processes: Processes,
        monitor: RunMonitor | None = None,
        *,
        init: StoredModel | EncoderStates | None = None,
        validation: Validation | None = None,
        threads: int = 0,
        quiet: bool = False,
    ) -> None:
        """Build the model, or restore it from the newest checkpoint in the folder.

        Args:
            config: configuration, fitted to the data (`TrainingData.fit_model`).
            data: records of every task.
            folder: run folder; rank 0 writes its files.
            processes: rank, world size and device.
            monitor: callbacks and timing of the run; default: no callbacks.
            init: initial weights; ignored if there is a checkpoint.
            validation: selects the best checkpoint; None keeps the last weights.
            threads: number of data loader threads; 0 uses all cores.
            quiet: print nothing.

        Raises:
            MemoryError: on a CPU, if the parameters alone exceed the free memory.
            ValueError: if the weights, checkpoint or batch size do not match the configuration.
            FileNotFoundError: if the best weights of a resumed run are missing.
        """
        # Do this before creating the folder, so that invalid data leaves no folder.
        self.state = ObjectiveState.prepared(config, data)
        self.config, self.folder, self.processes = config, folder, processes
        self.device = processes.device
        self.validation, self.threads, self.quiet = validation, threads, quiet
        self.strategy = choose_strategy(config.train, processes)
        self.monitor = monitor if monitor is not None else RunMonitor(processes)

        check_memory(config, processes)
        record_sets = {**data.records, **({VALIDATION: validation.records} if validation else {})}
        self.records = {name: len(records) for name, records in record_sets.items()}
        self.fingerprints = {name: fingerprint(records) for name, records in record_sets.items()}
        agree(config, self.records, self.fingerprints, data.vocabulary, processes)
        self.adapters = RunAdapters.of(config, init, folder)
        self.model = self._build_model()
        checkpoint = self._open_folder(data, init)
        self.vocabulary_sha256 = folder.vocabulary_sha256()
        # A run with adapters has the same layers when it resumes, whose weights follow.
        if checkpoint is None or self.adapters is not None:
            new, report = initialize_model(self.model, init, config, data, processes)
            self._log(report)
            warn_of_frozen(self.frozen, new)
            if self.adapters is not None:
                self._log(self.adapters.add(self.model, new, self.frozen))
        position = self._read_position(checkpoint, data.path)
        self.state.start(config, self.device)
        self.step = TrainStep(self.model, config.tasks, self.state)
        self._distribute(checkpoint)
        self.model.train()
        self.steps_done = position.step
        self.best_step, self.best_score = position.best_step, position.best_score
        self.best_sha256, self.scores = position.best_sha256, list(position.scores)
        self.loaders = TaskLoaders(
            config, data, processes, consumed=position.consumed, threads=threads
        )
        self.meter = Meter(
            processes, self.model, self.optimizer, images=position.images, seconds=position.seconds
        )
        self.micro_batches = self._split_micro_batches()
        self.priors = prior_losses(config, data)
        trainings, is_new = self.state.trainings.values(), init is None and not self.steps_done
        self.watch = PriorWatch(self.priors, config.train.steps, trainings, from_scratch=is_new)
        self.progress = Progress(steps=config.train.steps, start=self.steps_done, quiet=quiet)
        self.began = time.monotonic() - position.seconds
        origin = str(init.path) if init else "random weights"
        self._log(describe_run(config, self.model, data, processes, origin, self.steps_done))
        for line in data.skipped:
            self._log(line)

    def _open_folder(
        self, data: TrainingData, init: StoredModel | EncoderStates | None
    ) -> RunCheckpoint | None:
        """Open the run folder on rank 0; return the checkpoint that all ranks resume from."""
        origin, attempt = str(init.path) if init else None, None
        if self.processes.is_first:
            attempt = self.folder.open(
                self.config,
                data.vocabulary,
                origin,
                data.path,
                started=self.monitor.started,
                base_sha256=self.adapters.base_sha256 if self.adapters is not None else None,
            )
        self.monitor.begin(self.config, attempt)
        wait_for_all(self.processes)
        check_shared(self.folder.path, self.processes)
        newest = newest_checkpoint(self.folder.checkpoints)
        step = broadcast_object(newest.step if newest else None, self.processes)
        return None if step is None else checkpoint_at(self.folder.checkpoints, step)

    def _build_model(self) -> Network:
        if self.config.train.compile:
            check_compile(self.device)
        torch.manual_seed(self.config.train.seed)
        model = build_model(self.config.model).to(self.device)
        model.backbone.gradient_checkpointing = self.config.train.gradient_checkpointing
        self.frozen = freeze(model, self.config.optim.frozen)
        return model

    def _distribute(self, checkpoint: RunCheckpoint | None) -> None:
        """Restore a checkpoint, if any, and distribute weights and optimizer state."""
        config = self.config
        broadcast_parameters(self.model, self.processes)
        self.strategy.prepare(self.step)
        self.compiled = CompiledBackbone(self.model.backbone) if config.train.compile else None
        self.writer = CheckpointWriter(
            self.folder.checkpoints, self.processes, keep=config.train.keep_checkpoints
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.model, config.optim, config.lora)
        decay = config.train.ema_decay
        self.average = MovingAverage(self.model, decay) if decay else None
        self.restorable = TrainingState(self.model, self.optimizer, self.average, self.state)
        if checkpoint is not None:
            checkpoint.restore(self.restorable)

    def _split_micro_batches(self) -> MicroBatches:
        samples = max(self.loaders.micro_batch_sizes.values())
        largest = -(-samples // self.processes.world_size)
        return MicroBatches(
            self.step,
            self.strategy,
            accumulation=self.config.train.accumulation,
            passes=ForwardPasses.of(largest, self.config.train.samples_per_pass),
            autocast=self._autocast,
        )

    def run(self) -> None:
        """Train to the last step or until the validation score stalls; write the finished model.

        Raises:
            FloatingPointError: if a loss or the gradient is not finite.
            Preempted: if a signal asked the run to stop; a checkpoint is saved first.
        """
        settings = self.config.train
        stop_after = self.config.validation.stop_after
        monitored = self.monitor.running(self._context())
        with StopSignal() as stop, self.progress, monitored, self.writer:
            while self.steps_done < settings.steps:
                if has_stalled(self.scores, stop_after):
                    self.progress.say(f"no improvement in {stop_after} validations; stopping")
                    break
                gradient_norm = self.next_step()
                self.progress.advance()
                self._report_saved()
                is_stopped = stop.arrived(self.processes) and self.steps_done < settings.steps
                is_due = self.writer.is_due(settings.checkpoint_minutes)
                self._end_step(gradient_norm, save=is_stopped or is_due)
                if is_stopped:
                    self._report_saved(wait=True)
                    wait_for_all(self.processes)  # Wait until rank 0 has completed the checkpoint.
                    raise Preempted(stop.name)
            # Signals do not end a run that is writing its model.
            self._finish()

    def next_step(self) -> Tensor:
        """Load the batches of the next step and run it; return the norm as `train_step`."""
        self._prepare_step()
        tasks = self.config.tasks.of_step(self.steps_done)
        order = [task for task in tasks for _ in range(self.config.train.accumulation)]
        timed = self.monitor.clock.iterate("data", map(self.loaders.next_batch, order))
        with self.compiled.active() if self.compiled else nullcontext():
            return self.train_step(tasks, timed)

    def train_step(self, tasks: Sequence[str], batches: Iterable[Any]) -> Tensor:
        """Run one optimizer step on the sum over tasks of the mean gradient of micro-batches.

        Args:
            tasks: tasks of the step.
            batches: `accumulation` micro-batches of the first task, then those of the next one.

        Returns:
            L2 norm of the gradient before clipping.
        """
        settings = self.config.train
        count, seed, by_row = settings.accumulation, settings.seed, settings.draws == "row"
        self.optimizer.zero_grad(set_to_none=True)
        self.strategy.begin_step("+".join(tasks))
        for number, batch in enumerate(batches):
            task, batch = tasks[number // count], batch.to(self.device)
            draw = Draw(seed, self.steps_done * count + number % count, by_row)
            is_last = number + 1 == count * len(tasks)
            losses = self.micro_batches.backward(task, batch, draw, is_last=is_last)
            self.meter.add(losses)
            images_of_each = math.prod(batch.images.shape[1:-3])
            self.meter.images += self.loaders.micro_batch_sizes[task] * images_of_each
            self.monitor.count(task, batch)

        with self.monitor.clock.measure("reduce"):
            self.strategy.reduce_gradients()
        norm = clip_gradients(self.parameters, self.config.optim.clip_norm or math.inf)
        self.optimizer.step()
        self.step.clamp_parameters()
        if self.average is not None:
            self.average.update(self.model)
        self.steps_done += 1
        return norm

    def validate(self) -> dict[str, float]:
        """Evaluate the current weights, or their EMA, and keep them if they are the best.

        Each rank evaluates a part of the records on the whole weights. All ranks append the score
        to `scores`; rank 0 writes the weights.

        Returns:
            Metrics and "score", the same on all ranks.
        """
        assert self.validation is not None
        validation, done = self.validation, self.steps_done
        with self.strategy.whole_model(self.model, self._weights()) as model:
            with self._autocast():
                local_metrics = validation.evaluate(model, self.threads, self.processes)
            wait_for_work(self.processes)  # Metrics of many boxes take long.
            metrics = broadcast_object(local_metrics, self.processes)
            score = metrics["score"]
            # Ties keep the later step.
            if not self.best_step or score >= self.best_score:
                self.best_step, self.best_score = done, score
                if self.processes.is_first:
                    validation.keep(model.state_dict(), done)
                    self.best_sha256 = sha256(best_file(self.folder.checkpoints, done))
        wait_for_work(self.processes)  # Rank 0 writes, which may take long.
        self.scores.append(score)
        self.progress.say(
            f"step {done}: {validation.task} on {self.config.validation.split}"
            f" {score:.4f}, best {self.best_score:.4f} at step {self.best_step}"
        )
        return metrics

    def save(self, seconds: float) -> None:
        """Start to write a checkpoint; all ranks must call this.

        `seconds` is the run's wall time so far.
        """
        self.writer.wait()
        if self.validation is not None and self.processes.is_first:
            # A damaged checkpoint falls back to an older one, which needs its own best weights.
            self.validation.forget_others(best_steps(self.folder.checkpoints) | {self.best_step})
        self.writer.save(
            self.restorable.tensors(),
            Position(
                step=self.steps_done,
                seconds=seconds,
                images=self.meter.images,
                consumed=dict(self.loaders.consumed),
                records=self.records,
                fingerprints=self.fingerprints,
                vocabulary_sha256=self.vocabulary_sha256,
                best_step=self.best_step,
                best_score=self.best_score,
                best_sha256=self.best_sha256,
                scores=tuple(self.scores),
            ),
        )

    def _report_saved(self, *, wait: bool = False) -> None:
        """Tell callbacks of a checkpoint that is complete; raise the error of one that failed."""
        if wait:
            self.writer.wait()
        self.writer.check()
        for step in self.writer.completed():
            self.monitor.callbacks.saved(step, checkpoint_at(self.folder.checkpoints, step).folder)

    def _read_position(self, checkpoint: RunCheckpoint | None, data_path: str | None) -> Position:
        if checkpoint is None:
            return Position(
                records=self.records,
                fingerprints=self.fingerprints,
                vocabulary_sha256=self.vocabulary_sha256,
            )
        # Before the records: with other answers, other questions are trained on.
        stored = checkpoint.read_position().vocabulary_sha256
        self.folder.check_vocabulary(stored, checkpoint.folder)
        position = checkpoint.position(self.records, self.fingerprints, data_path)
        if self.validation is not None and self.processes.is_first:
            self.validation.check(position.best_step)
        return position

    def _prepare_step(self) -> None:
        """Set the next step's learning rate and seed, and update the GOLD reference."""
        optim, step, seed = self.config.optim, self.steps_done, self.config.train.seed
        factor = lr_factor(step, self.config.train.steps, optim, self.scores)
        falls = count_falls(self.scores, optim.plateau_patience)
        least = optim.plateau_least_lr if optim.schedule == "plateau" and falls > 0 else 0.0
        set_learning_rate(self.optimizer, optim.lr * factor, least)
        torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + self.processes.rank) % 2**63)
        self.state.begin_step(step, self._whole_weights)

    def _end_step(self, gradient_norm: Tensor, *, save: bool) -> None:
        """Log, validate and save if due after this step; `save` forces logging and saving."""
        settings, done = self.config.train, self.steps_done
        is_last = done == settings.steps
        is_checkpoint = settings.checkpoint_every > 0 and done % settings.checkpoint_every == 0
        seconds, entry = time.monotonic() - self.began, None
        if is_last or is_checkpoint or save or done % settings.log_every == 0:
            entry = self.meter.close(done, seconds, gradient_norm)
            if self.validation is not None and (is_last or is_checkpoint):
                with self.monitor.clock.measure("validation"):
                    entry["validation"] = self.validate()
                self.monitor.callbacks.validated(done, entry["validation"])
            entry["performance"] = self.monitor.performance(done, entry["images_per_second"])
            if self.processes.is_first:
                self.folder.add_metrics(entry)
                self.progress.show(entry)
                for message in self.watch.messages(done, entry["losses"]):
                    self.progress.say(message)
        self.monitor.callbacks.step_ended(done, entry)
        if (is_checkpoint or save) and not is_last:
            with self.monitor.clock.measure("checkpoint"):
                self.save(seconds)

    def _finish(self) -> None:
        """Write the finished model: the best validated weights, or the last ones."""
        self._report_saved(wait=True)
        weights = {}
        if self.validation is None:
            weights = self.strategy.full_weights(self._weights(), keep=self.processes.is_first)
        if self.processes.is_first:
            self.folder.draw(self.priors)
            write_finished(self.folder, weights, self.validation, self.best_step, self.adapters)
        for line in self.loaders.skipped():
            self._log(line)
        kept = f" (the weights of step {self.best_step})" if self.validation is not None else ""
        took = readable_seconds(time.monotonic() - self.began)
        self._log(f"finished after {took}: {self.folder.path}{kept}")
        wait_for_all(self.processes)

    def _whole_weights(self) -> dict[str, Tensor]:
        """Return the current weights, whole and without adapters."""
        weights = self.strategy.full_weights(self.model.state_dict())
        return weights if self.adapters is None else self.adapters.merged(weights)

    def _weights(self) -> dict[str, Tensor]:
        """Return the EMA weights if configured, else the current ones; they may be sharded."""
        return self.average.weights(self.model) if self.average else self.model.state_dict()

    def _autocast(self, *, enabled: bool = True) -> torch.autocast:
        is_bfloat16 = self.config.train.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled and is_bfloat16)

    def _log(self, message: str) -> None:
        if message and not self.quiet:
            say(message)

    def _context(self) -> RunContext:
        return RunContext(
            folder=self.folder.path,
            config=self.config,
            model=self.model,
            first_step=self.steps_done,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            device=self.device,
        )
