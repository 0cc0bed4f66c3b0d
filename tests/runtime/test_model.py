"""Models of exported graphs against those of networks: every method, in every engine."""

import json
import shutil

import numpy as np
import pytest

import fiber
import fiber.runtime
from fiber.checkpoints import model_dir
from fiber.export.export import export_model
from fiber.models.heads import MissingHeadError
from fiber.runtime import loading
from tests.runtime.drawings import drawings

pytestmark = pytest.mark.slow

#: Largest difference of a score, as in `tests.export.test_agreement`, and of an edge in pixels.
TOLERANCE, PIXELS = 1e-4, 1e-2
QUESTIONS = ["what color is the circle?", "how many squares are there?", "is there a star?"]
LISTS = [["the square"], ["a red circle", "it"]] * 2 + [["a star"]]
IMAGES = drawings()


@pytest.fixture(scope="session")
def folders(exported, tmp_path_factory):
    """Folder with `models`, and `graphs` of each: both stages of scenes, and a METER."""
    folder = tmp_path_factory.mktemp("exported")
    names = {"scenes/coarse": "coarse", "scenes/fine": "fine", "meter": "METER"}
    for path, name in names.items():
        graphs = exported(name, "onnx")
        for kind, source in (("models", graphs.parent / "model"), ("graphs", graphs)):
            shutil.copytree(source, folder / kind / path)
    return folder


@pytest.fixture(scope="session")
def networks(folders):
    return {
        name: fiber.load(folders / "models" / name, device="cpu") for name in ("scenes", "meter")
    }


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def graphs(folders, request):
    return {
        name: fiber.runtime.load(folders / "graphs" / name, request.param, threads=1)
        for name in ("scenes", "meter")
    }


def assert_close(ours, theirs):
    """Compare results of any method."""
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= TOLERANCE
    elif isinstance(theirs, fiber.inference.Hit):
        assert type(ours) is type(theirs)
        assert ours.index == theirs.index
        assert abs(ours.score - theirs.score) <= TOLERANCE
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    else:
        assert ours == theirs


def assert_same_boxes(ours, theirs):
    """Compare boxes one to one. Those whose scores differ by rounding may be in another order."""
    assert len(ours) == len(theirs)
    assert ours.image_size == theirs.image_size
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=TOLERANCE)
    edges = np.abs(ours.boxes_xyxy[:, None] - theirs.boxes_xyxy).max(-1, initial=0)
    is_same = (edges <= PIXELS) & (ours.indices[:, None] == theirs.indices)
    assert is_same.any(0).all()
    assert is_same.any(1).all()


@pytest.mark.parametrize(
    ("method", "texts", "options"),
    [
        ("ground", ["the square", "a circle above the triangle"], {}),
        ("ground", LISTS, {"boxes_per_phrase": 4}),
        ("ground", None, {"caption": "a circle next to a blue square"}),
        ("detect", ["circle", "square", "triangle", "star"], {"score_threshold": 0.0}),
        ("detect", ["circle", "square"], {"classes_per_prompt": 1, "max_detections": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:no English spaCy")
def test_boxes(graphs, networks, method, texts, options):
    found, expected = (
        getattr(each["scenes"], method)(IMAGES, texts, **options) for each in (graphs, networks)
    )
    assert sum(map(len, expected)) >= len(IMAGES)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_boxes(ours, theirs)
        assert ours.labels == [theirs.labels[list(theirs.indices).index(i)] for i in ours.indices]
        assert ours.draw().size == theirs.draw().size


def test_passes_are_counted(graphs):
    model = graphs["scenes"].stages["fine"]
    model.detect(IMAGES, ["circle", "square"], classes_per_prompt=1)
    before = model.passes.images, model.passes.encoder_passes, model.passes.pairs
    model.detect(IMAGES, ["circle", "square"], classes_per_prompt=1)
    passes = model.passes
    # Images of one padded size go through the encoder together.
    assert passes.images - before[0] == 5
    assert passes.encoder_passes - before[1] < 5
    assert passes.pairs - before[2] == 10
    assert graphs["scenes"].passes is passes


CALLS = {
    "answer": lambda m: m.answer(IMAGES[:3], QUESTIONS, top_k=4),
    "one answer": lambda m: m.answer(IMAGES[0], QUESTIONS[0]),
    "no answers": lambda m: m.answer([], QUESTIONS[0]),
    "match": lambda m: m.match(IMAGES, ["a circle", "a red square and a green triangle"]),
    "one match": lambda m: m.match(IMAGES[0], "a red circle"),
    "no match": lambda m: m.match([], "a red circle"),
    "search": lambda m: m.search("a blue square", IMAGES),
}
OF_SCENES = {
    "search by ITC": lambda m: m.search("a blue square", IMAGES, rerank=False),
    "search with candidates": lambda m: m.search("a red circle", IMAGES, 2, candidates=3),
    "embed_images": lambda m: m.embed_images(IMAGES),
    "embed_image": lambda m: m.embed_images(IMAGES[0]),
    "embed_texts": lambda m: m.embed_texts([*QUESTIONS, "a red circle"] * 9),
    "caption": lambda m: m.caption(IMAGES),
    "one caption": lambda m: m.caption(IMAGES[1], num_beams=1, max_tokens=6),
    "no captions": lambda m: m.caption([]),
}
OF_METER = {
    "reason": lambda m: m.reason([(IMAGES[n], IMAGES[n - 1]) for n in range(5)], "both are red"),
    "one pair": lambda m: m.reason((IMAGES[0], IMAGES[1]), "both show a circle"),
    "entail": lambda m: m.entail(IMAGES[:3], QUESTIONS),
    "hypotheses": lambda m: m.entail(IMAGES[0], ["there is a star", "a circle"]),
}
CASES = [
    *(("scenes", name) for name in {**CALLS, **OF_SCENES}),
    *(("meter", name) for name in {**CALLS, **OF_METER}),
]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_answers(graphs, networks, model, name):
    call = {**CALLS, **OF_SCENES, **OF_METER}[name]
    assert_close(call(graphs[model]), call(networks[model]))


def test_texts_that_are_too_long(graphs, networks):
    text = "a red circle and a green square and " * 40
    for each in (graphs, networks):
        with pytest.warns(UserWarning, match="tokens and is truncated to the model's"):
            found = each["scenes"].match(IMAGES[0], text)
        each["found"] = found
    assert_close(graphs.pop("found"), networks.pop("found"))


def test_heads_that_the_graphs_lack(graphs, tmp_path):
    scenes = graphs["scenes"]
    assert scenes.heads == ("itc", "itm", "mlm", "vqa", "caption", "nlvr2", "grounding")
    with pytest.raises(MissingHeadError, match="entail needs the head 'snli'; these graphs have"):
        scenes.entail(IMAGES[0], "there is a star")
    with pytest.raises(MissingHeadError, match="ground needs the head 'grounding'; this model has"):
        scenes.stages["coarse"].ground(IMAGES[0], "a circle")
    with pytest.raises(MissingHeadError, match=r"caption needs the head 'caption'"):
        graphs["meter"].caption(IMAGES[0])
    with pytest.raises(ValueError, match="caption: exported graphs do not sample"):
        scenes.caption(IMAGES[0], sample=True)
    with pytest.raises(TypeError, match="caption: sample must be bool, got 1"):
        scenes.caption(IMAGES[0], sample=1)
    # A head of the model that was not exported.
    export_model("scenes/coarse", tmp_path / "itm", heads=["itm"])
    some = fiber.runtime.load(tmp_path / "itm")
    assert 0 <= some.match(IMAGES[0], "a red circle") <= 1
    with pytest.warns(UserWarning, match="no head 'itc'"):
        assert len(some.search("a red circle", IMAGES)) == len(IMAGES)
    with pytest.raises(MissingHeadError, match=r"answer needs the head 'vqa'; .*--heads itm,vqa"):
        some.answer(IMAGES[0], QUESTIONS[0])


def test_names(graphs):
    scenes = graphs["scenes"]
    coarse = scenes.stages["coarse"]
    assert "coarse, fine" in repr(scenes)
    assert f"engine={coarse.graphs.engine}" in repr(coarse)
    assert scenes.answers == coarse.answers
    with pytest.raises(AttributeError, match=r"no attribute 'grond'; did you mean ground"):
        scenes.grond(IMAGES[0], "a circle")
    with pytest.raises(AttributeError, match=r"use \.stages\['coarse'\]\.graphs or"):
        scenes.graphs  # noqa: B018
    with pytest.raises(TypeError, match=r"match.*unexpected keyword argument 'text'"):
        coarse.match(IMAGES[0], text="a circle")
    with pytest.raises(TypeError, match="object is not callable"):
        coarse(IMAGES[0])


def edited(folder, target, **fields):
    shutil.copytree(folder, target)
    path = target / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return target


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("coarse", {"version": 7}, "the graphs have version 7, expected 1"),
        ("coarse", {"model": {"family": "toy"}}, "of the family 'toy'"),
        ("coarse", {"model": {"heads": 3}}, "heads"),
        ("coarse", {"image_transform": {"name": "stretch"}}, "image_transform: expected a name"),
        ("coarse", {"tokenizer": "other.json"}, "files has no 'other.json'"),
        ("fine", {"detector": {"strides": [8]}}, "missing field 'detector.anchor_scale'"),
    ],
)
def test_other_metadata(folders, tmp_path, stage, fields, message):
    folder = edited(folders / "graphs/scenes" / stage, tmp_path / "graphs", **fields)
    with pytest.raises(ValueError, match=message) as found:
        fiber.runtime.load(folder)
    assert str(folder) in str(found.value)


def test_other_box_coding(folders, tmp_path):
    fine = folders / "graphs/scenes/fine"
    about = json.loads((fine / "metadata.json").read_text())["detector"]
    about["delta_weights"] = [1, 1, 1, 1]
    folder = edited(fine, tmp_path / "graphs", detector=about)
    with pytest.raises(ValueError, match="boxes are coded with"):
        fiber.runtime.load(folder)


def test_graphs_without_a_vocabulary(folders, tmp_path):
    coarse = folders / "graphs/scenes/coarse"
    folder = edited(coarse, tmp_path / "graphs", tokenizer=None, answers=[])
    model = fiber.runtime.load(folder)
    with pytest.raises(ValueError, match=r"have no answers; .*--answers FILE.*have no tokenizer"):
        model.answer(IMAGES[0], QUESTIONS[0])
    with pytest.raises(ValueError, match=r"have no tokenizer; .*fiber export MODEL OUT --tok"):
        model.match(IMAGES[0], "a circle")


def test_stages_are_those_of_models():
    assert tuple(model_dir.STAGES) == loading.STAGES


def test_paths(folders, tmp_path):
    with pytest.raises(TypeError, match="path: expected the path of a folder"):
        fiber.runtime.load(3)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        fiber.runtime.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="contains no exported graphs"):
        fiber.runtime.load(folders / "models/meter")
    with pytest.raises(ValueError, match="is a URL"):
        fiber.runtime.load("https://example.org/graphs")
    with pytest.raises(ValueError, match="does not run the format"):
        fiber.runtime.load(folders / "graphs/scenes", "torch")
