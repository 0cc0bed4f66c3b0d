"""A finished model and what it can be asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fiber.checkpoints.model_dir import NO_ANSWERS, NO_CLASSES, save_model
from fiber.checkpoints.provenance import TrainedOn
from fiber.config import FiberConfig
from fiber.data import Tokenizer
from fiber.data.prompts.classes import ClassLike, Prompt
from fiber.evaluation.retrieval import choose_ranking_heads
from fiber.inference.boxes import PassCounts, Thresholds, find_boxes
from fiber.inference.captions import caption_writer
from fiber.inference.inputs import Inputs, as_list, as_texts, check_top_k, not_empty, one_for_each
from fiber.inference.pairs import PAIRS_AT_ONCE, match_pictures, rank_pictures, score_pairs
from fiber.inference.prompts import detection_prompts, grounding_prompts
from fiber.inference.results import Answer, Hit
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.models.fiber.captioner import written_tokens
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.heads import need_head
from fiber.models.registry import inference_transform

#: Lowest score of a detected object, unless told otherwise.
SCORE_THRESHOLD = 0.3


class Model:
    """A network with the tokenizer, the answers and the picture size that it needs.

    Args:
        network: a coarse or a fine model; it stays where it is and is set to evaluation mode.
        tokenizer: needed by every method that takes a text; its special tokens have RoBERTa's ids.
        answers: in the order of the VQA head's logits; needed by `answer`.
        classes: that `detect` looks for where it is not told any.
        dtype: of the arithmetic; weights stay as they are.
        trained_on: the data of its run, if they are known; `fiber.evaluate` warns of them.
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
        #: What `ground` and `detect` took since the model was loaded.
        self.passes = PassCounts()
        self._inputs = Inputs(self.config, inference_transform(self.config), tokenizer, self.device)
        if isinstance(network, FiberDetector):
            self._text_prefixes = TextPrefixes(network, self._inputs)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of what the model can be asked for."""
        return self.config.heads

    def __repr__(self) -> str:
        return f"Model({self.config.stage}, heads={', '.join(self.heads)}, device={self.device})"

    def ground(
        self,
        pictures: Any,
        phrases: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        caption: str | Sequence[str] | None = None,
        spans: Sequence[Any] | None = None,
        boxes_per_phrase: int = 1,
        score_threshold: float = 0.0,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> Any:
        """Find the best boxes of phrases.

        Every phrase is looked for by itself; with a caption, in its sentence. It may describe:
        "the star left of the ring" gives boxes of the star.

        Args:
            pictures: one or a list.
            phrases: a phrase, a list of them for every picture, or one list for each picture.
            caption: the sentence that the phrases stand in, one for every picture or one for each;
                alone, for the phrases that `fiber.inference.noun_phrases` sees in it.
            spans: in place of phrases, half-open ranges (start, end) of the caption's code points,
                each of which names something; a list of ranges for a phrase in several parts. One
                list for one caption, or one for each caption.
            boxes_per_phrase: how many of the best boxes of a phrase are given.
            score_threshold: lowest score of a box, in [0, 1]; what it means: see `Detections`.
            nms_threshold: of two boxes of a phrase whose IoU exceeds it, the better one stays.
            max_detections: boxes of a picture.

        Returns:
            `Detections` of the picture, best box first, or a list of them.
        """
        self.need_head("grounding", "ground")
        given, single = as_list(pictures)
        prompts = grounding_prompts(phrases, caption, spans, len(given), self._inputs)
        limits = Thresholds(score_threshold, nms_threshold, max_detections, boxes_per_phrase)
        return self._boxes(given, single, prompts, limits)

    def detect(
        self,
        pictures: Any,
        classes: ClassLike | Sequence[ClassLike] | Sequence[Sequence[ClassLike]] | None = None,
        *,
        classes_per_prompt: int | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> Any:
        """Find every object of some classes; the classes stand side by side in one text.

        Classes that do not fit into the model's longest text go into further texts, for which the
        image trunk below the first fused block is not run again.

        Args:
            pictures: one or a list.
            classes: a list of names for every picture, or one list for each picture; by default
                those that the model was trained to detect. In place of a name a
                `fiber.data.ClassName`, or a mapping of its fields, puts words before and behind it.
                Each class is there once; names that differ in capitals are two classes, and so
                are names with other words around them, whose labels then have these words.
            classes_per_prompt: classes of a text at most (published for LVIS: 40); 0 or None: as
                many as fit.
            score_threshold: lowest score of a box, in [0, 1]; what it means: see `Detections`.
            nms_threshold: of two boxes of a class that overlap more (IoU), the better one stays.
            max_detections: boxes of a picture, best first.

        Returns:
            `Detections` of the picture, or a list of them.
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

    def answer(self, pictures: Any, questions: str | Sequence[str], *, top_k: int = 1) -> Any:
        """Answer questions.

        Args:
            pictures: one or a list.
            questions: one for every picture, or one for each.
            top_k: answers to give, best first.

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

    def caption(
        self,
        pictures: Any,
        *,
        num_beams: int | None = None,
        max_tokens: int | None = None,
        sample: bool = False,
        seed: int = 0,
    ) -> Any:
        """Describe pictures in words.

        Args:
            pictures: one or a list.
            num_beams: sentences that are kept at every word, default 5; 1 takes the likeliest word
                each time.
            max_tokens: longest caption; default the longest text of the model.
            sample: draw every word by its probability instead of searching for a likely sentence.
            seed: of the draws, 0 or more. Each picture's begin with it anew, so that its caption
                does not depend on the pictures beside it.

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

    def match(self, pictures: Any, texts: str | Sequence[str]) -> Any:
        """Say how likely each text and each picture belong together (ITM).

        Args:
            pictures: one or a list.
            texts: one or a list; every text is compared with every picture.

        Returns:
            (pictures, texts) float32 probabilities; without the side that was one alone, and a
            float if both were.
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

    def reason(self, pairs: Any, statements: str | Sequence[str]) -> Any:
        """Say whether a statement about two pictures is true (NLVR2).

        Args:
            pairs: (left, right), or a list of such pairs.
            statements: one for every pair, or one for each.

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

    def embed_images(self, pictures: Any) -> np.ndarray:
        """Embed pictures for comparison with texts (ITC).

        Args:
            pictures: one or a list.

        Returns:
            (n, D) float32 of unit length, or (D,) for one picture.
        """
        self.need_head("itc", "embed_images")
        given, single = as_list(pictures)
        vectors = torch.zeros(len(given), self.config.roberta.width)
        with self._running():
            for batch in self._inputs.images(given):
                vectors[batch.indices] = self._coarse.embed_images(batch.images).float().cpu()
        return vectors[0].numpy() if single else vectors.numpy()

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embed texts for comparison with pictures (ITC).

        Args:
            texts: one or a list.

        Returns:
            (n, D) float32 of unit length, or (D,) for one text.
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
        pictures: Sequence[Any],
        top_k: int = 10,
        *,
        rerank: bool | None = None,
        candidates: int | None = None,
    ) -> list[Hit]:
        """Find the pictures that fit a text best.

        The two towers alone (ITC) order all pictures, and matching text and picture together (ITM)
        orders the best of them again. A model with one of the two heads orders by that one; a
        warning says so, but where ITC alone orders and nothing asked for more.

        Args:
            text: what to look for.
            pictures: a list.
            top_k: hits to give, best first.
            rerank: whether the best ones are ordered again by ITM; their scores are matching
                probabilities then, else the cosines of the two towers' vectors. Default: if the
                model can.
            candidates: how many are ordered again, 1 or more, 32 by default; top_k if that is more,
                so that top_k=len(pictures) matches every picture.

        Raises:
            MissingHeadError: if the model has neither head, or no ITC while `rerank` is False.
            TypeError: if `text` is no str, or `rerank` neither bool nor None.
            ValueError: if the text is empty, or the pictures are one picture.
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
                ranked = match_pictures(self._coarse, self._inputs, wanted, given)
            else:
                reranked = max(top_k, ranking.candidates) if ranking.candidates else 0
                ranked = rank_pictures(self._coarse, self._inputs, wanted, given, reranked)
        return [Hit(index, score) for index, score in ranked[:top_k]]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors, tokenizer.json, answers.json and classes.json.

        A part that the model came without is not written.

        Args:
            folder: made if absent; it must hold neither a model nor a run.

        Raises:
            NotADirectoryError: if `folder` is a file.
            FileExistsError: if it holds a part of a model or of a run.
        """
        save_model(self.network, Path(folder), self.tokenizer, self.answers, self.classes)

    def need_head(self, head: str, asked: str) -> None:
        """Check that the model has a head.

        Raises:
            MissingHeadError: if not; it names the heads there are and the recipe that trains it.
        """
        need_head(self.config, head, asked)

    def arithmetic(self) -> torch.autocast:
        """Give the context in which everything above runs: reduced precision where it is wanted."""
        reduced = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=reduced)

    @property
    def _coarse(self) -> FiberImageText:
        """The network; `need_head` has made sure that it is the coarse one."""
        return cast(FiberImageText, self.network)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.inference_mode(), self.arithmetic():
            yield

    def _boxes(
        self,
        pictures: list[Any],
        single: bool,
        prompts: Sequence[Sequence[Prompt]],
        thresholds: Thresholds,
    ) -> Any:
        thresholds.check()
        with self._running():
            network = cast(FiberDetector, self.network)
            found = find_boxes(
                network,
                self._inputs,
                self._text_prefixes,
                pictures,
                prompts,
                thresholds,
                self.passes,
            )
        return found[0] if single else found

    def _score(
        self,
        pictures: list[Any],
        texts: list[str],
        pairs: Sequence[tuple[int, int]],
        head: Callable[[Tensor], Tensor],
    ) -> Tensor:
        with self._running():
            return score_pairs(self._coarse, self._inputs, pictures, texts, pairs, head)
