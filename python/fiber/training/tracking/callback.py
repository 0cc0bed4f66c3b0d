"""Callbacks: user code that runs at fixed points of a training run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fiber.training.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run that a callback belongs to."""

    #: Output folder.
    folder: Path
    #: Configuration, fitted to the data.
    config: RunConfig
    #: The model in training; a callback must not change it.
    model: nn.Module
    #: Steps that were done before, 0 for a new run.
    first_step: int
    rank: int
    world_size: int
    device: torch.device


class Callback:
    """Base class of callbacks; every method does nothing unless overridden.

    In one step, `on_validation` comes before `on_step_end`. Checkpoints are written in the
    background, and `on_checkpoint` follows when one is complete, which may be steps later. An
    exception ends the run with a `CallbackError`; torchrun then stops the other ranks. A callback
    must not change the model, the optimizer or torch's random state: resumed and uninterrupted runs
    would no longer be equal.
    """

    #: Call this callback on every rank; by default only on rank 0.
    all_ranks: bool = False

    def on_run_start(self, run: RunContext) -> None:
        """Run before the first step, also when a run is resumed."""

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Run after a validation.

        Args:
            step: number of finished steps.
            metrics: metrics of the task, and "score", by which the best checkpoint is selected.
        """

    def on_step_end(self, step: int, metrics: Mapping[str, Any] | None) -> None:
        """Run after every optimizer step.

        Args:
            step: number of finished steps.
            metrics: the line of metrics.jsonl, if one is logged at this step. Ranks other than 0
                get the same losses, without `performance.goodput` and `performance.restarts`.
        """

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Run on rank 0 when the checkpoint of a step is complete in `folder`."""

    def on_run_end(self, error: BaseException | None) -> None:
        """Run once after `on_run_start`, however the run ends.

        Args:
            error: None if the finished model was written; otherwise what ended the run, such as
                `KeyboardInterrupt`, or `SystemExit` with code 75 after a signal.
        """


class CallbackError(RuntimeError):
    """Raised if a callback fails; the message names the callback, its method and the step."""


class Callbacks:
    """Calls the callbacks of a run, in their order.

    Args:
        callbacks: callbacks of the run.
        is_first: True on rank 0; other ranks call only callbacks with `all_ranks`.

    Raises:
        TypeError: if one is not an instance of `Callback`.
    """

    def __init__(self, callbacks: Sequence[Callback], *, is_first: bool) -> None:
        for index, callback in enumerate(callbacks):
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callbacks[{index}]: expected an instance of fiber.Callback, got {callback!r}"
                )
        self._callbacks = [each for each in callbacks if each.all_ranks or is_first]
        self._step = 0

    @contextmanager
    def running(self, run: RunContext) -> Iterator[None]:
        """Call `on_run_start`, and `on_run_end` after the block.

        Raises:
            CallbackError: if a callback fails; only a warning is issued if the block fails, too.
        """
        self._step = run.first_step
        started: list[Callback] = []
        failure: BaseException | None = None
        try:
            for callback in self._callbacks:
                self._call(callback, callback.on_run_start, run)
                started.append(callback)
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            failed = []
            for callback in started:
                try:
                    self._call(callback, callback.on_run_end, failure)
                except CallbackError as error:
                    failed.append(error)
            # One error can be raised, and only if it does not hide what ended the run.
            raised = failed.pop(0) if failed and failure is None else None
            for error in failed:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            if raised is not None:
                raise raised

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Call `on_validation`."""
        self._step = step
        for callback in self._callbacks:
            self._call(callback, callback.on_validation, step, metrics)

    def step_ended(self, step: int, metrics: Mapping[str, Any] | None) -> None:
        """Call `on_step_end`."""
        self._step = step
        for callback in self._callbacks:
            self._call(callback, callback.on_step_end, step, metrics)

    def saved(self, step: int, folder: Path) -> None:
        """Call `on_checkpoint`."""
        for callback in self._callbacks:
            self._call(callback, callback.on_checkpoint, step, folder)

    def _call(self, callback: Callback, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:
            name = f"{type(callback).__name__}.{method.__name__}"
            raise CallbackError(
                f"callback {name} failed after step {self._step}: {error!r}"
            ) from error
