"""Compiled training steps: the same numbers, without graph breaks."""

import pytest
import torch
from torch._dynamo.utils import counters

from fiber.training import compiled
from fiber.training.compiled import CompiledBackbone, check_compile
from tests.training.distributed.strategy_runs import config_of, trained

ONE_TASK = {
    "tasks__image_text__share": 0,
    "tasks__reasoning__share": 0,
    "tasks__caption__share": 0,
    "train__steps": 2,
}


class Toy(torch.nn.Module):
    """A backbone with two of the methods."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def fuse(self, tensor):
        return tensor * 2

    def image_prefix(self, tensor):
        return tensor + 1


@pytest.fixture
def without_code(monkeypatch):
    """Trace forward and backward passes, but generate no code, which takes minutes."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("coarse", ONE_TASK),
        ("coarse", ONE_TASK | {"train__gradient_checkpointing": True}),
        # Image and text with all branches.
        ("meter", {"train__steps": 1}),
    ],
    ids=["coarse", "checkpointing", "METER"],
)
def test_a_compiled_run_has_the_same_numbers(pictures, tmp_path, without_code, stage, changes):
    runs = [
        trained(pictures, tmp_path / str(is_on), stage, train__compile=is_on, **changes)
        for is_on in (False, True)
    ]
    assert runs[0] == runs[1]
    assert counters["stats"]["unique_graphs"] >= 3
    assert not counters["graph_break"]


def test_methods_are_compiled_in_steps_only(without_code):
    toy, ones = Toy(), torch.ones(2)
    backbone = CompiledBackbone(toy)
    assert counters["stats"]["unique_graphs"] == 0
    with backbone.active():
        assert torch.equal(toy.fuse(ones), 2 * ones)
        assert counters["stats"]["unique_graphs"] == 1
        assert torch.equal(toy.image_prefix(ones), 2 * ones)
    assert counters["stats"]["unique_graphs"] == 2
    torch.compiler.reset()
    assert toy.fuse(torch.ones(3)).sum() == 6
    assert counters["stats"]["unique_graphs"] == 2
    assert not vars(toy).keys() & set(compiled.METHODS)
    with pytest.raises(KeyError), backbone.active():
        raise KeyError
    assert not vars(toy).keys() & set(compiled.METHODS)


def test_a_device_that_cannot_compile_is_named(monkeypatch, without_code):
    check_compile(torch.device("cpu"))

    def broken(function, **options):
        raise RuntimeError("no compiler found\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=r"train\.compile.*on cpu.*no compiler found\)"):
        check_compile(torch.device("cpu"))


def test_a_run_that_cannot_compile_leaves_no_folder(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "no such backend")
    with pytest.raises(ValueError, match=r"train\.compile"):
        trained(pictures, tmp_path / "run", "coarse", train__compile=True)
    assert not (tmp_path / "run").exists()


def test_what_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match=r"train\.compile.*'replicate', got 'shard'"):
        config_of("coarse", train__compile=True, train__strategy="shard")
    with pytest.raises(ValueError, match=r"train\.compile needs a coarse-stage model"):
        config_of("fine", train__compile=True)
