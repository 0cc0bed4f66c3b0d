"""Scripts in a process of their own, to which the system gives only so much memory more."""

import os
import subprocess
import sys

#: What every script may use: `with memory_left(bytes)`, within which no more than these are given.
PRELUDE = """
import contextlib, resource

@contextlib.contextmanager
def memory_left(more):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
"""


def run_limited(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of Python with its arguments; what it printed, and how it ended."""
    # Without it glibc reserves 64 MiB for each thread as soon as that takes its first bytes. A
    # thread of a pool may first run when the limit has just been reckoned, and leave nothing of it.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
