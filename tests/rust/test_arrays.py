"""Arrays that Rust writes are writable and share no memory with others."""

import numpy as np
import pytest

from fiber import _core

SHAPE = (1, 2, 3, 4)


def cross_attention(arrays, out, logsumexp):
    _core.cross_attention(
        arrays, out, logsumexp, key_lengths=None, key_mask=None, threads=1, instructions="scalar"
    )


def test_arrays_of_their_own_are_written():
    query, key, value, out = np.ones((4, *SHAPE), np.float32)
    logsumexp = np.zeros((1, 3, 2), np.float32)
    out[:] = 0
    cross_attention([query, key, value], out, logsumexp)
    assert (out == 1).all() and (logsumexp != 0).all()


@pytest.mark.parametrize("shared", ["query", "value", "logsumexp"])
def test_an_array_that_shares_memory_is_rejected(shared):
    arrays = dict(zip(("query", "key", "value"), np.ones((3, *SHAPE), np.float32), strict=True))
    memory = np.zeros(40, np.float32)
    out, logsumexp = memory[:24].reshape(SHAPE), memory[30:36].reshape(1, 3, 2)
    if shared == "logsumexp":
        logsumexp = memory[23:29].reshape(1, 3, 2)
    else:
        arrays[shared] = memory[16:].reshape(SHAPE)
    names = "logsumexp: .* out" if shared == "logsumexp" else f"out: .* {shared}"
    with pytest.raises(ValueError, match=names):
        cross_attention(list(arrays.values()), out, logsumexp)


def test_a_read_only_array_is_rejected():
    query, key, value, out = np.ones((4, *SHAPE), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"out: .* read-only"):
        cross_attention([query, key, value], out, np.zeros((1, 3, 2), np.float32))
