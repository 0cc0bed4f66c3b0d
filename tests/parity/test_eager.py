"""The benches' eager model equals the recorded tensors, and the comparison notices when not."""

import shutil

import pytest
import torch

from benches import eager_fiber
from tests.golden import COARSE
from tests.parity import eager
from tests.parity.__main__ import COMMITTED, main
from tests.parity.coarse_case import CoarseCase

pytestmark = pytest.mark.oldest


def test_micro_equals_the_recorded_tensors(tmp_path, monkeypatch, capsys):
    for path in COARSE.glob("micro*"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "micro_mutations.json").unlink()
    monkeypatch.setitem(COMMITTED, "coarse", tmp_path)
    assert main(["coarse", "--model", "eager"]) == 0
    comparison = eager.compare_case(COARSE / "micro.json")
    assert sum(group.count for group in comparison.groups.values()) > 150
    assert "micro (eager)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tinyhot"])
def test_larger_cases_equal_the_recorded_tensors(name):
    comparison = eager.compare_case(COARSE / f"{name}.json")
    assert comparison.ok, str(comparison)


def test_another_shift_mask_fails(monkeypatch):
    monkeypatch.setattr(eager_fiber, "SEPARATED", 0.0)
    assert not eager.compare_case(COARSE / "micro.json").ok


def test_a_tensor_that_is_not_there_is_named():
    case = CoarseCase(COARSE / "micro.json")
    state = case.published_state()
    state["vit_model.norm.scale"] = state.pop("vit_model.norm.weight")
    case.published_state = lambda: state
    with pytest.raises(ValueError, match=r"missing \['vit_model.norm.weight'\], unexpected \['vit"):
        eager.build(case)


@pytest.mark.slow
def test_pretraining_loss_teaches():
    case = CoarseCase(COARSE / "micro.json")
    model = eager.build(case)
    batch = eager_fiber.Batch(
        images=case.input("image"),
        ids=case.input("text_ids"),
        masked_ids=case.input("text_ids_mlm"),
        labels=case.input("text_labels_mlm"),
        text_mask=case.input("text_masks").bool(),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    found = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = eager_fiber.pretraining_loss(model, batch)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < found[0] - 1
