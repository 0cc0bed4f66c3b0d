"""Hooks, adapters and quantized weights act: whatever a head reads of a module, it calls."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.models.small_networks import NETWORKS, heads, network

pytestmark = pytest.mark.oldest

SLOW = pytest.mark.slow
#: Modules that no head calls, and why.
NEVER_CALLED = {
    "head.unused_classes": "logits of classes that published files have and nothing reads",
}


def weighted(model):
    """Modules with weights of their own, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
        and not isinstance(module, torch.nn.ParameterList)
    }


@contextmanager
def hooked(modules, hook) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda *call, name=name: hook(name, call[2]))
        for name, module in modules.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def with_noise(output, scale, draw):
    """Add noise to every tensor of a module's output."""
    if isinstance(output, tuple | list):
        changed = [with_noise(each, scale, draw) for each in output]
        return output._make(changed) if hasattr(output, "_make") else type(output)(changed)
    if not torch.is_tensor(output) or not output.is_floating_point():
        return output
    return output + scale * torch.randn(output.shape, generator=draw)


# Without dropout, evaluation and training are one computation, but for the branches that ask.
@pytest.mark.parametrize(
    ("dropout", "modes"), [(0.0, [False]), (0.1, [True]), pytest.param(0.0, [True], marks=SLOW)]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_module_that_a_head_reads_is_called_and_its_output_counts(name, dropout, modes):
    model = network(name, dropout)
    modules = weighted(model)
    called = set()
    for training in modes:
        model.train(training)
        for head, run in heads(model.config).items():
            # Read: where the weights of the model as it is have a gradient.
            model.zero_grad(set_to_none=True)
            torch.manual_seed(2)
            run(model).square().mean().backward()
            read = {
                each
                for each, module in modules.items()
                for parameter in module.parameters(recurse=False)
                if parameter.grad is not None and parameter.grad.any()
            }
            # Counts: a change of the output of each module has a gradient.
            changes = {each: torch.zeros((), requires_grad=True) for each in modules}
            draw = torch.Generator().manual_seed(3)

            def changed(each, output, changes=changes, draw=draw):
                return with_noise(output, changes[each], draw)

            torch.manual_seed(2)
            with hooked(modules, changed):
                run(model).square().mean().backward()
            counts = {each for each, change in changes.items() if change.grad is not None}
            counts = {each for each in counts if changes[each].grad != 0}
            assert read - counts == set(), (head, training)
            called |= read
    assert {*modules} - called == {*NEVER_CALLED} & {*modules}


@pytest.mark.parametrize("name", NETWORKS)
def test_without_gradients_hooks_are_called_and_modules_compute_what_kernels_do(name):
    model = network(name).eval()
    modules = weighted(model)
    called = set()
    with torch.no_grad():
        for head, run in heads(model.config).items():
            fused = run(model)
            with hooked(modules, lambda each, output: called.add(each)):
                found = run(model)
            # Two orders of the same float32 operations, which differ by at most 6.8e-7 here.
            largest = fused.abs().max().item()
            torch.testing.assert_close(found, fused, rtol=0, atol=3e-6 * largest, msg=head)
    assert {*modules} - called == {*NEVER_CALLED} & {*modules}
