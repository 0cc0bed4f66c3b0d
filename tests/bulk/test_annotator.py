"""`Annotator`: batches, bad records, texts, and what engines do with it."""

import pickle

import numpy as np
import pytest

import fiber
from fiber.inference import Annotator, MissingHeadError


@pytest.fixture(scope="module")
def files(mixed_images):
    return sorted(str(path) for path in mixed_images.iterdir())


def good_rows(found):
    return [row for row, error in enumerate(found["error"]) if error is None]


def test_no_record(coarse):
    found = Annotator(coarse, "embed")({"image": []})
    assert found["embedding"].shape == (0, coarse.network.embedding_width)
    assert found["error"].shape == (0,)


def test_one_image_is_as_a_single_call(coarse, files):
    found = Annotator(coarse, "caption")({"image": files[:1], "key": ["a"]})
    assert found["caption"].tolist() == [coarse.caption(files[0])]
    assert found["key"].tolist() == ["a"]
    assert "image" not in found


def test_broken_images_have_a_reason_and_change_no_other(coarse, files):
    found = Annotator(coarse, "embed")({"image": np.array(files, object)})
    good = good_rows(found)
    bad = [files[row].rpartition("/")[2] for row in range(len(files)) if row not in good]
    assert bad == ["03-text.jpg", "07-cut.jpg", "12-empty.png"]
    assert "starts with bytes" in found["error"][files.index(next(f for f in files if "03-t" in f))]
    single = np.stack([coarse.embed_images(files[row]) for row in good])
    np.testing.assert_allclose(found["embedding"][good], single, atol=1e-5)
    assert not found["embedding"][[r for r in range(len(files)) if r not in good]].any()
    assert (found["height"] > 0).tolist() == [row in good for row in range(len(files))]


def test_bytes_and_arrays_are_images(coarse, files):
    content = open(files[0], "rb").read()  # noqa: PTH123, SIM115
    array = fiber.data.load_image(files[0])
    for images in ([content], array[None], [array]):
        found = Annotator(coarse, "embed")({"image": images})
        np.testing.assert_allclose(found["embedding"][0], coarse.embed_images(files[0]), atol=1e-6)


def test_each_record_has_its_own_question(coarse, files):
    asked = ["what color is it?", None, "is there a star?", "   "]
    files = [file for file in files if "-" not in file.rpartition("/")[2]]
    found = Annotator(coarse, "answer", top_k=2)({"image": files[:4], "question": asked})
    assert found["error"][0] is None
    assert "question" in found["error"][1]
    assert "empty" in found["error"][3]
    for row in (0, 2):
        single = coarse.answer(files[row], asked[row], top_k=2)
        assert found["answers"][row] == [each.answer for each in single]
        np.testing.assert_allclose(found["scores"][row], [e.score for e in single], atol=1e-5)
    assert found["answers"][1] is None


def test_texts_match_the_image_of_their_row(coarse, files):
    texts = ["a red circle", "a star", "a red circle"]
    found = Annotator(coarse, "match")({"image": files[:3], "text": texts})
    single = [coarse.match(file, text) for file, text in zip(files, texts, strict=False)]
    np.testing.assert_allclose(found["score"].astype(float), single, atol=1e-5)
    assert not found["truncated"].any()


def test_long_texts_are_counted(coarse, files):
    texts = ["a red circle " * 100, "a star"]
    # Without a warning for each of a million.
    found = Annotator(coarse, "match")({"image": files[:2], "text": texts})
    assert found["truncated"].tolist() == [True, False]


def test_boxes_of_phrases_and_classes(fine, files):
    found = Annotator(fine, "ground", phrases="a red circle")({"image": files[:2]})
    for row in range(2):
        single = fine.ground(files[row], "a red circle")
        np.testing.assert_allclose(found["boxes_xyxy"][row], single.boxes_xyxy, atol=1e-3)
        assert found["labels"][row] == single.labels
    classes = [["circle", "star"], ["ring"]]
    found = Annotator(fine, "detect", score_threshold=0.0)(
        {"image": files[:2], "classes": np.array([np.array(c) for c in classes], object)}
    )
    for row in range(2):
        single = fine.detect(files[row], classes[row], score_threshold=0.0)
        assert sorted(found["labels"][row]) == sorted(single.labels)


def test_a_caption_with_spans(fine, files):
    batch = {"image": files[:1], "caption": ["a red circle and a star"], "spans": [[[(2, 12)]]]}
    found = Annotator(fine, "ground")(batch)
    single = fine.ground(files[0], caption=batch["caption"][0], spans=[[(2, 12)]])
    assert found["labels"][0] == single.labels == ["red circle"]


def test_segments(segmenter, files):
    found = Annotator(
        segmenter, "segment", classes=["grass", "sky"], stuff=["sky"], kind="semantic"
    )({"image": files[:2]})
    single = segmenter.segment(files[1], ["grass", "sky"], stuff=["sky"], kind="semantic")
    assert found["labels"][1] == single.labels
    assert found["areas"][1].tolist() == single.masks.sum((1, 2)).tolist()
    rows = Annotator(segmenter, "segment")({"image": files[:2], "classes": [["sky"], ["grass"]]})
    assert set(rows["labels"][0]) <= {"sky"}
    assert set(rows["labels"][1]) <= {"grass"}
    phrases = Annotator(segmenter, "segment", phrases=["sky"])({"image": files[:1]})
    assert phrases["kind"].tolist() == ["phrases"]
    assert phrases["labels"][0] == ["sky"]


def test_it_is_pickled_without_its_model(micro_models, files):
    first = Annotator(str(micro_models["coarse"]), "embed", device="cpu")
    own = first({"image": files[:1]})
    sent = pickle.loads(pickle.dumps(first))
    assert sent._model is None
    assert (sent({"image": files[:1]})["embedding"] == own["embedding"]).all()
    assert len(pickle.dumps(first)) < 2000


def test_an_annotator_of_a_loaded_model_is_not_pickled(coarse):
    with pytest.raises(TypeError, match="path of the model"):
        pickle.dumps(Annotator(coarse, "embed"))


def test_a_copy_for_a_thread_gives_the_same(fine, files):
    annotator = Annotator(fine, "ground")
    batch = {"image": files[:3], "phrases": [["a star"], ["a red circle", "ring"], ["star"]]}
    own = annotator.for_thread()
    first, second = own(own.decode(batch)), annotator(batch)
    for name in ("boxes_xyxy", "scores"):
        for a, b in zip(first[name], second[name], strict=True):
            # With old PyTorch, the last bit of a sum depends on the addresses of its terms.
            np.testing.assert_allclose(a, b, rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("task", "options", "error", "names"),
    [
        ("embd", {}, ValueError, "embed"),
        ("embed", {"top_k": 3}, TypeError, "top_k"),
        ("answer", {"questions": "what?"}, TypeError, "question"),
        ("ground", {"phrases": ["a"], "caption": "b"}, ValueError, "phrases, caption"),
        ("match", {"text": ["a", "b"]}, TypeError, "text"),
        ("embed", {"device": "cpu"}, TypeError, "device"),
    ],
)
def test_wrong_arguments(coarse, task, options, error, names):
    with pytest.raises(error, match=names):
        Annotator(coarse, task, **options)


def test_a_head_that_is_missing(fine, files):
    with pytest.raises(MissingHeadError, match="caption"):
        Annotator(fine, "caption")({"image": files[:1]})


def test_missing_columns(coarse, fine, files):
    with pytest.raises(ValueError, match="no column 'image'"):
        Annotator(coarse, "embed")({"images": files})
    with pytest.raises(ValueError, match="question"):
        Annotator(coarse, "answer")({"image": files})
    with pytest.raises(ValueError, match="classes"):
        Annotator(fine, "detect")({"image": files})


def test_wrong_options_are_found_before_the_first_record(coarse):
    with pytest.raises(ValueError, match="num_beams"):
        Annotator(coarse, "caption", num_beams=0).check()
    with pytest.raises(ValueError, match="top_k"):
        Annotator(coarse, "answer", top_k=0).check("question")
