"""Records -> one batch: what the loader does again and again; a `collate_fn` for torch's loader.

A `Collator` owns the Rust threads; it can be sent to other processes and lives through forks.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fiber import _core
from fiber._core import ColorJitter, ImageTransform, RandAugment, Tokenizer
from fiber.data.arguments import check_arguments
from fiber.data.batch import (
    Batch,
    GroundingBatch,
    ImageTextBatch,
    QuestionBatch,
    ReasoningBatch,
    Skipped,
)
from fiber.data.record import Record, check_record

BatchType = Literal["image_text", "question", "reasoning", "grounding"]
ImageDtype = Literal["float32", "float16", "bfloat16", "uint8"]
_BATCH_CLASSES: dict[str, type[Batch]] = {
    "image_text": ImageTextBatch,
    "question": QuestionBatch,
    "reasoning": ReasoningBatch,
    "grounding": GroundingBatch,
}
_DTYPES = {
    "uint8": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int64": torch.int64,
    "bool": torch.bool,
}
#: Epochs that a call without one draws from.
_EPOCHS = 2**31


class Collator:
    """Turns records into a batch, in one call: `torch.utils.data.DataLoader(..., collate_fn=...)`.

    Random draws depend on (seed, epoch, place in the batch). A call without an epoch draws one from
    torch's generator, as torchvision's transforms do, so that they follow `torch.manual_seed` and
    the seeds of torch's worker processes.

    Args:
        batch_type: Which batch class comes out: "image_text", "question", "reasoning" (two
            pictures a record) or "grounding".
        tokenizer: Turns text into tokens; of any kind (docs/loader.md).
        transform: What happens to pictures and boxes.
        max_tokens: Longest text in tokens, what stands around every text included (<s> and </s>);
            longer ones are cut.
        answers: Answer vocabulary of "question".
        seed: Start of every random draw.
        mlm_probability: Part of the words that "image_text" picks for masking; 0 with a tokenizer
            that has no mask token.
        threads: Threads that work on one call; 0 means one for each core.
        on_error: What a bad sample does: "raise", "skip" (it is left out, and stands in the
            batch's `skipped`), "resample" (`DataLoader` only).
        accept_truncated: Take pictures of which a part is missing; see `DataLoader`.
        scaled_decoding: Decode large JPEGs smaller; see `DataLoader`.
        apply_orientation: Turn pictures as EXIF says; see `DataLoader`.
        background: Colour that transparent pictures are laid over; see `DataLoader`.
        image_dtype: What pictures are stored as; see `DataLoader`.
        channels_last: Where their values stand; see `DataLoader`.
        keep: Batches whose memory is kept for later ones.

    Raises:
        TypeError: for an argument of another type, by name.
        ValueError: for an argument outside its range, by name.
    """

    def __init__(
        self,
        batch_type: BatchType,
        *,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        max_tokens: int,
        answers: Sequence[str] = (),
        seed: int = 0,
        mlm_probability: float = 0.15,
        threads: int = 1,
        on_error: Literal["raise", "skip", "resample"] = "raise",
        accept_truncated: bool = False,
        scaled_decoding: bool = False,
        apply_orientation: bool = False,
        background: Sequence[int] | None = None,
        image_dtype: ImageDtype = "float32",
        channels_last: bool = False,
        keep: int = 2,
    ) -> None:
        check_arguments(
            batch_type=batch_type,
            tokenizer=tokenizer,
            transform=transform,
            max_tokens=max_tokens,
            answers=answers,
            seed=seed,
            mlm_probability=mlm_probability,
            threads=threads,
            accept_truncated=accept_truncated,
            scaled_decoding=scaled_decoding,
            apply_orientation=apply_orientation,
            background=background,
            image_dtype=image_dtype,
            channels_last=channels_last,
            keep=keep,
        )
        if on_error not in ("raise", "skip", "resample"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise', 'skip' or 'resample'")
        if batch_type == "reasoning" and not transform.is_square:
            raise ValueError(
                f"a record of 'reasoning' has two pictures, which {transform} would give different"
                " sizes; expected a transform with one size"
            )
        self.batch_type = batch_type
        self.answers = tuple(answers)
        self._answer_index = {answer: index for index, answer in enumerate(self.answers)}
        if len(self._answer_index) < len(self.answers):
            twice = next(a for i, a in enumerate(self.answers) if self._answer_index[a] != i)
            raise ValueError(f"answers holds {twice!r} more than once; expected each answer once")
        self._settings: dict[str, Any] = {
            "batch_type": batch_type,
            "tokenizer": tokenizer,
            "transform": transform,
            "max_tokens": max_tokens,
            "seed": seed,
            "mlm_probability": mlm_probability,
            "mirrored_answers": [self._mirrored_answer(answer) for answer in self.answers],
            "threads": threads,
            "keep": keep,
            "on_error": on_error,
            "accept_truncated": accept_truncated,
            "scaled_decoding": scaled_decoding,
            "apply_orientation": apply_orientation,
            "background": None if background is None else tuple(background),
            "dtype": image_dtype,
            "layout": "hwc" if channels_last else "chw",
        }
        self._core, self._process = _core.Loader(**self._settings), os.getpid()

    def __call__(self, records: Sequence[Record], *, epoch: int | None = None) -> Batch:
        """Make a batch.

        Args:
            records: What it holds, in this order.
            epoch: What the random draws depend on beside the seed and the place in the batch.

        Raises:
            DecodeError, FileNotFoundError, ValueError: for the first bad record, with its key,
                where `on_error` is "raise".
            MemoryError: for a batch too large for memory, whatever `on_error` is.
        """
        if epoch is None:
            epoch = int(torch.randint(_EPOCHS, ()))
        session = self.open()
        session.submit([self.plain(record, epoch, at) for at, record in enumerate(records)])
        found = session.next()
        if not isinstance(found, dict):
            raise ValueError("on_error is 'resample', which DataLoader alone can do")
        for count in ("truncated_boxes", "cropped_boxes"):
            found.pop(count)
        return self.finish(found)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core": None, "_process": -1}

    def open(self) -> _core.Session:
        """Begin a pass; in another process than before with threads of its own."""
        if self._core is None or self._process != os.getpid():
            # Threads do not survive a fork.
            self._core, self._process = _core.Loader(**self._settings), os.getpid()
        return self._core.open()

    def close(self) -> None:
        """Let the threads go; a pass after that starts new ones."""
        self._core, self._process = None, -1

    @property
    def picture_bytes(self) -> tuple[int, int]:
        """Bytes of pictures in batches that are held now, and the most that there ever were."""
        return (0, 0) if self._core is None else self._core.picture_bytes

    def plain(self, record: Record, epoch: int, index: int) -> tuple[Any, ...]:
        """Give the parts of a record that Rust takes."""
        check_record(record, index)
        answers = None
        if record.answers is not None:
            known = self._answer_index
            answers = [(known[a], score) for a, score in record.answers.items() if a in known]
        return (
            record.key,
            epoch,
            index,
            # Those of some sources are read here, where a fault is one of the record.
            tuple(record.images),
            record.text,
            record.image_id,
            record.boxes_xyxy,
            record.char_spans,
            answers,
            record.truth,
            record.image_size,
        )

    def finish(self, fields: dict[str, Any], *, pin_memory: bool = False) -> Batch:
        """Make the batch of what a session gave, but for what it counts."""
        keys, statuses = tuple(fields.pop("keys")), tuple(fields.pop("statuses"))
        skipped = tuple(Skipped(*bad) for bad in fields.pop("skipped"))
        tensors = {name: _to_tensor(value) for name, value in fields.items()}
        if self._settings["layout"] == "hwc":
            # (B, H, W, 3) -> (B, 3, H, W), with the channels last in memory.
            tensors["images"] = tensors["images"].movedim(-1, -3)
        if pin_memory:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        batch_class = _BATCH_CLASSES[self.batch_type]
        return batch_class(keys=keys, statuses=statuses, skipped=skipped, **tensors)

    def _mirrored_answer(self, answer: str) -> int:
        """Index of the answer that is right in a mirrored picture."""
        mirrored, _ = _core.mirror_words(answer)
        return self._answer_index.get(mirrored, self._answer_index[answer])


def _to_tensor(buffer: _core.Buffer) -> Tensor:
    """Share a buffer's memory with torch."""
    dtype = _DTYPES[buffer.dtype]
    if 0 in buffer.shape:
        return torch.empty(buffer.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(buffer.shape)


def _transform_of(settings: dict[str, Any]) -> ImageTransform:
    """Make the transform that `ImageTransform.describe` describes."""
    settings = dict(settings)
    if settings["color_jitter"] is not None:
        settings["color_jitter"] = _color_jitter_of(settings["color_jitter"])
    if settings["rand_augment"] is not None:
        settings["rand_augment"] = _rand_augment_of(settings["rand_augment"])
    if "crop_scale" in settings:
        settings["crop_scale"] = tuple(settings["crop_scale"])
    kind = settings.pop("kind")
    if kind == "squash":
        del settings["flip_probability"]
    return getattr(ImageTransform, kind)(**settings)


def _color_jitter_of(ranges: dict[str, Any]) -> ColorJitter:
    return ColorJitter(**{name: tuple(span) for name, span in ranges.items()})


def _rand_augment_of(settings: dict[str, Any]) -> RandAugment:
    return RandAugment(**settings)


# Worker processes that are not forked get the collator, and what data sets hold, by pickle.
copyreg.pickle(ImageTransform, lambda transform: (_transform_of, (transform.describe(),)))
copyreg.pickle(ColorJitter, lambda jitter: (_color_jitter_of, (jitter.describe(),)))
copyreg.pickle(RandAugment, lambda augment: (_rand_augment_of, (augment.describe(),)))
