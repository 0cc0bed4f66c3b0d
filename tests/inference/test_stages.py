"""Folders with one model per stage."""

import numpy as np
import pytest

import fiber
from fiber.inference import StagedModel
from fiber.synthetic.scenes import generate


@pytest.fixture
def staged(coarse, fine, tmp_path):
    coarse.save(tmp_path / "both" / "coarse")
    fine.save(tmp_path / "both" / "fine")
    return fiber.load(tmp_path / "both", device="cpu")


def test_every_method_runs_on_the_stage_with_its_head(staged, coarse, fine, pictures):
    assert isinstance(staged, StagedModel)
    assert set(staged.heads) == {*coarse.heads, *fine.heads}
    found, own = (m.ground(pictures[0], ["a dog"], score_threshold=0) for m in (staged, fine))
    np.testing.assert_array_equal(found.boxes_xyxy, own.boxes_xyxy)
    for method, arguments in (
        ("answer", (pictures[0], "what is it?")),
        ("match", (pictures[0], "a dog")),
        ("caption", (pictures[0],)),
        ("search", ("a dog", pictures)),
    ):
        assert getattr(staged, method)(*arguments) == getattr(coarse, method)(*arguments)
    np.testing.assert_array_equal(staged.embed_texts("a dog"), coarse.embed_texts("a dog"))
    assert staged.answers == coarse.answers
    assert staged.passes.images == 1


def test_what_belongs_to_one_stage_says_so(staged):
    with pytest.raises(AttributeError, match=r"'network' belongs to .*stages\['coarse'\]\.network"):
        staged.network  # noqa: B018
    assert staged.stages["fine"].network is not None
    with pytest.raises(fiber.MissingHeadError, match="a guess needs the head 'depth'"):
        staged.need_head("depth", "a guess")


def test_it_is_saved_and_evaluated(staged, tmp_path):
    staged.save(tmp_path / "copy")
    copy = fiber.load(tmp_path / "copy", device="cpu")
    assert repr(copy) == repr(staged)
    assert "StagedModel(coarse, fine, heads=" in repr(copy)
    from fiber.checkpoints.load import load_stored

    assert load_stored(tmp_path / "copy", heads=("grounding",)).config.stage == "fine"
    assert load_stored(tmp_path / "copy", heads=("vqa",)).config.stage == "coarse"
    with pytest.raises(FileNotFoundError, match="contains models in coarse, fine; name one"):
        load_stored(tmp_path / "copy")


def test_options_for_one_stage(staged, tmp_path):
    with pytest.raises(ValueError, match="weights='ema' requires a checkpoint file"):
        fiber.load(tmp_path / "both", weights="ema")
    larger = fiber.load(tmp_path / "both", device="cpu", image_size=128)
    assert larger.stages["coarse"].config.image_size == 128


def test_each_task_is_evaluated_on_the_stage_with_its_head(staged, coarse, fine, tmp_path):
    data = generate(tmp_path / "scenes", train=0, val=6, novel=0, tokenizer=tmp_path / "both/fine")
    for task, own in (("refcoco", fine), ("retrieval", coarse)):
        expected = fiber.evaluate(own, task, data)
        assert fiber.evaluate(staged, task, data) == expected
        assert fiber.evaluate(tmp_path / "both", task, data) == expected
    with pytest.raises(fiber.MissingHeadError, match="task 'refcoco' needs the head 'grounding'"):
        fiber.evaluate(StagedModel({"coarse": coarse}), "refcoco", data)
