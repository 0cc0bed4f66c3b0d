"""Bytes of PyTorch's operations, of launches, and of a whole block in three formulations."""

import dataclasses

import pytest
import torch

from tests.kernels.compiled.block import FIRST_STAGE, Autocast, Ours, count, count_all
from tests.kernels.compiled.cases import GATED, planned
from tests.kernels.compiled.compile import CHIPS, compile_launch
from tests.kernels.compiled.gates import BYTES
from tests.kernels.compiled.instructions import work
from tests.kernels.compiled.sample_kernels import meta, sum_launch
from tests.kernels.compiled.traffic import OperationBytes, SavedBytes, launch_bytes, sum_bytes
from tests.kernels.compiled.ttir import accesses

SM_90 = CHIPS["sm_90"]


def operation_bytes(run):
    with OperationBytes() as counted:
        run()
    return counted.moved


def test_operations_read_and_write():
    x, y = meta(4, 8), meta(4, 8, dtype=torch.bfloat16)
    assert operation_bytes(lambda: x + x) == 3 * 128
    assert operation_bytes(lambda: x.add_(x)) == 3 * 128
    assert operation_bytes(lambda: x.to(torch.bfloat16)) == 128 + 64
    assert operation_bytes(lambda: torch.cat([x, x])) == 4 * 128
    assert operation_bytes(lambda: y.sum()) == 64 + 2


def test_views_and_room_are_free():
    x = meta(4, 8)
    assert operation_bytes(lambda: x.view(8, 4).t()[1:].unsqueeze(0).unbind(1)) == 0
    assert operation_bytes(lambda: torch.empty_like(x)) == 0
    assert operation_bytes(x.zero_) == 128
    assert operation_bytes(lambda: torch.zeros_like(x)) == 128
    # A reshape that cannot be a view copies.
    assert operation_bytes(lambda: x.t().reshape(-1)) == 2 * 128


def test_expanded_sides_are_read_once():
    x, row = meta(4, 8), meta(1, 8)
    assert operation_bytes(lambda: x * row.expand(4, 8)) == 128 + 32 + 128


def test_saved_tensors_count_once_and_without_parameters():
    layer = torch.nn.Linear(8, 8, device="meta")
    x = meta(4, 8).requires_grad_()
    saved = SavedBytes(layer.parameters())
    with saved.hooks():
        layer(x) * x
    # x for both, and the layer's output.
    assert saved.total == 2 * 128


def test_autocast_casts_as_on_cuda():
    x, weight = meta(4, 8), meta(8, 8)
    with Autocast():
        assert torch.nn.functional.linear(x, weight).dtype == torch.bfloat16
        low = x @ weight
        assert low.dtype == torch.bfloat16
        assert low.softmax(-1).dtype == torch.float32
        assert torch.nn.functional.layer_norm(low, (8,)).dtype == torch.float32
        assert (low + low).dtype == torch.bfloat16


def test_the_bias_counts_once():
    launch = sum_launch(7)
    total = launch_bytes(launch, SM_90)
    assert (total.moved, total.bias_again) == (8 * 1024 * 4, 0)
    # A kernel whose parameter is called "bias" reads each of its elements four times.
    (*_, forward) = planned(lambda: GATED.forward(torch.bfloat16), SM_90)
    bias = forward.arguments["bias"]
    found = launch_bytes(forward, SM_90)
    reads = GATED.batch * GATED.windows // len(bias)
    assert found.bias_again == (reads - 1) * bias.numel() * bias.element_size()


def test_the_forward_pass_moves_every_element_once():
    launches = planned(lambda: GATED.forward(torch.bfloat16), SM_90)
    expand, forward = launches
    needed = sum(
        forward.arguments[name].numel() * forward.arguments[name].element_size()
        for name in ("qkv", "out", "bias")
    )
    assert launch_bytes(forward, SM_90).moved == needed
    # Writing the bias out is small beside that.
    assert launch_bytes(expand, SM_90).moved < 0.01 * needed


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_text_and_machine_code_agree(name):
    plan = getattr(GATED, name)
    (launch,) = (
        each
        for each in planned(lambda: plan(torch.bfloat16), SM_90)
        if "whole" in each.kernel.__name__
    )
    compiled = compile_launch(launch, SM_90)
    moved = {"load": 0, "store": 0}
    for access in accesses(compiled):
        moved[access.kind] += access.moved_bytes
    counted = work(compiled)
    assert (counted.loaded_bytes, counted.stored_bytes) == (moved["load"], moved["store"])


@pytest.fixture(scope="module")
def found():
    return count_all(FIRST_STAGE, SM_90)


def test_our_block_moves_few_bytes(found):
    for name, part in BYTES.items():
        assert found["ours"].forward <= part * found[name].forward
        assert found["ours"].backward < found[name].backward
        assert found["ours"].saved < found[name].saved


def test_scores_are_what_eager_code_moves(found):
    """Two passes over the scores of every window are the least that eager code can do."""
    scores = 64 * 64 * 4 * 144 * 144 * 4
    assert found["eager"].forward - found["fused"].forward > 2 * scores


@pytest.mark.parametrize("backward", [False, True])
def test_an_extra_pass_over_the_output_is_seen(found, backward):
    ours = Ours(FIRST_STAGE, SM_90)
    plan_name = "backward_launches" if backward else "forward_launches"
    out = meta(1, 64 * 96 * 96 * 128 // 2)
    extra = dataclasses.replace(
        sum_launch(1, width=out.numel()), arguments=sum_launch(1).arguments | {"rows": out}
    )
    getattr(ours, plan_name).append(extra)
    with ours.attention():
        counts = count(*ours.block(), FIRST_STAGE, ours)
    part = "backward" if backward else "forward"
    pass_bytes = sum_bytes([extra], SM_90).moved
    # One reading and one writing of the output, bfloat16.
    assert pass_bytes == 2 * 64 * 96 * 96 * 128 * 2
    assert getattr(counts, part) == getattr(found["ours"], part) + pass_bytes
    if not backward:
        assert counts.forward > BYTES["fused"] * found["fused"].forward
