"""Images reach a METER model as they reach the published code, transparent ones too."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import fiber
from fiber import _core
from fiber.checkpoints.export import write_published
from fiber.cli import main
from fiber.data import Record, Tokenizer
from fiber.evaluation.evaluate import evaluate
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.preprocess import CLIP_STATISTICS, meter_transform
from fiber.models.registry import build_model, inference_transform
from fiber.tasks.transform import RandAugmentConfig, TransformConfig
from fiber.training.task_loaders import training_transform
from tests.data.loader_records import make, record
from tests.golden import METER
from tests.parity.meter_case import MeterCase

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CASES = ("clip_micro", "swin_micro")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["what color is the dog"] * 9, 270)


@pytest.fixture(scope="module")
def image():
    """RGBA of 90 x 120 pixels, with every alpha."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 4), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image):
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def published(image, name, size):
    """The published transform in Pillow, rows first: (3, size, size)."""
    method, width = Image.Resampling.BICUBIC, int(size * image.width / image.height)
    if name == "clip_micro":
        image = image.convert("RGBa").resize((width, image.height), method)
        image = image.resize((width, size), method).convert("RGBA").convert("RGB")
    else:
        image = image.convert("RGB").resize((width, image.height), method)
        image = image.resize((width, size), method)
    left = round((width - size) / 2)
    pixels = np.asarray(image.crop((left, 0, left + size, size))).transpose(2, 0, 1) / 255
    statistics = CLIP_STATISTICS if name == "clip_micro" else IMAGENET
    mean, std = (np.array(statistics[key])[:, None, None] for key in ("mean", "std"))
    return torch.from_numpy((pixels - mean) / std).float()


def load_published(name, tokenizer, file, **options):
    """Load a VQA model with random weights from a file in the published form."""
    torch.manual_seed(0)
    config = MeterCase(METER / f"{name}.json").meter_config("vqa")
    network = build_model(config.with_vocabulary(tokenizer.vocab_size))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    write_published(network, file)
    return fiber.load(file, tokenizer=tokenizer, device="cpu", **options)


@pytest.mark.parametrize("name", CASES)
def test_a_published_model_sees_transparent_images_as_published(
    tokenizer, image, tmp_path, capsys, name
):
    answers = [str(number) for number in range(23)]
    model = load_published(name, tokenizer, tmp_path / "published.ckpt", answers=answers)
    question = "what color is the dog"
    ids = torch.tensor([tokenizer.encode(question)[0]])
    with torch.no_grad():
        pixels = published(image, name, model.config.image_size)
        expected = model.network(pixels[None], ids, torch.ones_like(ids).bool(), "vqa")[0].sigmoid()
    best = expected.argsort(descending=True)[:3]
    (tmp_path / "image.png").write_bytes(png(image))
    for given in (image, png(image), tmp_path / "image.png", np.asarray(image)):
        found = model.answer(given, question, top_k=3)
        assert [answer.answer for answer in found] == [answers[place] for place in best]
        np.testing.assert_allclose([a.score for a in found], expected[best], rtol=1e-4)
    dropped = model.answer(image.convert("RGB"), question)
    same = dropped[0].score == pytest.approx(expected[best[0]].item(), rel=1e-4)
    assert same == (name == "swin_micro")
    # Evaluation decodes in the loader.
    truth = {answers[best[0]]: 1.0}
    records = [Record(key="0", images=(png(image),), text=question, answers=truth)]
    assert evaluate(model, "vqa", records)["accuracy"] == 1
    # And the command line decodes for itself.
    model.save(tmp_path / "model")
    named = ["--model", str(tmp_path / "model"), "--device", "cpu", "--json"]
    assert main(["answer", str(tmp_path / "image.png"), question, *named]) == 0
    (best_answer, *_) = json.loads(capsys.readouterr().out)["answers"]
    assert best_answer == {
        "answer": answers[best[0]],
        "score": pytest.approx(expected[best[0]].item(), abs=1e-4),
    }


@pytest.mark.parametrize("name", CASES)
def test_training_and_inference_transform_alike(tokenizer, image, name):
    config = MeterCase(METER / f"{name}.json").meter_config("vqa")
    transform = training_transform(config, TransformConfig(kind="center_crop"))
    assert transform == inference_transform(config)
    expected = published(image, name, config.image_size)
    (batch,) = make(tokenizer, [record(0, images=(png(image),))], transform=transform)
    torch.testing.assert_close(batch.images[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["squash", "crop", "center_crop", "shorter_side"])
def test_every_training_transform_takes_what_the_family_fixes(name, kind):
    config = MeterCase(METER / f"{name}.json").meter_config("vqa")
    augment = RandAugmentConfig(policy="meter", num_ops=2)
    described = training_transform(
        config, TransformConfig(kind=kind, rand_augment=augment)
    ).describe()
    statistics, alpha = (
        (CLIP_STATISTICS, "premultiply") if name == "clip_micro" else (IMAGENET, "drop")
    )
    assert described["alpha"] == alpha
    for key, values in statistics.items():
        assert tuple(described[key]) == values
    assert described["rand_augment"]["policy"] == "meter"
    assert described["rand_augment"]["magnitude"] == 9
    json.dumps(described)


#: Names of the recorded transforms.
NAMES = {"clip": "clip", "swin": "imagenet"}


def config(encoder) -> MeterConfig:
    found = MeterCase(METER / f"{encoder}_micro.json").meter_config("vqa")
    if encoder == "clip":
        return found.with_image_size(48)
    # 48 is no multiple of Swin's 32 pixels.
    swin = dataclasses.replace(found.swin, patch_size=2, window_size=3)
    return dataclasses.replace(found, swin=swin, image_size=48)


@pytest.mark.parametrize("encoder", NAMES)
@pytest.mark.parametrize("image", ["wide", "tall", "alpha"])
@pytest.mark.parametrize("use", ["inference", "training"])
def test_images_are_those_recorded(encoder, image, use):
    recorded, model = load_file(METER / "extras.safetensors"), config(encoder)
    if use == "inference":
        transform = meter_transform(model)
    else:
        transform = training_transform(model, TransformConfig(kind="center_crop"))
    picture = np.ascontiguousarray(recorded[f"picture.{image}"])
    values, _, size = _core.apply_transform(picture, transform)
    assert size == (48, 48)
    ours = np.asarray(values).view(np.float32).reshape(3, *size)
    # Bytes are equal; their normalization rounds in another order.
    np.testing.assert_allclose(ours, recorded[f"{NAMES[encoder]}.{image}"], rtol=0, atol=1e-6)
