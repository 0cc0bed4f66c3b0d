"""Pack a folder or a file into tar shards with an index; see `fiber.data.storage.packed`.

The output is deterministic. Each image of a split is written once, in its original format, with a
.txt file for the first caption and a .json file for all captions, questions, boxes and so on, in
the fields of `rows`. The `webdataset` library can read the shards.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import operator
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from fiber.atomic_io import DISK_FULL, explain_write_errors, new_directory
from fiber.data.datasets.registry import SOURCES
from fiber.data.formats.annotation_file import is_file
from fiber.data.formats.json_values import split_problem
from fiber.data.formats.layout import Source
from fiber.data.image_file import extension_of
from fiber.data.record import AnyPath, Record, StoredImage
from fiber.data.storage.pack_description import (
    BLOCK_BYTES,
    DESCRIPTION,
    FORMAT,
    IMAGES,
    MAX_BLOCK_BYTES,
    VERSION,
    fingerprint_of_content,
)
from fiber.data.storage.pack_index import TAR_BLOCK, pack_entry
from fiber.data.storage.record_entry import SHARED, to_entry
from fiber.data.tools.discover import Part, parts_of
from fiber.messages import printable, shown

#: Maximum number of characters of a path in a message.
MAX_PATH = 500
#: Default maximum size of a shard in bytes.
SHARD_BYTES = 256 << 20
_UNREADABLE = "records whose pictures are missing"


@dataclass
class _Split:
    """The images of a split and the fields of their samples."""

    name: str
    #: Index of each image, by path or hash.
    numbers: dict[Any, int] = field(default_factory=dict)
    #: Path of each image, or a function that reads it.
    images: list[str | Callable[[], StoredImage]] = field(default_factory=list)
    fields: list[dict[str, Any]] = field(default_factory=list)
    #: Images of the previous record and their indices, reused since texts of an image are adjacent.
    last: tuple[Any, list[int]] | None = None


class HashedFile:
    """File wrapper that computes the checksums of its content as it is written.

    Args:
        file: binary file.
        name: path in the packed folder.
        block_bytes: bytes that share a CRC-32.
    """

    def __init__(self, file: BinaryIO, name: str, block_bytes: int) -> None:
        self._file, self._name, self._block_bytes = file, name, block_bytes
        self._hash = hashlib.sha256()
        self._bytes, self._crc32s = 0, []

    def write(self, data: bytes) -> int:
        """Write data, and add it to the SHA-256 and to the CRC-32s of its blocks."""
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            used = self._bytes % self._block_bytes
            part = rest[: self._block_bytes - used]
            if not used:
                self._crc32s.append(0)
            self._crc32s[-1] = zlib.crc32(part, self._crc32s[-1])
            self._bytes += len(part)
            rest = rest[len(part) :]
        return self._file.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._bytes

    def entry(self) -> dict[str, Any]:
        """Return the description of the file."""
        return {
            "file": self._name,
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
            "crc32s": self._crc32s,
        }


def pack(
    source: AnyPath,
    output: AnyPath,
    *,
    splits: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    block_bytes: int = BLOCK_BYTES,
    on_error: str = "raise",
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    keep: Callable[[Part, int, Record], bool] | None = None,
) -> dict[str, Any]:
    """Pack a folder or a file, and return the content of `pack.json`.

    Args:
        source: folder or file that `open_source` reads.
        output: folder, which must be new or empty; written atomically.
        splits: splits to pack; default: all.
        shard_bytes: maximum size of a shard in bytes; a larger sample gets its own shard.
        block_bytes: bytes of a file that share a CRC-32, and that are downloaded at a time if the
            folder is read over a network.
        on_error: "raise", or "skip" to skip and count invalid boxes and records with missing
            images.
        progress: called with (images written, total images).
        tell: called for each skipped record with one line that contains its key and the reason.
        keep: called with a part, an index and the record; False leaves it out. Default: all stay.

    Raises:
        FileNotFoundError: if the source or an image is missing.
        FileExistsError: if the output exists and is not empty.
        OSError: if a file cannot be written; the output is then not created.
        ValueError: if the source is empty, lacks a split or cannot be read.
    """
    source, output = Path(source), Path(output)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if not 1 <= block_bytes <= MAX_BLOCK_BYTES:
        raise ValueError(f"block_bytes is {block_bytes}; expected 1 to {MAX_BLOCK_BYTES}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(
            f"{output} already exists and is not an empty folder; expected a new or empty folder"
        )
    parts = parts_of(source, splits)
    for part in parts:
        if (problem := split_problem(part.split)) is not None:
            raise ValueError(f"{source} has {problem}")
    with explain_write_errors(output, DISK_FULL), new_directory(output) as folder:
        packer = _Packer(
            source, folder, output, shard_bytes, block_bytes, on_error, tell, progress, keep
        )
        for name in dict.fromkeys(part.split for part in parts):
            split = _Split(name)
            for part in (part for part in parts if part.split == name):
                packer.add_part(split, part)
            packer.write_shards(split)
        return packer.finish()


@dataclass
class _Packer:
    """Writer of the shards and index files of a folder."""

    source: Path
    folder: Path
    output: Path
    shard_bytes: int
    block_bytes: int
    on_error: str
    tell: Callable[[str], None] | None
    progress: Callable[[int, int], None] | None
    keep: Callable[[Part, int, Record], bool] | None
    parts: list[dict[str, Any]] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    indexes: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._base = self.source if self.source.is_dir() else self.source.parent
        (self.folder / "index").mkdir()

    def finish(self) -> dict[str, Any]:
        """Write the description, and copy the data's tokenizer if there is one."""
        if (tokenizer := self._base / "tokenizer.json").is_file():
            with self._file(tokenizer.name) as file:
                file.write(tokenizer.read_bytes())
            self.files.append(file.entry())
        content = {"format": FORMAT, "version": VERSION, "block_bytes": self.block_bytes}
        content |= {"shards": self.shards, "indexes": self.indexes}
        content |= {"parts": self.parts, "files": self.files}
        content = {"fingerprint": fingerprint_of_content(content), **content}
        data = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        with self._file(DESCRIPTION) as file:
            file.write(data.encode())
        return content

    @contextmanager
    def _file(self, name: str) -> Iterator[HashedFile]:
        """Open a file in the folder for writing. Errors name its final path."""
        try:
            with (self.folder / name).open("wb") as file:
                yield HashedFile(file, name, self.block_bytes)
        except OSError as problem:
            # An error with a file name is about an image that cannot be read.
            if problem.errno is None or problem.filename is not None:
                raise
            path = str(self.output / name)
            raise OSError(problem.errno, problem.strerror or str(problem), path) from problem

    def add_part(self, split: _Split, part: Part) -> None:
        """Write the index of a part, and add its images to the split."""
        # Opening reports an unknown source of a packed folder.
        source = SOURCES.get(part.source, Source())
        options: dict[str, Any] = {}
        if "on_error" in source.options:
            options["on_error"] = self.on_error
        records = part.open(**options)
        counts = dict(getattr(records, "counts", {}))
        counts_of_objects = counts
        more = [name for name in ("objects", "masks") if name in source.options]
        if more:
            # What training does not read is stored, too.
            options |= dict.fromkeys(more, True)
            records = part.open(**options)
            counts_of_objects = dict(getattr(records, "counts", {}))
        name = f"index/{split.name}-{part.source}"
        shared = _Shared()
        written = skipped = 0
        with self._file(f"{name}.jsonl") as file, self._file(f"{name}.bin") as locations:
            for index in range(len(records)):
                record = records[index]
                if self.keep is not None and not self.keep(part, index, record):
                    continue
                numbers = self._numbers(split, record)
                if numbers is None:
                    skipped += 1
                    continue
                try:
                    entry = {"images": numbers, **to_entry(record)}
                except FileNotFoundError as problem:
                    self._tell_missing(record.key, problem)
                    skipped += 1
                    continue
                if "image_id" in entry:
                    entry["image_id"] = entry["image_id"].removeprefix(f"{self._base}/")
                _add_fields(split, part.source, record, numbers, entry)
                if source.has_classes:
                    entry["shared"] = shared.index(entry)
                text = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
                try:
                    line = text.encode() + b"\n"
                except UnicodeEncodeError:
                    # The path of an image, which is no UTF-8.
                    raise ValueError(
                        f"record {shown(record.key)}: {shown(record.image_id)} cannot be encoded"
                        " as UTF-8; expected another path"
                    ) from None
                locations.write(pack_entry(file.tell(), len(line), numbers[0], zlib.crc32(line)))
                file.write(line)
                written += 1
        # Some readers count while records are read.
        counts |= {} if counts else getattr(records, "counts", {})
        for counter in (counts, counts_of_objects):
            counter |= {_UNREADABLE: skipped} if skipped else {}
        self.parts.append(
            {
                "source": part.source,
                "split": split.name,
                "records": written,
                **file.entry(),
                "counts": counts,
                "counts_of_objects": counts_of_objects,
                "notes": list(getattr(records, "notes", ())),
                "classes": list(getattr(records, "classes", ())),
                "shared": [json.loads(text) for text in shared.texts],
            }
        )
        self._add_index(split, part.source, locations)

    def _add_index(self, split: _Split, source: str, file: HashedFile) -> None:
        self.indexes.append({"split": split.name, "source": source, **file.entry()})

    def _numbers(self, split: _Split, record: Record) -> list[int] | None:
        """Return the indices of a record's images, or None if the record is skipped."""
        if split.last is not None and record.images == split.last[0]:
            return split.last[1]
        numbers = []
        for index in range(len(record.images)):
            image: Any
            try:
                stored = record.images[index]
                if isinstance(stored, bytes):
                    identity = hashlib.sha256(stored).digest()
                    image = partial(operator.getitem, record.images, index)
                else:
                    identity = image = os.fspath(stored)
                    if image not in split.numbers and not is_file(Path(image)):
                        raise FileNotFoundError(
                            f"image {printable(image, MAX_PATH)} does not exist"
                        )
            except FileNotFoundError as problem:
                self._tell_missing(record.key, problem)
                return None
            if identity not in split.numbers:
                split.numbers[identity] = len(split.images)
                split.images.append(image)
                split.fields.append({})
            numbers.append(split.numbers[identity])
        split.last = (record.images, numbers)
        return numbers

    def _tell_missing(self, key: str, problem: FileNotFoundError) -> None:
        """Report a record that is skipped since an image or a map is missing, or fail."""
        message = f"record {shown(key)}: {problem}"
        if self.on_error != "skip":
            raise FileNotFoundError(message) from None
        if self.tell is not None:
            self.tell(message)

    def write_shards(self, split: _Split) -> None:
        """Write the samples of a split into shards, and the index of its images."""
        written = 0
        with self._file(f"index/{split.name}-{IMAGES}.bin") as index:
            for shard, samples in itertools.groupby(_members(split), _ShardOf(self.shard_bytes)):
                first = written
                with self._file(f"{split.name}-{shard:06d}.tar") as file:
                    tar = tarfile.TarFile(
                        fileobj=cast(IO[bytes], file), mode="w", format=tarfile.USTAR_FORMAT
                    )
                    for sample in samples:
                        image, start = sample[0][1], tar.offset + TAR_BLOCK
                        index.write(pack_entry(start, len(image), shard, zlib.crc32(image)))
                        for member, data in sample:
                            info = tarfile.TarInfo(member)
                            info.size = len(data)
                            tar.addfile(info, io.BytesIO(data))
                        written += 1
                        if self.progress is not None:
                            self.progress(written, len(split.images))
                    tar.close()
                    pictures = written - first
                    self.shards.append({**file.entry(), "split": split.name, "pictures": pictures})
            self._add_index(split, IMAGES, index)


class _ShardOf:
    """Assigns samples to shards of at most `shard_bytes` in order."""

    def __init__(self, shard_bytes: int) -> None:
        self._shard_bytes = shard_bytes
        self._shard = self._used = 0

    def __call__(self, sample: list[tuple[str, bytes]]) -> int:
        """Return the shard of the next sample."""
        size = sum(TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK for _, data in sample)
        if self._used and self._used + size > self._shard_bytes:
            self._shard, self._used = self._shard + 1, 0
        self._used += size
        return self._shard


def _members(split: _Split) -> Iterator[list[tuple[str, bytes]]]:
    """Yield the members of each sample, starting with the image."""
    for number, (image, fields) in enumerate(zip(split.images, split.fields, strict=True)):
        stored = image if isinstance(image, str) else image()
        data = stored if isinstance(stored, bytes) else Path(stored).read_bytes()
        name = f"{number:09d}"
        members = [(f"{name}.{extension_of(data)}", data)]
        if captions := fields.get("captions"):
            members.append((f"{name}.txt", captions[0].encode()))
        members.append((f"{name}.json", json.dumps(fields, ensure_ascii=False).encode()))
        yield members


class _Shared:
    """Fields that many records share, such as the prompt of all classes."""

    def __init__(self) -> None:
        #: The fields as JSON, with their indices.
        self.texts: dict[str, int] = {}
        self._last: tuple[dict[str, Any], int] | None = None

    def index(self, entry: dict[str, Any]) -> int:
        """Move these fields out of the entry of a record, and return their index."""
        common = {name: entry.pop(name) for name in SHARED if name in entry}
        # Most records share them with the one before, whose classes may be thousands.
        if self._last is not None and self._last[0].keys() == common.keys():
            last, index = self._last
            if all(value is last[name] for name, value in common.items()):
                return index
        text = json.dumps(common, ensure_ascii=False)
        index = self.texts.setdefault(text, len(self.texts))
        self._last = common, index
        return index


def _add_fields(
    split: _Split, source: str, record: Record, numbers: list[int], entry: dict[str, Any]
) -> None:
    """Add the fields of a record to the sample of its first image."""
    fields = split.fields[numbers[0]]
    fields.setdefault("image_id", entry.get("image_id", record.key))
    if record.image_size is not None:
        fields["height"], fields["width"] = record.image_size
    kind = SOURCES[source].of or source
    if kind == "questions":
        answers = record.answers or {}
        lists = {
            "questions": record.text,
            "question_id": record.key.rpartition("/")[2],
            "answers": list(answers),
            "answer_scores": list(answers.values()),
        }
    elif SOURCES[kind].has_classes:
        lists = {}
        if record.boxes_xyxy or not record.masks:
            fields["boxes_xyxy"] = record.boxes_xyxy
            fields["labels"] = [record.labels[label] for label in record.box_labels]
        if record.masks:
            names = ("masks", "mask_crowd", "phrases", "phrase_masks")
            own = {name: entry[name] for name in names if name in entry}
            own["mask_labels"] = [record.labels[label] for label in record.mask_labels]
            lists = {f"{kind}_masks" if record.boxes_xyxy else kind: own}
    elif kind == "captions":
        lists = {"captions": record.text}
    else:
        excluded = ("image_id", "image_size", "images", "label_spans", "box_labels")
        own = {name: value for name, value in entry.items() if name not in excluded}
        if len(numbers) > 1 or kind == "swapped":
            own["images"] = [f"{number:09d}" for number in numbers]
        lists = {kind: own}
    for name, value in lists.items():
        fields.setdefault(name, []).append(value)
