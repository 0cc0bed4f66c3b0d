"""Python face of the Rust loader: records in, batches of tensors out.

A light thread asks the record set for the records of the next batches and hands their plain parts
to Rust, whose threads read, decode, transform, tokenise, mask and collate. What a sample looks like
depends on (seed, epoch, index of the record) only, never on threads, ranks or the batch size.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fiber import _core
from fiber._core import ImageTransform, Tokenizer
from fiber.data.batches import Batch, GroundingBatch, ImageTextBatch, QuestionBatch, ReasoningBatch
from fiber.data.records import RecordSet, record_in_epoch

BatchType = Literal["image_text", "question", "reasoning", "grounding"]
_BATCH_CLASSES: dict[str, type[Batch]] = {
    "image_text": ImageTextBatch,
    "question": QuestionBatch,
    "reasoning": ReasoningBatch,
    "grounding": GroundingBatch,
}
_DTYPES = {
    "uint8": torch.uint8,
    "float32": torch.float32,
    "int64": torch.int64,
    "bool": torch.bool,
}


class DataLoader:
    """Batches of a record set, made ahead on all cores without the interpreter lock.

    Args:
        records: Any map-style collection of `Record`; `EpochRecords` differ from epoch to epoch.
        batch_type: Which batch class comes out: "image_text", "question", "reasoning" (two
            pictures a record) or "grounding".
        tokenizer: Turns text into tokens.
        transform: What happens to pictures and boxes. When it mirrors a picture, the words for
            left and right change places in the text (not in statements about two pictures).
        batch_size: Samples in a batch of this rank.
        max_tokens: Longest text in tokens, <s> and </s> included; longer ones are cut.
        answers: Answer vocabulary of "question"; empty where no targets are wanted.
        shuffle: Whether each epoch has its own order.
        seed: Start of every random draw.
        mlm_probability: Part of the words that "image_text" picks for masking.
        threads: Worker threads; 0 means one for each core.
        prefetch: Batches made ahead.
        rank: This process's number, below `world_size`.
        world_size: Processes that share the data.
        on_error: "raise" stops at a bad sample; "skip" leaves it out, notes it in `skipped` and
            warns once.
        pin_memory: Put tensors into page-locked memory where CUDA is there.

    Attributes:
        skipped: (key, reason) of every sample left out; the key is "#index" where the record itself
            cannot be had.
        truncated_boxes: Boxes left out because none of the kept tokens names them.
        cropped_boxes: Boxes left out because a crop left too little of them.

    Raises:
        ValueError: for an argument outside its range, by name.
    """

    def __init__(
        self,
        records: RecordSet,
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
        on_error: Literal["raise", "skip"] = "raise",
        pin_memory: bool = False,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("prefetch", prefetch, 1),
            ("threads", threads, 0),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("rank", rank, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more")
        if rank >= world_size:
            raise ValueError(f"rank is {rank}; expected less than world_size {world_size}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
        if batch_type == "reasoning" and not transform.is_square:
            raise ValueError(
                f"a record of 'reasoning' has two pictures, which {transform} would give different"
                " sizes; expected a transform with one size"
            )
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
        self.skipped: list[tuple[str, str]] = []
        self.truncated_boxes = 0
        self.cropped_boxes = 0
        self._answer_index = {answer: index for index, answer in enumerate(self.answers)}
        if len(self._answer_index) < len(self.answers):
            twice = next(a for i, a in enumerate(self.answers) if self._answer_index[a] != i)
            raise ValueError(f"answers holds {twice!r} more than once; expected each answer once")
        self._make_core = lambda: _core.Loader(
            batch_type,
            tokenizer,
            transform,
            max_tokens=max_tokens,
            seed=seed,
            mlm_probability=mlm_probability,
            mirrored_answers=[self._mirrored_answer(answer) for answer in self.answers],
            threads=threads,
            skip_errors=on_error == "skip",
        )
        self._core, self._process = self._make_core(), os.getpid()

    def __len__(self) -> int:
        """Batches of `epoch()` on this rank."""
        return -(-len(self._share(len(self.records))) // self.batch_size)

    def epoch(self, number: int = 0) -> Generator[Any, None, None]:
        """Give every record of this rank once; the last batch may be smaller.

        The ranks hold consecutive shares, so that their results one after the other are in the
        order of the records (of the epoch's order, when shuffled).

        Args:
            number: Which epoch the order and the random draws are those of.
        """
        share = self._share(len(self.records))

        def batches() -> Iterator[list[tuple[int, int]]]:
            order = self._order(number)
            for start in range(share.start, share.stop, self.batch_size):
                stop = min(start + self.batch_size, share.stop)
                yield [(number, int(index)) for index in order[start:stop]]

        return self._run(batches())

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
        count = len(self.records)
        if count == 0:
            raise ValueError("no records; expected 1 or more for an endless stream")
        if start < 0:
            raise ValueError(f"start is {start}; expected 0 or more")

        def batches() -> Iterator[list[tuple[int, int]]]:
            position = start + self.rank * self.batch_size
            epoch, order = -1, np.empty(0, dtype=np.int64)
            while True:
                batch = []
                for p in range(position, position + self.batch_size):
                    if p // count != epoch:
                        epoch = p // count
                        order = self._order(epoch)
                    batch.append((epoch, int(order[p % count])))
                yield batch
                position += self.batch_size * self.world_size

        return self._run(batches(), endless=True)

    def _share(self, count: int) -> range:
        """Positions of an epoch that belong to this rank."""
        rank, ranks = self.rank, self.world_size
        return range(rank * count // ranks, (rank + 1) * count // ranks)

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.records)
        if not self.shuffle:
            return np.arange(count)
        return np.asarray(_core.permutation(count, self.seed, epoch))

    def _mirrored_answer(self, answer: str) -> int:
        """Index of the answer that is right in a mirrored picture."""
        mirrored, _ = _core.mirror_words(answer)
        return self._answer_index.get(mirrored, self._answer_index[answer])

    def _run(
        self, batches: Iterable[list[tuple[int, int]]], *, endless: bool = False
    ) -> Generator[Any, None, None]:
        """Start the feeder and give what comes out; closing the generator stops everything."""
        if self._process != os.getpid():
            # Threads do not survive a fork.
            self._core, self._process = self._make_core(), os.getpid()
        feeder = _Feeder(self, self._core.open(), batches)
        try:
            feeder.start()
            while (fields := feeder.session.next()) is not None:
                feeder.slots.release()
                while feeder.skipped:
                    self._skip(*feeder.skipped.popleft())
                batch = self._finish(fields)
                if len(batch):
                    yield batch
                elif endless:
                    key, reason = self.skipped[-1]
                    raise ValueError(
                        f"no sample of a batch of {self.batch_size} can be read;"
                        f" the last one: record {key!r}: {reason}"
                    )
            if feeder.error is not None:
                raise feeder.error
        finally:
            feeder.stop()

    def _finish(self, fields: dict[str, Any]) -> Batch:
        self.truncated_boxes += fields.pop("truncated_boxes")
        self.cropped_boxes += fields.pop("cropped_boxes")
        for key, reason in fields.pop("skipped"):
            self._skip(key, reason)
        keys = tuple(fields.pop("keys"))
        tensors = {name: _to_tensor(value) for name, value in fields.items()}
        if self.pin_memory:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return _BATCH_CLASSES[self.batch_type](keys=keys, **tensors)

    def _skip(self, key: str, reason: str) -> None:
        if not self.skipped:
            warnings.warn(
                f"record {key!r} is left out: {reason}"
                " (told once; DataLoader.skipped lists them all)",
                RuntimeWarning,
                stacklevel=4,
            )
        self.skipped.append((key, reason))

    def _plain(self, epoch: int, index: int) -> tuple[Any, ...]:
        """The parts of a record that Rust takes."""
        record = record_in_epoch(self.records, epoch, index)
        answers = None
        if record.answers is not None:
            known = self._answer_index
            answers = [(known[a], score) for a, score in record.answers.items() if a in known]
        return (
            record.key,
            epoch,
            index,
            record.images,
            record.text,
            record.image_id,
            record.boxes_xyxy,
            record.char_spans,
            answers,
            record.truth,
        )


@dataclass
class _Feeder:
    """The thread that reads records ahead of the Rust threads."""

    loader: DataLoader
    session: _core.Session
    batches: Iterable[list[tuple[int, int]]]
    error: BaseException | None = None
    stopped: bool = False
    skipped: deque[tuple[str, str]] = field(default_factory=deque)
    slots: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = threading.Semaphore(self.loader.prefetch)
        # It waits in Python only, so that the interpreter can end while it waits.
        self.thread = threading.Thread(target=self._feed, name="fiber-feeder", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Let everything go; a record set that is in the middle of something is not waited for."""
        self.stopped = True
        self.slots.release()
        self.session.close()
        self.thread.join(timeout=0.5)

    def _feed(self) -> None:
        try:
            for batch in self.batches:
                self.slots.acquire()
                if self.stopped:
                    return
                self.session.submit([plain for sample in batch if (plain := self._plain(*sample))])
        except BaseException as error:
            self.error = error
        finally:
            self.session.finish()

    def _plain(self, epoch: int, index: int) -> tuple[Any, ...] | None:
        """Ask for a record; faults of the data are treated as the loader is told to."""
        try:
            return self.loader._plain(epoch, index)
        except (OSError, ValueError) as error:
            if self.loader.on_error == "raise":
                raise
            self.skipped.append((f"#{index}", f"{type(error).__name__}: {error}"))
            return None


def _to_tensor(buffer: _core.Buffer) -> Tensor:
    """Share a buffer's memory with torch."""
    dtype = _DTYPES[buffer.dtype]
    if 0 in buffer.shape:
        return torch.empty(buffer.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).view(buffer.shape)
