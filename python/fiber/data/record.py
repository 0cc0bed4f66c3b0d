"""Records, the samples of a dataset before anything is decoded.

A dataset is any map-style collection of `Record` (`__len__` and `__getitem__`), such as a list.
"""

from __future__ import annotations

import operator
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

from fiber.data.char_spans import CharSpan, whole_characters
from fiber.data.masks.mask import Masks, count_masks, masks_problem
from fiber.messages import shown

if TYPE_CHECKING:
    from fiber.data.storage.shard_order import ShardMap

AnyPath = str | PathLike[str]
#: An undecoded image: the path of a file, or its content.
StoredImage = AnyPath | bytes
#: Maximum magnitude of a box coordinate, and maximum height and width of an image, in pixels.
MAX_COORDINATE, MAX_SIDE = 2**53, 2**31 - 1


class LazyImages(Sequence[StoredImage]):
    """Images of a record that are read on access, so texts can be read without them.

    `read` returns the image at a location and must be thread-safe. Instances with the same function
    and locations compare equal.
    """

    def __init__(self, read: Callable[[Any], StoredImage], locations: tuple[Hashable, ...]) -> None:
        self._read = read
        self.locations = locations

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyImages(self._read, self.locations[index])
        return self._read(self.locations[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LazyImages):
            return NotImplemented
        return self.locations == other.locations and self._read == other._read

    def __hash__(self) -> int:
        return hash((self._read, self.locations))

    def __repr__(self) -> str:
        return f"LazyImages{self.locations!r}"


@dataclass(frozen=True, kw_only=True)
class TrueObjects:
    """All annotated objects of an image, for metrics.

    Boxes that training drops or clips (crowd boxes, empty boxes, boxes beyond the image border) are
    included unchanged.
    """

    #: (x0, y0, x1, y1), half-open pixel coordinates in the stored image.
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    #: Index into `Record.labels` of each box.
    labels: tuple[int, ...] = ()
    #: Area of each object in square pixels.
    areas: tuple[float, ...] = ()
    #: True for boxes around a crowd.
    crowd: tuple[bool, ...] = ()
    #: Indices into `Record.labels` of classes verified to be absent; None means all classes without
    #: a box.
    absent: frozenset[int] | None = None
    #: Indices into `Record.labels` of classes that are not exhaustively annotated.
    incomplete: frozenset[int] = frozenset()


class SharedSpans(tuple[tuple[CharSpan, ...], ...]):
    """Label spans that many records share, such as those of all classes; checked only once."""

    #: Text for which they have been checked.
    checked_text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One or two images with a text and their annotations.

    Only `key`, `images` and `text` are always required; tasks raise an error if another field that
    they need is missing.

    Raises:
        TypeError, ValueError: if a field is invalid; the error names the record's key.
    """

    #: Name of the record in messages and prediction files, unique in its dataset.
    key: str
    #: One image, or two (left, right) for NLVR2-style statements.
    images: tuple[StoredImage, ...] | LazyImages
    #: Caption, question, statement or prompt.
    text: str
    #: Shared by records with the same image. Default: the key.
    image_id: str = ""
    #: (height, width) in pixels according to the annotations; None if not given.
    image_size: tuple[int, int] | None = None
    #: Boxes (x0, y0, x1, y1) in half-open pixel coordinates of the stored image.
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    #: For each box, the spans of `text` that name it.
    char_spans: tuple[tuple[CharSpan, ...], ...] = ()
    #: For each box, its index in `labels`; used by metrics only.
    box_labels: tuple[int, ...] = ()
    #: Phrases or class names.
    labels: tuple[str, ...] = ()
    #: For each label, with or without boxes, the spans of `text` that name it.
    label_spans: tuple[tuple[CharSpan, ...], ...] = ()
    #: For each label, its id in the annotation file, used in result files.
    label_ids: tuple[int, ...] = ()
    #: For each label, its group in metrics, such as "r", "c" or "f" in LVIS.
    label_groups: tuple[str, ...] = ()
    #: Ground truth for detection metrics; None means `boxes_xyxy`.
    objects: TrueObjects | None = None
    #: Answers with their soft scores in [0, 1] (VQA).
    answers: Mapping[str, float] | None = None
    #: Raw answer of each annotator (ten in VQAv2), for the two published accuracies.
    human_answers: tuple[str, ...] = ()
    #: True if the statement is true for the images (NLVR2), or if image and text match.
    truth: bool | None = None
    #: Group of the record in metrics, such as its question type.
    group: str = ""
    #: Masks of the first image, as stored; see `fiber.data.masks.mask`.
    masks: Masks = ()
    #: For each mask, its index in `labels`.
    mask_labels: tuple[int, ...] = ()
    #: For each mask, whether it is of a crowd, which batches leave out; () if none is.
    mask_crowd: tuple[bool, ...] = ()
    #: Texts that name masks, such as referring expressions.
    phrases: tuple[str, ...] = ()
    #: For each phrase, the indices of its masks, of which there may be none.
    phrase_masks: tuple[tuple[int, ...], ...] = ()
    #: For each box, the index of its mask, or -1 if it has none; () if no box has one.
    box_masks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_images()
        for name in ("key", "text", "image_id"):
            if not isinstance(found := getattr(self, name), str):
                kind = type(found).__name__
                raise self._error(
                    f"{name} is {shown(found)}, of type {kind}; expected str", TypeError
                )
        text = self.text
        if self.image_size is not None and not _is_size(self.image_size):
            raise self._error(
                f"image_size is {shown(self.image_size)}; expected (height, width) in pixels"
            )
        self._check_encoding("text", text)
        if len(self.boxes_xyxy) != len(self.char_spans) and self.char_spans:
            raise self._error(
                f"{len(self.boxes_xyxy)} boxes but {len(self.char_spans)} entries in"
                " char_spans; expected one entry per box"
            )
        for index, box in enumerate(self.boxes_xyxy):
            if (problem := _box_problem(box)) is not None:
                raise self._error(f"box {index} is {problem}")
        if self.char_spans:
            self._check_spans(self.char_spans)
        spans = self.label_spans
        if not isinstance(spans, SharedSpans):
            self._check_spans(spans)
        elif spans.checked_text is not text:
            self._check_spans(spans)
            spans.checked_text = text
        if self.masks or self.phrases or self.mask_labels or self.phrase_masks or self.box_masks:
            self._check_masks()
        if not self.image_id:
            object.__setattr__(self, "image_id", self.key)

    def _error(self, problem: str, kind: type[Exception] = ValueError) -> Exception:
        return kind(f"record {shown(self.key)}: {problem}")

    def _check_encoding(self, name: str, text: str) -> None:
        if text.isascii():
            return
        # JSON can contain lone surrogates, but UTF-8 cannot encode them.
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._error(
                f"{name} contains a lone surrogate {text[error.start]!r} at index {error.start};"
                " expected text that can be encoded as UTF-8"
            ) from None

    def _check_masks(self) -> None:
        if (problem := masks_problem(self.masks)) is not None:
            raise self._error(problem)
        masks = count_masks(self.masks)
        for name, count, of in (
            ("mask_labels", masks, "masks"),
            ("mask_crowd", masks if self.mask_crowd else 0, "masks"),
            ("phrase_masks", len(self.phrases), "phrases"),
            ("box_masks", len(self.boxes_xyxy) if self.box_masks else 0, "boxes"),
        ):
            if (found := len(getattr(self, name))) != count:
                raise self._error(f"{name} has {found} entries for {count} {of}")
        with_mask = [mask for mask in self.box_masks if mask != -1]
        for name, indices, count, of in (
            ("mask_labels", self.mask_labels, len(self.labels), "labels"),
            ("phrase_masks", chain.from_iterable(self.phrase_masks), masks, "masks"),
            ("box_masks", with_mask, masks, "masks"),
        ):
            for index in indices:
                if type(index) is not int or not 0 <= index < count:
                    raise self._error(
                        f"{name} has {shown(index)}; expected indices of {count} {of}"
                    )
        for number, phrase in enumerate(self.phrases):
            if not isinstance(phrase, str) or not phrase.strip():
                raise self._error(f"phrase {number} is {shown(phrase)}; expected words")
            self._check_encoding(f"phrase {number}", phrase)

    def _check_spans(self, spans_of: Sequence[tuple[CharSpan, ...]]) -> None:
        text = self.text
        is_plain = text.isascii()
        for span in chain.from_iterable(spans_of):
            try:
                start, end = span
                fits = 0 <= start < end <= len(text)
            except (TypeError, ValueError):
                raise self._error(
                    f"a span is {shown(span)}; expected (start, end) of characters"
                ) from None
            if not fits:
                raise self._error(
                    f"invalid span [{shown(start)}, {shown(end)}) for a text of {len(text)}"
                    f" characters; expected 0 <= start < end <= {len(text)}"
                )
            if not is_plain and (whole := whole_characters(text, (start, end))) != span:
                raise self._error(
                    f"span [{start}, {end}) splits a multi-code-point character; expected"
                    f" [{whole[0]}, {whole[1]}), {shown(text[slice(*whole)])}"
                )

    def _check_images(self) -> None:
        images: Any = self.images
        if isinstance(images, str | bytes):
            kind = type(images).__name__
            raise self._error(f"images is a single {kind}; expected a tuple of images", TypeError)
        if not images:
            raise self._error("images is empty; expected one or two images")
        for number, image in enumerate(() if isinstance(images, LazyImages) else images):
            if not isinstance(image, str | bytes | PathLike):
                raise self._error(
                    f"image {number} is of type {type(image).__name__}; expected a path or bytes",
                    TypeError,
                )


def _is_size(size: Any) -> bool:
    """Return whether a value is an image's (height, width) in pixels."""
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):
        return False
    return 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE


def _box_problem(box: Any) -> str | None:
    """Describe what is wrong with a box, or return None."""
    most = MAX_COORDINATE
    try:
        x0, y0, x1, y1 = box
        if -most <= x0 <= x1 <= most and -most <= y0 <= y1 <= most:
            return None
        if all(-most <= side <= most for side in (x0, y0, x1, y1)):
            return f"({x0}, {y0}, {x1}, {y1}); expected x0 <= x1 and y0 <= y1 in pixels"
    except (TypeError, ValueError):
        pass  # Not four numbers.
    given = shown(tuple(box)) if isinstance(box, Sequence) else shown(box)
    return f"{given}; expected four finite numbers (x0, y0, x1, y1) in pixels, at most 2**53"


def check_record(record: object, index: int) -> Record:
    """Check that an item of a dataset is a `Record`, and return it.

    Raises:
        TypeError: if it is not a `Record`; the error gives `index`, its index in the dataset or
            batch.
    """
    if not isinstance(record, Record):
        raise TypeError(
            f"record {index} is a {type(record).__name__}; expected fiber.data.Record, such as"
            " Record(key='1', images=('1.jpg',), text='a dog')"
        )
    return record


@runtime_checkable
class RecordSet(Protocol):
    """Any map-style collection of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class EpochRecords(RecordSet, Protocol):
    """Records that may change every epoch, such as sampled prompts."""

    def in_epoch(self, epoch: int, index: int, /) -> Record:
        """Return the version of a record used in the given epoch (zero-based)."""
        ...


def record_in_epoch(records: RecordSet, epoch: int, index: int) -> Record:
    """Return the version of a record used in a given epoch.

    Most record sets return the same record in every epoch.
    """
    if isinstance(records, EpochRecords):
        return records.in_epoch(epoch, index)
    return records[index]


class RecordSequence(Sequence[Record], ABC):
    """Base class for record sets, with bounds checking, negative indices and slices."""

    @abstractmethod
    def _record(self, index: int) -> Record:
        """Return the record at an index in [0, len)."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._record(self._wrap(index))

    def _wrap(self, index: int) -> int:
        """Map a negative index to [0, len); raise IndexError if it is out of bounds."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"record index {index} is out of range for {count} records")
        return operator.index(index) % count


class ConcatRecords(RecordSequence):
    """Concatenation of record sets."""

    def __init__(self, parts: Sequence[RecordSet]) -> None:
        self.parts = list(parts)
        self._starts = list(accumulate(map(len, self.parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def _record(self, index: int) -> Record:
        part, index_in_part = self._find(index)
        return self.parts[part][index_in_part]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return the version of a record used in the given epoch."""
        part, index_in_part = self._find(self._wrap(index))
        return record_in_epoch(self.parts[part], epoch, index_in_part)

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if a part has no shards."""
        # Imports NumPy, which records do not need.
        from fiber.data.storage.shard_order import ShardMap, shard_map_of

        return ShardMap.concatenated([shard_map_of(part) for part in self.parts])

    def _find(self, index: int) -> tuple[int, int]:
        """Return the index of the part that contains a record, and the record's index in it."""
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]


class MixedRecords(RecordSequence):
    """New records with a share of old ones, of which there may be far more or far fewer.

    If the old ones suffice for `times` passes over the new ones, an epoch has that many passes, and
    different old records beside each. Otherwise it has one pass, and old records are repeated.
    Which old records there are depends only on the numbers of records and `seed`.

    Args:
        new: records of which each is in the epoch `times` times.
        old: records of which a sample is in the epoch; at least one.
        share: part of the epoch that is old, in (0, 1).
        seed: seed of the sample.
    """

    def __init__(self, new: RecordSet, old: RecordSet, share: float, seed: int = 0) -> None:
        self.new, self.old = new, old
        #: Old records beside one pass over the new ones.
        wanted = share / (1 - share) * len(new)
        self.times = max(1, int(len(old) / wanted))
        count = max(1, round(self.times * wanted))
        passes, rest = divmod(count, len(old))
        sample = random.Random(seed).sample(range(len(old)), rest)
        self.indices = [*range(len(old))] * passes + sorted(sample)

    def __len__(self) -> int:
        return self.times * len(self.new) + len(self.indices)

    @property
    def pass_length(self) -> int:
        """Number of records of one pass over the new ones, with the old ones beside them."""
        return round(len(self) / self.times)

    def _record(self, index: int) -> Record:
        return self.in_epoch(0, index)

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return the version of a record used in the given epoch."""
        number, place = divmod(self._wrap(index), len(self.new))
        if number < self.times:
            return record_in_epoch(self.new, epoch * self.times + number, place)
        place += (number - self.times) * len(self.new)
        return record_in_epoch(self.old, epoch, self.indices[place])

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if a part has no shards."""
        from fiber.data.storage.shard_order import ShardMap, shard_map_of

        new, old = shard_map_of(self.new), shard_map_of(self.old).chosen(self.indices)
        return ShardMap.concatenated([*(new,) * self.times, old])
