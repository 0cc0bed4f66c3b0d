"""Documents in tables and archives: Arrow files, tar shards with their index, packs."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import ipc

from fiber.data import open_source
from fiber.data.formats.json_values import parse_json
from fiber.data.storage import pack_description
from fiber.data.storage.pack_index import pack_entry
from fiber.data.storage.record_entry import from_entry
from fiber.data.storage.shard_order import ShardGroups
from fiber.messages import shown
from tests.data.shards import write_tar
from tests.data.signed_packs import line_index
from tests.fuzz import seeds
from tests.fuzz.data import LINE_INDEX, LINES, signed, sound_pack
from tests.fuzz.generated.documents import Document, json_document, reads
from tests.fuzz.generated.encodings import to_json
from tests.fuzz.generated.text_tables import cell
from tests.fuzz.generated.trees import Node, Pairs, tree_of

_SENTENCE = "a red cup"


def _columns(kind: str) -> Callable[[int], Any]:
    def columns(count: int) -> Any:
        rows = range(count + 1)
        if kind == "captions":
            return Pairs([("image", [b"a"] * len(rows)), ("caption", [[_SENTENCE]] * len(rows))])
        if kind == "boxes":
            boxes = [Pairs([("bbox", [[1.0, 2.0, 9.0, 9.0]]), ("category", ["cup"])])]
            return Pairs([("image", [b"a"] * len(rows)), ("objects", boxes * len(rows))])
        names = [(f"column {number}", [1]) for number in rows]
        return Pairs([("image", [b"a"]), ("text", [_SENTENCE]), *names])

    return columns


def _write_arrow(content: Any, folder: Path) -> None:
    """Write columns; those whose values have no common type as text."""
    columns = content if isinstance(content, Pairs) else [("text", content)]
    names = [cell(name).encode("utf-8", "replace").decode() for name, _ in columns]
    values = [each if isinstance(each, list | tuple) else [each] for _, each in columns]
    try:
        _write_columns(names, list(map(_column, values)), folder)
    except arrow.ArrowException:
        # Values that are nested too deeply for the format.
        _write_columns(names, list(map(_texts, values)), folder)


def _write_columns(names: list[str], arrays: list[Any], folder: Path) -> None:
    count = min(map(len, arrays), default=0)
    table = arrow.table([array.slice(0, count) for array in arrays], names=names)
    with ipc.new_file(folder / "train.arrow", table.schema) as writer:
        writer.write_table(table)


def _column(values: Any) -> Any:
    try:
        return arrow.array(list(map(_plain, values)))
    except (arrow.ArrowException, OverflowError, TypeError, ValueError, RecursionError):
        return _texts(values)


def _texts(values: Any) -> Any:
    texts = [cell(each) for each in values if not isinstance(each, bytes)]
    return arrow.array([each.encode("utf-8", "replace") for each in texts])


def _plain(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {cell(key): _plain(each) for key, each in value}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return json.loads(to_json(value)) if isinstance(value, Node) else value


def _arrow_documents() -> list[Document]:
    kinds = {"captions": "captions", "boxes": "detection", "columns": "captions"}
    return [
        Document(
            "tables", f"train.arrow {kind}", _columns(kind), _write_arrow,
            reads(source, "train.arrow"),
        )
        for kind, source in kinds.items()
    ]  # fmt: skip


def _tar(folder: Path) -> Path:
    return write_tar(folder / "train.tar", [("0.txt", b"a"), ("0.png", seeds.image())])


def _write_index(content: Any, folder: Path) -> None:
    """Write the index of a shard, with the stamp of the shard where it has one."""
    status = (folder / "train.tar").stat()
    text = to_json(content).replace('"BYTES"', str(status.st_size))
    text = text.replace('"CHANGED"', str(status.st_mtime_ns))
    (folder / "train.tar.index").write_text(text, encoding="utf-8")


def _index(count: int) -> Any:
    # The archive's own, then empty ones: no two share bytes.
    members = [["000000.txt", 512, 1], ["000000.png", 1536, len(seeds.image())]]
    after = 1536 + -(-len(seeds.image()) // 512) * 512
    members += [[f"{n:06d}{end}", after, 0] for n in range(1, count) for end in (".png", ".txt")]
    stamp = {"version": 1, "bytes": "BYTES", "changed_ns": "CHANGED"}
    return tree_of({**stamp, "counts": {"links": 1}, "notes": ["a"], "members": members})


def _sample(content: Any, folder: Path) -> None:
    (folder / "train.tar.index").unlink(missing_ok=True)
    text = to_json(content).encode()
    write_tar(folder / "train.tar", [("0.png", seeds.image()), ("0.json", text)])


def _tar_documents() -> list[Document]:
    samples: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
        "captions": ("captions", lambda n: {"captions": [f"cup {i}" for i in range(n + 1)]}),
        "questions": ("questions", lambda n: {"question": "a?", "answers": ["a"] * (n + 1)}),
        "scores": (
            "questions",
            lambda n: {
                "questions": ["a?"] * (n + 1),
                "answers": [["b"]] * (n + 1),
                "answer_scores": [[1.0]] * (n + 1),
            },
        ),
        "boxes": (
            "detection",
            lambda n: {"objects": [{"bbox": [1, 2, 9, 9], "category": "c"}] * (n + 1)},
        ),
    }
    return [
        Document(
            "tables", "train.tar.index", _index, _write_index, reads("captions", "train.tar"), _tar
        ),
        *(
            Document(
                "tables", f"train.tar {name}", lambda n, make=make: tree_of(make(n)), _sample,
                reads(source, "train.tar"),
            )
            for name, (source, make) in samples.items()
        ),
    ]  # fmt: skip


def _lines_document() -> Document:
    """The index of the lines of a pack: the line of each record.

    The first line has as many boxes as there are records.
    """

    def write(content: Any, folder: Path) -> None:
        chosen = [n if type(n) is int and 0 <= n < 10_000 else 0 for n in _items(content)]
        sound = [json.loads(line) for line in sound_pack()[LINES].splitlines()]
        sound[0] |= {"boxes_xyxy": [[1, 2, 9, 9]] * len(chosen), "box_labels": [0] * len(chosen)}
        entries = [sound[0] if n == 0 else sound[1 + n % 4] for n in range(max(chosen) + 1)]
        lines = [f"{to_json(entry)}\n".encode() for entry in entries]
        starts = list(accumulate(map(len, lines), initial=0))
        index = [
            pack_entry(starts[n], len(lines[n]), entries[n]["images"][0], zlib.crc32(lines[n]))
            for n in chosen
        ]
        files = dict(sound_pack()) | {LINES: b"".join(lines), LINE_INDEX: b"".join(index)}
        description = json.loads(files[pack_description.DESCRIPTION])
        for part in description["parts"]:
            part["records"] = len(chosen)
        files[pack_description.DESCRIPTION] = json.dumps(description).encode()
        files[pack_description.DESCRIPTION] = signed(files)
        for each, data in files.items():
            (folder / each).write_bytes(data)

    def tree(count: int) -> list[int]:
        return list(range(count + 1))

    return Document("packs", LINE_INDEX, tree, write, _read_pack, _write_pack)


def _masks(count: int) -> dict[str, Any]:
    """A line of a pack with masks of every kind, and one with an id map."""
    bits = base64.b64encode(bytes(24 * 4)).decode()
    masks = [{"counts": [9, 759], "size": [24, 32]}, {"bits": bits, "size": [24, 32]}]
    masks += [{"rings": [[1, 2, 9, 2, 9, 9]]}] * (count + 1)
    labels = [0] * len(masks)
    entry = {"key": "a", "text": "", "labels": ["cup"], "masks": masks, "mask_labels": labels}
    objects = {"boxes_xyxy": [[1, 2, 9, 9]], "labels": [0], "areas": [9.0], "crowd": [False]}
    id_map = {"png": bits, "ids": [1], "void": [0], "coding": "gray", "may_lack": True}
    return {
        "masks": {**entry, "objects": {**objects, "absent": [0], "incomplete": [0]}},
        "id map": {**entry, "masks": id_map, "mask_labels": [0]},
    }


def _read_entries(folder: Path) -> None:
    """Read entries as of lines of a pack, each error with the file."""
    path = folder / "entries.json"
    for name, entry in parse_json(path.read_text(), path, dict).items():
        try:
            from_entry(entry if isinstance(entry, dict) else {}, (b"",))
        except (ValueError, TypeError) as error:
            # As `PackedRecords` does.
            raise ValueError(f"{path}: {shown(name)}: {error}") from None


def _items(content: Any) -> list[Any]:
    return content if isinstance(content, list) and content else [content]


def _write_pack(folder: Path) -> None:
    for each, content in sound_pack().items():
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(content)


def _read_pack(folder: Path) -> None:
    pack_description._read_description.cache_clear()
    records = open_source("detection", folder, "train", objects=True)
    for record in records:
        assert all(isinstance(image, bytes) for image in record.images)
    ShardGroups(records.shard_map())


def _pack_document(name: str, label: str, *, is_signed: bool = True) -> Document:
    """A file of a pack, with the checksums of the pack as it is written."""

    def tree(count: int) -> Any:
        content = sound_pack()[name].decode()
        if name.endswith(".jsonl"):
            return tree_of([json.loads(line) for line in content.splitlines()])
        return tree_of(json.loads(content))

    def write(content: Any, folder: Path) -> None:
        files = dict(sound_pack())
        is_lines = name.endswith(".jsonl") and type(content) is list
        lines = [f"{to_json(line)}\n" for line in content] if is_lines else [to_json(content)]
        files[name] = "".join(lines).encode()
        if is_lines:
            files[LINE_INDEX] = line_index([line.encode() for line in lines])
        if is_signed:
            files[pack_description.DESCRIPTION] = signed(files)
        for each, data in files.items():
            (folder / each).write_bytes(data)

    return Document("packs", label, tree, write, _read_pack, _write_pack)


def documents() -> list[Document]:
    """Tables, shards and their index."""
    return [*_arrow_documents(), *_tar_documents()]


def packs() -> list[Document]:
    """JSON files of packs, with right checksums and, of pack.json, also without."""
    return [
        _pack_document(pack_description.DESCRIPTION, "pack.json"),
        _pack_document(
            pack_description.DESCRIPTION, "pack.json without checksums", is_signed=False
        ),
        _pack_document(LINES, LINES),
        _lines_document(),
        json_document("packs", "entries.json", _masks, _read_entries),
    ]
