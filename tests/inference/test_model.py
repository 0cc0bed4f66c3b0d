import re
import warnings

import numpy as np
import pytest
import torch

import fiber
from fiber.config import preset
from fiber.inference import Answer, Hit, Model
from fiber.models.fiber.beam_search import beam_search
from fiber.models.fiber.captioner import sample_captions
from fiber.models.registry import build_model, inference_transform
from fiber.training.config.run import load_recipe

from ..conftest import ANSWERS
from .by_hand import pooled, tensors

pytestmark = pytest.mark.oldest


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

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_at_least_one_is_asked_for(self, coarse, pictures, top_k):
        with pytest.raises(ValueError, match=rf"top_k.*1.*{top_k}"):
            coarse.answer(pictures[0], "why?", top_k=top_k)
        with pytest.raises(ValueError, match=rf"top_k.*1.*{top_k}"):
            coarse.search("a", pictures, top_k)
        with pytest.raises(TypeError, match=r"top_k.*float 1\.5"):
            coarse.search("a", pictures, 1.5)

    def test_search_takes_one_text(self, coarse, pictures):
        for text, given in ((3, "got int 3"), (["a"], r"got list \['a'\]")):
            with pytest.raises(TypeError, match=rf"search.*str.*{given}"):
                coarse.search(text, pictures)
        for ask in (coarse.embed_texts, lambda text: coarse.match(pictures, text)):
            with pytest.raises(TypeError, match=r"text.*str.*list of str.*got int 3"):
                ask(3)

    @pytest.mark.parametrize("shape", [(0, 6, 3), (5, 0, 3)])
    def test_a_picture_has_pixels(self, coarse, fine, shape):
        for ask in (coarse.caption, coarse.embed_images, lambda p: fine.ground(p, "dog")):
            for pictures in (np.zeros(shape, np.uint8), [np.zeros(shape, np.uint8)]):
                message = re.escape(f"image of shape {shape} has no pixels; expected (H, W, 3)")
                with pytest.raises(ValueError, match=message):
                    ask(pictures)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"(text|question) 0 is empty"),
            (" \n", r"(text|question) 0 is empty"),
            ("<s></s><pad>", r"text '<s></s><pad>'.*tokens.*words"),
            ("<mask>", r"text '<mask>'.*tokens.*words"),
        ],
        ids=["empty", "blank", "special tokens", "mask"],
    )
    def test_a_text_has_words(self, coarse, pictures, text, message):
        for ask in (
            lambda: coarse.match(pictures[0], text),
            lambda: coarse.embed_texts(text),
            lambda: coarse.answer(pictures[0], text),
            lambda: coarse.search(text, pictures),
        ):
            with pytest.raises(ValueError, match=message):
                ask()

    def test_ten_thousand_words_are_cut_with_a_warning(self, coarse, pictures):
        limit = coarse.config.max_tokens
        long = "a red circle " * 3334
        beginning = coarse.tokenizer.decode(coarse.tokenizer.encode(long)[0][1 : limit - 1])
        for ask in (
            lambda text: coarse.match(pictures[0], text),
            coarse.embed_texts,
            lambda text: coarse.answer(pictures[0], text)[0].score,
        ):
            with pytest.warns(UserWarning, match=f"{limit} tokens"):
                cut = ask(long)
            np.testing.assert_allclose(cut, ask(beginning.strip()), atol=1e-6)

    def test_a_picture_of_one_pixel(self, coarse):
        pixel = np.full((1, 1, 3), 9, np.uint8)
        # Stretched to the model's square, it is a picture of one colour.
        plain = np.full((64, 64, 3), 9, np.uint8)
        for ask in (
            lambda picture: coarse.match(picture, "a red circle"),
            coarse.embed_images,
            lambda picture: coarse.answer(picture, "why?")[0].score,
        ):
            np.testing.assert_allclose(ask(pixel), ask(plain), atol=1e-6)
        assert coarse.caption(pixel, max_tokens=4) == coarse.caption(plain, max_tokens=4)

    @pytest.mark.parametrize("kept", [0, 10, 300], ids=["empty", "head", "half"])
    def test_a_corrupt_picture_is_named(self, coarse, scene_picture, tmp_path, kept):
        path = tmp_path / "corrupt.jpg"
        path.write_bytes(scene_picture.read_bytes()[:kept])
        for ask in (
            lambda pictures: coarse.match(pictures, "a red circle"),
            lambda pictures: coarse.answer(pictures, "why?"),
            coarse.caption,
            coarse.embed_images,
        ):
            with pytest.raises(fiber.DecodeError, match=r"corrupt\.jpg: "):
                ask([scene_picture, path])

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

    def test_a_drawn_caption_is_that_of_the_seed_whatever_stands_beside_it(self, coarse, pictures):
        together = coarse.caption(pictures, sample=True, seed=3, max_tokens=8)
        assert coarse.caption(pictures, sample=True, seed=3, max_tokens=8) == together
        alone = [coarse.caption(one, sample=True, seed=3, max_tokens=8) for one in pictures]
        assert alone == together
        backwards = coarse.caption(pictures[::-1], sample=True, seed=3, max_tokens=8)
        assert backwards[::-1] == together
        others = coarse.caption(pictures, sample=True, seed=4, max_tokens=8)
        assert all(one != other for one, other in zip(together, others, strict=True))
        assert coarse.caption(pictures, sample=True, max_tokens=8) == coarse.caption(
            pictures, sample=True, seed=0, max_tokens=8
        )

    def test_a_drawn_caption_is_the_captioners_sample(self, coarse, pictures):
        images, *_ = tensors(coarse, pictures[1], "a")
        with torch.no_grad():
            image = coarse.network.backbone.encode_image(images).stages[-1]
        found = sample_captions(
            coarse.network, image, max_tokens=8, generator=torch.Generator().manual_seed(3)
        )
        ids = [token for token in found.token_ids[0, 0].tolist() if token > 2]
        text = coarse.caption(pictures[1], sample=True, seed=3, max_tokens=8)
        assert text == coarse.tokenizer.decode(ids).strip()

    @pytest.mark.parametrize(
        ("settings", "error", "said"),
        [
            ({"sample": True, "num_beams": 5}, ValueError, r"num_beams.*5"),
            ({"sample": 1}, TypeError, r"sample.*1"),
            ({"sample": True, "seed": 1.5}, TypeError, r"seed.*1\.5"),
            ({"sample": True, "seed": -1}, ValueError, r"seed.*-1"),
            ({"num_beams": 0}, ValueError, r"num_beams.*0"),
            ({"sample": True, "max_tokens": 1}, ValueError, r"max_tokens.*2.*1|max_tokens.*1.*2"),
        ],
    )
    def test_ways_of_captioning_that_do_not_go(self, coarse, pictures, settings, error, said):
        with pytest.raises(error, match=said):
            coarse.caption(pictures[0], **settings)

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
        with pytest.raises(ValueError, match=r"pairs\[0\].*3"):
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

    def test_search_matches_the_best_ones_only(self, coarse, pictures):
        text = "a red circle"
        cosines = coarse.embed_images(pictures) @ coarse.embed_texts(text)
        matched = coarse.match(pictures, text)
        best = sorted(np.argsort(-cosines)[:2].tolist(), key=lambda index: -matched[index])
        hits = coarse.search(text, pictures, top_k=2, rerank=True, candidates=2)
        assert [hit.index for hit in hits] == best
        assert [hit.score for hit in hits] == pytest.approx([matched[i] for i in best], abs=1e-6)
        # As many as there are pictures: every one is matched.
        every = coarse.search(text, pictures, top_k=5, candidates=1)
        assert [hit.index for hit in every] == list(np.argsort(-matched))

    def test_search_by_the_head_there_is(self, coarse, with_heads, pictures):
        text, (contrast, matching) = "a red circle", (with_heads("itc"), with_heads("itm"))
        expected = coarse.search(text, pictures, rerank=False)
        assert contrast.search(text, pictures, rerank=False) == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # What nobody asked for is not missed.
            assert contrast.search(text, pictures) == expected
        for asked in ({"rerank": True}, {"candidates": 2}):
            with pytest.warns(UserWarning, match=r"head 'itm'.*'itc'"):
                assert contrast.search(text, pictures, **asked) == expected
        expected = coarse.search(text, pictures, top_k=len(pictures))
        with pytest.warns(UserWarning, match=r"head 'itc'.*'itm'"):
            found = matching.search(text, pictures, candidates=1)
        assert [hit.index for hit in found] == [hit.index for hit in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-6)
        with pytest.warns(UserWarning, match="ranking with 'itm' only"):
            assert matching.search(text, pictures, top_k=2) == found[:2]
            assert matching.search(text, []) == []
        with pytest.raises(fiber.MissingHeadError, match="head 'itc'"):
            matching.search(text, pictures, rerank=False)
        with pytest.raises(fiber.MissingHeadError, match="head 'itc'"):
            with_heads("vqa").search(text, pictures)

    def test_rerank_says_whether_and_candidates_how_many(self, coarse, pictures):
        with pytest.raises(TypeError, match=r"rerank is 32; .* \(use `candidates`"):
            coarse.search("a", pictures, rerank=32)
        with pytest.raises(ValueError, match=r"candidates.*0.*1"):
            coarse.search("a", pictures, candidates=0)

    def test_a_search_runs_the_towers_once(self, coarse, pictures, monkeypatch):
        backbone, seen = coarse.network.backbone, []
        image_prefix = backbone.image_prefix
        monkeypatch.setattr(
            backbone,
            "image_prefix",
            lambda images: seen.append(len(images)) or image_prefix(images),
        )
        coarse.search("a red circle", pictures)
        assert sum(seen) == len(pictures)

    def test_search_wants_a_list(self, coarse, pictures):
        with pytest.raises(ValueError, match="expected a list of images"):
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
            " To train this head, run `fiber train vqav2` (see also `fiber recipes`)."
        )

    @pytest.mark.parametrize(
        ("head", "recipe"),
        [
            ("itc", "retrieval_coco"),
            ("itm", "retrieval_coco_itm"),
            ("mlm", "pretrain"),
            ("vqa", "vqav2"),
            ("nlvr2", "nlvr2"),
            ("caption", "caption_coco"),
            ("grounding", "grounding"),
        ],
    )
    def test_the_recipe_of_each_head(self, coarse, fine, head, recipe):
        model = coarse if head == "grounding" else fine
        with pytest.raises(fiber.MissingHeadError, match=f"train {recipe}"):
            model.need_head(head, "this")
        run = load_recipe(recipe)
        assert head in (run.needed_heads() if run.model.stage == "coarse" else run.model.heads)

    @pytest.mark.parametrize("head", ["itc", "itm", "mlm", "vqa", "grounding"])
    def test_a_small_model_has_recipes_of_its_size(self, head):
        config = preset("small", stage="coarse" if head == "grounding" else "fine")
        with torch.device("meta"):
            model = Model(build_model(config))
        with pytest.raises(fiber.MissingHeadError) as error:
            model.need_head(head, "this")
        recipe = str(error.value).partition("`fiber train ")[2].partition("`")[0]
        run = load_recipe(recipe)
        assert run.model.roberta.width == config.roberta.width
        assert head in (run.needed_heads() if run.model.stage == "coarse" else run.model.heads)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda m: m.ground("a.jpg", "dog"),
            lambda m: m.detect("a.jpg", ["dog"]),
        ],
    )
    def test_a_coarse_model_has_no_boxes(self, coarse, ask):
        with pytest.raises(
            fiber.MissingHeadError, match=r"'grounding'.*itc, itm.*train grounding`"
        ):
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


def test_images_are_transformed_for_the_task_of_a_method(coarse, fine, pictures, monkeypatch):
    asked = []

    def recorded(config, task=None):
        asked.append(task)
        return inference_transform(config, task)

    monkeypatch.setattr("fiber.inference.tensor_inputs.inference_transform", recorded)
    one, some = pictures[0], pictures[:2]
    calls = {
        "question": lambda: coarse.answer(one, "why?"),
        "caption": lambda: coarse.caption(one, num_beams=1, max_tokens=4),
        "image_text": lambda: coarse.match(one, "a circle"),
        "reasoning": lambda: coarse.reason((one, one), "true?"),
        "grounding": lambda: fine.ground(one, "a circle"),
    }
    for task, ask in calls.items():
        ask()
        assert asked.pop() == task and not asked
    for ask in (
        lambda: coarse.embed_images(one),
        lambda: coarse.search("a circle", some),
        lambda: coarse.search("a circle", some, rerank=False),
    ):
        ask()
        assert asked.pop() == "image_text" and not asked
    fine.detect(one, ["circle"])
    assert asked == ["grounding"]
