"""`FiberVLConfig`: the config of a model of any family for transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from fiber.atomic_io import write_json
from fiber.checkpoints.kept import training_of
from fiber.checkpoints.provenance import TRAINING, values_of
from fiber.checkpoints.transformers_files import (
    MODEL_FIELDS,
    MODEL_TYPE,
    WRITTEN_BY_TRANSFORMERS,
)
from fiber.checkpoints.vocabulary.files import check_strings
from fiber.config_io import to_dict
from fiber.env import provenance
from fiber.messages import shown
from fiber.models.heads import need_head
from fiber.models.registry import ModelConfig, read_config

#: Attributes that are in files of their own, or follow from these.
_NOT_IN_CONFIG = ("_answers", "_classes")


class FiberVLConfig(PreTrainedConfig):
    """Config of a model of any family: what fiber's config.json has, and the vocabulary's lists.

    Args:
        model: the field `model` of config.json, which says which network to build. Default:
            `fiber.FiberConfig()`.
        answers: answers of the VQA head in logit order, which are also `id2label`. They are in
            answers.json, and are read when the model is. Setting them to a list of another length
            gives the VQA head another size.
        classes: classes that a detector was trained on, in classes.json.
        head: head that `forward` of an image-text model runs if it is given none.
        kwargs: see `PreTrainedConfig`.

    Raises:
        MissingHeadError: if there are answers, but no VQA head.
        ValueError: if the answers or classes are no lists of strings.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    #: Outputs of the detector that `Trainer` does not gather.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("losses", "anchors", "inside", "mask_embeddings", "mask_features", "mask_stride"),
    ]

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        answers: Sequence[str] = (),
        classes: Sequence[str] = (),
        head: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.model: dict[str, Any] = dict(model or {})
        self.head = head
        self._answers: tuple[str, ...] = ()
        self._classes = check_strings(classes, "classes")
        super().__init__(**kwargs)
        if answers:
            self.answers = answers

    @property
    def network(self) -> ModelConfig:
        """Config of the network.

        Raises:
            ValueError: if a field is unknown or invalid; the message names it, and the version of
                fiber that wrote it if that is newer.
        """
        read_from = getattr(self, "_name_or_path", "")
        where = f"{read_from}/config.json" if read_from else type(self).__name__
        version = {"fiber_version": getattr(self, "fiber_version", None)}
        with values_of(where, version, "model: "):
            return read_config(self.model)

    @property
    def answers(self) -> tuple[str, ...]:
        """Answers of the VQA head in logit order; empty if they are unknown."""
        return self._answers

    @answers.setter
    def answers(self, answers: Sequence[str]) -> None:
        checked, network = check_strings(answers, "answers"), self.network
        if checked:
            need_head(network, "vqa", "a list of answers")
            if len(checked) != network.num_answers:
                self.model = to_dict(network.with_answers(len(checked)))
            self.id2label = dict(enumerate(checked))
            self.label2id = {answer: number for number, answer in self.id2label.items()}
        self._answers = checked

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that a detector was trained on; empty if it was trained on phrases."""
        return self._classes

    @classes.setter
    def classes(self, classes: Sequence[str]) -> None:
        self._classes = check_strings(classes, "classes")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json.

        Raises:
            ValueError: if it is not that of a model of fiber.
        """
        folder = pretrained_model_name_or_path
        values, kwargs = super().get_config_dict(folder, **kwargs)
        if values.get("model_type") != MODEL_TYPE:
            has = shown(values["model_type"]) if "model_type" in values else "none"
            raise ValueError(
                f"{folder}/config.json: model_type: expected {MODEL_TYPE!r}, got {has}. Folders of"
                " earlier versions of fiber lack it: `fiber convert MODEL OUT --to fiber` writes"
                " one that has it"
            )
        _check_model(values, f"{folder}/config.json")
        return values, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from the values of config.json. See `PreTrainedConfig`.

        Of a file that a run has written, the fields of its training become one, `training`.

        Raises:
            ValueError: if `model` is no object, or there is `num_labels` without as many answers.
        """
        read_from = kwargs.get("name_or_path")
        _check_model(config_dict, f"{read_from}/config.json" if read_from else "config.json")
        labels, answers = kwargs.pop("num_labels", None), kwargs.get("answers")
        if labels is not None and (answers is None or len(answers) != labels):
            raise ValueError(
                f"num_labels is {shown(labels)}, but the labels of a model of fiber are its"
                " answers; pass these: answers=[...], ignore_mismatched_sizes=True"
            )
        if WRITTEN_BY_TRANSFORMERS not in config_dict:
            training = training_of(config_dict)
            config_dict = {key: each for key, each in config_dict.items() if key in MODEL_FIELDS}
            config_dict |= {TRAINING: training} if training else {}
        return super().from_dict(dict(config_dict), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the values of config.json, without what is in answers.json and classes.json."""
        values = super().to_dict()
        for name in (*_NOT_IN_CONFIG, *(("id2label", "label2id") if self._answers else ())):
            values.pop(name, None)
        return values

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write config.json, and answers.json and classes.json unless they are empty."""
        for name, value in provenance().items():
            setattr(self, name, value)
        if not os.path.isfile(save_directory):  # noqa: PTH113 - what is no folder is named below
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            for name in ("answers", "classes"):
                path = Path(save_directory) / f"{name}.json"
                if texts := getattr(self, name):
                    write_json(path, list(texts))
                else:
                    path.unlink(missing_ok=True)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _check_model(values: Mapping[str, Any], where: str) -> None:
    if not isinstance(values.get("model", {}), dict):
        raise ValueError(f"{where}: model: expected an object, got {shown(values['model'])}")
