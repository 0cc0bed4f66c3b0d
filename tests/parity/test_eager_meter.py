"""The benches' eager METER equals the recorded tensors, and the comparison notices when not."""

import re
import shutil

import pytest
import torch

from benches import eager_meter
from tests.golden import METER
from tests.parity import eager_meter as parity
from tests.parity.__main__ import main
from tests.parity.meter_case import MeterCase

pytestmark = pytest.mark.oldest

CASE = METER / "clip_micro.json"
#: Recorded names that are inputs or of another image size, or from which a compared output comes.
NOT_COMPARED = re.compile(
    r"input\..*|edge\.text_(ids|masks)|resize\..*|.*\.itm_labels|vqa\.targets"
    r"|pair\.cross\.\w+_(in|pooled)|(pretrain|irtr)\.itm\.cls|irtr\.irtr\.cls|(vqa|snli)\.\w+\.cls"
)


@pytest.mark.parametrize("name", ["clip_micro", "swin_micro"])
def test_recorded_case(name):
    comparison = parity.compare_case(METER / f"{name}.json")
    assert comparison.ok, str(comparison)
    left = set(MeterCase(METER / f"{name}.json").records) - comparison.compared
    assert [each for each in left if not NOT_COMPARED.fullmatch(each)] == []
    # The levels are compared, and every gradient of a timed loss.
    assert {"pair.cross.text1", "pair.cross.image1"} <= comparison.compared
    assert {"grad.pretrain.mlm", "grad.pretrain.itm", "grad.irtr.irtr", "grad.vqa.vqa"} <= (
        comparison.compared
    )


def test_the_command_prints_each_case(tmp_path, capsys):
    for path in METER.glob("clip_micro*"):
        shutil.copy(path, tmp_path / path.name)
    assert main(["meter", str(tmp_path), "--model", "eager"]) == 0
    assert "clip_micro (eager)" in capsys.readouterr().out


def test_an_image_side_that_reads_the_updated_text_is_found(monkeypatch):
    forward, updated = eager_meter.CrossLayer.forward, []

    def sequential(layer, x, mask, other, other_mask):
        # Of each level, the text layer is called first.
        is_text = not len(updated) % 2
        found = forward(layer, x, mask, other if is_text else updated[-1], other_mask)
        updated.append(found)
        return found

    monkeypatch.setattr(eager_meter.CrossLayer, "forward", sequential)
    assert not parity.compare_case(CASE).ok


def test_an_exact_gelu_in_the_tower_is_found(monkeypatch):
    exact = torch.nn.functional.gelu
    monkeypatch.setattr(eager_meter.QuickGELU, "forward", lambda self, x: exact(x))
    assert not parity.compare_case(CASE).ok


def test_a_tensor_that_is_not_there_is_named():
    case = MeterCase(CASE)
    state = case.published_state("vqa")
    state["vit_model.visual.ln_post.scale"] = state.pop("vit_model.visual.ln_post.weight")
    case.published_state = lambda task: state
    with pytest.raises(ValueError, match=r"missing \['vit_model.visual.ln_post.weight'\], unexp"):
        parity.build(case, "vqa")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "loss"),
    [("pretrain", eager_meter.pretraining_loss), ("irtr", eager_meter.retrieval_loss)],
)
def test_losses_teach(task, loss):
    case = MeterCase(CASE)
    model, batch = parity.build(case, task), parity.recorded_batch(case, task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert found[-1] < found[0] - 1
