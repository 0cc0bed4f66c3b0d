"""`Annotator`: one task of a model on batches of images, as engines for large data call it."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fiber.bulk.tasks import Columns, find_bulk_task
from fiber.checkpoints.stages import model_path, packaged_name
from fiber.config_io import nearest
from fiber.data import load_image
from fiber.data.text_lengths import is_longer
from fiber.env import cores_per_process
from fiber.messages import shown, shown_names

#: Options of `fiber.load`.
_LOADING = (
    *("device", "dtype", "tokenizer", "answers", "image_size", "weights", "base"),
    *("max_pixels", "max_decode_bytes"),
)
#: Limits of decoding an image among them.
_LIMITS = ("max_pixels", "max_decode_bytes")
#: What an image or a text of one record may fail with.
ROW_ERRORS = (OSError, TypeError, ValueError)
#: Texts of a kind that are lists.
_LISTS = ("phrases", "classes")


def _absolute(value: Any) -> Any:
    """Return the absolute path of a file or folder that exists, and any other value as it is."""
    is_path = isinstance(value, (str, os.PathLike)) and os.path.lexists(value)
    return Path(value).resolve() if is_path else value


def _absolute_model(model: Any) -> Any:
    # A folder may have the name of a model in the package, without being one.
    is_path = isinstance(model, (str, os.PathLike)) and os.path.lexists(model)
    return model if is_path and packaged_name(model_path(model)) else _absolute(model)


class Annotator:
    """A task of a model on batches: a function of a dict of arrays that can be pickled.

    The model is loaded on the first call, so that engines such as Ray Data and Daft can send an
    `Annotator` to their workers. A record that fails has its reason in the column "error", and the
    others of its batch are not affected.

    Args:
        model: path or name of a model, as for `fiber.load`, or a model. With a model, the annotator
            cannot be pickled. None for "hash".
        task: "embed", "hash", "caption", "ground", "detect", "answer", "match" or "segment".
        options: for all records: a `question` ("answer"), a `text` ("match"), `phrases` ("ground",
            "segment"), a `caption` ("ground") or `classes` ("detect", "segment"); options of the
            model's method, such as `top_k` or `score_threshold`; options of `fiber.load`, such as
            `device`.

    Raises:
        TypeError: if an option is unknown, or is for loading and the model is loaded; if the task
            needs a model and there is none.
        ValueError: if the task is unknown, or two kinds of texts are given.
    """

    def __init__(self, model: Any, task: str, **options: Any) -> None:
        self.task = find_bulk_task(task)
        if (model is None) != (self.task.method is None):
            needs = "needs a model, got none" if model is None else "takes no model"
            raise TypeError(f"Annotator: {task} {needs}")
        is_path = isinstance(model, (str, os.PathLike))
        known = (*self.task.texts, *self.task.options, *(_LOADING if is_path else _LIMITS))
        for name in options:
            if name not in known:
                raise TypeError(
                    f"Annotator: {task} takes no option {name!r}; {nearest(name, known)}"
                )
        texts = [name for name in self.task.texts if options.get(name) is not None]
        if len(texts) > 1:
            raise ValueError(f"Annotator: expected one of {shown_names(texts)}, got both")
        #: The kind of text for all records, and that text.
        self.shared = {name: _as_text(name, options[name]) for name in texts}
        self.options = {
            name: value
            for name, value in options.items()
            if name in self.task.options and value is not None
        }
        self._loading = {
            name: value for name, value in options.items() if name in _LOADING and value is not None
        }
        self._source: Any = model
        self._model: Any = None if is_path else model
        self._pool: ThreadPoolExecutor | None = None
        self._is_thread = False

    def __getstate__(self) -> dict[str, Any]:
        if self.task.method is not None and not isinstance(self._source, (str, os.PathLike)):
            raise TypeError(
                "an Annotator of a loaded model cannot be pickled; pass the path of the model"
                " instead: Annotator('runs/demo', task)"
            )
        return {**self.__dict__, "_model": None, "_pool": None}

    def with_absolute_paths(self) -> Annotator:
        """Return the same annotator for a process with another working directory."""
        own = object.__new__(type(self))
        own.__dict__.update(self.__dict__)
        own._source = _absolute_model(self._source)
        own._loading = {**self._loading}
        for name, absolute in (
            ("base", _absolute_model),
            ("tokenizer", _absolute),
            ("answers", _absolute),
        ):
            if name in own._loading:
                own._loading[name] = absolute(own._loading[name])
        return own

    @property
    def name(self) -> str:
        """Path or name of the model."""
        is_path = isinstance(self._source, (str, os.PathLike))
        return (
            os.fspath(self._source) if is_path else str(getattr(self.model, "origin", self.model))
        )

    @property
    def limits(self) -> dict[str, Any]:
        """Limits of decoding one image that were given; see `fiber.data.load_image`."""
        return {name: self._loading[name] for name in _LIMITS if name in self._loading}

    @property
    def model(self) -> Any:
        """The model, which is loaded on first use."""
        if self._model is None and self.task.method is not None:
            from fiber.inference.load import load

            self._model = load(self._source, **self._loading)
        return self._model

    @property
    def stage(self) -> Any:
        """The model of the stage with the task's head; None if the task needs no model.

        Raises:
            MissingHeadError: if the model lacks the head.
        """
        model, heads = self.model, self.task.heads
        if not heads:
            return None
        head = next((head for head in heads if head in model.heads), heads[0])
        if hasattr(model, "stages"):
            return model.with_head(head, self.task.name)
        model.need_head(head, self.task.name)
        return model

    @property
    def vector_width(self) -> int | None:
        """Width of the vectors of the task, or None if it has none."""
        if "vector" not in self.task.columns.values():
            return None
        return self.task.width or self.stage.network.embedding_width

    def check(self, kind: str | None = None) -> None:
        """Run the task on a gray image, so that errors of the model and the options are raised.

        Args:
            kind: the kind of text that records have, if they have one.

        Raises:
            MissingHeadError: if the model lacks the head of the task.
            TypeError, ValueError: as of the method of the model.
        """
        batch: dict[str, Any] = {"image": [np.full((64, 64, 3), 128, np.uint8)]}
        if kind is not None:
            batch[kind] = [["a circle"] if kind in _LISTS else "a circle"]
        stage, texts = self.stage, self._texts(batch, 1)
        self.task.run(stage, batch["image"], texts, self.options)

    def for_thread(self) -> Annotator:
        """Return a copy for a thread. It shares the weights, decodes images itself, and keeps no
        features of the texts of records, so that results of a batch depend on that batch only.
        """
        # Not `copy.copy`, which pickles.
        own = object.__new__(type(self))
        own.__dict__.update(self.__dict__)
        own._source, own._pool, own._is_thread = None, None, True
        if self.task.method is not None:
            own._model = copy.copy(self.stage)
            own._model._start_boxes()
        return own

    def decode(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Decode the images of a batch on threads, for a later call.

        Returns:
            The batch with a list of uint8 arrays (H, W, 3) or, with alpha, (H, W, 4) as "image",
            and the error instead of an image that cannot be decoded.

        Raises:
            ValueError: if the batch has no images.
        """
        if "image" not in batch:
            raise ValueError(
                f"Annotator: the batch has no column 'image'; it has {shown_names([*batch])}"
            )
        limits = self.limits

        def load(image: Any) -> Any:
            if isinstance(image, Exception):
                return image
            try:
                array = load_image(image, keep_alpha=True, **limits)
                if not array.size:
                    raise ValueError(f"image of shape {array.shape} has no pixels")
            except ROW_ERRORS as error:
                return error
            return array

        if self._is_thread:
            return {**batch, "image": list(map(load, batch["image"]))}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(cores_per_process(), "decode")
        return {**batch, "image": list(self._pool.map(load, list(batch["image"])))}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run the task on a batch.

        Args:
            batch: arrays or lists of one value for each of n records. "image": paths, encoded
                bytes, or uint8 arrays; or what `decode` returned. Without a text for all records,
                the column of a kind of text: "question", "text", "caption", or "phrases" and
                "classes" with a list of texts. A "caption" may have "spans" of its phrases. Other
                columns are handed on.

        Returns:
            The columns of the batch but "image", and those of the task (docs/bulk.md); "height" and
            "width" of the images in pixels, int32, 0 if not decoded; "truncated", bool, True if the
            text had more tokens than the model takes; "error", the reason or None. Columns of a
            record with an error are None; its "embedding" is 0.

        Raises:
            MissingHeadError: if the model lacks the head of the task.
            ValueError: if the batch has no images, or no texts although the task needs them.
        """
        images = self.decode(batch)["image"]
        count = len(images)
        texts = self._texts(batch, count)
        errors: list[str | None] = [None] * count
        for row, image in enumerate(images):
            if isinstance(image, Exception):
                errors[row] = reason_of(image)
            else:
                errors[row] = _text_problem(texts, row)
        stage = self.stage
        rows = [row for row in range(count) if errors[row] is None]
        if self._is_thread:
            found = self._run(stage, images, texts, rows, errors)
        else:
            with without_truncation_warnings():
                found = self._run(stage, images, texts, rows, errors)
        sizes = [(0, 0) if isinstance(each, Exception) else each.shape[:2] for each in images]
        out = {name: _as_array(values) for name, values in batch.items() if name != "image"}
        for name, kind in self.task.columns.items():
            values: list[Any] = [None] * count
            for row, value in found.get(name, {}).items():
                values[row] = value
            is_vector = kind == "vector"
            out[name] = _vectors(values, self.vector_width) if is_vector else _as_array(values)
        out["height"] = np.array([size[0] for size in sizes], np.int32)
        out["width"] = np.array([size[1] for size in sizes], np.int32)
        out["truncated"] = self._truncated(stage, texts, errors)
        out["error"] = _as_array(errors)
        return out

    def _texts(self, batch: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
        """Return the texts of each record, by kind."""
        if self.shared:
            return {name: [text] * count for name, text in self.shared.items()}
        for name in self.task.texts:
            if name in batch:
                texts = {name: [_plain(each) for each in batch[name]]}
                if name == "caption" and "spans" in batch:
                    texts["spans"] = [_plain(each) for each in batch["spans"]]
                return texts
        # The model may have classes of its own.
        lacks_classes = "classes" in self.task.texts and not self.stage.classes
        if lacks_classes or not self.task.may_lack_texts:
            raise ValueError(
                f"Annotator: {self.task.name} needs {' or '.join(self.task.texts)}, for all records"
                f" as an option or as a column; the batch has {shown_names([*batch])}"
            )
        return {}

    def _run(
        self,
        stage: Any,
        images: list[Any],
        texts: Mapping[str, list[Any]],
        rows: Sequence[int],
        errors: list[str | None],
    ) -> dict[str, dict[int, Any]]:
        """Return the values of each column by row; note errors of records in `errors`."""
        if not rows:
            return {}
        own = {name: [values[row] for row in rows] for name, values in texts.items()}
        if self._is_thread and texts and not self.shared:
            stage._start_boxes()
        try:
            columns: Columns = self.task.run(stage, [images[r] for r in rows], own, self.options)
        except ROW_ERRORS as error:
            if len(rows) == 1:
                errors[rows[0]] = reason_of(error)
                return {}
            # One record made the batch fail, so each is computed alone.
            found: dict[str, dict[int, Any]] = {}
            for row in rows:
                for name, values in self._run(stage, images, texts, [row], errors).items():
                    found.setdefault(name, {}).update(values)
            return found
        return {name: dict(zip(rows, values, strict=True)) for name, values in columns.items()}

    def _truncated(
        self, stage: Any, texts: Mapping[str, list[Any]], errors: Sequence[str | None]
    ) -> np.ndarray:
        """Return (n,) bools: the text of the record has more tokens than the model takes."""
        out = np.zeros(len(errors), bool)
        if not self.task.truncates:
            return out
        inputs, known = stage._inputs, dict[str, bool]()
        for name in self.task.texts:
            for row, value in enumerate(texts.get(name, ())):
                for text in (
                    () if errors[row] is not None else [value] if name not in _LISTS else value
                ):
                    if text not in known:
                        tokenizer, cleaned = inputs.needed_tokenizer(), inputs.cleaned(text)
                        known[text] = is_longer(cleaned, tokenizer, inputs.max_tokens)
                    out[row] |= known[text]
        return out


@contextmanager
def without_truncation_warnings() -> Iterator[None]:
    """Hide the warnings of truncated texts, of which there may be millions; they are counted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"text [\s\S]* truncated to the model", UserWarning)
        yield


def reason_of(error: BaseException) -> str:
    """Return the message of an error, with the file of an error of the system."""
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{named}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _as_text(name: str, value: Any) -> Any:
    """Return the text for all records: a list of texts for kinds that are lists."""
    if name in _LISTS:
        return [value] if isinstance(value, str) else list(value)
    if not isinstance(value, str):
        raise TypeError(f"Annotator: {name} must be a str, got {shown(value)}")
    return value


def _text_problem(texts: Mapping[str, list[Any]], row: int) -> str | None:
    """Return why the text of a record cannot be used, or None."""
    for name, values in texts.items():
        if values[row] is None or (name in _LISTS and not values[row]):
            return f"the record has no {name}"
    return None


def _plain(value: Any) -> Any:
    """Convert an array of a batch, such as Arrow's, to a list."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _as_array(values: Any) -> np.ndarray:
    """Return an array with one item for each record; lists become an array of objects."""
    if isinstance(values, np.ndarray):
        return values
    out = np.empty(len(values), object)
    for row, value in enumerate(values):
        out[row] = value
    return out


def _vectors(values: Sequence[np.ndarray | None], width: int | None) -> np.ndarray:
    """Stack vectors to (n, D) float32; None becomes 0."""
    out = np.zeros((len(values), width or 0), np.float32)
    for row, value in enumerate(values):
        if value is not None:
            out[row] = value
    return out
