import copy
import inspect

import pytest
import torch

import fiber
from fiber.inference import Model, StagedModel
from fiber.inference.suggestions import suggest_keywords


def test_the_signature_stays():
    for function in (fiber.load, Model.ground, Model.answer, StagedModel.ground, StagedModel.to):
        assert "Args:" in (function.__doc__ or "") or function.__name__ in ("answer", "to")
        assert "options" not in inspect.signature(function).parameters
    assert "score_threshold" in inspect.signature(Model.ground).parameters
    assert inspect.signature(StagedModel.detect) == inspect.signature(Model.detect)


def test_arguments():
    @suggest_keywords
    def add(first, *, second=0):
        return first + second

    assert add(1) == 1 and add(first=1, second=2) == 3
    with pytest.raises(
        TypeError, match=r"add\(\).* missing .*'first'; expected first and, by name, second"
    ):
        add(second=1)  # type: ignore[call-arg]
    with pytest.raises(
        TypeError, match=r"add\(\).* too many .*; expected first and, by name, second"
    ):
        add(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"add\(\).*'secnod'; did you mean second\?"):
        add(1, secnod=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"add\(\).* too many .*; pass several texts as one list"):
        add("a", "b", "c")  # type: ignore[call-arg]

    @suggest_keywords
    def run(recipe, *, set=None, output="", score_threshold=0.5, nms_threshold=0.5):  # noqa: A002
        return recipe, set, output, score_threshold, nms_threshold

    # Names of other libraries, and fields of a recipe.
    for name, meant in (
        ("conf", "did you mean score_threshold\\?"),
        ("iou", "did you mean nms_threshold\\?"),
        ("output_dir", "did you mean output\\?"),
        ("epochs", "by set, as in set="),
    ):
        with pytest.raises(TypeError, match=f"'{name}'; .*{meant}"):
            run("fine", **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'other'; expected first, second"):
        add(1, other=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", ["ground", "detect", "answer", "caption", "match", "search"])
def test_every_method_of_every_model(fine, coarse, method):
    for model in (fine, coarse, StagedModel({"coarse": coarse, "fine": fine})):
        with pytest.raises(TypeError, match=rf"{method}\(\) got .* 'imagess'; did you mean images"):
            getattr(model, method)(imagess="a.jpg")


def test_attributes(fine, coarse):
    staged = StagedModel({"coarse": coarse, "fine": fine})
    for model in (fine, staged):
        assert not hasattr(model, "unheard_of")
        with pytest.raises(AttributeError, match=r"has no attribute 'gruond'; did you mean ground"):
            model.gruond("a.jpg")
        assert copy.copy(model).heads == model.heads
    assert staged.answers == coarse.answers


def test_a_model_moves(fine, coarse, pictures):
    """To another device and back, with what is cached of texts; the results are the same."""
    staged = StagedModel({"coarse": coarse, "fine": fine})
    before = fine.ground(pictures[0], ["a dog"]).to_dict()
    assert staged.to("cpu") is staged and fine.to(torch.device("cpu")) is fine
    if torch.cuda.is_available():
        staged.to("cuda")
        assert fine.device.type == coarse.device.type == "cuda"
        found = fine.ground(pictures[0], ["a dog"])
        assert found.scores == pytest.approx(before["detections"][0]["score"], abs=0.01)
        staged.to("cpu")
    assert next(fine.network.parameters()).device.type == "cpu"
    assert fine.ground(pictures[0], ["a dog"]).to_dict() == before
    for device in ("gpu", "cuda:99", torch.float16):
        with pytest.raises(ValueError, match="device"):
            staged.to(device)  # type: ignore[arg-type]
    # Nothing has moved.
    assert staged.device == fine.device == torch.device("cpu")
