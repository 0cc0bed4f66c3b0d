"""Keyed random numbers: fixed by seed, stream and index, and nothing else."""

import collections
import itertools
import math

import numpy as np
import pytest

from fiber.data.rng import Rng


def test_no_items():
    rng = Rng(0, 0, 0)
    assert rng.shuffled([]) == []
    assert rng.bytes_array(0).shape == (0,)


def test_the_bits_are_those_of_philox():
    """Data of a seed must not change with numpy: the first numbers are recorded here."""
    rng = Rng(7, 3, 41)
    raw = np.random.Philox(key=7 << 64 | 3 << 48 | 41).random_raw(64)
    assert rng.random() == (int(raw[-1]) >> 11) / 2**53
    assert Rng(7, 3, 41).random() == 0.8042954645274837


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"seed.*{seed}.*0.*2"):
        Rng(seed, 0, 0)


def test_other_keys_give_other_numbers():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 255, 10**6)]
    values = [Rng(*key).random() for key in keys]
    assert len(set(values)) == len(keys)
    assert values == [Rng(*key).random() for key in keys]


def test_numbers_are_uniform():
    rng = Rng(1, 2, 3)
    count = 20000
    values = collections.Counter(rng.integer(7) for _ in range(count))
    assert set(values) == set(range(7))
    spread = math.sqrt(count * (1 / 7) * (6 / 7))
    assert all(abs(n - count / 7) < 5 * spread for n in values.values())
    weighted = collections.Counter(rng.weighted_choice("abc", [1, 0, 3]) for _ in range(count))
    assert weighted["b"] == 0 and abs(weighted["a"] / count - 0.25) < 0.02
    orders = collections.Counter("".join(rng.shuffled("abc")) for _ in range(count))
    assert len(orders) == 6 and all(abs(n / count - 1 / 6) < 0.02 for n in orders.values())
    between = [rng.uniform(-2, 5) for _ in range(count)]
    assert -2 <= min(between) < -1.9 and 4.9 < max(between) < 5
    assert abs(np.mean(rng.bytes_array(count)) - 127.5) < 3


def test_permuted_integers():
    assert list(Rng(0, 0, 0).permuted(0)) == []
    orders = collections.Counter(tuple(Rng(0, 0, index).permuted(3)) for index in range(600))
    assert len(orders) == 6
    # Four standard deviations of 600 draws with probability 1/6.
    assert all(abs(count - 100) < 4 * (600 * 5 / 36) ** 0.5 for count in orders.values())
    # The start of a long order is drawn without the rest.
    start = list(itertools.islice(Rng(0, 0, 0).permuted(2**40), 5))
    assert len(set(start)) == 5 and max(start) < 2**40
