"""`Model`: a trained network with its tokenizer, and methods to run it on images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Unpack, overload

import torch

from fiber.checkpoints.hub.card import publish, write_card
from fiber.checkpoints.hub.names import check_repo, hub_name
from fiber.checkpoints.hub.transfer import upload
from fiber.checkpoints.kept import Kept
from fiber.checkpoints.load import choose_device
from fiber.checkpoints.model_dir import save_model
from fiber.checkpoints.provenance import TrainedOn
from fiber.checkpoints.vocabulary.files import NO_CLASSES
from fiber.data import Tokenizer
from fiber.data.image_file import MAX_PIXELS, DecodeLimits
from fiber.data.prompts.classes import Prompt
from fiber.inference.boxes import PassCounts, Thresholds, find_boxes
from fiber.inference.image_text import ImageTextMethods
from fiber.inference.inputs import (
    ImageInput,
    Images,
    Inputs,
    Texts,
    as_list,
)
from fiber.inference.options import Classes, DetectOptions, GroundOptions, Phrases
from fiber.inference.prompts import detection_prompts, grounding_prompts
from fiber.inference.suggestions import (
    not_callable,
    suggest_keywords_of_methods,
    unknown_attribute,
)
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.models.abilities import FindsBoxes, need_ability
from fiber.models.heads import need_head
from fiber.models.registry import ModelConfig, Network, architecture_of
from fiber.postprocess import Detections
from fiber.tasks import methods_of_others
from fiber.tasks.lazy import load

#: Default minimum score of a detected object.
SCORE_THRESHOLD = 0.3


class Origin(NamedTuple):
    """Where a model was loaded from, and what it is saved with again."""

    #: Folder or file.
    path: Path | None = None
    #: Dtype of the stored weights; None if they have several.
    dtype: torch.dtype | None = None
    kept: Kept = Kept()

    def __str__(self) -> str:
        if self.path is None:
            return "this process"
        return str(hub_name(self.path) or self.path)


@suggest_keywords_of_methods
class Model(ImageTextMethods):
    """A network with its tokenizer, answers and classes.

    An image is a path, bytes, a file opened in binary mode, a PIL image or a uint8 array (H, W, 3)
    or, with alpha, (H, W, 4); see `fiber.data.load_image`. URLs are not fetched.
    Methods return a single result for one image, and a list of results for a list of images.
    Tasks of other packages add methods (`fiber.tasks.task.Task.methods`).

    Args:
        network: network to run. It is set to evaluation mode and stays on its device; see `to`.
        tokenizer: required by every method that reads or generates text. Special tokens must have
            RoBERTa's ids.
        answers: answers in the order of the VQA head's logits; required by `answer`.
        classes: default classes of `detect`.
        dtype: compute dtype. The dtype of the weights does not change.
        trained_on: training data, if known. `fiber.evaluate` warns if a model is evaluated on it.
        origin: where the model was loaded from; str(model.origin) is a path or, for a model on
            the Hub, its name with the commit.
        max_pixels, max_decode_bytes: limits of decoding one image; see `fiber.data.load_image`.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer | None = None,
        answers: Sequence[str] = (),
        *,
        classes: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        trained_on: TrainedOn | None = None,
        origin: Origin | None = None,
        max_pixels: int = MAX_PIXELS,
        max_decode_bytes: int | None = None,
    ) -> None:
        self.network = network.eval()
        self.config: ModelConfig = network.config
        self.tokenizer = tokenizer
        self.answers, self.classes = tuple(answers), tuple(classes)
        self.device = next(network.parameters()).device
        self.dtype, self.trained_on = dtype, trained_on
        self.origin = origin or Origin()
        #: Forward pass counts of `ground` and `detect` since the model was loaded.
        self.passes = PassCounts()
        limits = DecodeLimits(max_pixels, max_decode_bytes)
        self._inputs = Inputs(self.config, tokenizer, self.device, limits)
        #: Kept features of prompts, from the first call of `ground` or `detect` on.
        self._text_prefixes: TextPrefixes | None = None

    @property
    def inputs(self) -> Inputs:
        """Preprocessing of images and texts, for methods of other packages.

        `inputs.of(task)` prepares images as that task does.
        """
        return self._inputs

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the model's heads."""
        return self.config.heads

    def __repr__(self) -> str:
        title = architecture_of(self.config).title
        return f"Model({title}, heads={', '.join(self.heads)}, device={self.device})"

    @overload
    def ground(
        self, images: ImageInput, phrases: Phrases = None, **options: Unpack[GroundOptions]
    ) -> Detections: ...
    @overload
    def ground(
        self, images: Images, phrases: Phrases = None, **options: Unpack[GroundOptions]
    ) -> list[Detections]: ...

    def ground(
        self,
        images: ImageInput | Images,
        phrases: Phrases = None,
        *,
        caption: Texts | None = None,
        spans: Sequence[Any] | None = None,
        boxes_per_phrase: int = 1,
        score_threshold: float = 0.0,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> Detections | list[Detections]:
        """Find the best boxes for phrases, either independently or in the context of a caption.

        Args:
            images: an image or a list of images.
            phrases: a phrase, a list of phrases for all images, or one list per image. For example,
                "the star left of the ring" returns boxes of the star. A phrase that looks like a
                list ("a circle; the star", "a circle, the star", "a circle. the star.") is one
                phrase, with a warning.
            caption: sentence that contains the phrases, one for all images or one per image.
                Without `phrases` and `spans`, the caption's noun phrases are used (see
                `fiber.inference.noun_phrases`).
            spans: alternative to `phrases`, one list per caption. A span is a half-open (start,
                end) range of the caption's code points, or a list of ranges for a phrase in several
                parts.
            boxes_per_phrase: maximum number of boxes per phrase.
            score_threshold: minimum box score, in [0, 1]; see `Detections`.
            nms_threshold: maximum IoU between two boxes of the same phrase.
            max_detections: maximum number of boxes per image.

        Returns:
            Detections for each image, best box first.
        """
        network = self._finds_boxes("ground")
        given, single = as_list(images)
        prompts = grounding_prompts(phrases, caption, spans, len(given), self._inputs)
        limits = Thresholds(score_threshold, nms_threshold, max_detections, boxes_per_phrase)
        return self._boxes(network, given, single, prompts, limits)

    @overload
    def detect(
        self, images: ImageInput, classes: Classes = None, **options: Unpack[DetectOptions]
    ) -> Detections: ...
    @overload
    def detect(
        self, images: Images, classes: Classes = None, **options: Unpack[DetectOptions]
    ) -> list[Detections]: ...

    def detect(
        self,
        images: ImageInput | Images,
        classes: Classes = None,
        *,
        classes_per_prompt: int | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> Detections | list[Detections]:
        """Detect all objects of the given classes. Prompts contain as many classes as possible.

        Args:
            images: an image or a list of images.
            classes: class names for all images, or one list per image. Default: the classes that
                the model was trained on. A `fiber.data.ClassName`, or a mapping of its fields, adds
                a prefix and a suffix to a name. Names are case-sensitive and must be distinct. A
                single name that looks like a list is one name, with a warning.
            classes_per_prompt: maximum number of classes per prompt (40 in the published LVIS
                evaluation), or 0 or None for as many as fit.
            score_threshold: minimum box score, in [0, 1]; see `Detections`.
            nms_threshold: maximum IoU between two boxes of the same class.
            max_detections: maximum number of boxes per image.

        Returns:
            Detections for each image, best box first.
        """
        network = self._finds_boxes("detect")
        given, single = as_list(images)
        if classes is None:
            if not self.classes:
                raise ValueError(NO_CLASSES)
            classes = self.classes
        prompts = detection_prompts(classes, len(given), self._inputs, classes_per_prompt)
        limits = Thresholds(score_threshold, nms_threshold, max_detections)
        return self._boxes(network, given, single, prompts, limits)

    def to(self, device: torch.device | str) -> Model:
        """Move the network to a device. The compute dtype, see `fiber.load`, does not change.

        Returns:
            This model.

        Raises:
            ValueError: if the device is invalid or not found.
        """
        target = choose_device(device)
        self.network.to(target)
        self.device = self._inputs.device = target
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors, tokenizer, answers and classes to a folder.

        So are the card (README.md), the numbers (metrics.json) and the training config of the
        folder that the model was loaded from. Weights keep the dtype of that folder if they are
        exact in it; otherwise they are stored in float32, with a warning.

        Raises:
            NotADirectoryError: if `folder` is a file.
            FileExistsError: if `folder` already contains one of these files.
        """
        vocabulary = (self.tokenizer, self.answers, self.classes)
        kept, dtype = self.origin.kept, self.origin.dtype
        save_model(self.network, Path(folder), *vocabulary, kept=kept, dtype=dtype)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        license: str | None = None,  # noqa: A002 (the Hub's name)
        metrics: Mapping[str, Any] | None = None,
        message: str = "Upload a model with fiber",
        token: str | None = None,
    ) -> str:
        """Save the model and upload it to the Hugging Face Hub in one commit (extra `hub`).

        The card is the one that the model was loaded with, or else one that is written from its
        config and `metrics`; what was not measured is named as such. Paths of this machine in the
        training config are replaced by their last names. Only the files of `save` are uploaded.

        Args:
            repo: user/name; it is created if it does not exist.
            private: whether a new repository is private. Default: the user's setting.
            revision: branch, created if it does not exist. Default: main.
            license: identifier of the license of the weights, such as "cc-by-4.0".
            metrics: measured numbers; {"tasks": {"vqa": {"val": {"model": {"accuracy": 0.7}}}}},
                beside "model" also "records", "chance" and "blind". Default: the numbers that the
                model was loaded with.
            message: title of the commit.
            token: token that may write. Default: that of `hf auth login` or HF_TOKEN.

        Returns:
            URL of the commit.

        Raises:
            ImportError: if huggingface_hub is not installed.
            OSError: if the upload fails.
            ValueError: if `repo`, `license` or `metrics` are invalid.
        """
        check_repo(repo)
        card = self._card(repo, license, metrics)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder)
            publish(folder, card, metrics)
            return upload(
                folder, repo, private=private, revision=revision, message=message, token=token
            )

    def _card(self, repo: str, license_id: str | None, metrics: Mapping[str, Any] | None) -> str:
        kept = self.origin.kept
        return write_card(
            repo, [described(self)], self.heads, [kept.training], kept, license_id, metrics
        )

    def need_head(self, head: str, asked: str) -> None:
        """Raise MissingHeadError if the model lacks a head.

        The message names `asked` (a method or task) and a recipe that trains the head.
        """
        need_head(self.config, head, asked)

    def arithmetic(self) -> torch.autocast:
        """Return the autocast context in which the network runs."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    if not TYPE_CHECKING:
        # Hidden from type checkers, which report unknown attributes themselves.
        def __getattr__(self, name: str) -> Any:
            if task := methods_of_others().get(name):
                return MethodType(load(task.methods[name]), self)
            raise unknown_attribute(self, name)

        def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
            """Raise TypeError, which names the methods."""
            raise not_callable(self)

    def _finds_boxes(self, asked: str) -> FindsBoxes:
        self.need_head("grounding", asked)
        return need_ability(self.network, FindsBoxes, asked)

    def _boxes(
        self,
        network: FindsBoxes,
        images: list[Any],
        single: bool,
        prompts: list[list[Prompt]],
        thresholds: Thresholds,
    ) -> Detections | list[Detections]:
        thresholds.check()
        if self._text_prefixes is None:
            self._text_prefixes = TextPrefixes(network, self._inputs)
        with torch.inference_mode(), self.arithmetic():
            given = (self._text_prefixes, images, prompts, thresholds, self.passes)
            found = find_boxes(network, self._inputs.of("grounding"), *given)
        return found[0] if single else found


def described(model: Model) -> str:
    """Describe a model's network in one line."""
    size = sum(each.numel() for each in model.network.parameters())
    return f"{architecture_of(model.config).describe(model.config)}; {size:,} parameters"
