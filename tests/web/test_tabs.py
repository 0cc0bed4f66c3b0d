"""What the tabs of all methods return, without a browser."""

import pytest

import fiber
from fiber.data import Tokenizer
from fiber.serve.app import ServeLimits
from fiber.serve.requests import REQUESTS
from fiber.web.library import gr
from fiber.web.tabs import _TABS, _asker
from tests.models.xdecoder.small_model import small_model
from tests.published_keys import write_small_meter_file


@pytest.fixture(scope="module")
def models(micro_models, tmp_path_factory):
    """Models that have all methods between them."""
    folder = tmp_path_factory.mktemp("snli")
    tokenizer = Tokenizer.train(["what is the dog doing? two dogs play in the snow"] * 9, 290)
    name = "meter_clip16_288_roberta_snli.ckpt"
    write_small_meter_file(name, folder / name, tokenizer.vocab_size)
    return [
        fiber.load(micro_models["fine"].parent, device="cpu"),
        small_model(),
        fiber.load(folder / name, tokenizer=tokenizer, device="cpu"),
    ]


ASKED = {
    "ground": ("a circle; a star", "0", "", "a square"),
    "detect": ("circle; star", "0.01", "", ""),
    "segment": ("the red square; sky", "", "", ""),
    "answer": ("what color?",),
    "caption": (),
    "match": ("a star",),
    "search": ("a star",),
    "reason": ("both are red",),
    "entail": ("two dogs play",),
}


@pytest.mark.parametrize("method", REQUESTS)
def test_every_method_has_a_tab(method, models, scene_picture):
    kind, tab = REQUESTS[method], _TABS[method]
    head = {"entail": 2, "segment": 1}.get(method, 0)
    ask = _asker(models[head], "model", kind, tab, ServeLimits())
    images = [str(scene_picture)] * len(kind.image_fields)
    if method == "search":
        images = [[str(scene_picture)] * 3]
    *drawn, lines, value = ask(*images, *ASKED[method])
    assert len(drawn) == tab.draws
    first = value[0] if method == "search" else value
    assert scene_picture.name in first.values()
    counts = {"ground": 2, "segment": 2, "answer": 3, "search": 3, "entail": 3}
    assert lines and len(lines.splitlines()) == counts.get(method, len(lines.splitlines()))
    if method == "search":
        assert [name for _, name in drawn[0]] == [scene_picture.name] * 3


def asker(method, model):
    return _asker(model, "model", REQUESTS[method], _TABS[method], ServeLimits())


def test_options_are_those_of_the_method(models, scene_picture):
    image, phrases = str(scene_picture), ["a circle", "a star"]
    model = models[0]
    ground = asker("ground", model)
    *_, plain = ground(image, "a circle; a star", "0", "", "")
    *_, found = ground(image, "a circle; a star", "0", "", "a star")
    expected = model.ground(image, phrases, negatives=["a star"], score_threshold=0)
    assert found == expected.to_dict(image=scene_picture.name, model="model")
    assert found != plain
    # This model has no calibration.
    with pytest.raises(gr.Error, match="calibrat"):
        ground(image, "a circle; a star", "", "0.5", "")
    with pytest.raises(gr.Error, match="threshold"):
        ground(image, "a circle; a star", "high", "", "")


def test_classes_are_segmented(models, scene_picture):
    model, image = models[1], str(scene_picture)
    drawn, lines, found = asker("segment", model)(image, "", "square; sky", "sky", "")
    expected = model.segment(image, ["square", "sky"], stuff=["sky"])
    assert found == expected.to_dict(image=scene_picture.name, model="model")
    assert lines.splitlines()
    assert drawn.size == expected.draw().size
    with pytest.raises(gr.Error, match="phrases"):
        asker("segment", model)(image, "", "", "", "")
