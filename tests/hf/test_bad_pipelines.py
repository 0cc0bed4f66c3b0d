"""Bad input of the pipelines of `fiber.hf` ends in an error that names it."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def ground(folders):
    return pipeline("fiber-ground", model=str(folders["fine"]), device="cpu")


def test_a_head_that_the_model_lacks(folders):
    for task, name, head in (
        ("fiber-ground", "coarse", "grounding"),
        ("fiber-answer", "fine", "vqa"),
        ("fiber-caption", "METER", "caption"),
    ):
        with pytest.raises(ValueError, match=f"'{head}'"):
            pipeline(task, model=str(folders[name]), device="cpu")


def test_no_texts(ground, drawing):
    with pytest.raises(ValueError, match="expected phrases, a caption or both"):
        ground(drawing)


def test_texts_twice(ground, drawing):
    with pytest.raises(TypeError, match="phrases once, got 2"):
        ground(drawing, ["a"], phrases=["b"])
    with pytest.raises(ValueError, match="phrases is given twice"):
        ground([{"image": drawing, "phrases": ["a"]}], ["a"])


def test_unknown_options(ground, drawing):
    with pytest.raises(TypeError, match="threshhold"):
        ground(drawing, ["a"], threshhold=0.5)


def test_inputs(ground, drawing):
    for inputs_, named in (
        ([{"image": drawing, "phrases": ["a"]}, drawing], r"inputs\[1\]: expected a mapping"),
        ([{"picture": drawing}], r"inputs\[0\]: expected a mapping with 'image'.*picture"),
        ([{"image": drawing, "words": ["a"]}], r"inputs\[0\]: unknown fields words"),
        ([{"image": drawing, "phrases": ["a"]}, {"image": drawing}], r"1 of 2 have phrases"),
        (
            [{"image": drawing, "phrases": ["a"], "candidate_labels": ["a"]}],
            r"inputs\[0\]: expected phrases once, got 2",
        ),
    ):
        with pytest.raises(ValueError, match=named):
            ground(inputs_)


def test_another_transform(folders, fiber_hf):
    processor = AutoProcessor.from_pretrained(folders["fine"])
    other = dict(processor.image_processor.transform, sizes=[128])
    with pytest.raises(ValueError, match=r"transform differs from the model's in sizes"):
        fiber_hf.GroundPipeline(
            model=AutoModel.from_pretrained(folders["fine"]),
            tokenizer=processor.tokenizer,
            image_processor=fiber_hf.FiberVLImageProcessor(other),
            device="cpu",
        )


def test_a_model_of_another_library():
    from fiber.hf.pipelines import fiber_model

    with pytest.raises(TypeError, match=r"model is a Linear; expected a model of fiber\.hf"):
        fiber_model(torch.nn.Linear(1, 1))
