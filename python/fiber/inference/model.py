"""`Model`: a trained network with its tokenizer, and the methods to run it on images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, cast, overload

import numpy as np
import torch
from torch import Tensor

from fiber.checkpoints.model_dir import NO_ANSWERS, NO_CLASSES, save_model
from fiber.checkpoints.provenance import TrainedOn
from fiber.config import FiberConfig
from fiber.data import Tokenizer
from fiber.data.prompts.classes import Prompt
from fiber.evaluation.retrieval import choose_ranking_heads
from fiber.inference.boxes import PassCounts, Thresholds, find_boxes
from fiber.inference.captions import caption_writer
from fiber.inference.inputs import (
    ImageInput,
    ImagePair,
    Images,
    Inputs,
    Texts,
    as_list,
    as_texts,
    check_top_k,
    not_empty,
    one_for_each,
)
from fiber.inference.options import CaptionOptions, Classes, DetectOptions, GroundOptions, Phrases
from fiber.inference.pairs import PAIRS_AT_ONCE, match_images, rank_images, score_pairs
from fiber.inference.prompts import detection_prompts, grounding_prompts
from fiber.inference.results import Answer, Hit
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.models.fiber.captioner import written_tokens
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.heads import need_head
from fiber.models.registry import inference_transform
from fiber.postprocess import Detections

#: Default lowest score of a detected object.
SCORE_THRESHOLD = 0.3


class Model:
    """A network with its tokenizer and vocabularies. One image gives one result, a list a list.

    Args:
        network: a network, which is set to evaluation mode and stays on its device.
        tokenizer: needed by every method that takes a text; its special tokens have RoBERTa's ids.
        answers: answers in the order of the VQA head's logits; needed by `answer`.
        classes: default classes of `detect`.
        dtype: dtype of the computation; the weights keep theirs.
        trained_on: training data, if known; `fiber.evaluate` on them warns.
    """

    def __init__(
        self,
        network: FiberImageText | FiberDetector,
        tokenizer: Tokenizer | None = None,
        answers: Sequence[str] = (),
        *,
        classes: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        trained_on: TrainedOn | None = None,
    ) -> None:
        self.network = network.eval()
        self.config: FiberConfig = network.config
        self.tokenizer = tokenizer
        self.answers = tuple(answers)
        self.classes = tuple(classes)
        self.device = next(network.parameters()).device
        self.dtype = dtype
        self.trained_on = trained_on
        #: Counts of `ground` and `detect` since the model was loaded.
        self.passes = PassCounts()
        self._inputs = Inputs(self.config, inference_transform(self.config), tokenizer, self.device)
        if isinstance(network, FiberDetector):
            self._text_prefixes = TextPrefixes(network, self._inputs)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        return self.config.heads

    def __repr__(self) -> str:
        return f"Model({self.config.stage}, heads={', '.join(self.heads)}, device={self.device})"

    @overload
    def ground(
        self, pictures: ImageInput, phrases: Phrases = None, **options: Unpack[GroundOptions]
    ) -> Detections: ...
    @overload
    def ground(
        self, pictures: Images, phrases: Phrases = None, **options: Unpack[GroundOptions]
    ) -> list[Detections]: ...

    def ground(
        self,
        pictures: ImageInput | Images,
        phrases: Phrases = None,
        *,
        caption: Texts | None = None,
        spans: Sequence[Any] | None = None,
        boxes_per_phrase: int = 1,
        score_threshold: float = 0.0,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> Detections | list[Detections]:
        """Find the best boxes of phrases, each by itself or, with a caption, in its sentence.

        Args:
            pictures: one image or a list.
            phrases: a phrase, a list of phrases for all images, or one list for each image; "the
                star left of the ring" gives boxes of the star.
            caption: sentence with the phrases, one for all images or one for each; without
                `phrases`, those that `fiber.inference.noun_phrases` finds in it.
            spans: in place of phrases, half-open ranges (start, end) of the caption's code points,
                or lists of ranges for phrases in parts; one list for each caption.
            boxes_per_phrase: most boxes of a phrase.
            score_threshold: lowest score of a box, in [0, 1]; see `Detections`.
            nms_threshold: of two boxes of a phrase with a larger IoU, the better one is kept.
            max_detections: most boxes of an image.

        Returns:
            `Detections` of the image, best box first, or a list of them.
        """
        self.need_head("grounding", "ground")
        given, single = as_list(pictures)
        prompts = grounding_prompts(phrases, caption, spans, len(given), self._inputs)
        limits = Thresholds(score_threshold, nms_threshold, max_detections, boxes_per_phrase)
        return self._boxes(given, single, prompts, limits)

    @overload
    def detect(
        self, pictures: ImageInput, classes: Classes = None, **options: Unpack[DetectOptions]
    ) -> Detections: ...
    @overload
    def detect(
        self, pictures: Images, classes: Classes = None, **options: Unpack[DetectOptions]
    ) -> list[Detections]: ...

    def detect(
        self,
        pictures: ImageInput | Images,
        classes: Classes = None,
        *,
        classes_per_prompt: int | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> Detections | list[Detections]:
        """Find every object of some classes, which are joined into as few prompts as they fit.

        Args:
            pictures: one image or a list.
            classes: names for all images, or one list for each image; default: the classes that the
                model was trained on. A `fiber.data.ClassName`, or a mapping of its fields, adds
                words before and after a name. Duplicates are refused; case and added words count.
            classes_per_prompt: most classes of a prompt (published for LVIS: 40); 0 or None: as
                many as fit.
            score_threshold: lowest score of a box, in [0, 1]; see `Detections`.
            nms_threshold: of two boxes of a class with a larger IoU, the better one is kept.
            max_detections: most boxes of an image.

        Returns:
            `Detections` of the image, best box first, or a list of them.
        """
        self.need_head("grounding", "detect")
        given, single = as_list(pictures)
        if classes is None:
            if not self.classes:
                raise ValueError(NO_CLASSES)
            classes = self.classes
        prompts = detection_prompts(classes, len(given), self._inputs, classes_per_prompt)
        limits = Thresholds(score_threshold, nms_threshold, max_detections)
        return self._boxes(given, single, prompts, limits)

    @overload
    def answer(self, pictures: ImageInput, questions: Texts, *, top_k: int = 1) -> list[Answer]: ...
    @overload
    def answer(
        self, pictures: Images, questions: Texts, *, top_k: int = 1
    ) -> list[list[Answer]]: ...

    def answer(
        self,
        pictures: ImageInput | Images,
        questions: Texts,
        *,
        top_k: int = 1,
    ) -> list[Answer] | list[list[Answer]]:
        """Answer questions.

        Args:
            pictures: one image or a list.
            questions: one for all images, or one for each.
            top_k: number of answers, best first.

        Returns:
            A list of `Answer`, or a list of such lists.
        """
        self.need_head("vqa", "answer")
        check_top_k(top_k)
        if not self.answers:
            raise ValueError(NO_ANSWERS)
        given, single = as_list(pictures)
        texts = one_for_each(questions, len(given), "question")
        pairs = [(index, index) for index in range(len(given))]
        network = self._coarse
        scores = self._score(given, texts, pairs, network.vqa_logits).sigmoid()
        best = scores.topk(min(top_k, scores.shape[1]))
        found = [
            [Answer(self.answers[i], value) for i, value in zip(places, values, strict=True)]
            for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return found[0] if single else found

    @overload
    def caption(self, pictures: ImageInput, **options: Unpack[CaptionOptions]) -> str: ...
    @overload
    def caption(self, pictures: Images, **options: Unpack[CaptionOptions]) -> list[str]: ...

    def caption(
        self,
        pictures: ImageInput | Images,
        *,
        num_beams: int | None = None,
        max_tokens: int | None = None,
        sample: bool = False,
        seed: int = 0,
    ) -> str | list[str]:
        """Caption images.

        Args:
            pictures: one image or a list.
            num_beams: beams of the search, default 5; 1 is greedy.
            max_tokens: longest caption; default the longest text of the model.
            sample: sample tokens instead of a beam search.
            seed: seed of every image's samples, 0 or more; captions do not depend on the batch.

        Returns:
            A str, or a list of them.

        Raises:
            TypeError: if `sample` is no bool, or `seed` no int.
            ValueError: if `num_beams` is given with `sample` or is below 1, or `seed` is out of
                range.
        """
        self.need_head("caption", "caption")
        write = caption_writer(
            self._coarse, num_beams, max_tokens or self.config.max_tokens, sample=sample, seed=seed
        )
        tokenizer = self._inputs.needed_tokenizer()
        given, single = as_list(pictures)
        texts = [""] * len(given)
        with self._running():
            for batch in self._inputs.images(given):
                tokens = self._coarse.backbone.encode_image(batch.images).stages[-1]
                for index, ids in zip(batch.indices, write(tokens).tolist(), strict=True):
                    texts[index] = tokenizer.decode(written_tokens(ids)).strip()
        return texts[0] if single else texts

    @overload
    def match(self, pictures: ImageInput, texts: str) -> float: ...
    @overload
    def match(self, pictures: ImageInput, texts: list[str] | tuple[str, ...]) -> np.ndarray: ...
    @overload
    def match(self, pictures: Images, texts: Texts) -> np.ndarray: ...

    def match(self, pictures: ImageInput | Images, texts: Texts) -> float | np.ndarray:
        """Compute the probability that each text matches each image (ITM).

        Returns:
            (images, texts) float32 probabilities; a single image or text drops its dimension, and
            both give a float.
        """
        self.need_head("itm", "match")
        given, single = as_list(pictures)
        one_text = isinstance(texts, str)
        words = not_empty(as_texts(texts, "text"), "text")
        pairs = [(i, j) for i in range(len(given)) for j in range(len(words))]
        logits = self._score(given, words, pairs, self._coarse.itm_logits)
        scores = logits.softmax(dim=1)[:, 1].reshape(len(given), len(words)).numpy()
        scores = scores[:, 0] if one_text else scores
        scores = scores[0] if single else scores
        return float(scores) if single and one_text else scores

    @overload
    def reason(self, pairs: ImagePair, statements: Texts) -> bool: ...
    @overload
    def reason(self, pairs: list[ImagePair], statements: Texts) -> list[bool]: ...

    def reason(
        self,
        pairs: ImagePair | list[ImagePair],
        statements: Texts,
    ) -> bool | list[bool]:
        """Decide whether statements about image pairs are true (NLVR2).

        Args:
            pairs: (left, right), or a list of such pairs.
            statements: one for all pairs, or one for each.

        Returns:
            A bool, or a list of them.
        """
        self.need_head("nlvr2", "reason")
        single = isinstance(pairs, tuple)
        given = [pairs] if single else list(pairs)
        for index, pair in enumerate(given):
            if len(pair) != 2:
                raise ValueError(f"pair {index} has {len(pair)} pictures; expected (left, right)")
        texts = one_for_each(statements, len(given), "statement")
        pictures = [picture for pair in given for picture in pair]
        order = [(number, number // 2) for number in range(len(pictures))]
        pooled = self._score(pictures, texts, order, lambda pooled: pooled)
        with self._running():
            device = self.device
            logits = self._coarse.nlvr2_logits(pooled[0::2].to(device), pooled[1::2].to(device))
        true = (logits[:, 1] > logits[:, 0]).tolist()
        return true[0] if single else true

    def embed_images(self, pictures: ImageInput | Images) -> np.ndarray:
        """Embed images with the ITC head.

        Returns:
            (n, D) float32 unit vectors, or (D,) for one image.
        """
        self.need_head("itc", "embed_images")
        given, single = as_list(pictures)
        vectors = torch.zeros(len(given), self.config.roberta.width)
        with self._running():
            for batch in self._inputs.images(given):
                vectors[batch.indices] = self._coarse.embed_images(batch.images).float().cpu()
        return vectors[0].numpy() if single else vectors.numpy()

    def embed_texts(self, texts: Texts) -> np.ndarray:
        """Embed texts with the ITC head.

        Returns:
            (n, D) float32 unit vectors, or (D,) for one text.
        """
        self.need_head("itc", "embed_texts")
        words = not_empty(as_texts(texts, "text"), "text")
        vectors = torch.zeros(len(words), self.config.roberta.width)
        with self._running():
            for start in range(0, len(words), PAIRS_AT_ONCE):
                batch = self._inputs.texts(words[start : start + PAIRS_AT_ONCE])
                found = self._coarse.embed_texts(batch.token_ids, batch.text_mask)
                vectors[start : start + len(found)] = found.float().cpu()
        return vectors[0].numpy() if isinstance(texts, str) else vectors.numpy()

    def search(
        self,
        text: str,
        pictures: Images,
        top_k: int = 10,
        *,
        rerank: bool | None = None,
        candidates: int | None = None,
    ) -> list[Hit]:
        """Find the images that fit a text best: ITC ranks all, ITM re-ranks the best.

        A model with one of the two heads ranks by that one; a warning says so, unless ITC alone
        ranks and re-ranking was not asked for.

        Args:
            text: query.
            pictures: list of images.
            top_k: number of hits, best first.
            rerank: re-rank with ITM: scores are matching probabilities then, else cosine
                similarities. Default: if the model has both heads.
            candidates: images to re-rank, 1 or more, default 32; at least `top_k`.

        Raises:
            MissingHeadError: if the model has neither head, or no ITC while `rerank` is False.
            TypeError: if `text` is no str, or `rerank` neither bool nor None.
            ValueError: if the text is empty, or `pictures` is one image.
        """
        if not isinstance(text, str):
            raise TypeError(
                f"search: expected a str to look for, got the {type(text).__name__} {text!r:.60}"
            )
        check_top_k(top_k)
        given, single = as_list(pictures)
        if single:
            raise ValueError("search: expected a list of pictures, got one picture")
        wanted = not_empty([text], "text")[0]
        ranking = choose_ranking_heads(self.config, rerank, candidates, "search")
        with self._running():
            if ranking.heads == ("itm",):
                ranked = match_images(self._coarse, self._inputs, wanted, given)
            else:
                reranked = max(top_k, ranking.candidates) if ranking.candidates else 0
                ranked = rank_images(self._coarse, self._inputs, wanted, given, reranked)
        return [Hit(index, score) for index, score in ranked[:top_k]]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and the vocabularies to a new or empty folder.

        Raises:
            NotADirectoryError, FileExistsError: if it is a file, or holds a part of either.
        """
        save_model(self.network, Path(folder), self.tokenizer, self.answers, self.classes)

    def need_head(self, head: str, asked: str) -> None:
        """Raise MissingHeadError, naming the recipe that trains it, if the model lacks a head."""
        need_head(self.config, head, asked)

    def arithmetic(self) -> torch.autocast:
        """Return the autocast context of the methods above."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def _coarse(self) -> FiberImageText:
        """The network as an image-text model, as `need_head` has checked."""
        return cast(FiberImageText, self.network)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.inference_mode(), self.arithmetic():
            yield

    def _boxes(
        self, pictures: list[Any], single: bool, prompts: list[list[Prompt]], thresholds: Thresholds
    ) -> Detections | list[Detections]:
        thresholds.check()
        with self._running():
            network, features = cast(FiberDetector, self.network), self._text_prefixes
            found = find_boxes(
                network, self._inputs, features, pictures, prompts, thresholds, self.passes
            )
        return found[0] if single else found

    def _score(
        self,
        pictures: list[Any],
        texts: list[str],
        pairs: list[tuple[int, int]],
        head: Callable[..., Tensor],
    ) -> Tensor:
        with self._running():
            return score_pairs(self._coarse, self._inputs, pictures, texts, pairs, head)
