"""Progress on standard error: a tqdm bar on a terminal, plain lines in a log file.

Standard output is reserved for results.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from fiber.terminal import escape_controls, unescaped

#: Minimum time between two plain lines, in seconds, to keep log files readable.
PLAIN_LINE_SECONDS = 5.0


class _Bar(tqdm):
    # Disable tqdm's monitor thread and avoid its multiprocessing lock.
    monitor_interval = 0
    _lock = threading.RLock()

    def __init__(self, *, total: int, initial: int = 0, quiet: bool = False, unit: str) -> None:
        # None means disabled unless standard error is a terminal.
        disable = True if quiet else None
        options = {"file": unescaped(sys.stderr), "dynamic_ncols": True, "unit": unit}
        super().__init__(total=total, initial=initial, disable=disable, **options)


def say(message: str) -> None:
    """Print a message to standard error, above any progress bar."""
    _Bar.write(escape_controls(message), file=unescaped(sys.stderr))
    sys.stderr.flush()


def readable_seconds(seconds: float) -> str:
    """Format a duration.

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
    """Progress of a training run of `steps` steps that starts or resumes at step `start`.

    Nothing is printed if `quiet`, which is True on all ranks but the first.
    """

    def __init__(self, *, steps: int, start: int, quiet: bool) -> None:
        self.steps, self.start, self.step, self.quiet = steps, start, start, quiet
        self.began = self.said = time.monotonic()
        self.bar = _Bar(total=steps, initial=start, quiet=quiet, unit="step")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        self.bar.update()

    def say(self, message: str) -> None:
        """Print a message, unless the run is quiet."""
        if not self.quiet:
            say(message)

    def show(self, entry: dict[str, Any]) -> None:
        """Show metrics in the bar or, at most every `PLAIN_LINE_SECONDS`, as a plain line."""
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in entry["losses"].items())
        numbers += f"  {entry['images_per_second']:.0f} images/s"
        if not self.bar.disable:
            self.bar.set_postfix_str(numbers)
            return
        now = time.monotonic()
        if self.quiet or (
            now - self.said < PLAIN_LINE_SECONDS and self.step not in (self.start + 1, self.steps)
        ):
            return
        self.said = now
        left = (now - self.began) / (self.step - self.start) * (self.steps - self.step)
        say(f"step {self.step}/{self.steps}  {numbers}  {readable_seconds(left)} left")


class ImageProgress:
    """Callback for the `progress` argument of functions that process images.

    An instance can be reused for several totals in turn, such as one per split of a dataset.
    """

    def __init__(self) -> None:
        self.bar: _Bar | None = None
        self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` images have been processed."""
        if self.bar is None or self.bar.total != total or done < self.bar.n:
            self.close()
            self.bar = _Bar(total=total, unit=" images")
        if not self.bar.disable:
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.said >= PLAIN_LINE_SECONDS:
            self.said = time.monotonic()
            say(f"{done} of {total} images")
        if done >= total:
            self.close()

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class RateProgress:
    """Callback for the number of records done and of all, which shows the rate and the time left.

    The first call tells how many were done before. `prefix` begins each plain line.
    """

    def __init__(self, unit: str = "records", prefix: str = "") -> None:
        self.unit, self.prefix = unit, prefix
        self.bar: _Bar | None = None
        self.first = 0
        self.began = self.said = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if self.bar is None:
            self.first, self.began, self.said = done, now, now
            self.bar = _Bar(total=total, initial=done, unit=f" {self.unit}")
        elif not self.bar.disable:
            self.bar.update(done - self.bar.n)
        elif now - self.said >= PLAIN_LINE_SECONDS and done > self.first:
            self.said = now
            rate = (done - self.first) / (now - self.began)
            left = readable_seconds((total - done) / rate)
            say(
                f"{self.prefix}{done:,} of {total:,} {self.unit}  {rate:.1f} {self.unit}/s"
                f"  {left} left"
            )

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self.bar is not None:
            self.bar.close()
