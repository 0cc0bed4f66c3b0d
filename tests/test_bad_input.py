"""Which errors another start would end with, too."""

import errno

import pytest

from fiber.bad_input import is_bad_input
from fiber.data.storage.remote import RemoteError
from fiber.training.distributed.heartbeat import LostRank, LostRankError

HOST = {"host": "a", "pid": 1}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FileNotFoundError("no errno"),
        FileNotFoundError(errno.ENOENT, "x"),
        PermissionError(errno.EACCES, "x"),
        ModuleNotFoundError("x"),
        LostRankError([LostRank(1, **HOST), LostRank(2, **HOST, is_bad_input=True)]),
    ],
    ids=repr,
)
def test_the_same_again(error):
    assert is_bad_input(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.ESTALE, "x"),
        ConnectionError("x"),
        ChildProcessError("x"),
        MemoryError(),
        FloatingPointError("x"),
        RemoteError("x"),
        LostRankError([LostRank(1, **HOST)]),
    ],
    ids=repr,
)
def test_maybe_not_again(error):
    assert not is_bad_input(error)
