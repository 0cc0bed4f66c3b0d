"""Auto classes, processors and pipelines of models that find masks."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForUniversalSegmentation,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    pipeline,
)

import fiber
from fiber.checkpoints.model_dir import save_model
from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.models.fiber.detector import FiberDetector
from fiber.models.heads import MissingHeadError
from tests.models.xdecoder.small_model import CLASSES, PHRASES, some_images

pytestmark = pytest.mark.oldest

STUFF = ["grass", "sky"]


@pytest.fixture(scope="module")
def folder(folders):
    return folders["X-Decoder"]


@pytest.fixture(scope="module")
def own(folder):
    return fiber.load(folder, device="cpu")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForUniversalSegmentation.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def classes(model, processor):
    """The output for the classes in an image of 90 x 70 pixels, and its size."""
    image = some_images()[1]
    inputs = processor(images=image, text=model.class_prompts(CLASSES))
    with torch.no_grad():
        return model(**inputs), [image.shape[:2]]


def write_grounder(folder):
    """A detector with masks, of random weights that find something."""
    tokenizer = Tokenizer.train(["a red circle and the square"] * 9, 290)
    fields = {"detector.mask_width": 8, "roberta.vocab_size": tokenizer.vocab_size}
    config = replace_fields(preset("micro", stage="fine"), fields)
    torch.manual_seed(0)
    save_model(FiberDetector(config), folder / "model", tokenizer)


@pytest.fixture(scope="module")
def grounder(made_once):
    return made_once("hf_grounder", write_grounder) / "model"


def test_auto_classes_choose_the_class(folder, model):
    assert type(AutoModel.from_pretrained(folder)) is type(model)
    assert AutoConfig.from_pretrained(folder).architectures == ["FiberVLForUniversalSegmentation"]


def test_panoptic_segments_are_those_of_fiber(own, processor, classes):
    output, sizes = classes
    (found,) = processor.image_processor.post_process_panoptic_segmentation(
        output, 0.0, 0.0, label_ids_to_fuse=(1, 2), target_sizes=sizes
    )
    expected = own.segment(
        some_images()[1], CLASSES, stuff=STUFF, score_threshold=0, overlap_threshold=0
    )
    assert np.array_equal(found["segmentation"].numpy(), expected.ids)
    assert len(expected.segments) > 1
    for info, each in zip(found["segments_info"], expected.segments, strict=True):
        assert (info["id"], CLASSES[info["label_id"]]) == (each.id, each.label)
        assert info["was_fused"] is (each.label in STUFF)
        # `segment` encodes the texts of classes in batches of one length.
        assert info["score"] == pytest.approx(each.score, abs=1e-6)


def test_semantic_maps_are_those_of_fiber(own, processor, classes):
    output, sizes = classes
    (found,) = processor.image_processor.post_process_semantic_segmentation(output, sizes)
    expected = own.segment(some_images()[1], CLASSES, kind="semantic")
    names = {each.id: each.label for each in expected.segments}
    assert np.array_equal(
        found.numpy(), np.vectorize(lambda number: CLASSES.index(names[number]))(expected.ids)
    )


def test_instances_are_those_of_fiber(own, model, processor):
    image = some_images()[1]
    inputs = processor(images=image, text=model.class_prompts(CLASSES), task="instances")
    assert inputs["image_sizes"].tolist() != processor(images=image)["image_sizes"].tolist()
    with torch.no_grad():
        output = model(**inputs)
    (found,) = processor.image_processor.post_process_instance_segmentation(
        output, target_sizes=[image.shape[:2]], max_instances=5
    )
    expected = own.segment(image, CLASSES, kind="instance", max_instances=5)
    assert np.array_equal(found["segmentation"].numpy(), expected.masks) and len(expected.masks)
    labels = [CLASSES[info["label_id"]] for info in found["segments_info"]]
    assert labels == expected.labels


def test_phrases(own, model, processor):
    image = some_images()[1]
    with torch.no_grad():
        found = model(**processor(images=image, text=PHRASES))
    expected = own.segment(image, phrases=PHRASES)
    assert found.scores[0].tolist() == expected.scores.tolist()
    assert found.masks_queries_logits.shape[:2] == (1, len(PHRASES))
    assert found.class_queries_logits is None


def test_other_heads(own, model, processor):
    image = some_images()[1]
    with torch.no_grad():
        caption = model(**processor(images=image, text="sky", task="caption"), head="caption")
        search = model(**processor(images=image, text=PHRASES, task="image_text"), head="retrieval")
    assert caption.logits.shape[2] == own.config.vocab_size
    scores = own.embed_images(image) @ own.embed_texts(PHRASES).T
    np.testing.assert_allclose(search.logits[0].numpy(), scores, atol=1e-6)


def test_texts_are_cleaned_as_by_fiber(own, processor):
    text = "the dog\u2019s &amp; \ufb01ne ball"
    (ids,) = processor(text=text)["input_ids"].tolist()
    assert ids == own.inputs.texts([text]).token_ids[0].tolist()
    assert ids != processor.tokenizer(text)["input_ids"]


def test_saved_and_read_again(own, model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, image = fiber.load(tmp_path, device="cpu"), some_images()[1]
    options = {"score_threshold": 0, "overlap_threshold": 0}
    first, second = (each.segment(image, CLASSES, **options) for each in (own, again))
    assert np.array_equal(first.ids, second.ids) and first.segments == second.segments
    assert again.caption(image) == own.caption(image)
    reread = AutoProcessor.from_pretrained(tmp_path).image_processor
    assert reread.to_dict() == processor.image_processor.to_dict()
    assert reread.tasks.keys() == {"caption", "image_text", "instances"}
    again.save(tmp_path / "again")
    state = AutoModel.from_pretrained(tmp_path / "again").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_pipelines(folder, own, grounder):
    image = some_images()[1]
    segment = pipeline("fiber-segment", model=folder, device="cpu")
    found = segment(image, phrases=PHRASES)
    expected = own.segment(image, phrases=PHRASES)
    assert [each["label"] for each in found] == PHRASES
    for each, mask, score in zip(found, expected.masks, expected.scores, strict=True):
        assert each["mask"].size == (90, 70) and each["score"] == score
        assert np.array_equal(np.asarray(each["mask"]), mask * np.uint8(255))
    caption = pipeline("fiber-caption", model=folder, device="cpu")
    assert caption(image) == [{"generated_text": own.caption(image)}]
    ground = pipeline("fiber-ground", model=grounder, device="cpu")
    phrases = ["a red circle", "the square"]
    detections = fiber.load(grounder, device="cpu").ground(image, phrases, masks=True)
    for each, mask in zip(ground(image, phrases, masks=True), detections.masks, strict=True):
        assert np.array_equal(np.asarray(each["mask"]) > 0, mask)
    assert "mask" not in ground(image, phrases)[0]


def test_masks_of_boxes(grounder, tmp_path):
    """The masks of a detector are those of `ground`, before and after it is saved."""
    image = some_images()[1]
    processor = AutoProcessor.from_pretrained(grounder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(grounder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = fiber.load(tmp_path, device="cpu").ground(image, ["a red circle"], masks=True)
    with torch.no_grad():
        output = model(**processor(images=image, text="a red circle"))
    process = processor.image_processor.post_process_grounded_masks
    (found,) = process(output, target_sizes=[image.shape[:2]])
    assert np.array_equal(found["masks"].numpy(), expected.masks) and expected.masks.any()
    assert np.array_equal(found["boxes"].numpy(), expected.boxes_xyxy)
    assert output.mask_features.shape[1] == 8


class TestBadInput:
    def test_a_model_without_masks(self, folders, grounder):
        with pytest.raises(MissingHeadError, match=r"needs the head 'mask'; this model has"):
            AutoModelForUniversalSegmentation.from_pretrained(folders["coarse"])
        with pytest.raises(MissingHeadError, match=r"needs the head 'mask'.*grounding_mask"):
            AutoModelForUniversalSegmentation.from_pretrained(grounder)

    def test_shapes_of_texts(self, model, processor):
        inputs = processor(images=some_images()[0], text=PHRASES)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        for own_ids, own_mask, head in (
            (ids[0], mask[0], "mask"),
            (ids[None], mask[None], "retrieval"),
            (ids, mask[:1], "mask"),
        ):
            with pytest.raises(ValueError, match=r"input_ids and attention_mask have shapes"):
                model(inputs["pixel_values"], own_ids, own_mask, head=head)
        with pytest.raises(MissingHeadError, match=r"needs the head 'vqa'"):
            model(**inputs, head="vqa")

    def test_texts_and_tasks_of_the_processor(self, processor):
        with pytest.raises(ValueError, match=r"expected lists of one length, got \[1, 2\]"):
            processor(text=[["a"], ["b", "c"]])
        with pytest.raises(TypeError, match=r"text\[1\] is 3"):
            processor(text=[["a", 3]])
        with pytest.raises(ValueError, match=r"task: did you mean instances"):
            processor(images=some_images()[0], task="instance")

    def test_settings_of_the_processor(self, processor):
        settings = processor.image_processor.to_dict()
        cases = [
            ({"text_cleaning": "soap"}, r"text_cleaning: expected one of.*got 'soap'"),
            ({"tasks": [1]}, r"tasks: expected an object, got \[1\]"),
            ({"tasks": {"caption": {"kind": "x"}}}, r"tasks\.caption: invalid settings"),
        ]
        for change, message in cases:
            given = copy.deepcopy(settings) | change
            with pytest.raises(ValueError, match=message):
                type(processor.image_processor)(**given)

    def test_outputs_without_what_is_processed(self, processor, classes, folders):
        output, _ = classes
        images = processor.image_processor
        with pytest.raises(ValueError, match=r"image_sizes is missing"):
            images.post_process_semantic_segmentation({**output, "image_sizes": None})
        with pytest.raises(ValueError, match=r"class_queries_logits or .* is missing"):
            images.post_process_panoptic_segmentation({**output, "class_queries_logits": None})
        with pytest.raises(ValueError, match=r"1 images, image_sizes 1 and target_sizes 2"):
            images.post_process_semantic_segmentation(output, [(4, 4), (5, 5)])
        detector = AutoModel.from_pretrained(folders["fine"])
        own = AutoProcessor.from_pretrained(folders["fine"])
        with torch.no_grad():
            boxes = detector(**own(images=some_images()[1], text="the square"))
        with pytest.raises(ValueError, match=r"the output has no masks"):
            own.image_processor.post_process_grounded_masks(boxes)
