"""The user's face of the models, against the models themselves."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber.data import Tokenizer, load_image
from fiber.data.prompts import class_prompts
from fiber.models.captioner import beam_search
from fiber.postprocess import ground_phrases
from fiber.predict import Answer, Hit, Model
from fiber.predict.inputs import as_list, one_for_each, one_list_for_each
from fiber.predict.phrases import noun_phrases
from fiber.recipes import scenes_fine
from fiber.training.checkpoint import save_model
from fiber.training.streams import inference_transform

from .conftest import ANSWERS


@pytest.fixture(scope="module")
def coarse(micro_models) -> Model:
    return fiber.load(micro_models["coarse"], device="cpu")


@pytest.fixture(scope="module")
def fine(micro_models) -> Model:
    return fiber.load(micro_models["fine"], device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Pictures of several sizes and forms."""
    draws = np.random.default_rng(0)
    sizes = [(64, 64), (70, 90), (90, 70), (40, 121), (64, 64)]
    return [draws.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def tensors(model, picture, text):
    """Make the model's input by hand: one picture, one text."""
    pixels, _, size = fiber._core.apply_transform(picture, inference_transform(model.config))
    ids, offsets = model.tokenizer.encode(text, max_tokens=model.config.max_tokens)
    ids = torch.tensor([ids])
    images = torch.from_numpy(np.asarray(pixels))[None]
    return images, ids, torch.ones_like(ids, dtype=torch.bool), size, offsets


def pooled(model, picture, text):
    images, ids, mask, *_ = tensors(model, picture, text)
    with torch.no_grad():
        return model.network.pooled(model.network.backbone.encode_pair(images, ids, mask))


class TestInputs:
    def test_no_picture(self):
        assert as_list([]) == ([], False)

    @pytest.mark.parametrize(
        "picture",
        ["a.jpg", b"bytes", np.zeros((1, 1, 3), np.uint8), Image.new("RGB", (1, 1))],
        ids=["path", "bytes", "array", "pil"],
    )
    def test_one_and_many(self, picture):
        assert as_list(picture) == ([picture], True)
        many, single = as_list((picture, picture))
        assert (len(many), single) == (2, False)

    def test_a_stack_of_arrays_is_a_list(self):
        many, single = as_list(np.zeros((4, 2, 2, 3), np.uint8))
        assert (len(many), single) == (4, False)

    def test_no_picture_at_all(self):
        with pytest.raises(TypeError, match=r"a picture is a path.*got int"):
            as_list(3)

    def test_texts(self):
        assert one_for_each("a", 2, "question") == ["a", "a"]
        assert one_for_each(["a", " b "], 2, "question") == ["a", "b"]
        with pytest.raises(ValueError, match="1 questions for 2 pictures"):
            one_for_each(["a"], 2, "question")
        with pytest.raises(ValueError, match="question 1 is empty"):
            one_for_each(["a", "\n"], 2, "question")
        with pytest.raises(TypeError, match="question 0 is a int"):
            one_for_each([1, "a"], 2, "question")

    def test_lists_of_texts(self):
        assert one_list_for_each("a", 2, "phrase") == [["a"], ["a"]]
        assert one_list_for_each(["a", "b"], 2, "phrase") == [["a", "b"], ["a", "b"]]
        assert one_list_for_each([["a"], ["b", "c"]], 2, "phrase") == [["a"], ["b", "c"]]
        for empty in ([], [["a"], []], [["a"], "b"]):
            with pytest.raises(ValueError, match="expected a list of one or more"):
                one_list_for_each(empty, 2, "phrase")
        with pytest.raises(ValueError, match="1 lists of texts for 2 pictures"):
            one_list_for_each([["a"]], 2, "phrase")


class TestPhrases:
    @pytest.mark.parametrize(
        ("caption", "phrases"),
        [
            ("", []),
            ("of the", []),
            ("dog", ["dog"]),
            ("A big  dog", ["A big  dog"]),
            ("the cat, a dog; a bird.", ["the cat", "a dog", "a bird"]),
            ("a cup to the right of the cup", ["a cup", "the cup"]),
            ("A car is parked behind the house", ["A car", "the house"]),
            ("an \u00e9clair on a plate", ["an \u00e9clair", "a plate"]),
            ("the woman's hat on a T-shirt", ["the woman's hat", "a T-shirt"]),
        ],
    )
    def test_phrases_of(self, caption, phrases):
        assert [caption[start:end] for start, end in noun_phrases(caption)] == phrases


class TestGround:
    def test_no_picture(self, fine):
        assert fine.ground([], ["dog"]) == []

    def test_equals_the_model_itself(self, fine, pictures):
        texts = ["a red circle", "the square"]
        found = fine.ground(pictures[1], texts, boxes_per_phrase=3)
        for number, text in enumerate(texts):
            images, ids, mask, size, offsets = tensors(fine, pictures[1], text)
            with torch.no_grad():
                output = fine.network(images, ids, mask)
            # <s> and </s> have empty spans.
            tokens = [[i for i, (start, end) in enumerate(offsets) if end > start]]
            (expected,) = ground_phrases(
                output, [tokens], [size], [(70, 90)], boxes_per_phrase=3, score_threshold=0.0
            )
            mine = found.indices == number
            assert mine.sum() == len(expected.scores) > 1
            # Two orders of the same float32 sums.
            np.testing.assert_allclose(found.boxes_xyxy[mine], expected.boxes_xyxy, atol=1e-3)
            np.testing.assert_allclose(found.scores[mine], expected.scores, atol=1e-5)
        assert list(found.scores) == sorted(found.scores, reverse=True)
        assert found.image_size == (70, 90)

    def test_a_list_gives_what_single_pictures_give(self, fine, pictures):
        together = fine.ground(pictures, ["a red circle", "dog"])
        assert isinstance(together, list)
        for picture, found in zip(pictures, together, strict=True):
            alone = fine.ground(picture, ["a red circle", "dog"])
            assert found.labels == alone.labels
            assert found.image_size == picture.shape[:2]
            np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-3)

    def test_a_phrase_does_not_depend_on_the_others(self, fine, pictures):
        alone = fine.ground(pictures[0], "the square")
        among = fine.ground(pictures[0], ["dog", "the square", "circle"])
        place = among.labels.index("the square")
        assert among.indices[place] == 1
        np.testing.assert_allclose(among.scores[place], alone.scores[0], atol=1e-5)

    def test_a_description_is_scored_by_the_thing_it_describes(self, fine, pictures):
        text = "dog left of the cup"
        found = fine.ground(pictures[0], text)
        assert found.labels == [text]
        images, ids, mask, size, offsets = tensors(fine, pictures[0], text)
        with torch.no_grad():
            output = fine.network(images, ids, mask)
        dog = [i for i, (start, end) in enumerate(offsets) if start < end <= len("dog")]
        (expected,) = ground_phrases(output, [[dog]], [size], [(64, 64)])
        assert found.scores[0] == pytest.approx(expected.scores[0].item(), abs=1e-5)

    def test_a_list_of_phrases_for_each_picture(self, fine, pictures):
        first, second = fine.ground(pictures[:2], [["dog"], ["circle", "square"]])
        assert first.labels == ["dog"]
        assert sorted(second.labels) == ["circle", "square"]

    def test_a_caption(self, fine, pictures):
        found = fine.ground(pictures[0], caption="a dog on a cup")
        assert sorted(zip(found.indices, found.labels, strict=True)) == [(0, "a dog"), (1, "a cup")]
        found = fine.ground(pictures[0], ["cup"], caption="a dog on a cup")
        assert found.labels == ["cup"]

    def test_pictures_of_every_kind_are_the_same(self, fine, pictures, tmp_path):
        path = tmp_path / "picture.png"
        Image.fromarray(pictures[0]).save(path)
        opened = Image.open(path)
        kinds = [path, str(path), path.read_bytes(), opened, opened.convert("RGBA"), pictures[0]]
        found = fine.ground(kinds, "dog")
        for each in found[1:]:
            np.testing.assert_array_equal(each.boxes_xyxy, found[0].boxes_xyxy)

    def test_saved_picture_shows_the_boxes(self, fine, pictures, tmp_path):
        fine.ground(pictures[1], ["dog"]).save(tmp_path / "annotated.png")
        drawn = np.asarray(Image.open(tmp_path / "annotated.png"))
        assert drawn.shape[0] % 70 == drawn.shape[1] % 90 == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "give phrases, a caption, or both"),
            ({"phrases": []}, "expected a list of one or more"),
            ({"phrases": ["dog", " "]}, "phrase 1 is empty"),
            ({"caption": ""}, "caption 0 is empty"),
            ({"caption": "of the"}, "holds no phrase"),
            ({"phrases": ["cat"], "caption": "a dog"}, "'cat'"),
            ({"phrases": ["cat"], "score_threshold": -0.1}, "score_threshold.*-0.1"),
            ({"phrases": ["cat"], "boxes_per_phrase": 0}, "boxes_per_phrase"),
            ({"phrases": ["cat"], "max_detections": 0}, "max_detections"),
        ],
    )
    def test_wrong_arguments(self, fine, pictures, arguments, message):
        with pytest.raises(ValueError, match=message):
            fine.ground(pictures[0], **arguments)

    def test_wrong_pictures(self, fine, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
            fine.ground(tmp_path / "none.jpg", "dog")
        (tmp_path / "words.jpg").write_text("words")
        with pytest.raises(fiber.DecodeError, match=r"words\.jpg"):
            fine.ground([tmp_path / "words.jpg"], "dog")
        with pytest.raises(ValueError, match=r"\(4, 4, 3\).*float64"):
            fine.ground(np.zeros((4, 4, 3)), "dog")

    def test_a_text_that_is_too_long_is_named(self, fine, pictures):
        with pytest.warns(UserWarning, match=r"first 16 tokens only of 'a dog a dog"):
            fine.ground(pictures[0], "a dog " * 30)


class TestDetect:
    def test_no_picture(self, fine):
        assert fine.detect([], ["dog"]) == []

    def test_nothing_above_the_threshold(self, fine, pictures):
        found = fine.detect(pictures[0], ["dog"], score_threshold=1)
        assert len(found) == 0
        assert found.boxes_xyxy.shape == (0, 4)

    def test_classes_beyond_the_longest_text(self, fine, pictures):
        names = [f"{color} {shape}" for color in ("red", "blue", "zinc") for shape in "abcdef"]
        found = fine.detect(pictures[0], names, score_threshold=0, max_detections=10_000)
        assert set(found.indices) == set(range(len(names)))
        assert all(names[i] == label for i, label in zip(found.indices, found.labels, strict=True))
        # What does not fit goes into a text of its own, and is found as if it were alone.
        *_, last = class_prompts(names, fine.tokenizer, fine.config.max_tokens)
        assert last.first_label > 0
        alone = fine.detect(pictures[0], list(last.labels), score_threshold=0, max_detections=5000)
        behind = found.indices >= last.first_label
        np.testing.assert_allclose(found.scores[behind], alone.scores, atol=1e-5)

    def test_the_threshold_and_the_count(self, fine, pictures):
        every = fine.detect(pictures[0], ["dog", "cat"], score_threshold=0, max_detections=1000)
        assert list(every.scores) == sorted(every.scores, reverse=True)
        middle = float(np.median(every.scores))
        above = fine.detect(pictures[0], ["dog", "cat"], score_threshold=middle)
        assert len(above) == min(100, (every.scores >= middle).sum())
        few = fine.detect(pictures[0], ["dog", "cat"], score_threshold=0, max_detections=3)
        np.testing.assert_allclose(few.scores, every.scores[:3], atol=1e-6)


class TestCoarse:
    def test_no_picture(self, coarse):
        assert coarse.answer([], "why?") == []
        assert coarse.caption([]) == []
        assert coarse.match([], ["a", "b"]).shape == (0, 2)
        assert coarse.reason([], "true?") == []
        assert coarse.embed_images([]).shape == (0, 32)
        assert coarse.embed_texts([]).shape == (0, 32)
        assert coarse.search("a", []) == []

    def test_answer(self, coarse, pictures):
        answers = coarse.answer(pictures[1], "what color is it?", top_k=3)
        scores = coarse.network.vqa_logits(pooled(coarse, pictures[1], "what color is it?"))
        best = scores[0].sigmoid().topk(3)
        assert [type(each) for each in answers] == [Answer] * 3
        assert [each.answer for each in answers] == [ANSWERS[i] for i in best.indices]
        np.testing.assert_allclose([each.score for each in answers], best.values.detach(), 1e-4)
        assert coarse.answer(pictures[1], "what color is it?") == answers[:1]
        assert len(coarse.answer(pictures[1], "why?", top_k=1000)) == len(ANSWERS)

    def test_questions_for_each_picture(self, coarse, pictures):
        questions = ["is it red?", "how many?", "why?", "what?", "where is the red circle?"]
        together = coarse.answer(pictures, questions)
        for picture, question, found in zip(pictures, questions, together, strict=True):
            (alone,) = coarse.answer(picture, question)
            assert found[0].answer == alone.answer
            assert found[0].score == pytest.approx(alone.score, abs=1e-5)

    def test_caption(self, coarse, pictures):
        texts = coarse.caption(pictures[:2], num_beams=3, max_tokens=6)
        images, *_ = tensors(coarse, pictures[1], "a")
        with torch.no_grad():
            image = coarse.network.backbone.encode_image(images).stages[-1]
            found = beam_search(coarse.network, image, num_beams=3, max_tokens=6)
        ids = [token for token in found.token_ids[0].tolist() if token > 2]
        assert texts[1] == coarse.tokenizer.decode(ids).strip()
        assert coarse.caption(pictures[1], num_beams=3, max_tokens=6) == texts[1]

    def test_match(self, coarse, pictures):
        texts = ["a red circle", "dog", "the big blue square above it"]
        scores = coarse.match(pictures, texts)
        assert scores.shape == (5, 3)
        assert scores.dtype == np.float32
        for i, picture in enumerate(pictures):
            for j, text in enumerate(texts):
                logits = coarse.network.itm_logits(pooled(coarse, picture, text))
                assert scores[i, j] == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)
        np.testing.assert_allclose(coarse.match(pictures[2], texts), scores[2], atol=1e-5)
        np.testing.assert_allclose(coarse.match(pictures, texts[1]), scores[:, 1], atol=1e-5)
        assert coarse.match(pictures[2], texts[1]) == pytest.approx(float(scores[2, 1]), abs=1e-5)

    def test_more_pairs_than_go_through_at_once(self, coarse, pictures):
        texts = [f"{number} dogs" for number in range(40)]
        scores = coarse.match(pictures[:2], texts)
        np.testing.assert_allclose(scores[1, 35:], coarse.match(pictures[1], texts[35:]), atol=1e-5)

    def test_reason(self, coarse, pictures):
        pairs = [(pictures[0], pictures[1]), (pictures[1], pictures[0])]
        both = coarse.reason(pairs, "both show a dog")
        for (left, right), found in zip(pairs, both, strict=True):
            halves = [pooled(coarse, picture, "both show a dog") for picture in (left, right)]
            logits = coarse.network.nlvr2_logits(*halves)[0]
            assert found is bool(logits[1] > logits[0])
            assert coarse.reason((left, right), "both show a dog") is found

    def test_reason_needs_two_pictures(self, coarse, pictures):
        with pytest.raises(ValueError, match="pair 0 has 3 pictures"):
            coarse.reason([tuple(pictures[:3])], "a")

    def test_vectors(self, coarse, pictures):
        vectors = coarse.embed_images(pictures)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        images, ids, mask, *_ = tensors(coarse, pictures[3], "a red circle")
        with torch.no_grad():
            np.testing.assert_allclose(
                coarse.network.embed_images(images)[0], vectors[3], atol=1e-5
            )
            expected = coarse.network.embed_texts(ids, mask)[0]
        words = coarse.embed_texts(["dog", "a red circle"])
        np.testing.assert_allclose(words[1], expected, atol=1e-5)
        np.testing.assert_allclose(coarse.embed_texts("dog"), words[0], atol=1e-5)

    def test_search(self, coarse, pictures):
        text = "a red circle"
        cosines = coarse.embed_images(pictures) @ coarse.embed_texts(text)
        hits = coarse.search(text, pictures, top_k=3, rerank=False)
        assert [type(hit) for hit in hits] == [Hit] * 3
        assert [hit.index for hit in hits] == list(np.argsort(-cosines)[:3])
        assert hits[0].score == pytest.approx(cosines.max(), abs=1e-6)
        matched = coarse.match(pictures, text)
        again = coarse.search(text, pictures)
        assert [hit.index for hit in again] == list(np.argsort(-matched))
        assert again[0].score == pytest.approx(matched.max(), abs=1e-6)

    def test_search_wants_a_list(self, coarse, pictures):
        with pytest.raises(ValueError, match="expected a list of pictures"):
            coarse.search("a", pictures[0])

    def test_bfloat16_stays_close(self, micro_models, pictures):
        reduced = fiber.load(micro_models["coarse"], device="cpu", dtype=torch.bfloat16)
        full = fiber.load(micro_models["coarse"], device="cpu")
        exact, rough = full.embed_images(pictures), reduced.embed_images(pictures)
        assert rough.dtype == np.float32
        assert not np.array_equal(exact, rough)
        # bfloat16 keeps 8 bits: the cosine of the two is 1 but for some multiples of 2**-8.
        assert (exact * rough).sum(1).min() > 0.99
        assert next(reduced.network.parameters()).dtype == torch.float32


class TestHeads:
    def test_a_fine_model_has_no_answers(self, fine):
        with pytest.raises(fiber.MissingHeadError) as error:
            fine.answer("a.jpg", "why?")
        assert str(error.value) == (
            "answer needs the head 'vqa'; this model has grounding."
            " `fiber train scenes_coarse` trains it."
        )

    @pytest.mark.parametrize(
        ("head", "recipe"),
        [("itc", "scenes_coarse"), ("nlvr2", "nlvr2"), ("caption", "caption_coco")],
    )
    def test_the_recipe_of_each_head(self, fine, head, recipe):
        with pytest.raises(fiber.MissingHeadError, match=f"`fiber train {recipe}` trains it"):
            fine.need_head(head, "this")

    @pytest.mark.parametrize(
        "ask",
        [
            lambda m: m.ground("a.jpg", "dog"),
            lambda m: m.detect("a.jpg", ["dog"]),
        ],
    )
    def test_a_coarse_model_has_no_boxes(self, coarse, ask):
        with pytest.raises(fiber.MissingHeadError, match=r"'grounding'.*itc, itm.*scenes_fine"):
            ask(coarse)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda m: m.caption("a.jpg"),
            lambda m: m.match("a.jpg", "dog"),
            lambda m: m.reason(("a.jpg", "b.jpg"), "dog"),
            lambda m: m.embed_images("a.jpg"),
            lambda m: m.embed_texts("dog"),
            lambda m: m.search("dog", ["a.jpg"]),
        ],
    )
    def test_every_other_method_says_so_too(self, fine, ask):
        with pytest.raises(fiber.MissingHeadError, match="this model has grounding"):
            ask(fine)


class TestLoadAndSave:
    def test_round_trip(self, coarse, pictures, tmp_path):
        coarse.save(tmp_path / "copy")
        files = sorted(path.name for path in (tmp_path / "copy").iterdir())
        assert files == ["answers.json", "config.json", "model.safetensors", "tokenizer.json"]
        again = fiber.load(tmp_path / "copy", device="cpu")
        assert again.heads == coarse.heads
        assert again.answer(pictures[0], "why?") == coarse.answer(pictures[0], "why?")

    def test_a_run_folder(self, fine, tmp_path):
        run = scenes_fine.recipe()
        run = type(run)(**(run.__dict__ | {"model": fine.config}))
        save_model(fine.network, tmp_path / "run", fine.tokenizer, run=run)
        assert "tasks" in json.loads((tmp_path / "run" / "config.json").read_text())
        assert fiber.load(tmp_path / "run", device="cpu").config == fine.config

    def test_parts_can_be_given(self, micro_models, coarse, pictures, tmp_path):
        bare = tmp_path / "bare"
        shutil.copytree(micro_models["coarse"], bare)
        (bare / "tokenizer.json").unlink()
        (bare / "answers.json").unlink()
        model = fiber.load(bare, device="cpu")
        with pytest.raises(ValueError, match="without its answers"):
            model.answer(pictures[0], "why?")
        with pytest.raises(ValueError, match="without a tokenizer"):
            model.match(pictures[0], "why?")
        with pytest.raises(ValueError, match="without a tokenizer"):
            model.caption(pictures[0])
        assert model.embed_images(pictures[0]).shape == (32,)
        whole = micro_models["coarse"]
        expected = coarse.answer(pictures[0], "why?")
        for tokenizer in (whole, whole / "tokenizer.json", coarse.tokenizer):
            for answers in (ANSWERS, whole / "answers.json"):
                model = fiber.load(bare, tokenizer, answers, device="cpu")
                assert model.answer(pictures[0], "why?") == expected

    def test_parts_that_do_not_fit(self, micro_models, tmp_path):
        small = Tokenizer.train(["a"], 262)
        with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, the model"):
            fiber.load(micro_models["fine"], tokenizer=small)
        with pytest.raises(ValueError, match="2 answers, but the VQA head has 12"):
            fiber.load(micro_models["coarse"], answers=["yes", "no"])
        (tmp_path / "answers.json").write_text('{"yes": 1}')
        with pytest.raises(ValueError, match="expected a list of texts"):
            fiber.load(micro_models["coarse"], answers=tmp_path / "answers.json")
        with pytest.raises(FileNotFoundError, match="tokenizer"):
            fiber.load(micro_models["coarse"], tokenizer=tmp_path)

    def test_nothing_to_load(self, micro_models, tmp_path):
        with pytest.raises(FileNotFoundError, match="none does not exist"):
            fiber.load(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match="holds no model"):
            fiber.load(tmp_path)
        with pytest.raises(ValueError, match="is a file; this version reads the folder"):
            fiber.load(micro_models["fine"] / "model.safetensors")

    @pytest.mark.parametrize("device", ["toaster", "cuda:99"])
    def test_no_such_device(self, micro_models, device):
        with pytest.raises(ValueError, match=device):
            fiber.load(micro_models["fine"], device=device)

    def test_weights_of_another_model(self, micro_models, tmp_path):
        shutil.copytree(micro_models["fine"], tmp_path / "mixed")
        shutil.copy(micro_models["coarse"] / "model.safetensors", tmp_path / "mixed")
        with pytest.raises(ValueError, match=r"does not fit the model.*missing.*unexpected"):
            fiber.load(tmp_path / "mixed")


def test_a_real_photograph(fine):
    data = pytest.importorskip("skimage.data")
    picture = load_image(data.astronaut())
    found = fine.ground(picture, ["the flag", "the helmet"])
    assert sorted(found.labels) == ["the flag", "the helmet"]
    assert found.image_size == (512, 512)
