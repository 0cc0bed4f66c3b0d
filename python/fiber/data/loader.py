"""Python face of the Rust loader: records in, batches of tensors out.

A light thread asks the record set for the records of the next batches and hands their plain parts
to Rust, whose threads read, decode, transform, tokenise, mask and collate. What a sample looks like
depends on (seed, epoch, index of the record) only, never on threads, ranks or the batch size.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch

from fiber._core import ImageTransform, Tokenizer
from fiber.data.arguments import check_arguments
from fiber.data.batch import Batch, Skipped
from fiber.data.collate import BatchType, Collator, ImageDtype
from fiber.data.prefetch import Feeder
from fiber.data.record import Record, RecordSet
from fiber.data.sampler import CollectionPasses, Passes, Sharing, Step, StreamPasses, Wanted
from fiber.data.skip_report import warn_user

#: What a state holds.
_STATE = (
    ("epoch", int),
    ("sample", int),
    ("seed", int),
    ("shuffle", bool),
    ("fingerprint", str),
)


class DataLoader:
    """Batches of records, made ahead on all cores without the interpreter lock.

    Args:
        records: Any map-style collection of `Record`; `EpochRecords` differ from epoch to epoch. Or
            an iterable of them, torch's `IterableDataset` too: each epoch iterates anew, after its
            `set_epoch` where it has one; every rank iterates over all and takes its share.
        batch_type: Which batch class comes out: "image_text", "question", "reasoning" (two
            pictures a record) or "grounding".
        tokenizer: Turns text into tokens; of any kind (docs/loader.md).
        transform: What happens to pictures and boxes. When it mirrors a picture, the words for
            left and right change places in the text (not in statements about two pictures).
        batch_size: Samples in a batch of this rank.
        max_tokens: Longest text in tokens, what stands around every text included (<s> and </s>);
            longer ones are cut.
        answers: Answer vocabulary of "question"; empty where no targets are wanted.
        shuffle: Whether each epoch has its own order; an iterable's is its own business.
        seed: Start of every random draw.
        mlm_probability: Part of the words that "image_text" picks for masking; 0 with a tokenizer
            that has no mask token.
        threads: Worker threads; 0 means one for each core.
        prefetch: Batches made ahead.
        rank: This process's number, below `world_size`.
        world_size: Processes that share the data.
        on_error: "raise" stops at a bad sample; "skip" leaves it out, notes it in `skipped` and
            warns once; "resample" notes it too and takes another record in its place, drawn from
            (seed, epoch, index), so that batches keep their size (not of an iterable).
        accept_truncated: Take pictures of which a part is missing or damaged, filled as libjpeg
            fills them; the batch's `statuses` tell which they are. Without it they are bad samples.
        scaled_decoding: Decode a JPEG at a half, a quarter or an eighth of its size where what is
            taken of it still has the pixels that come out: faster, with other values. For training.
        apply_orientation: Turn pictures as their EXIF tag says; boxes are then those of the turned
            picture. The published pipelines leave them as they are stored.
        background: Red, green and blue from 0 to 255 that transparent pictures are laid over.
            None: alpha is dropped, as by Pillow's `convert("RGB")` and the published pipelines.
        image_dtype: What pictures are stored as: "float32", "float16" or "bfloat16" (normalised,
            rounded to nearest), or "uint8" (bytes without normalisation; padding is 0).
        channels_last: Give pictures the memory format `torch.channels_last`.
        drop_last: Leave out the last batch of an epoch where it would not be full on every rank.
            Iterating does; `epoch` gives every record.
        pin_memory: Put tensors into page-locked memory where CUDA is there.

    Iterating gives the epoch that `set_epoch` chose, from where `load_state_dict` says on. Memory
    of pictures is used again once no tensor shares it; what is still in use is never overwritten.

    Attributes:
        skipped: Every sample left out or replaced; with "resample" each bad record once a pass,
            however often it was drawn.
        statuses: How many samples were "ok", "truncated", "missing", "corrupt", "unsupported" and
            "invalid" so far; with "resample" a bad record counts as often as it was drawn.
        truncated_boxes: Boxes left out because none of the kept tokens names them.
        cropped_boxes: Boxes left out because a crop left too little of them.

    Raises:
        TypeError: for an argument of another type, by name.
        ValueError: for an argument outside its range, by name, and for `shuffle` or "resample" with
            an iterable.
    """

    def __init__(
        self,
        records: RecordSet | Iterable[Record],
        batch_type: BatchType,
        *,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        batch_size: int,
        max_tokens: int,
        answers: Sequence[str] = (),
        shuffle: bool = False,
        seed: int = 0,
        mlm_probability: float = 0.15,
        threads: int = 0,
        prefetch: int = 2,
        rank: int = 0,
        world_size: int = 1,
        on_error: Literal["raise", "skip", "resample"] = "raise",
        accept_truncated: bool = False,
        scaled_decoding: bool = False,
        apply_orientation: bool = False,
        background: Sequence[int] | None = None,
        image_dtype: ImageDtype = "float32",
        channels_last: bool = False,
        drop_last: bool = False,
        pin_memory: bool = False,
    ) -> None:
        check_arguments(
            batch_size=batch_size,
            prefetch=prefetch,
            world_size=world_size,
            rank=rank,
            answers=answers,
            shuffle=shuffle,
            drop_last=drop_last,
            pin_memory=pin_memory,
            seed=seed,
        )
        if rank >= world_size:
            raise ValueError(f"rank is {rank}; expected less than world_size {world_size}")
        self.records = records
        self.batch_type = batch_type
        self.tokenizer = tokenizer
        self.transform = transform
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.answers = tuple(answers)
        self.shuffle = shuffle
        self.seed = seed
        self.prefetch = prefetch
        self.rank = rank
        self.world_size = world_size
        self.on_error = on_error
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.drop_last = drop_last
        self.skipped: list[Skipped] = []
        self.statuses: Counter[str] = Counter()
        self.truncated_boxes = 0
        self.cropped_boxes = 0
        self._collator = Collator(
            batch_type,
            tokenizer=tokenizer,
            transform=transform,
            max_tokens=max_tokens,
            answers=self.answers,
            seed=seed,
            mlm_probability=mlm_probability,
            threads=threads,
            on_error=on_error,
            accept_truncated=accept_truncated,
            scaled_decoding=scaled_decoding,
            apply_orientation=apply_orientation,
            background=background,
            image_dtype=image_dtype,
            channels_last=channels_last,
            # Those made ahead, the one in use and the one that is about to be.
            keep=prefetch + 2,
        )
        sharing = Sharing(batch_size, rank, world_size, drop_last)
        #: What was noted in this pass.
        self._noted: set[Skipped] = set()
        self._passes = _passes(records, sharing, shuffle=shuffle, seed=seed, on_error=on_error)
        self._epoch, self._sample, self._resume, self._passed = 0, 0, 0, ""

    def __len__(self) -> int:
        """Batches of a whole pass by iteration on this rank.

        Raises:
            TypeError: if the records are an iterable without a length.
        """
        return len(self._passes)

    def __iter__(self) -> Generator[Any, None, None]:
        """Give the batches of an epoch; after the last one the next epoch is due.

        A pass that was broken off begins anew, unless `load_state_dict` says where to go on. A
        batch of which `on_error="skip"` leaves nothing is passed over by one process.

        Step k of W ranks covers the positions [k * B * W, (k + 1) * B * W) of the epoch's order,
        and rank r takes the r-th slice of B; what is left at the end is shared out evenly, so that
        a rank may have a batch less (`drop_last` leaves it out). The samples of a step are the
        same for any number of ranks with the same B * W.

        Raises:
            DecodeError, FileNotFoundError, ValueError: for a bad sample, as `on_error` says, and
                what the records raise.
            ValueError: where nothing is left of a batch of one of several ranks, which would leave
                them out of step; where an iterable is not what `load_state_dict` went on in, or
                can be iterated over once only.
        """
        epoch, start = self._epoch, self._resume
        passed = self._passed if start else ""
        self._sample, self._passed, self._resume = start, passed, 0
        steps: deque[Step] = deque()

        def batches() -> Iterator[list[Wanted]]:
            for step in self._passes.steps(epoch, start, passed):
                # Noted before it is handed in, so that it is there when its batch comes out.
                steps.append(step)
                yield step.wanted

        # One entry for each batch handed in, also for those of which nothing is left.
        for batch in self._run(batches(), empty=True):
            step = steps.popleft()
            self._sample, self._passed = step.end, step.passed
            if step.is_last:
                self._begin(epoch + 1)
            if len(batch):
                yield batch
            elif self.world_size > 1:
                raise self._nothing_left()
        if self._epoch == epoch:
            # What `drop_last` leaves out, or what no batch of this rank holds.
            self._begin(epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iterating gives next.

        From its start, or from where `load_state_dict` says if that is in the same epoch.

        Raises:
            TypeError, ValueError: for what is no whole number, and for one below 0.
        """
        check_arguments(epoch=epoch)
        if epoch != self._epoch:
            self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self._epoch, self._sample, self._resume, self._passed = epoch, 0, 0, ""

    def state_dict(self) -> dict[str, Any]:
        """Tell where iterating is: what `load_state_dict` of any number of ranks takes.

        Returns:
            "epoch", "sample" (samples of it that all ranks together have taken), "seed",
            "shuffle", and "fingerprint" of the data (of an iterable: of those samples).
        """
        return {
            "epoch": self._epoch,
            "sample": self._sample,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same data, seed and order was.

        An iterable is iterated over up to there, and refused in that pass if it gives others.

        Raises:
            TypeError: for what is no mapping.
            ValueError: for a state without one of its entries, and for that of other data, another
                seed or another order, naming both.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state is of type {type(state).__name__}; expected what state_dict() gives"
            )
        for name, kind in _STATE:
            if not isinstance(found := state.get(name), kind):
                raise ValueError(
                    f"the state's {name} is {found!r:.40}; expected what state_dict() gives"
                )
        epoch, sample = state["epoch"], state["sample"]
        if state["seed"] != self.seed:
            raise ValueError(
                f"the state's seed is {state['seed']}, this loader's is {self.seed}; expected a"
                " state of the same seed"
            )
        if state["shuffle"] != self.shuffle:
            raise ValueError(
                f"the state's shuffle is {state['shuffle']}, this loader's is {self.shuffle};"
                " expected a state of the same order"
            )
        if epoch < 0 or sample < 0:
            raise ValueError(
                f"the state's epoch is {epoch} and its sample {sample}; expected 0 or more"
            )
        check_arguments(epoch=epoch)
        self._passes.check(sample, state["fingerprint"])
        self._epoch, self._sample, self._resume = epoch, sample, sample
        self._passed = state["fingerprint"]

    @property
    def fingerprint(self) -> str:
        """A hash of every record in order, made when it is first asked for (`fingerprints`).

        Of an iterable, of the epoch's samples so far.
        """
        return self._passes.fingerprint(self._passed)

    @property
    def picture_bytes(self) -> tuple[int, int]:
        """Bytes of pictures in batches that are held now, and the most that there ever were."""
        return self._collator.picture_bytes

    def close(self) -> None:
        """Let the threads go; a pass after that starts new ones, one under way raises."""
        self._collator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def epoch(self, number: int = 0) -> Generator[Any, None, None]:
        """Give every record of this rank once; the last batch may be smaller.

        The ranks hold consecutive shares, so that their results one after the other are in the
        order of the records (of the epoch's order, when shuffled).

        Args:
            number: Which epoch the order and the random draws are those of.

        Raises:
            TypeError: for several ranks and an iterable, which has no consecutive shares.
        """
        check_arguments(epoch=number)
        return self._run(self._passes.whole(number))

    def stream(self, start: int = 0) -> Generator[Any, None, None]:
        """Give batches without end.

        Step k of W ranks covers the positions [k * B * W, (k + 1) * B * W) of the epochs laid end
        to end, and rank r takes the r-th slice of B: W ranks with batches of B see the samples of
        one process with batches of W * B, in the same order.

        Args:
            start: Samples already consumed over all ranks, to go on where a run stopped.

        Raises:
            ValueError: if there are no records, and later where none of a batch's samples can be
                read, which would leave the ranks out of step.
        """
        check_arguments(start=start)
        return self._stream(self._passes.endless(start))

    def _stream(self, batches: Iterable[list[Wanted]]) -> Generator[Any, None, None]:
        """Refuse batches of which nothing is left."""
        for batch in self._run(batches, empty=True):
            if not len(batch):
                raise self._nothing_left()
            yield batch

    def _nothing_left(self) -> ValueError:
        """Say that a batch is missing, without which the ranks are out of step."""
        last = self.skipped[-1]
        return ValueError(
            f"no sample of a batch of {self.batch_size} can be read;"
            f" the last one: record {last.key!r}: {last.reason}"
        )

    def _run(
        self, batches: Iterable[list[Wanted]], *, empty: bool = False
    ) -> Generator[Any, None, None]:
        """Start the feeder and give what comes out; closing the generator stops everything.

        With `empty` also the batches of which nothing is left.
        """
        feeder = Feeder(
            self._collator.open(),
            batches,
            plain=self._plain,
            replacement=self._passes.replacement,
            prefetch=self.prefetch,
            on_error=self.on_error,
        )
        self._noted = set()
        try:
            feeder.start()
            while (fields := feeder.next()) is not None:
                while feeder.skipped:
                    self._skip(Skipped(*feeder.skipped.popleft()))
                batch = self._finish(fields)
                if len(batch) or empty:
                    yield batch
            if feeder.error is not None:
                raise feeder.error
        finally:
            feeder.stop()

    def _finish(self, fields: dict[str, Any]) -> Batch:
        self.truncated_boxes += fields.pop("truncated_boxes")
        self.cropped_boxes += fields.pop("cropped_boxes")
        batch = self._collator.finish(fields, pin_memory=self.pin_memory)
        for bad in batch.skipped:
            self._skip(bad)
        self.statuses.update(batch.statuses)
        return batch

    def _skip(self, bad: Skipped) -> None:
        if not self.skipped:
            what = "left out" if self.on_error == "skip" else "replaced"
            warn_user(
                f"record {bad.key!r} is {what}: {bad.reason}"
                " (told once; DataLoader.skipped lists them all)"
            )
        self.statuses[bad.status] += 1
        if self.on_error == "resample":
            # It is drawn in the place of others, too.
            if bad in self._noted:
                return
            self._noted.add(bad)
        self.skipped.append(bad)

    def _plain(self, wanted: Wanted) -> tuple[Any, ...]:
        """Give the parts of a record that Rust takes."""
        return self._collator.plain(self._passes.record(wanted), wanted.epoch, wanted.number)


def _passes(records: Any, sharing: Sharing, *, shuffle: bool, seed: int, on_error: str) -> Passes:
    """Tell collections from streams."""
    # torch's has the method that looks records up, which always raises.
    is_stream = isinstance(records, torch.utils.data.IterableDataset)
    if isinstance(records, RecordSet) and not is_stream and not isinstance(records, Mapping | str):
        return CollectionPasses(records, sharing, shuffle=shuffle, seed=seed)
    kind = type(records).__name__
    if not isinstance(records, Iterable) or isinstance(records, Mapping | str):
        raise TypeError(
            f"records is of type {kind}; expected a collection of fiber.data.Record (__len__,"
            " __getitem__), such as a list, or an iterable of them"
        )
    for name, value in (("shuffle", shuffle), ("on_error", on_error)):
        if value in (True, "resample"):
            raise ValueError(
                f"{name} is {value!r}, which needs records that can be read in any order; they are"
                f" an iterable of type {kind}"
            )
    return StreamPasses(records, sharing)
