"""Two processes give the losses and gradients of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist

from fiber.losses.distributed import fetch_rows, gather_rows, row_counts
from tests.losses.toy_objectives import all_splits, losses_and_gradients
from tests.losses.two_ranks import run_on_ranks, run_on_two_ranks

pytestmark = pytest.mark.oldest

SPLITS = [(3, 0), (5, 2), (4, 4)]
STEPS = 3


def test_one_process_sends_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert row_counts(rows) == (3,)
    assert gather_rows(rows) is rows
    assert torch.equal(fetch_rows(rows, torch.tensor([2, 0, 0])), rows[[2, 0, 0]])


def test_wrong_arguments_are_named():
    rows = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"counts.*\(2,\)"):
        gather_rows(rows, (2,))
    with pytest.raises(ValueError, match=r"indices.*torch.float32"):
        fetch_rows(rows, torch.zeros(3))
    with pytest.raises(ValueError, match=r"int64 .*\(3,\).*\(2,\)"):
        fetch_rows(rows, torch.zeros(2, dtype=torch.int64))


_KEPT = []


def keep_store():
    """Return the rank, and keep the store alive, so that nobody removes its file."""
    _KEPT.append(dist.distributed_c10d._get_default_store())
    return torch.tensor(dist.get_rank())


def test_a_store_that_was_not_closed_does_not_reach_later_ranks(tmp_path):
    """Three ranks that read the addresses of the first two would connect to closed ports."""
    for count in (2, 3):
        ranks = run_on_ranks(count, keep_store, tmp_path)
        assert [int(rank) for rank in ranks] == list(range(count))


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    return run_on_two_ranks(all_splits, tmp_path_factory.mktemp("ranks"), SPLITS, STEPS)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        *("itc", "itm", "itm_half", "mlm", "caption", "gold", "self_critical", "vqa", "nlvr2"),
    ],
)
def test_two_ranks_equal_one_process(on_two_ranks, split, name):
    for step in range(STEPS):
        expected = losses_and_gradients((sum(split),), step)[name]
        assert expected["loss"] != 0
        assert any(value.abs().max() > 1e-3 for key, value in expected.items() if key != "loss")
        for found in on_two_ranks:
            for key, value in found[f"{split}/{step}"][name].items():
                # float32 sums of at most 24 terms of size 1 in another order.
                torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)


def test_both_ranks_draw_from_the_whole_batch(on_two_ranks):
    across = 0
    for split in SPLITS:
        for step in range(STEPS):
            expected = losses_and_gradients((sum(split),), step)["negatives"]["rows"]
            found = [ranks[f"{split}/{step}"]["negatives"]["rows"] for ranks in on_two_ranks]
            assert torch.equal(torch.cat(found, 1), expected)
            across += int((found[0] >= split[0]).sum()) + int((found[1] < split[0]).sum())
    assert across > 10
