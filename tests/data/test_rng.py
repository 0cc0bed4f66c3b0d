"""Keyed draws: fixed by seed, stream and index, and nothing else."""

import collections
import math

import numpy as np
import pytest

from fiber.data.rng import Draws


def test_no_items():
    draws = Draws(0, 0, 0)
    assert draws.shuffled([]) == []
    assert draws.bytes_array(0).shape == (0,)


def test_the_bits_are_those_of_philox():
    """Data of a seed must not change with numpy: the first draws are written down here."""
    draws = Draws(7, 3, 41)
    raw = np.random.Philox(key=7 << 64 | 3 << 48 | 41).random_raw(64)
    assert draws.unit() == (int(raw[-1]) >> 11) / 2**53
    assert Draws(7, 3, 41).unit() == 0.8042954645274837


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"seed.*{seed}.*0.*2"):
        Draws(seed, 0, 0)


def test_other_keys_give_other_draws():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 255, 10**6)]
    values = [Draws(*key).unit() for key in keys]
    assert len(set(values)) == len(keys)
    assert values == [Draws(*key).unit() for key in keys]


def test_draws_are_uniform():
    draws = Draws(1, 2, 3)
    count = 20000
    values = collections.Counter(draws.below(7) for _ in range(count))
    assert set(values) == set(range(7))
    spread = math.sqrt(count * (1 / 7) * (6 / 7))
    assert all(abs(n - count / 7) < 5 * spread for n in values.values())
    weighted = collections.Counter(draws.weighted("abc", [1, 0, 3]) for _ in range(count))
    assert weighted["b"] == 0 and abs(weighted["a"] / count - 0.25) < 0.02
    orders = collections.Counter("".join(draws.shuffled("abc")) for _ in range(count))
    assert len(orders) == 6 and all(abs(n / count - 1 / 6) < 0.02 for n in orders.values())
    between = [draws.between(-2, 5) for _ in range(count)]
    assert -2 <= min(between) < -1.9 and 4.9 < max(between) < 5
    assert abs(np.mean(draws.bytes_array(count)) - 127.5) < 3
