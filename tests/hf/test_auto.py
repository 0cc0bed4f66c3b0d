"""Auto classes on folders of fiber, and folders of transformers in `fiber.load`."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
)

import fiber
from fiber.checkpoints.model_dir import load_model, write_weights
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.models.registry import inference_transform
from fiber.recipes.small import small_vqa
from fiber.training.run_dir import RunFolder
from tests.hf.conftest import NAMES, own_network, same_config
from tests.models.small_networks import inputs

pytestmark = pytest.mark.oldest

TEXTS = ["a red circle", "  what color is the <mask> ring?", "Émile's \n star!", "left"]


def outputs(model, network, head):
    """The output of a head of a model of transformers and of a network."""
    images, ids, mask = inputs(network.config)
    with torch.no_grad():
        if head == "grounding":
            ours, theirs = network(images, ids, mask), model(images, ids, mask)
            names = ("token_logits", "box_deltas", "centerness_logits", "anchors")
            return [
                torch.cat([part.flatten() for name in names for part in getattr(each, name)])
                for each in (ours, theirs)
            ]
        if head == "mask":
            # Two texts of each of three classes.
            ids, mask = (torch.stack([each, each, each.flip(0)]) for each in (ids, mask))
            ours, theirs = network(images, ids, mask, head), model(images, ids, mask)
            names = ("class_queries_logits", "masks_queries_logits")
            found = (ours, [theirs[name] for name in names])
            return [torch.cat([part.flatten() for part in each]) for each in found]
        given = torch.stack([images, images.flip(0)], 1) if head == "nlvr2" else images
        return network(given, ids, mask, head), model(given, ids, mask, head=head).logits


@pytest.mark.parametrize("name", NAMES)
def test_every_head_equals_that_of_fiber_load(folders, name):
    network = own_network(folders[name])
    model, info = AutoModel.from_pretrained(folders[name], output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not model.training and model.dtype == torch.float32
    assert same_config(model.network.config, network.config)
    for head in network.config.heads if name != "fine" else ("grounding",):
        ours, theirs = outputs(model, network, head)
        assert ours.numel() > 1 and torch.equal(ours, theirs), head


@pytest.mark.parametrize("name", ["coarse", "METER"])
def test_the_class_for_questions(folders, name):
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folders[name])
    images, ids, mask = inputs(model.network.config)
    with torch.no_grad():
        given = model(pixel_values=images, input_ids=ids, attention_mask=mask).logits
        assert torch.equal(given, own_network(folders[name])(images, ids, mask, "vqa"))
    stored = load_model(folders[name])
    assert model.config.answers == stored.answers
    assert model.config.id2label == dict(enumerate(stored.answers))
    assert model.config.label2id[stored.answers[1]] == 1
    assert type(model).__name__.endswith("QuestionAnswering")


def test_the_class_for_detection(folders):
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders["fine"])
    ours, theirs = outputs(model, own_network(folders["fine"]), "grounding")
    assert torch.equal(ours, theirs)


def test_sizes_of_images_in_a_batch(folders, drawing):
    """Images are padded to the largest; each is found as it would be alone."""
    processor = AutoProcessor.from_pretrained(folders["fine"])
    model = AutoModel.from_pretrained(folders["fine"])
    small = drawing.crop((0, 0, 200, 360))
    both = processor(images=[drawing, small], text=["a red circle", "the circle"])
    assert both["image_sizes"][0].tolist() != both["image_sizes"][1].tolist()
    with torch.no_grad():
        batch = model(**both)
        alone = [
            model(**processor(images=image, text=text))
            for image, text in ((drawing, "a red circle"), (small, "the circle"))
        ]
    process = processor.image_processor.post_process_object_detection
    sizes = [(360, 480), (360, 200)]
    for found, each, size in zip(process(batch, target_sizes=sizes), alone, sizes, strict=True):
        (expected,) = process(each, target_sizes=[size])
        assert len(expected["scores"]) > 0
        torch.testing.assert_close(found["boxes"][:1], expected["boxes"][:1], rtol=0, atol=1e-2)
        torch.testing.assert_close(found["scores"][:1], expected["scores"][:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_has_the_ids_of_fiber(folders, name):
    own, theirs = load_model(folders[name]), AutoTokenizer.from_pretrained(folders[name])
    assert own.tokenizer is not None
    for text in TEXTS:
        assert own.tokenizer.encode(text)[0] == theirs(text)["input_ids"], text
    assert theirs.pad_token_id == own.tokenizer.pad_id
    assert theirs.mask_token_id == own.tokenizer.mask_id
    assert theirs.unk_token_id == own.tokenizer.unknown_id
    assert [theirs.cls_token_id] == own.tokenizer.start_ids
    assert [theirs.sep_token_id] == own.tokenizer.end_ids
    assert theirs.model_max_length == own.config.max_tokens


@pytest.mark.parametrize("name", ["coarse", "fine", "METER", "METER Swin"])
def test_the_image_processor_is_the_transform_of_the_model(folders, drawing, name):
    processor = AutoImageProcessor.from_pretrained(folders[name])
    model = fiber.load(folders[name], device="cpu")
    (batch,) = model.inputs.images([drawing])
    found = processor(drawing)
    assert torch.equal(found["pixel_values"], batch.images)
    assert torch.equal(found["image_sizes"], batch.image_sizes)
    assert processor.image_transform.describe() == inference_transform(model.config).describe()
    arrays = processor([np.asarray(drawing)], return_tensors="np")
    assert np.array_equal(arrays["pixel_values"], batch.images.numpy())


def test_pairs_of_images(folders, drawing):
    processor = AutoProcessor.from_pretrained(folders["METER"])
    right = drawing.rotate(90)
    pairs = processor(images=[(drawing, right), (right, drawing)], text=["both", "a circle"])
    assert pairs["pixel_values"].shape == (2, 2, 3, 64, 64)
    alone = processor(images=[drawing, right])["pixel_values"]
    assert torch.equal(pairs["pixel_values"][0], alone)
    assert torch.equal(pairs["pixel_values"][1], alone.flip(0))


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_saves_is_read_by_both(folders, drawing, tmp_path, name):
    model = AutoModel.from_pretrained(folders[name])
    processor = AutoProcessor.from_pretrained(folders[name])
    # Their state is saved with the tokenizer: padding and truncation.
    processor(text=["a red circle", "star"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ours, again = load_model(folders[name]), load_model(tmp_path)
    assert same_config(ours.config, again.config)
    assert (ours.answers, ours.classes) == (again.answers, again.classes)
    for key, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[key]), key
    assert ours.tokenizer is not None and again.tokenizer is not None
    assert [ours.tokenizer.encode(text) for text in TEXTS] == [
        again.tokenizer.encode(text) for text in TEXTS
    ]
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is type(model) and reloaded.config.answers == model.config.answers
    state = model.state_dict()
    assert all(torch.equal(each, state[key]) for key, each in reloaded.state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.transform == (
        processor.image_processor.transform
    )
    if name == "fine":
        before, after = (
            fiber.load(folder, device="cpu").ground(drawing, ["the square"])
            for folder in (folders[name], tmp_path)
        )
        assert np.array_equal(before.boxes_xyxy, after.boxes_xyxy)
    # And once more by fiber.
    fiber.load(tmp_path, device="cpu").save(tmp_path / "again")
    assert AutoModel.from_pretrained(tmp_path / "again").config.answers == model.config.answers


def test_files_of_a_saved_model(folders):
    names = {path.name for path in folders["coarse"].iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "answers.json"),
        *("tokenizer_config.json", "preprocessor_config.json"),
    }
    for name, architecture in (("coarse", "ImageText"), ("fine", "ZeroShotObjectDetection")):
        values = json.loads((folders[name] / "config.json").read_text())
        assert values["model_type"] == "fiber" and values["dtype"] == "float32"
        assert values["architectures"] == [f"FiberVLFor{architecture}"]


def test_the_folder_of_a_run(folders, tmp_path):
    """Its config.json has the options of the training, which a saved model has in one field."""
    stored = load_model(folders["coarse"])
    assert stored.tokenizer is not None
    config = dataclasses.replace(small_vqa(), model=stored.config)
    run = RunFolder(tmp_path / "run")
    run.open(config, Vocabulary(stored.tokenizer, stored.answers), data_path="/data")
    write_weights(run.path, stored.network.state_dict())
    assert run.stored_config() == config
    model = AutoModel.from_pretrained(run.path)
    ours, theirs = outputs(model, stored.network, "vqa")
    assert torch.equal(ours, theirs) and model.config.answers == stored.answers
    model.save_pretrained(tmp_path / "saved")
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"tasks", "optim", "train", "data"} & set(values)
    assert values["training"]["train"]["steps"] == config.train.steps
    again, first = load_model(tmp_path / "saved"), load_model(run.path)
    assert again.trained_on == first.trained_on != None  # noqa: E711 - a chain
    assert again.kept.training == first.kept.training
    assert values["fiber_version"] == fiber.__version__
    assert AutoProcessor.from_pretrained(run.path).tokenizer.pad_token == "<pad>"


def test_the_packaged_model():
    from fiber.checkpoints.stages import packaged_model

    model = AutoModel.from_pretrained(packaged_model("scenes") / "fine")
    # It is stored in bfloat16.
    assert model.dtype == torch.float32
    ours, theirs = outputs(model, own_network(packaged_model("scenes") / "fine"), "grounding")
    assert torch.equal(ours, theirs)


def test_low_precision(folders, tmp_path):
    model = AutoModel.from_pretrained(folders["coarse"], dtype=torch.bfloat16)
    images, ids, mask = inputs(model.network.config)
    with torch.no_grad():
        logits = model(images, ids, mask, head="vqa").logits
        exact = own_network(folders["coarse"])(images, ids, mask, "vqa")
    assert logits.dtype == torch.bfloat16
    # bfloat16 has 8 bits: 2 ** -8 of the largest logit, over some thirty layers.
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=exact.abs().max().item() / 8)
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    again = own_network(tmp_path).state_dict()
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(tensor.to(again[key].dtype), again[key]), key


def test_the_default_head(folders):
    model = AutoModel.from_pretrained(folders["METER"], head="snli")
    images, ids, mask = inputs(model.network.config)
    with torch.no_grad():
        assert model(images, ids, mask).logits.shape == (2, 3)
        assert model(images, ids, mask, return_dict=False)[0].shape == (2, 3)
    # Without one, the first.
    assert AutoConfig.from_pretrained(folders["METER"]).head is None


def test_other_answers_give_the_head_of_questions_another_size(folders, tmp_path):
    answers = ["cat", "dog", "bird"]
    model, info = AutoModelForVisualQuestionAnswering.from_pretrained(
        folders["coarse"], answers=answers, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = {name.removeprefix("network.") for name, *_ in info["mismatched_keys"]}
    assert new == {"vqa_head.output.weight", "vqa_head.output.bias"}
    own = own_network(folders["coarse"]).state_dict()
    for name, tensor in model.network.state_dict().items():
        assert name in new or torch.equal(tensor, own[name]), name
    weight = model.network.vqa_head.output.weight
    assert weight.shape[0] == 3 and weight.isfinite().all()
    assert 0 < weight.std() < 1, "initialized as a new model is"
    model.save_pretrained(tmp_path)
    assert fiber.load(tmp_path, device="cpu").answers == tuple(answers)


def test_a_new_model_from_a_config(folders):
    config = AutoConfig.from_pretrained(folders["METER"])
    model = AutoModel.from_config(config)
    assert model.network.config == config.network
    weight = model.network.vqa_head.output.weight
    assert weight.isfinite().all() and weight.std() > 0


def test_gradient_checkpointing_gives_the_same_gradients(folders):
    for name in ("coarse", "fine", "METER"):
        model = AutoModel.from_pretrained(folders[name]).train()
        images, ids, mask = inputs(model.network.config)
        gradients = []
        for on in (False, True):
            with warnings.catch_warnings():
                # Of the new names of these methods.
                warnings.simplefilter("ignore", FutureWarning)
                (
                    model.gradient_checkpointing_enable
                    if on
                    else model.gradient_checkpointing_disable
                )()
                assert model.is_gradient_checkpointing is on
            assert model.network.backbone.gradient_checkpointing is on
            model.zero_grad()
            out = model(images, ids, mask)
            parts = out.token_logits if name == "fine" else (out.logits,)
            sum(part.clamp(-50, 50).square().mean() for part in parts).backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        plain, recomputed = gradients
        assert len(plain) > 100 and plain.keys() == recomputed.keys()
        for key, gradient in plain.items():
            assert torch.equal(gradient, recomputed[key]), (name, key)


def test_a_model_in_the_cache_of_the_hub(folders, tmp_path):
    commits = {"main": "a" * 40, "v1": "b" * 40}
    repository = tmp_path / "hub" / "models--you--shapes"
    for revision, commit in commits.items():
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        shutil.copytree(folders["coarse"], repository / "snapshots" / commit)
    # The answers of a revision are those of that revision.
    answers = json.loads((folders["coarse"] / "answers.json").read_text())[::-1]
    (repository / "snapshots" / commits["v1"] / "answers.json").write_text(json.dumps(answers))
    code = (
        "import fiber.hf\n"
        "from transformers import AutoModel, AutoProcessor\n"
        "AutoProcessor.from_pretrained('you/shapes', revision='v1')\n"
        "for revision in ('main', 'v1'):\n"
        "    model = AutoModel.from_pretrained('you/shapes', revision=revision)\n"
        "    print(model.config.answers[0], len(model.config.answers))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    count = len(answers)
    assert done.stdout.splitlines() == [f"{answers[-1]} {count}", f"{answers[0]} {count}"]


def test_importing_fiber_does_not_import_transformers():
    code = "import sys, fiber; fiber.load; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_claimed_version():
    assert int(transformers.__version__.split(".")[0]) >= 5
