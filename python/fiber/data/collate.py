"""Collate records into a batch, inside `DataLoader` or as the `collate_fn` of torch's loader.

A `Collator` owns the Rust threads. It can be pickled and survives forks.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from fiber import _core
from fiber._core import ColorJitter, ImageTransform, RandAugment
from fiber.data.batch import (
    Batch,
    GroundingBatch,
    GroundingMasksBatch,
    ImageTextBatch,
    QuestionBatch,
    ReasoningBatch,
    SegmentationBatch,
    Skipped,
)
from fiber.data.loader_config import BatchType, CollatorConfig, CollatorOptions, check_arguments
from fiber.data.masks.codec import loaded_map
from fiber.data.masks.mask import IdMap
from fiber.data.record import Record, check_record

_BATCH_CLASSES: dict[str, type[Batch]] = {
    "image_text": ImageTextBatch,
    "question": QuestionBatch,
    "reasoning": ReasoningBatch,
    "grounding": GroundingBatch,
    "grounding_masks": GroundingMasksBatch,
    "segmentation": SegmentationBatch,
}
_DTYPES = {
    "uint8": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int64": torch.int64,
    "bool": torch.bool,
}
#: Counters of a session's result.
COUNTS = (
    *("truncated_boxes", "cropped_boxes", "emptied_masks"),
    *("truncated_texts", "wordless_texts"),
)
#: Exclusive upper bound of the epoch sampled by a call without an epoch.
_EPOCHS = 2**31


class Collator:
    """Turn records into a batch, for example as `collate_fn` of `torch.utils.data.DataLoader`.

    Random numbers depend on (seed, epoch, position in the batch). A call without an epoch samples
    the epoch from torch's generator, which torchvision's transforms also use, so results follow
    `torch.manual_seed` and the seeds of torch's worker processes.

    Args:
        batch_type: Class of the batches; see `CollatorConfig`.
        keep: Number of batches whose memory is kept for reuse.
        options: `tokenizer`, `transform`, `max_tokens` and the other options of `CollatorConfig`.

    Attributes:
        config: The validated options.
    """

    def __init__(
        self, batch_type: BatchType, *, keep: int = 2, **options: Unpack[CollatorOptions]
    ) -> None:
        check_arguments(keep=keep)
        self.config = config = CollatorConfig(batch_type=batch_type, **options)
        self._answer_index = {answer: index for index, answer in enumerate(config.answers)}
        core: dict[str, Any] = {**vars(config), "keep": keep}
        core["dtype"] = core.pop("image_dtype")
        core["layout"] = "hwc" if core.pop("channels_last") else "chw"
        # Index of the correct answer for the horizontally flipped image.
        core["mirrored_answers"] = [
            self._answer_index.get(_core.mirror_words(answer)[0], index)
            for index, answer in enumerate(core.pop("answers"))
        ]
        self._core_options = core
        self._core, self._process = _core.Loader(**self._core_options), os.getpid()

    def __call__(self, records: Sequence[Record], *, epoch: int | None = None) -> Batch:
        """Collate records.

        Raises:
            DecodeError, FileNotFoundError, ValueError: if a record is bad and `on_error` is
                "raise"; the error names the key of the first bad record.
            MemoryError: if the batch does not fit in memory, regardless of `on_error`.
        """
        if epoch is None:
            epoch = int(torch.randint(_EPOCHS, ()))
        session = self.open()
        session.submit([self.to_core(record, epoch, at) for at, record in enumerate(records)])
        found = session.next()
        if not isinstance(found, dict):
            raise ValueError(
                "on_error is 'resample', which only DataLoader supports; expected 'raise' or 'skip'"
            )
        for name in COUNTS:
            found.pop(name)
        return self.finish(found)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core": None, "_process": -1}

    def open(self) -> _core.Session:
        """Start a session, and start the threads if they are not running in this process."""
        if self._core is None or self._process != os.getpid():
            # Threads do not survive a fork.
            self._core, self._process = _core.Loader(**self._core_options), os.getpid()
        return self._core.open()

    def close(self) -> None:
        """Release the threads. The next session starts new ones."""
        self._core, self._process = None, -1

    @property
    def image_bytes(self) -> tuple[int, int]:
        """Current and peak size of the image memory held by live batches, in bytes."""
        return (0, 0) if self._core is None else self._core.image_bytes

    def to_core(self, record: Record, epoch: int, index: int) -> _core.LoaderRecord:
        """Convert a record for Rust."""
        check_record(record, index)
        known, answers = self._answer_index, record.answers
        if answers is not None:
            answers = [(known[a], score) for a, score in answers.items() if a in known]
        # Lazy images are read here, so that errors name this record.
        images, masks = tuple(record.images), record.masks
        if self.config.batch_type not in ("segmentation", "grounding_masks"):
            masks = ()
        elif isinstance(masks, IdMap):
            masks = loaded_map(masks)
        return _core.LoaderRecord.from_record(
            record, epoch=epoch, index=index, images=images, answers=answers, masks=masks
        )

    def finish(self, fields: dict[str, Any], *, pin_memory: bool = False) -> Batch:
        """Build a batch from a session's result, whose counters the caller has removed."""
        keys, statuses = tuple(fields.pop("keys")), tuple(fields.pop("statuses"))
        skipped = tuple(Skipped(*bad) for bad in fields.pop("skipped"))
        samples = tuple(fields.pop("samples", ()))
        tensors = {name: _to_tensor(value) for name, value in fields.items()}
        if self.config.channels_last:
            # (B, H, W, 3) -> (B, 3, H, W), with channels last in memory.
            tensors["images"] = tensors["images"].movedim(-1, -3)
        if pin_memory:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        batch_class = _BATCH_CLASSES[self.config.batch_type]
        return batch_class(
            keys=keys, statuses=statuses, skipped=skipped, samples=samples, **tensors
        )


def _to_tensor(buffer: _core.Buffer) -> Tensor:
    """Wrap a buffer as a tensor without copying."""
    dtype = _DTYPES[buffer.dtype]
    if 0 in buffer.shape:
        return torch.empty(buffer.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(buffer.shape)


def transform_of(settings: dict[str, Any]) -> ImageTransform:
    """Create a transform from the output of `ImageTransform.describe`."""
    settings = dict(settings)
    for name, make in (("color_jitter", _to_color_jitter), ("rand_augment", _to_rand_augment)):
        if settings[name] is not None:
            settings[name] = make(settings[name])
    for name in ("crop_scale", "scale"):
        if name in settings:
            settings[name] = tuple(settings[name])
    kind = settings.pop("kind")
    if kind in ("squash", "center_crop"):
        del settings["flip_probability"]
    return getattr(ImageTransform, kind)(**settings)


def _to_color_jitter(ranges: dict[str, Any]) -> ColorJitter:
    return ColorJitter(**{name: tuple(span) for name, span in ranges.items()})


def _to_rand_augment(settings: dict[str, Any]) -> RandAugment:
    return RandAugment(**settings)


# Spawned worker processes receive pickled copies of the collator and the dataset.
copyreg.pickle(ImageTransform, lambda transform: (transform_of, (transform.describe(),)))
copyreg.pickle(ColorJitter, lambda jitter: (_to_color_jitter, (jitter.describe(),)))
copyreg.pickle(RandAugment, lambda augment: (_to_rand_augment, (augment.describe(),)))
