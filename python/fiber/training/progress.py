"""What a person sees while a run goes on: a bar with an ETA on a terminal, else plain lines.

Everything goes to standard error; standard output is left to results.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

#: Shortest time between two plain lines, in seconds, so that a log file stays readable.
PLAIN_LINE_SECONDS = 5.0


def say(message: str) -> None:
    """Write one message to standard error."""
    print(message, file=sys.stderr, flush=True)


def readable_seconds(seconds: float) -> str:
    """Write a duration as people say it.

    >>> readable_seconds(42.4), readable_seconds(754), readable_seconds(7500)
    ('42 s', '12 min 34 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Shows how far a run is; does nothing on ranks other than the first."""

    def __init__(self, *, steps: int, start: int, quiet: bool) -> None:
        """Args: total steps, the step that the run (re)starts at, and whether to stay silent."""
        self.steps, self.start, self.step = steps, start, start
        self.quiet = quiet
        self.began = self.said = time.monotonic()
        self.bar: Any = None
        if not quiet and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
            self.bar = _rich_bar()
            self.task = self.bar.add_task("", total=steps, completed=start, numbers="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        if self.bar is not None:
            self.bar.update(self.task, completed=self.step)

    def say(self, message: str) -> None:
        """Write one message above the bar."""
        if self.bar is not None:
            self.bar.console.print(message, highlight=False)
        elif not self.quiet:
            say(message)

    def show(self, entry: dict[str, Any]) -> None:
        """Show a line of metrics."""
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in entry["losses"].items())
        numbers += f"  {entry['images_per_second']:.0f} pictures/s"
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, numbers=numbers)
        elif not self.quiet and (
            now - self.said >= PLAIN_LINE_SECONDS or self.step in (self.start + 1, self.steps)
        ):
            self.said = now
            left = (now - self.began) / (self.step - self.start) * (self.steps - self.step)
            say(f"step {self.step}/{self.steps}  {numbers}  {readable_seconds(left)} left")


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=Console(stderr=True),
        # Drawn on update only: a refreshing thread would take time from two busy cores.
        auto_refresh=False,
    )
