"""Methods of models on images and texts: questions, captions, matching and search.

`Model` computes with tensors, the models of exported graphs with arrays of numpy
(`fiber.runtime.model`); the methods are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, overload

import numpy as np

from fiber.checkpoints.vocabulary.files import NO_ANSWERS
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.inference.caption_writer import caption_writer
from fiber.inference.inputs import (
    ArrayInputs,
    ImageInput,
    ImagePair,
    Images,
    Texts,
    as_list,
    as_texts,
    check_top_k,
    not_empty,
    one_for_each,
)
from fiber.inference.masks.region_captions import as_regions, caption_regions
from fiber.inference.options import CaptionOptions
from fiber.inference.pairs import (
    PAIRS_AT_ONCE,
    Hit,
    match_images,
    rank_by_vectors,
    rank_images,
    score_pairs,
)
from fiber.inference.suggestions import suggest_keywords_of_methods
from fiber.messages import caller_level, shown
from fiber.models.abilities import (
    AbilityT,
    ClassifiesEntailment,
    Embeds,
    EmbedsAlone,
    ScoresPairs,
    has_ability,
    need_ability,
)
from fiber.models.caption_abilities import WritesCaptions, WritesRegionCaptions
from fiber.models.fiber.beam_search import written_tokens
from fiber.models.heads import EMBEDDING_HEADS
from fiber.models.model_config import ModelConfig
from fiber.models.ranking_heads import choose_ranking_heads
from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor


class Answer(NamedTuple):
    """An answer and its score in [0, 1]. The scores of all answers need not sum to 1."""

    answer: str
    score: float


class Entailment(NamedTuple):
    """How a hypothesis relates to an image: the most probable class, and all probabilities."""

    label: str
    contradiction: float
    neutral: float
    entailment: float


@suggest_keywords_of_methods
class ImageTextMethods:
    """Base class of models, which set the attributes."""

    #: A network with the abilities of its heads (`fiber.models.abilities`), or graphs with them.
    network: Any
    config: ModelConfig
    answers: tuple[str, ...]
    _inputs: ArrayInputs
    #: Message of the error for a model without answers.
    _no_answers = NO_ANSWERS

    def need_head(self, head: str, asked: str) -> None:
        """See `Model`."""
        raise NotImplementedError

    def _computing(self) -> AbstractContextManager[object]:
        """Return the context in which methods run the network."""
        raise NotImplementedError

    @overload
    def answer(self, images: ImageInput, questions: Texts, *, top_k: int = 1) -> list[Answer]: ...
    @overload
    def answer(self, images: Images, questions: Texts, *, top_k: int = 1) -> list[list[Answer]]: ...

    def answer(
        self, images: ImageInput | Images, questions: Texts, *, top_k: int = 1
    ) -> list[Answer] | list[list[Answer]]:
        """Answer a single question about all images, or one question per image.

        Returns:
            The `top_k` best answers to each question, best first.
        """
        network = self._able(ScoresPairs, "vqa", "answer")
        check_top_k(top_k)
        missing = [] if self.answers else [self._no_answers]
        missing += [self._inputs.no_tokenizer] if self._inputs.tokenizer is None else []
        if missing:
            raise ValueError("; ".join(missing))
        given, single = as_list(images)
        texts = one_for_each(questions, len(given), "question")
        pairs = [(index, index) for index in range(len(given))]
        logits = self._score("question", network, given, texts, pairs, network.vqa_logits)
        f = functions_of(logits)
        values, places = f.topk(f.sigmoid(logits), min(top_k, logits.shape[1]))
        found = [
            [Answer(self.answers[i], value) for i, value in zip(row, scores, strict=True)]
            for row, scores in zip(places.tolist(), values.tolist(), strict=True)
        ]
        return found[0] if single else found

    @overload
    def caption(self, images: ImageInput, **options: Unpack[CaptionOptions]) -> str: ...
    @overload
    def caption(self, images: Images, **options: Unpack[CaptionOptions]) -> list[str]: ...

    def caption(
        self,
        images: ImageInput | Images,
        *,
        region: Any = None,
        num_beams: int | None = None,
        max_tokens: int | None = None,
        sample: bool = False,
        seed: int = 0,
    ) -> str | list[str]:
        """Generate a caption for each image, or for a region in it.

        Models that caption regions decode greedily, and compute each image alone.

        Args:
            images: an image or a list of images.
            region: (H, W) array of bools of the size of the image, True = the caption is of what is
                there; a list of them for a list of images. For models that caption regions.
            num_beams: number of beams in beam search (default: 5). 1 is greedy decoding.
            max_tokens: maximum number of tokens per caption. Default: the model's maximum.
            sample: sample tokens instead of using beam search.
            seed: non-negative sampling seed. Each image is sampled with this seed, so captions do
                not depend on the batch.

        Raises:
            TypeError: if `sample` is not a bool, or `seed` is not an int.
            ValueError: if `num_beams` is combined with `sample` or is less than 1, `seed` is out of
                range, or a region is empty or has another size than its image.
        """
        if region is not None or has_ability(self.network, WritesRegionCaptions):
            greedy = (num_beams in (None, 1), sample is False)
            return self._caption_regions(images, region, max_tokens, all(greedy))
        network = self._able(WritesCaptions, "caption", "caption")
        limit = self.config.max_tokens if max_tokens is None else max_tokens
        write = self._caption_writer(network, num_beams, limit, sample=sample, seed=seed)
        tokenizer = self._inputs.needed_tokenizer()
        given, single = as_list(images)
        texts = [""] * len(given)
        with self._computing():
            for batch in self._inputs.of("caption").images(given):
                tokens = network.image_tokens(batch.images)
                for index, ids in zip(batch.indices, write(tokens).tolist(), strict=True):
                    texts[index] = tokenizer.decode(written_tokens(ids)).strip()
        return texts[0] if single else texts

    @overload
    def match(self, images: ImageInput, texts: str) -> float: ...
    @overload
    def match(self, images: ImageInput, texts: list[str] | tuple[str, ...]) -> np.ndarray: ...
    @overload
    def match(self, images: Images, texts: Texts) -> np.ndarray: ...

    def match(self, images: ImageInput | Images, texts: Texts) -> float | np.ndarray:
        """Compute the probability that each text matches each image (ITM).

        Returns:
            (images, texts) float32 probabilities. The dimension of a single image or of a single
            text is dropped, so a single image with a single text returns a float.
        """
        network = self._able(ScoresPairs, "itm", "match")
        given, single = as_list(images)
        one_text = isinstance(texts, str)
        given_texts = not_empty(as_texts(texts, "text"), "text")
        pairs = [(i, j) for i in range(len(given)) for j in range(len(given_texts))]
        logits = self._score("image_text", network, given, given_texts, pairs, network.itm_logits)
        f = functions_of(logits)
        scores = f.as_numpy(f.softmax(logits)[:, 1]).reshape(len(given), len(given_texts))
        scores = scores[:, 0] if one_text else scores
        scores = scores[0] if single else scores
        return float(scores) if single and one_text else scores

    def match_pairs(self, images: Images, texts: Texts) -> np.ndarray:
        """Compute the probability that each text matches the image of the same index (ITM).

        Returns:
            (n,) float32 probabilities.
        """
        network = self._able(ScoresPairs, "itm", "match_pairs")
        given, _ = as_list(images)
        each = one_for_each(texts, len(given), "text")
        numbers = {text: number for number, text in enumerate(dict.fromkeys(each))}
        pairs = [(index, numbers[text]) for index, text in enumerate(each)]
        logits = self._score("image_text", network, given, [*numbers], pairs, network.itm_logits)
        f = functions_of(logits)
        return f.as_numpy(f.softmax(logits)[:, 1])

    @overload
    def reason(self, pairs: ImagePair, statements: Texts) -> bool: ...
    @overload
    def reason(self, pairs: list[ImagePair], statements: Texts) -> list[bool]: ...

    def reason(self, pairs: ImagePair | list[ImagePair], statements: Texts) -> bool | list[bool]:
        """Decide whether statements about image pairs (left, right) are true (NLVR2).

        `statements` is a single statement for all pairs, or one statement per pair.
        """
        network = self._able(ScoresPairs, "nlvr2", "reason")
        single = isinstance(pairs, tuple)
        if isinstance(pairs, (str, bytes, np.ndarray)) or not hasattr(pairs, "__iter__"):
            raise TypeError(
                "reason: expected a pair of images, (left, right), or a list of pairs, got"
                f" {shown(pairs)}"
            )
        given: list[Any] = [pairs] if single else list(pairs)
        for index, pair in enumerate(given):
            is_image = isinstance(pair, np.ndarray) and pair.ndim != 4
            if is_image or isinstance(pair, (str, bytes)) or not hasattr(pair, "__len__"):
                raise TypeError(
                    f"reason: pairs[{index}] is {shown(pair)}; expected a pair of images, (left,"
                    " right); a single pair is a tuple, not a list"
                )
            if len(pair) != 2:
                raise ValueError(
                    f"reason: pairs[{index}] has {len(pair)} images; expected 2, (left, right)"
                )
        texts = one_for_each(statements, len(given), "statement")
        images = [image for pair in given for image in pair]
        order = [(number, number // 2) for number in range(len(images))]
        right = range(1, len(images), 2)
        pooled = self._score(
            "reasoning", network, images, texts, order, lambda pooled: pooled, right
        )
        pooled = functions_of(pooled).moved(pooled, self._inputs.empty(0))
        with self._computing():
            logits = network.nlvr2_logits(pooled[0::2], pooled[1::2])
        true = (logits[:, 1] > logits[:, 0]).tolist()
        return true[0] if single else true

    @overload
    def entail(self, images: ImageInput, hypotheses: str) -> Entailment: ...
    @overload
    def entail(self, images: ImageInput, hypotheses: list[str]) -> list[Entailment]: ...
    @overload
    def entail(self, images: Images, hypotheses: Texts) -> list[Entailment]: ...

    def entail(
        self, images: ImageInput | Images, hypotheses: Texts
    ) -> Entailment | list[Entailment]:
        """Decide whether images entail or contradict hypotheses (SNLI-VE).

        `hypotheses` is a single hypothesis for all images, or one hypothesis per image. A single
        image may have several hypotheses.
        """
        network = self._able(ClassifiesEntailment, "snli", "entail")
        given, single = as_list(images)
        if single and not isinstance(hypotheses, str):
            single, texts = False, not_empty(as_texts(hypotheses, "hypothesis"), "hypothesis")
            pairs = [(0, number) for number in range(len(texts))]
        else:
            texts = one_for_each(hypotheses, len(given), "hypothesis")
            pairs = [(number, number) for number in range(len(given))]
        logits = self._score("entailment", network, given, texts, pairs, network.snli_logits)
        probabilities = functions_of(logits).softmax(logits).tolist()
        found = [Entailment(ENTAILMENT[int(np.argmax(own))], *own) for own in probabilities]
        return found[0] if single else found

    def embed_images(self, images: ImageInput | Images) -> np.ndarray:
        """Embed images with the ITC or retrieval head.

        Returns:
            (n, D) float32 unit vectors, or (D,) for one image.
        """
        network = self._embeds("embed_images")
        given, single = as_list(images)
        vectors = np.zeros((len(given), network.embedding_width), np.float32)
        with self._computing():
            for batch in self._inputs.of("image_text").images(given):
                found = network.embed_images(batch.images)
                f = functions_of(found)
                vectors[batch.indices] = f.as_numpy(f.float32(found))
        return vectors[0] if single else vectors

    def embed_texts(self, texts: Texts) -> np.ndarray:
        """Embed texts with the ITC or retrieval head.

        Returns:
            (n, D) float32 unit vectors, or (D,) for one text.
        """
        network = self._embeds("embed_texts")
        given_texts = not_empty(as_texts(texts, "text"), "text")
        vectors = np.zeros((len(given_texts), network.embedding_width), np.float32)
        with self._computing():
            for start in range(0, len(given_texts), PAIRS_AT_ONCE):
                batch = self._inputs.texts(given_texts[start : start + PAIRS_AT_ONCE])
                found = network.embed_texts(batch.token_ids, batch.text_mask)
                f = functions_of(found)
                vectors[start : start + len(found)] = f.as_numpy(f.float32(found))
        return vectors[0] if isinstance(texts, str) else vectors

    def search(
        self,
        text: str,
        images: Images,
        top_k: int = 10,
        *,
        rerank: bool | None = None,
        candidates: int | None = None,
    ) -> list[Hit]:
        """Find the images that best match a text, best first.

        ITC ranks all images, and ITM reranks the best ones. If the model has only one of these
        heads, that head ranks all images. This issues a warning, unless the head is ITC and
        reranking was not requested. METER has no ITC: its ranking head scores every image, or else
        the "match" logit of ITM, as in its published evaluation. The retrieval head ranks alone.

        Args:
            text: query.
            images: list of images to search.
            top_k: maximum number of hits.
            rerank: rerank by ITM. Scores are then matching probabilities, otherwise cosine
                similarities. Default: True if the model has both heads.
            candidates: number of images to rerank (default: 32). At least `top_k` images are
                reranked.

        Raises:
            MissingHeadError: if the model has neither head, or lacks ITC and `rerank` is False.
            TypeError: if `text` is not a str, or `rerank` is not a bool or None.
            ValueError: if the text is empty, or `images` is a single image.
        """
        if not isinstance(text, str):
            raise TypeError(f"search: text must be a str, got {type(text).__name__} {shown(text)}")
        check_top_k(top_k)
        given, single = as_list(images)
        if single:
            raise ValueError(
                "search: expected a list of images, got a single image; pass [image], or a list of"
                " the image files in a folder"
            )
        wanted = not_empty([text], "text")[0]
        level = caller_level() + 1
        ranking = choose_ranking_heads(self.config, rerank, candidates, "search", stacklevel=level)
        inputs = self._inputs.of("image_text")
        with self._computing():
            if ranking.heads[0] in EMBEDDING_HEADS[1:]:
                network = self._able(Embeds, ranking.heads[0], "search")
                ranked = rank_by_vectors(network, inputs, wanted, given)
            elif "itc" not in ranking.heads:
                network = self._able(ScoresPairs, ranking.heads[0], "search")
                ranked = match_images(network, inputs, wanted, given)
            else:
                reranked, pairs = 0, None
                if ranking.candidates:
                    reranked = max(top_k, ranking.candidates)
                    pairs = self._able(ScoresPairs, "itm", "search")
                embeds = self._able(EmbedsAlone, "itc", "search")
                ranked = rank_images(embeds, inputs, wanted, given, reranked, pairs)
        return [Hit(index, score) for index, score in ranked[:top_k]]

    def _caption_regions(
        self, images: Any, region: Any, max_tokens: int | None, is_greedy: bool
    ) -> str | list[str]:
        """Caption images or regions by a network that has its own way to do so."""
        asked = "caption" if region is None else "caption of a region"
        self.need_head("caption", asked)
        # Graphs, too, have no regions.
        network = need_ability(self.network, WritesRegionCaptions, asked, "caption")
        if not is_greedy:
            raise ValueError(
                f"caption: {type(network).__name__} writes greedily; expected num_beams=1 or None,"
                " and sample=False"
            )
        steps = network.caption_steps
        if max_tokens is not None:
            if not hasattr(max_tokens, "__index__"):
                raise TypeError(f"caption: max_tokens must be an integer, got {shown(max_tokens)}")
            if not 2 <= max_tokens <= self.config.max_tokens:
                raise ValueError(
                    f"caption: max_tokens must be between 2 and {self.config.max_tokens}, got"
                    f" {max_tokens}"
                )
            steps = int(max_tokens) - 1
        given, single = as_list(images)
        regions = None if region is None else as_regions(region, len(given), single)
        with self._computing():
            inputs = self._inputs.of("caption")
            texts = caption_regions(network, inputs, given, regions, steps)
        return texts[0] if single else texts

    def _embeds(self, asked: str) -> Embeds:
        """Return the network as one that embeds."""
        own = (head for head in EMBEDDING_HEADS if head in self.config.heads)
        return self._able(Embeds, next(own, EMBEDDING_HEADS[0]), asked)

    def _caption_writer(
        self,
        network: WritesCaptions,
        num_beams: int | None,
        max_tokens: int,
        *,
        sample: bool,
        seed: int,
    ) -> Callable[[Tensor], Tensor]:
        return caption_writer(network, num_beams, max_tokens, sample=sample, seed=seed)

    def _able(self, ability: type[AbilityT], head: str, asked: str) -> AbilityT:
        """Return the network as one with an ability, for a head."""
        self.need_head(head, asked)
        return need_ability(self.network, ability, asked, head)

    def _score(
        self,
        task: str,
        network: ScoresPairs,
        images: list[Any],
        texts: list[str],
        pairs: list[tuple[int, int]],
        head: Callable[..., Tensor],
        right: Collection[int] = (),
    ) -> Tensor:
        with self._computing():
            return score_pairs(
                network, self._inputs.of(task), images, texts, pairs, head, right=right
            )
