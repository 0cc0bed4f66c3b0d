"""Published files of METER are recognized, read strictly, and written back."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber import _core
from fiber.checkpoints.export import write_published
from fiber.checkpoints.load import read_model
from fiber.data import Tokenizer
from fiber.inference import Model
from fiber.models.heads import MissingHeadError
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.keys import is_meter
from fiber.models.registry import architecture_of, recognize
from tests.golden import KEYS, METER
from tests.parity.meter_case import TASKS, MeterCase
from tests.published_keys import coarse_keys, fine_keys

FILES = json.loads((KEYS / "meter_published_files.json").read_text())["kinds"]
#: Heads of each file, by the last part of its name, and its image encoder and size.
HEADS = {
    "pretrain": ("itm", "mlm"),
    "vqa": ("vqa",),
    "nlvr2": ("nlvr2",),
    "snli": ("snli",),
    "flickr": ("itm", "rank"),
    "coco": ("itm", "rank"),
}


def keys_of(name):
    """Shapes by published name of one of the eight files, in its order."""
    about = FILES[name]
    if "keys" in about:
        return {n: shape for n, (shape, _) in keys_in(about["keys"]).items()}
    [(base, changes)] = [(k, v) for k, v in about.items() if k.startswith("against ")]
    shapes = {n: shape for n, (shape, _) in keys_in(base.removeprefix("against ")).items()}
    for removed in changes["removed"]:
        del shapes[removed]
    return shapes | {n: s for n, (s, _) in {**changes["added"], **changes["changed"]}.items()}


def keys_in(file):
    return json.loads((KEYS / file).read_text())["keys"]


def meta_state(shapes):
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_published_file_is_recognized(name):
    shapes, stored = keys_of(name), FILES[name]["config"]
    assert len(shapes) == FILES[name]["entries"]
    state = meta_state(shapes)
    architecture = recognize(state)
    assert architecture.title == "METER"
    for given in ({}, stored):
        config = architecture.infer_config(state, given)
        assert config.heads == HEADS[re.search(r"_([a-z0-9]+)\.ckpt", name)[1]]
        assert config.image_size == stored["image_size"]
        assert config.max_tokens == stored["max_text_len"]
        assert config.image_encoder == ("swin" if "swin" in name else "clip")
        assert (config.cross.num_heads, config.roberta.num_heads) == (12, 12)
        # Strict both ways: every tensor is mapped with its shape or ignored for a reason.
        mapped = {theirs for names in architecture.keys(config).values() for theirs in names}
        assert mapped <= set(shapes)
        rest = [n for n in shapes if n not in mapped]
        assert all(architecture.ignored_key(n, config) for n in rest)
        with torch.device("meta"):
            own = architecture.network(config).state_dict()
        for ours, theirs in architecture.keys(config).items():
            joined = [sum(shapes[n][0] for n in theirs), *shapes[theirs[0]][1:]]
            assert list(own[ours].shape) == joined
        assert set(own) == set(architecture.keys(config))


def test_families_are_told_apart():
    assert is_meter(keys_of("meter_swinbase_384_roberta_pretrain.ckpt"))
    for keys in (coarse_keys(), fine_keys("v3")):
        assert not is_meter(keys)
    assert recognize(coarse_keys()).title == "coarse FIBER"


@pytest.fixture(params=["clip_micro", "swin_micro"])
def case(request):
    return MeterCase(METER / f"{request.param}.json")


@pytest.mark.parametrize("task", TASKS)
def test_a_file_is_read_and_written_back_bit_for_bit(case, task, tmp_path):
    model = case.model(task)
    written = write_published(model, tmp_path / "model.ckpt")
    published = case.published_state(task)
    assert all(torch.equal(written[name], published[name]) for name in written)
    found = read_model(tmp_path / "model.ckpt")
    assert found.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor)


class TestFaults:
    @pytest.fixture
    def file(self, tmp_path):
        model = MeterCase(METER / "clip_micro.json").model("irtr")
        path = tmp_path / "model.ckpt"
        write_published(model, path)
        return path

    def change(self, file, **changes):
        content = torch.load(file, weights_only=False)
        for name, value in changes.items():
            if value is None:
                del content["state_dict"][name]
            else:
                content["state_dict"][name] = value
        torch.save(content, file)

    def test_missing(self, file):
        name = "cross_modal_image_layers.1.output.dense.bias"
        self.change(file, **{name: None})
        with pytest.raises(ValueError, match=f"missing {re.escape(name)}"):
            fiber.load(file)

    def test_unknown(self, file):
        self.change(file, **{"vit_model.visual.proj": torch.zeros(3, 3)})
        with pytest.raises(ValueError, match=r"unknown vit_model\.visual\.proj"):
            fiber.load(file)

    def test_shape(self, file):
        self.change(file, **{"rank_output.weight": torch.zeros(1, 90)})
        with pytest.raises(ValueError, match=r"rank_output\.weight has shape \(1, 90\)"):
            fiber.load(file)

    def test_positions_that_are_no_square(self, file):
        self.change(file, **{"vit_model.visual.positional_embedding": torch.zeros(19, 128)})
        with pytest.raises(ValueError, match="one row more than a square number, got 19"):
            fiber.load(file)

    def test_a_patch_size_that_contradicts_the_tensors(self, file):
        content = torch.load(file, weights_only=False)
        settings = content["hyper_parameters"]["config"]
        settings["patch_size"] = 32
        torch.save(content, file)
        with pytest.raises(ValueError, match="patch_size 32, but fiber_model has 16"):
            fiber.load(file)

    def test_image_sizes(self, file):
        assert fiber.load(file, image_size=96).config.image_size == 96
        with pytest.raises(ValueError, match="image_size 100: expected a multiple of 16"):
            fiber.load(file, image_size=100)


def test_a_folder_of_ours_is_read_back(tmp_path):
    model = MeterCase(METER / "clip_micro.json").model("vqa")
    Model(network=model).save(tmp_path / "model")
    found = fiber.load(tmp_path / "model")
    assert isinstance(found.config, MeterConfig)
    assert found.config == model.config
    assert "METER" in repr(found)


class TestAnswers:
    """Methods of `fiber.Model` give what the network gives."""

    @pytest.fixture(scope="class")
    def tokenizer(self):
        return Tokenizer.train(["what color is the dog", "a red dog left of a cat"] * 9, 270)

    def model(self, task, tokenizer, **options):
        torch.manual_seed(0)
        case = MeterCase(METER / "clip_micro.json")
        config = case.meter_config(task).with_vocabulary(tokenizer.vocab_size)
        network = architecture_of(config).network(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return Model(network, tokenizer, **options)

    @pytest.fixture(scope="class")
    def images(self):
        draw = np.random.default_rng(0)
        return [
            Image.fromarray(draw.integers(0, 256, (size, 70, 3), np.uint8)) for size in (64, 90)
        ]

    def pixels(self, model, images):
        transform = architecture_of(model.config).transform(model.config)
        return torch.stack(
            [
                torch.frombuffer(
                    bytearray(_core.apply_transform(np.array(image), transform)[0]),
                    dtype=torch.float32,
                ).view(3, 64, 64)
                for image in images
            ]
        )

    def text(self, model, text):
        arrays = model.tokenizer.encode_batch([text], max_tokens=16)
        ids, mask = (np.asarray(arrays[name]) for name in ("token_ids", "text_mask"))
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def test_answer(self, tokenizer, images):
        answers = [str(number) for number in range(23)]
        model = self.model("vqa", tokenizer, answers=answers)
        found = model.answer(images, "what color is the dog", top_k=3)
        for image, own in zip(images, found, strict=True):
            ids, mask = self.text(model, "what color is the dog")
            with torch.no_grad():
                scores = model.network(self.pixels(model, [image]), ids, mask, "vqa").sigmoid()[0]
            best = scores.argsort(descending=True)[:3].tolist()
            assert [answer.answer for answer in own] == [answers[place] for place in best]

    def test_reason_marks_the_right_image(self, tokenizer, images):
        model = self.model("nlvr2", tokenizer)
        ids, mask = self.text(model, "a red dog")
        both = self.pixels(model, images)[None]
        with torch.no_grad():
            logits = model.network(both, ids, mask, "nlvr2")[0]
        scores = []
        model._image_text.nlvr2_logits = lambda left, right: (
            scores.append(type(model.network).nlvr2_logits(model.network, left, right))
            or scores[-1]
        )
        assert model.reason(tuple(images), "a red dog") == bool(logits[1] > logits[0])
        torch.testing.assert_close(scores[0][0], logits, rtol=1e-4, atol=1e-4)

    def test_match(self, tokenizer, images):
        model = self.model("pretrain", tokenizer)
        ids, mask = self.text(model, "a red dog")
        with torch.no_grad():
            logits = model.network(self.pixels(model, images), ids, mask, "itm")
        expected = logits.softmax(1)[:, 1].numpy()
        np.testing.assert_allclose(model.match(images, "a red dog"), expected, rtol=1e-4, atol=1e-5)

    def test_heads_that_it_lacks_are_named(self, tokenizer, images):
        model = self.model("vqa", tokenizer)
        with pytest.raises(MissingHeadError, match="the head 'itc'; this model has vqa"):
            model.embed_images(images)
        with pytest.raises(MissingHeadError, match="needs the head 'caption'"):
            model.caption(images)
