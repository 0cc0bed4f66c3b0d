import os
import sys
import warnings

import pytest

import fiber
from fiber.checkpoints.model_dir import load_model
from fiber.data import sources
from fiber.models.registry import inference_transform
from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "scenes", train=0, val=6, novel=0)


def test_no_records(fine):
    with pytest.raises(ValueError, match="expected at least one record"):
        fiber.evaluate(fine, "refcoco", [])


def test_a_stored_model_gives_what_a_loaded_one_gives(fine, micro_models, scenes, tmp_path):
    metrics = fiber.evaluate(fine, "refcoco", scenes, output=tmp_path / "found.json")
    assert metrics == fiber.evaluate(load_model(micro_models["fine"]), "refcoco", scenes)
    assert (tmp_path / "found.json").exists()


def test_records_instead_of_a_folder(coarse, scenes):
    records = sources.questions(scenes, "val")
    metrics = fiber.evaluate(coarse, "vqa", records)
    assert metrics == fiber.evaluate(coarse, "vqa", scenes)
    blind = fiber.evaluate(coarse, "vqa", records, permute_images=True, fusion=False)
    assert blind.keys() == metrics.keys()


def test_images_are_transformed_for_the_task_of_the_evaluation(coarse, scenes, monkeypatch):
    asked = set()

    def recorded(config, task=None):
        asked.add(task)
        return inference_transform(config, task)

    monkeypatch.setattr("fiber.evaluation.context.inference_transform", recorded)
    fiber.evaluate(coarse, "vqa", scenes)
    assert asked == {"question"}
    fiber.evaluate(coarse, "matching", scenes)
    assert asked == {"question", "image_text"}


def test_a_folder_instead_of_a_model(micro_models, scenes):
    metrics = fiber.evaluate(micro_models["coarse"], "matching", data=scenes, split="val")
    assert all(0 <= value <= 1 for name, value in metrics.items() if name != "count")


def test_retrieval_is_ordered_again_unless_told_otherwise(coarse, scenes):
    first = fiber.evaluate(coarse, "retrieval", scenes, rerank=False)
    both = fiber.evaluate(coarse, "retrieval", scenes)
    assert both.keys() == first.keys() | {f"reranked/{name}" for name in first}
    assert {name: both[name] for name in first} == first
    every = fiber.evaluate(coarse, "retrieval", scenes, candidates=sys.maxsize)
    assert every.keys() == both.keys()
    assert fiber.evaluate(coarse, "retrieval", scenes, rerank=False, candidates=5) == first


def test_retrieval_by_the_head_there_is(with_heads, scenes):
    contrast, matching = with_heads("itc"), with_heads("itm")
    without = fiber.evaluate(contrast, "retrieval", scenes, rerank=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no head")
        # What nobody asked for is not missed.
        assert fiber.evaluate(contrast, "retrieval", scenes) == without
    for asked in ({"rerank": True}, {"candidates": 2}):
        with pytest.warns(UserWarning, match=r"task 'retrieval'.*head 'itm'"):
            assert fiber.evaluate(contrast, "retrieval", scenes, **asked) == without
    with pytest.warns(UserWarning, match="ranking with 'itm' only, by scoring every pair"):
        every = fiber.evaluate(matching, "retrieval", scenes, candidates=1)
    both = fiber.evaluate(with_heads("itc", "itm"), "retrieval", scenes, candidates=sys.maxsize)
    assert {f"reranked/{name}": value for name, value in every.items()} == {
        name: value for name, value in both.items() if "reranked" in name
    }
    with pytest.raises(fiber.MissingHeadError, match=r"task 'retrieval'.*head 'itc'"):
        fiber.evaluate(matching, "retrieval", scenes, rerank=False)


def test_candidates_of_another_task_are_refused(coarse, scenes):
    with pytest.raises(ValueError, match="candidates is 5, but task 'vqa'"):
        fiber.evaluate(coarse, "vqa", scenes, candidates=5)


def test_wrong_tasks(fine, scenes):
    with pytest.raises(ValueError, match="did you mean refcoco"):
        fiber.evaluate(fine, "refcocos", scenes)
    with pytest.raises(fiber.MissingHeadError, match=r"task 'vqa'.*head 'vqa'"):
        fiber.evaluate(fine, "vqa", scenes)


def test_output_that_is_no_file_is_refused_before_the_measuring(fine, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for output, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"{output} is {kind}; expected"):
            fiber.evaluate(fine, "refcoco", tmp_path / "no data", output=output)
