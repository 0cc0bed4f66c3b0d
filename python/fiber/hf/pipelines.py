"""Pipelines of transformers for phrases, classes, masks, questions and captions.

They run the methods of `fiber.inference.Model` and return the same numbers: the image encoder runs
once for an image, whatever the number of labels, and boxes are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline

from fiber.hf.processing import fiber_tokenizer
from fiber.inference import Model
from fiber.inference.inputs import IMAGES_AT_ONCE, as_list
from fiber.messages import shown, shown_names
from fiber.models.registry import inference_transform
from fiber.postprocess import Detections
from fiber.postprocess.segmentation import Segmentation

#: Arguments of pipelines of transformers that concern their own batches.
_OF_BATCHES = ("num_workers",)


class FiberVLPipeline(Pipeline):
    """Base class: calls a method of `fiber.inference.Model`.

    Args:
        args: see `Pipeline`.
        kwargs: see `Pipeline`, and options of the method for all calls.

    Raises:
        MissingHeadError: if the model lacks the head of the method.
        ValueError: if the image processor has another transform than the model.
    """

    _load_processor = False
    # If there is one, it is compared with the transform of the model.
    _load_image_processor = None
    _load_feature_extractor = False
    _load_tokenizer = True

    #: Method and head of the model.
    method: ClassVar[str]
    head: ClassVar[str]
    #: Names that an input may have for the texts, in calls and in mappings, the first preferred.
    text_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fiber_model = fiber_model(self.model, self.tokenizer)
        self._fiber_model.need_head(self.head, f"pipeline({self.task!r})")
        own = inference_transform(self._fiber_model.config).describe()
        given = getattr(self.image_processor, "transform", own)
        if given != own:
            differing = [name for name in own if given.get(name) != own[name]]
            raise ValueError(
                "image_processor: its transform differs from the model's in"
                f" {shown_names(differing)}; pipelines of fiber.hf use that of the model"
            )

    def __call__(self, images: Any, *texts: Any, **options: Any) -> Any:  # type: ignore[override]
        """Run the method.

        Args:
            images: an image (see `fiber.data.load_image`), or a mapping with `image` and the texts;
                a list of either; or a data set or generator of either, whose results are yielded
                one by one.
            texts: phrases, classes or questions, as the method takes them; also by keyword.
            options: `batch_size`, the number of images that are read at a time of data sets and
                generators, and options of the method.

        Returns:
            What `postprocess` makes of the result for an image, or a list of these.

        Raises:
            TypeError, ValueError: if an argument is missing, unknown or invalid. Errors are those
                of the method.
        """
        options = {**self._forward_params, **options}
        size = options.pop("batch_size", None) or self._batch_size or IMAGES_AT_ONCE
        for name in _OF_BATCHES:
            options.pop(name, None)
        texts = self._texts(texts, options)
        if _is_stream(images):
            return self._stream(images, texts, options, size)
        if isinstance(images, Mapping):
            return self._run([images], texts, options)[0]
        given, single = as_list(images)
        if not single:
            return self._run(given, texts, options)
        return self._run([images], texts, options)[0]

    def _texts(self, texts: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        """Return the texts of a call, at most one argument, and remove them from `options`."""
        named = [name for name in self.text_names if name in options]
        texts += tuple(options.pop(name) for name in named)
        if len(texts) > min(1, len(self.text_names)):
            allowed = f"{self.text_names[0]} once" if self.text_names else "no texts"
            raise TypeError(f"pipeline({self.task!r}): expected {allowed}, got {len(texts)}")
        return texts

    def _stream(
        self, inputs: Iterable[Any], texts: tuple[Any, ...], options: dict[str, Any], size: int
    ) -> Iterator[Any]:
        remaining = iter(inputs)
        while some := list(islice(remaining, size)):
            yield from self._run(some, texts, options)

    def _run(self, inputs: list[Any], texts: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
        """Return the result of each input."""
        images = inputs
        if any(isinstance(each, Mapping) for each in inputs):
            images, own = self._unpack(inputs)
            if own and texts:
                raise ValueError(
                    f"pipeline({self.task!r}): {self.text_names[0]} is given twice, in the inputs"
                    " and as an argument"
                )
            texts = texts or ((own,) if own else ())
        run: Callable[..., Any] = getattr(self._fiber_model, self.method)
        results = run(images, *texts, **options)
        return [self.postprocess(each) for each in results]

    def _unpack(self, inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        """Return the images and the texts of inputs that are mappings."""
        images, texts = [], []
        for index, each in enumerate(inputs):
            if not isinstance(each, Mapping) or "image" not in each:
                has = shown_names(list(each)) if isinstance(each, Mapping) else shown(each)
                raise ValueError(
                    f"inputs[{index}]: expected a mapping with 'image', as others are, got {has}"
                )
            images.append(each["image"])
            own = [each[name] for name in self.text_names if name in each]
            if len(own) > 1:
                raise ValueError(
                    f"inputs[{index}]: expected {self.text_names[0]} once, got {len(own)}"
                )
            # A list of bare texts would be one list for all images.
            texts += [self.as_texts(text) for text in own]
            if unknown := [name for name in each if name not in ("image", *self.text_names)]:
                raise ValueError(
                    f"inputs[{index}]: unknown fields {shown_names(unknown)}; expected"
                    f" {' and '.join(('image', *self.text_names[:1]))}"
                )
        if texts and len(texts) != len(images):
            raise ValueError(
                f"inputs: {len(texts)} of {len(images)} have {self.text_names[0]}; expected all"
            )
        return images, texts

    def as_texts(self, text: Any) -> Any:
        """Return the texts of an input that is a mapping, as the method takes them for an image."""
        return text

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        """Keep the options of the constructor for all calls."""
        return {}, options, {}

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> Any:
        """Return the inputs: the method of the model prepares them."""
        return {"inputs": input_}

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:
        """Run the method on the output of `preprocess`."""
        return self(input_tensors["inputs"], **forward_parameters)

    def postprocess(self, model_outputs: Any, **postprocess_parameters: Any) -> Any:
        """Return the result for an image."""
        return model_outputs


class _BoxPipeline(FiberVLPipeline):
    head = "grounding"

    def as_texts(self, text: Any) -> list[Any]:
        """Return a list of labels: of a single one, a list of one."""
        return list(text) if isinstance(text, (list, tuple)) else [text]

    def postprocess(
        self, model_outputs: Detections, **postprocess_parameters: Any
    ) -> list[dict[str, Any]]:
        """Return a dict for each box, as the stock pipeline for zero-shot detection has them.

        `score`, `label`, `box` with `xmin`, `ymin`, `xmax` and `ymax`, which are floats, half-open
        pixels of the original image, and `index` of the label in the list; and with `masks=True`
        `mask`, a PIL image that is white in it.
        """
        masks = model_outputs.masks
        return [
            {
                "score": float(score),
                "label": label,
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True)),
                "index": int(index),
                **({} if masks is None else {"mask": _mask_image(masks[number])}),
            }
            for number, (score, label, box, index) in enumerate(
                zip(
                    model_outputs.scores,
                    model_outputs.labels,
                    model_outputs.boxes_xyxy,
                    model_outputs.indices,
                    strict=True,
                )
            )
        ]


class GroundPipeline(_BoxPipeline):
    """Boxes for phrases: `pipeline("fiber-ground")`, `Model.ground`."""

    method = "ground"
    text_names = ("phrases", "candidate_labels")


class DetectPipeline(_BoxPipeline):
    """Boxes for classes, several in a prompt: `pipeline("fiber-detect")`, `Model.detect`."""

    method = "detect"
    text_names = ("classes", "candidate_labels")


class SegmentPipeline(FiberVLPipeline):
    """Masks of classes, or of phrases: `pipeline("fiber-segment")`, `Model.segment`.

    `classes=[...]` and `phrases=[...]` are options, and are those of all images.
    """

    method, head = "segment", "mask"

    def postprocess(
        self, model_outputs: Segmentation, **postprocess_parameters: Any
    ) -> list[dict[str, Any]]:
        """Return a dict for each segment, as the stock pipeline for segmentation has them.

        `score`, `label`, and `mask`, a PIL image of the size of the original that is white in it.
        """
        return [
            {"score": float(score), "label": label, "mask": _mask_image(mask)}
            for score, label, mask in zip(
                model_outputs.scores, model_outputs.labels, model_outputs.masks, strict=True
            )
        ]


class AnswerPipeline(FiberVLPipeline):
    """Answers to questions: `pipeline("fiber-answer")`, `Model.answer`."""

    method, head = "answer", "vqa"
    text_names = ("questions", "question")

    def postprocess(
        self, model_outputs: Any, **postprocess_parameters: Any
    ) -> list[dict[str, Any]]:
        """Return a dict with `answer` and `score` for each of the best answers."""
        return [{"answer": found.answer, "score": found.score} for found in model_outputs]


class CaptionPipeline(FiberVLPipeline):
    """Captions: `pipeline("fiber-caption")`, `Model.caption`."""

    method, head = "caption", "caption"

    def postprocess(
        self, model_outputs: str, **postprocess_parameters: Any
    ) -> list[dict[str, str]]:
        """Return a list of one dict, with `generated_text`."""
        return [{"generated_text": model_outputs}]


#: Pipelines by the task that `transformers.pipeline` takes.
PIPELINES: dict[str, type[FiberVLPipeline]] = {
    "fiber-ground": GroundPipeline,
    "fiber-detect": DetectPipeline,
    "fiber-segment": SegmentPipeline,
    "fiber-answer": AnswerPipeline,
    "fiber-caption": CaptionPipeline,
}


def _mask_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def fiber_model(model: Any, tokenizer: Any = None) -> Model:
    """Return a model of `fiber.hf` as a `fiber.inference.Model`, which shares its network.

    Args:
        model: model of `fiber.hf`.
        tokenizer: fast tokenizer of transformers.

    Raises:
        TypeError: if the model is none of `fiber.hf`.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "answers") or not hasattr(model, "network"):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a model of fiber.hf, such as"
            " AutoModel.from_pretrained(folder)"
        )
    return Model(
        model.network,
        None if tokenizer is None else fiber_tokenizer(tokenizer),
        config.answers,
        classes=config.classes,
        dtype=next(model.network.parameters()).dtype,
    )


def _is_stream(inputs: Any) -> bool:
    """Check for what `Pipeline` reads one by one: generators and data sets."""
    is_dataset = isinstance(inputs, torch.utils.data.Dataset)
    return is_dataset or (isinstance(inputs, Iterator) and not hasattr(inputs, "read"))
