"""The benches' eager X-Decoder equals the recorded tensors, and the comparison notices when not."""

import re
import shutil

import pytest
import torch

# The peer's matching.
pytest.importorskip("scipy")

from benches import eager_mask_losses, eager_segments, eager_xdecoder
from tests.golden import XDECODER
from tests.parity import eager_xdecoder as parity
from tests.parity.__main__ import main
from tests.parity.xdecoder_case import XDecoderCase

pytestmark = pytest.mark.oldest

CASE = XDECODER / "micro.json"
#: Recorded names that are inputs, notes, or of outputs that the benches do not time.
NOT_COMPARED = re.compile(
    r"input\..*|margin\..*|retrieval\..*|seg\.image\d\.(sem_seg|instances\..*)|caption\w*\.margin"
    r"|caption\w*\.texts|classes_from"
)


def test_recorded_case():
    comparison = parity.compare_case(CASE)
    assert comparison.ok, str(comparison)
    case = XDecoderCase(CASE)
    left = {*case.records, *case.scalars} - comparison.compared
    assert [each for each in left if not NOT_COMPARED.fullmatch(each)] == []
    # Six losses of five layers.
    assert comparison.groups["losses"].count == 30


def test_the_command_prints_each_case(tmp_path, capsys):
    for path in XDECODER.glob("focall_micro*"):
        shutil.copy(path, tmp_path / path.name)
    assert main(["xdecoder", str(tmp_path), "--model", "eager"]) == 0
    assert re.search(r"focall_micro \(eager\)[^$]*backbone +14 ", capsys.readouterr().out)


def compare_phrases(comparison, case, model):
    """The pass with phrases, without the vectors of classes, which take longest."""
    classes = case.stored("text.classes").view(case.records["text.classes"]["shape"])
    with torch.no_grad():
        parity._compare_phrases(comparison, case, model, classes)
    return comparison


@pytest.fixture(scope="module")
def case():
    return XDecoderCase(CASE)


@pytest.fixture(scope="module")
def model(case):
    return parity.build(case)


def test_tokens_that_every_layer_reads_as_given_are_found(case, model, monkeypatch):
    forward = eager_xdecoder.FeedForward.forward
    queries = 2 * case.xdecoder_config().decoder.num_queries - 1

    def forgetful(layer, x):
        return torch.cat((forward(layer, x)[:queries], x[queries:]))

    monkeypatch.setattr(eager_xdecoder.FeedForward, "forward", forgetful)
    assert not compare_phrases(parity.Comparison("changed"), case, model).ok


def test_a_bilinear_resize_of_final_masks_is_found(case, model, monkeypatch):
    bilinear = torch.nn.functional.interpolate
    monkeypatch.setattr(
        eager_segments,
        "resize",
        lambda masks, size: bilinear(masks[None], size, mode="bilinear")[0],
    )
    comparison = compare_phrases(parity.Comparison("changed"), case, model)
    failed = [each for group in comparison.groups.values() for each in group.failures]
    assert {each.split(":")[0] for each in failed} >= {"ground.mask_logits"}
    assert not any(each.startswith("ground.pred") for each in failed)


def test_classes_that_all_weigh_the_same_are_found(case, model, monkeypatch):
    monkeypatch.setattr(eager_mask_losses, "BACKGROUND", 1.0)
    comparison = parity.Comparison("changed")
    with torch.no_grad():
        parity._compare_losses(comparison, case, model)
    failed = {each.split(":")[0] for each in comparison.groups["losses"].failures}
    assert failed == {f"losses.loss_mask_ce_{layer}" for layer in range(5)}


def test_a_tensor_that_is_not_there_is_named(case):
    state = case.published_state()
    state["backbone.norm0.scale"] = state.pop("backbone.norm0.weight")
    changed = XDecoderCase(CASE)
    changed.published_state = lambda: state
    with pytest.raises(ValueError, match=r"missing \['backbone.norm0.weight'\], unexpected \['b"):
        parity.build(changed)
