"""`DataLoader`, the Python front end of the Rust loader, turns records into batches of tensors.

`Sampler` chooses the records of each batch. `Prefetcher` reads them on a thread and passes them to
Rust, whose threads decode, transform, tokenize, mask and collate without the GIL. `Collator` wraps
the result as tensors. A sample depends only on (seed, epoch, record index), not on threads, ranks
or the batch size.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import torch

from fiber.data.batch import Batch, Skipped
from fiber.data.collate import COUNTS, Collator
from fiber.data.loader_config import (
    BatchType,
    CollatorConfig,
    LoaderConfig,
    LoaderOptions,
    check_arguments,
)
from fiber.data.prefetch import Prefetcher
from fiber.data.record import Record, RecordSet
from fiber.data.sampler import BatchIndices, IndexSampler, Sampler, SampleRef, StreamSampler
from fiber.data.skip_report import warn_user
from fiber.messages import shown

#: Version of the state dicts that `DataLoader.state_dict` returns.
STATE_VERSION = 1
#: Maximum position in an epoch, as far as iterables can be skipped.
MAX_SAMPLE = sys.maxsize
#: Keys of a state dict and the types of their values.
_STATE = (("epoch", int), ("sample", int), ("seed", int), ("shuffle", bool), ("fingerprint", str))


class DataLoader:
    """Load batches of records, prefetched on all cores without the GIL.

        loader = DataLoader(records, "image_text", tokenizer=tokenizer, transform=transform,
                            batch_size=64, max_tokens=40, shuffle=True)
        for batch in loader:  # an `ImageTextBatch`
            ...

    Iteration yields the epoch chosen by `set_epoch`, from the position set by `load_state_dict`.
    Image memory is reused only once no tensor refers to it.

    Args:
        records: Map-style collection of `Record` (`EpochRecords` may change every epoch), or an
            iterable, such as torch's `IterableDataset`. An iterable is iterated once per epoch,
            after calling its `set_epoch` if it has one; every rank iterates over all of it and
            keeps only its share.
        batch_type: Class of the batches: "image_text", "question", "reasoning" (two images per
            record), "grounding", "grounding_masks" or "segmentation".
        options: Fields of `LoaderConfig`; `tokenizer`, `transform`, `batch_size` and `max_tokens`
            are required.

    Attributes:
        config: The validated options; each option is also an attribute of the loader.
        skipped: Every sample that was dropped or replaced; with "resample", each is listed once per
            epoch.
        statuses: Number of samples that were "ok", "truncated", "missing", "corrupt",
            "unsupported" and "invalid" so far; with "resample", a bad record counts each time.
        truncated_boxes: Number of boxes dropped because truncation removed all tokens that name
            them.
        cropped_boxes: Number of boxes dropped because a crop left too little of them.
        emptied_masks: Number of masks of which a crop left no pixel; batches keep them.
        truncated_texts: Number of texts so far with more than `max_tokens` tokens.
        wordless_texts: Number of texts so far of which all tokens are special.

    Raises:
        TypeError: if an argument is unknown or of the wrong type; the error names it.
        ValueError: if an argument is out of range (the error names it), or if `shuffle` or
            "resample" is used with an iterable.
    """

    def __init__(
        self,
        records: RecordSet | Iterable[Record],
        batch_type: BatchType,
        **options: Unpack[LoaderOptions],
    ) -> None:
        self.config = config = LoaderConfig(batch_type=batch_type, **options)
        self.records = records
        self.skipped: list[Skipped] = []
        self.statuses: Counter[str] = Counter()
        self.truncated_boxes = self.cropped_boxes = self.emptied_masks = 0
        self.truncated_texts = self.wordless_texts = 0
        # Keep memory for the prefetched batches, the batch in use and the next one.
        shared = {f.name: getattr(config, f.name) for f in fields(CollatorConfig)}
        self._collator = Collator(**shared, keep=config.prefetch + 2)
        self._pin_memory = config.pin_memory and torch.cuda.is_available()
        self._sampler = _make_sampler(records, config)
        #: Bad samples of this epoch.
        self._seen: set[Skipped] = set()
        self._set_position(0)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in LoaderConfig.__dataclass_fields__:
                return getattr(self.config, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank.

        Raises:
            TypeError: if the records are an iterable without a length.
        """
        return len(self._sampler)

    def __iter__(self) -> Generator[Any, None, None]:
        """Yield the batches of an epoch, then advance to the next epoch.

        An interrupted epoch restarts from its beginning unless `load_state_dict` sets a position.
        With one process, a batch left empty by `on_error="skip"` is omitted.

        Step k of W ranks covers positions [k * B * W, (k + 1) * B * W) of the epoch's order, and
        rank r takes the r-th slice of B; with `split_batches`, the ranks split B positions. The
        remainder is split evenly, so a rank may have one batch fewer (`drop_last` drops it).

        Raises:
            DecodeError, FileNotFoundError, ValueError: if a sample is bad, depending on `on_error`.
                Any other exception raised by the records is propagated.
            ValueError: if a batch is empty on one of several ranks, which would desynchronize them,
                or an iterable is exhausted or does not match the state passed to `load_state_dict`.
        """
        epoch, start = self._epoch, self._resume
        fingerprint = self._fingerprint if start else ""
        self._sample, self._fingerprint, self._resume = start, fingerprint, 0
        in_flight: deque[BatchIndices] = deque()

        def batches() -> Iterator[list[SampleRef]]:
            for batch in self._sampler.batches(epoch, start, fingerprint):
                # Append the entry before the batch is submitted, so it exists when it is needed.
                in_flight.append(batch)
                yield batch.samples

        # Empty batches also have an entry in `in_flight`.
        for batch in self._run(batches(), empty="yield"):
            done = in_flight.popleft()
            self._sample, self._fingerprint = done.end, done.fingerprint
            if done.is_last:
                self._set_position(epoch + 1)
            if len(batch):
                yield batch
            elif self.config.world_size > 1:
                raise self._empty_batch()
        if self._epoch == epoch:
            # The remaining samples were dropped, or none of them belongs to this rank.
            self._set_position(epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; the position is kept if the epoch does not change.

        Raises:
            TypeError, ValueError: if `epoch` is not a non-negative integer.
        """
        check_arguments(epoch=epoch)
        if epoch != self._epoch:
            self._set_position(epoch)

    def _set_position(self, epoch: int) -> None:
        self._epoch, self._sample, self._resume, self._fingerprint = epoch, 0, 0, ""

    def state_dict(self) -> dict[str, Any]:
        """Return the current position, for `load_state_dict` on any number of ranks.

        Returns:
            "version" of the format, "epoch", "sample" (samples of the epoch consumed by all ranks
            together), "seed", "shuffle", "order", and "fingerprint" of the data (for an iterable,
            of the samples consumed).
        """
        position = {"epoch": self._epoch, "sample": self._sample, "seed": self.config.seed}
        position |= {"shuffle": self.config.shuffle, "order": self.config.order}
        position |= {"fingerprint": self.fingerprint}
        return {"version": STATE_VERSION, **position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at the position of a different loader with the same data, seed and order.

        For an iterable, the next epoch first reads the samples before the position, and fails if
        they differ from those in the state. States without a version or an order, which earlier
        versions returned, are accepted.

        Raises:
            TypeError: if `state` is not a mapping.
            ValueError: if an entry is missing or invalid, the state is of a later version, or the
                data, seed or order differ.
        """
        expected = "expected the result of state_dict()"
        if not isinstance(state, Mapping):
            raise TypeError(f"state is of type {type(state).__name__}; {expected}")
        version = state.get("version", STATE_VERSION)
        if type(version) is not int or version < 1:
            raise ValueError(f"the state's version is {shown(version)}; {expected}")
        if version > STATE_VERSION:
            raise ValueError(
                f"the state has version {shown(version)}, but this fiber reads versions up to"
                f" {STATE_VERSION}; load it with the later fiber that saved it"
            )
        for name, kind in _STATE:
            found = state.get(name)
            # bool is a subclass of int.
            if type(found) is not kind:
                raise ValueError(f"the state's {name} is {shown(found)}; {expected}")
        epoch, sample = state["epoch"], state["sample"]
        for name in ("seed", "shuffle", "order"):
            found, own = state.get(name, "uniform"), getattr(self.config, name)
            if found != own:
                raise ValueError(
                    f"the state's {name} is {shown(found)}, but this loader's is {shown(own)};"
                    f" expected a state with the same {name}"
                )
        if epoch < 0 or not 0 <= sample <= MAX_SAMPLE:
            raise ValueError(
                f"the state has epoch {shown(epoch)} and sample {shown(sample)}; expected both to"
                f" be >= 0, and the sample at most {MAX_SAMPLE}"
            )
        check_arguments(epoch=epoch)
        self._sampler.check_state(sample, state["fingerprint"])
        self._epoch, self._sample, self._resume = epoch, sample, sample
        self._fingerprint = state["fingerprint"]

    @property
    def fingerprint(self) -> str:
        """Hash of all records (see `fiber.data.fingerprint`), computed on first use.

        For an iterable, it is the hash of the samples consumed in this epoch.
        """
        return self._sampler.fingerprint(self._fingerprint)

    @property
    def image_bytes(self) -> tuple[int, int]:
        """Current and peak size of the image memory held by live batches, in bytes."""
        return self._collator.image_bytes

    def close(self) -> None:
        """Stop the threads. A running iteration fails; a later iteration starts new threads."""
        self._collator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def epoch(self, number: int = 0, batches: slice = slice(None)) -> Generator[Any, None, None]:
        """Yield batches that contain every record of this rank's share of an epoch exactly once.

        The last batch may be smaller. Each rank has a contiguous share, so the concatenated results
        are in the order of the epoch. `batches` selects some of the batches by position; the others
        are not loaded. Those selected are the same, whichever others are.

        Raises:
            TypeError: if the records are an iterable and there are several ranks, since an iterable
                cannot be split into contiguous shares.
        """
        check_arguments(epoch=number)
        own = self._sampler.contiguous(number)
        return self._run(itertools.islice(own, batches.start, batches.stop, batches.step))

    def stream(self, start: int = 0) -> Generator[Any, None, None]:
        """Yield an endless stream of batches from the concatenated epochs.

        W ranks with batches of B see the same samples in the same order as one process with batches
        of W * B (with `split_batches`, of B). `start` is the number of samples already consumed by
        all ranks together.

        Raises:
            ValueError: if there are no records or, while iterating, if no sample of a batch can be
                read, which would desynchronize the ranks.
        """
        check_arguments(start=start)
        sampler = self._sampler
        step = sampler.global_batch_size
        firsts = itertools.count(start + sampler.own(step).start, step)
        return self._run(sampler.stream(start), firsts, empty="raise")

    def _empty_batch(self) -> ValueError:
        """Return the error for an empty batch, which would desynchronize the ranks."""
        last = self.skipped[-1]
        return ValueError(
            f"no sample in a batch of {self._sampler.batch_size} can be read;"
            f" the last one was record {shown(last.key)}: {last.reason}"
        )

    def _run(
        self,
        batches: Iterable[list[SampleRef]],
        firsts: Iterable[int | None] = itertools.repeat(None),
        *,
        empty: Literal["omit", "yield", "raise"] = "omit",
    ) -> Generator[Any, None, None]:
        """Load batches, of a stream with the positions of their first samples in it.

        Closing the generator stops prefetching.
        """
        prefetcher = Prefetcher(
            self._collator.open(),
            zip(batches, firsts, strict=False),
            read=lambda sample: self._collator.to_core(
                self._sampler.record(sample), sample.epoch, sample.record_index
            ),
            replacement=self._sampler.replacement,
            prefetch=self.config.prefetch,
            on_error=self.config.on_error,
        )
        self._seen = set()
        try:
            prefetcher.start()
            while (fields := prefetcher.next()) is not None:
                while prefetcher.skipped:
                    self._skip(Skipped(*prefetcher.skipped.popleft()))
                for name in COUNTS:
                    setattr(self, name, getattr(self, name) + fields.pop(name))
                batch: Batch = self._collator.finish(fields, pin_memory=self._pin_memory)
                for bad in batch.skipped:
                    self._skip(bad)
                self.statuses.update(batch.statuses)
                if len(batch) or empty == "yield":
                    yield batch
                elif empty == "raise":
                    raise self._empty_batch()
            if prefetcher.error is not None:
                raise prefetcher.error
        finally:
            prefetcher.stop()

    def _skip(self, bad: Skipped) -> None:
        on_error = self.config.on_error
        if not self.skipped:
            action = "skipped" if on_error == "skip" else "replaced"
            warn_user(
                f"{action} record {shown(bad.key)}: {bad.reason} (no further warnings;"
                " DataLoader.skipped lists all such records)"
            )
        self.statuses[bad.status] += 1
        if on_error == "resample":
            # The same record may be sampled again as a replacement.
            if bad in self._seen:
                return
            self._seen.add(bad)
        self.skipped.append(bad)


def _make_sampler(records: Any, config: LoaderConfig) -> Sampler:
    """Create the sampler for a map-style collection or an iterable."""
    # torch's IterableDataset has a `__getitem__` that always raises.
    is_stream = isinstance(records, torch.utils.data.IterableDataset)
    if isinstance(records, RecordSet) and not is_stream and not isinstance(records, Mapping | str):
        return IndexSampler(records, config)
    kind = type(records).__name__
    if not isinstance(records, Iterable) or isinstance(records, Mapping | str):
        raise TypeError(
            f"records is of type {kind}; expected a map-style collection (__len__, __getitem__) of"
            " fiber.data.Record, such as a list, or an iterable of fiber.data.Record"
        )
    # `order` "shards" needs `shuffle`.
    for name, value in (("shuffle", config.shuffle), ("on_error", config.on_error)):
        if value in (True, "resample"):
            raise ValueError(
                f"{name}={shown(value)} requires a map-style dataset (random access), got an"
                f" iterable of type {kind}"
            )
    return StreamSampler(records, config)
