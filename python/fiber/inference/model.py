"""`Model`: a trained network with its tokenizer, and methods to run it on images."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import torch

from fiber.checkpoints.hub.card import publish, write_card
from fiber.checkpoints.hub.names import check_repo, hub_name
from fiber.checkpoints.hub.transfer import upload
from fiber.checkpoints.kept import Kept
from fiber.checkpoints.load import choose_device
from fiber.checkpoints.model_dir import save_model
from fiber.checkpoints.provenance import TrainedOn
from fiber.data import Tokenizer
from fiber.data.image_file import MAX_PIXELS, DecodeLimits
from fiber.inference.masks.segment import MaskMethods
from fiber.inference.suggestions import (
    not_callable,
    suggest_keywords_of_methods,
    unknown_attribute,
)
from fiber.inference.tensor_inputs import Inputs
from fiber.models.heads import need_head
from fiber.models.registry import ModelConfig, Network, architecture_of
from fiber.tasks import methods_of_others
from fiber.tasks.lazy import load


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
class Model(MaskMethods):
    """A network with its tokenizer, answers and classes.

    An image is a path, bytes, a file opened in binary mode, a PIL image or a uint8 array (H, W, 3)
    or, with alpha, (H, W, 4); see `fiber.data.load_image`. URLs are not fetched.
    Methods return a single result for one image, and a list of results for a list of images.
    Tasks of other packages add methods (`fiber.tasks.task.Task.methods`).

    Args:
        network: network to run. It is set to evaluation mode and stays on its device; see `to`.
        tokenizer: required by every method that reads or generates text. Special tokens must have
            the ids that the network was trained with, mostly RoBERTa's.
        answers: answers in the order of the VQA head's logits; required by `answer`.
        classes: default classes of `detect` and `segment`.
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
        limits = DecodeLimits(max_pixels, max_decode_bytes)
        self._inputs = Inputs(self.config, tokenizer, self.device, limits)
        self.presence = self.origin.kept.presence
        self._start_boxes()

    @property
    def inputs(self) -> Inputs:
        """Preprocessing of images and texts, for methods of other packages.

        `inputs.of(task)` prepares images as that task does.
        """
        return cast(Inputs, self._inputs)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the model's heads."""
        return self.config.heads

    def __repr__(self) -> str:
        title = architecture_of(self.config).title
        return f"Model({title}, heads={', '.join(self.heads)}, device={self.device})"

    def to(self, device: torch.device | str) -> Model:
        """Move the network to a device. The compute dtype, see `fiber.load`, does not change.

        Returns:
            This model.

        Raises:
            ValueError: if the device is invalid or not found.
        """
        target = choose_device(device)
        self.network.to(target)
        self.device = self.inputs.device = target
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors, tokenizer, answers and classes to a folder.

        So are the card (README.md), the numbers (metrics.json), the calibrations (presence.json)
        and the training config of the folder that the model was loaded from. Weights keep the dtype
        of that folder if they are exact in it; otherwise they are stored in float32, with a
        warning.

        Raises:
            NotADirectoryError: if `folder` is a file.
            FileExistsError: if `folder` already contains one of these files.
        """
        vocabulary = (self.tokenizer, self.answers, self.classes)
        kept = dataclasses.replace(self.origin.kept, presence=self.presence)
        dtype = self.origin.dtype
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

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.inference_mode(), self.arithmetic():
            yield

    if not TYPE_CHECKING:
        # Hidden from type checkers, which report unknown attributes themselves.
        def __getattr__(self, name: str) -> Any:
            if task := methods_of_others().get(name):
                return MethodType(load(task.methods[name]), self)
            raise unknown_attribute(self, name)

        def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
            """Raise TypeError, which names the methods."""
            raise not_callable(self)


def described(model: Model) -> str:
    """Describe a model's network in one line."""
    size = sum(each.numel() for each in model.network.parameters())
    return f"{architecture_of(model.config).describe(model.config)}; {size:,} parameters"
