"""Documents in tables and archives: CSV, TSV, Arrow, tar shards with their index, packs."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import ipc

from fiber.data import open_source
from fiber.data.storage import pack_description
from fiber.data.storage.pack_index import pack_entry
from fiber.data.storage.shard_order import ShardGroups
from tests.data.shards import write_tar
from tests.fuzz import seeds
from tests.fuzz.data import PACK_FILES, PACK_FILES_1, signed, sound_pack
from tests.fuzz.generated.documents import Document, json_document
from tests.fuzz.generated.encodings import to_json
from tests.fuzz.generated.trees import Node, Pairs, tree_of

_SENTENCE = "a red cup"


def _cell(value: Any) -> str:
    """A value as text of a cell: strings as they are, others as JSON."""
    if isinstance(value, str):
        return value
    text = to_json(value)
    return json.loads(text) if text.startswith('"') else text


def _text_document(
    kind: str,
    file: str,
    tree: Callable[[int], Any],
    to_text: Callable[[Any], str],
    read: Callable[[Path], object],
    prepare: Callable[[Path], object] = lambda folder: None,
) -> Document:
    def write(content: Any, folder: Path) -> None:
        text = to_text(content)
        (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))

    return Document(kind, file, tree, write, read, prepare)


def _rows(content: Any) -> list[list[Any]]:
    """Rows of a table whose rows or whole content may be any other value."""
    rows = content if isinstance(content, list) else [content]
    return [list(row) if isinstance(row, list | tuple) else [row] for row in rows]


def _csv(content: Any) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([map(_cell, row) for row in _rows(content)])
    return out.getvalue()


def _tsv(content: Any) -> str:
    return "".join("\t".join(map(_cell, row)) + "\n" for row in _rows(content))


def _image(folder: Path) -> None:
    (folder / "a.png").write_bytes(seeds.image())


def _reads(source: str, file: str, **options: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        list(open_source(source, folder / file, "train", **options))

    return read


def _csv_documents() -> list[Document]:
    def captions(count: int) -> list[list[str]]:
        return [["image", "text"], *(["a.png", f"{_SENTENCE} {n}"] for n in range(count))]

    read = _reads("captions", "train.csv")
    questions = lambda n: [["image", "question", "answer"]] + [["a.png", "a?", "b"]] * n  # noqa: E731
    return [
        _text_document("tables", "train.csv", lambda n: captions(n + 1), _csv, read, _image),
        _text_document(
            "tables", "train.csv", lambda n: questions(n + 1), _csv,
            _reads("questions", "train.csv"), _image,
        ),
    ]  # fmt: skip


def _objects365(folder: Path, count: int = 50) -> None:
    size = json.dumps([{"height": 24, "width": 32}])
    image, boxes = base64.b64encode(seeds.image()).decode(), json.dumps(_boxes(0))
    for name, column in (("images", image), ("label", boxes), ("hw", size)):
        lines = "".join(f"{n}\t{column}\n" for n in range(count))
        (folder / f"{name}.tsv").write_text(lines)
    (folder / "map.json").write_text(json.dumps(_labelmap(2)))
    (folder / "lines.tsv").write_text("0\n1\n")
    names = {"img": "images.tsv", "label": "label.tsv", "hw": "hw.tsv", "labelmap": "map.json"}
    yaml = "".join(f"{name}: {file}\n" for name, file in {**names, "linelist": "lines.tsv"}.items())
    (folder / "objects365_train.yaml").write_text(yaml)


def _boxes(count: int) -> list[dict[str, Any]]:
    return [{"class": "class 0", "rect": [1, 2, 20.5, 20]} for _ in range(count + 1)]


def _labelmap(count: int) -> dict[str, int]:
    return {f"class {number}": number for number in range(count + 1)}


def _objects365_documents() -> list[Document]:
    read = _reads("objects365", "objects365_train.yaml")
    whole = {"img": "images.tsv", "label": "label.tsv", "labelmap": "map.json"}

    def yaml(content: Any) -> str:
        pairs = content if isinstance(content, Pairs) else [(content, content)]
        return "".join(f"{_cell(key)}: {_cell(value)}\n" for key, value in pairs)

    def rows(column: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda n: [["0", tree_of(column(n))]] + [["1", tree_of(column(0))]] * 49

    return [
        _text_document("tables", "label.tsv", rows(_boxes), _tsv, read, _objects365),
        _text_document(
            "tables", "hw.tsv", rows(lambda _: [{"height": 24, "width": 32}]), _tsv, read,
            _objects365,
        ),
        _text_document("tables", "lines.tsv", lambda n: [[1]] * n, _tsv, read, _objects365),
        json_document("tables", "map.json", _labelmap, read, _objects365),
        _text_document(
            "tables", "objects365_train.yaml",
            lambda n: Pairs([*whole.items(), *((f"k{i}", "v") for i in range(n))]), yaml, read,
            _objects365,
        ),
    ]  # fmt: skip


def _flickr(folder: Path) -> None:
    for name in ("Annotations", "Sentences", "images"):
        (folder / name).mkdir()
    (folder / "val.txt").write_text("12\n")
    (folder / "Annotations" / "12.xml").write_text(_xml(_objects(1)))
    (folder / "Sentences" / "12.txt").write_text("[/EN#0/people A man] sits .\n")


def _objects(count: int) -> list[list[Any]]:
    """Rows of a name and four corners."""
    return [[str(number), 5, 6, 105, 206] for number in range(count + 1)]


def _xml(content: Any) -> str:
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = []
    for row in _rows(content):
        name, *corners = row or [""]
        box = "".join(
            f"<{side}>{_escaped(each)}</{side}>" for side, each in zip(sides, corners, strict=False)
        )
        objects.append(f"<object><name>{_escaped(name)}</name><bndbox>{box}</bndbox></object>")
    return f"<annotation>{''.join(objects)}</annotation>"


def _escaped(value: Any) -> str:
    return _cell(value).replace("&", "&amp;").replace("<", "&lt;")


def _flickr_documents() -> list[Document]:
    def sentences(count: int) -> list[list[str]]:
        phrases = [f"[/EN#{number}/people man]" for number in range(count + 1)]
        return [[f"{' '.join(phrases)} sit ."]]

    def many(count: int) -> list[list[str]]:
        return [["[/EN#0/people A man] sits ."]] * (count + 1)

    def read(folder: Path) -> None:
        list(open_source("phrases", folder, "val"))

    names = ("Annotations/12.xml", "Sentences/12.txt", "val.txt")
    return [
        _text_document("tables", names[0], _objects, _xml, read, _flickr),
        _text_document("tables", names[1], sentences, _tsv, read, _flickr),
        _text_document("tables", names[1], many, _tsv, read, _flickr),
        _text_document("tables", names[2], lambda n: [["12"]] * (n + 1), _tsv, read, _flickr),
    ]


def _captions_tsv(count: int) -> list[list[str]]:
    return [["caption", "url"], *([_SENTENCE, "a.png"] for _ in range(count + 1))]


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
    names = [_cell(name).encode("utf-8", "replace").decode() for name, _ in columns]
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
    texts = [_cell(each) for each in values if not isinstance(each, bytes)]
    return arrow.array([each.encode("utf-8", "replace") for each in texts])


def _plain(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {_cell(key): _plain(each) for key, each in value}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return json.loads(to_json(value)) if isinstance(value, Node) else value


def _arrow_documents() -> list[Document]:
    kinds = {"captions": "captions", "boxes": "detection", "columns": "captions"}
    return [
        Document(
            "tables", f"train.arrow {kind}", _columns(kind), _write_arrow,
            _reads(source, "train.arrow"),
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
    members = [[f"{n:06d}{end}", 512, 1] for n in range(count + 1) for end in (".png", ".txt")]
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
            "tables", "train.tar.index", _index, _write_index, _reads("captions", "train.tar"), _tar
        ),
        *(
            Document(
                "tables", f"train.tar {name}", lambda n, make=make: tree_of(make(n)), _sample,
                _reads(source, "train.tar"),
            )
            for name, (source, make) in samples.items()
        ),
    ]  # fmt: skip


#: Index of the lines of a pack, which has their checksums.
_LINE_INDEX = "index/train-detection.bin"


def _line_index(lines: list[bytes]) -> bytes:
    starts = accumulate(map(len, lines), initial=0)
    return b"".join(
        pack_entry(start, len(line), number, zlib.crc32(line))
        for number, (start, line) in enumerate(zip(starts, lines, strict=False))
    )


def _pack_document(name: str, names: tuple[str, ...], *, is_signed: bool) -> Document:
    """A file of a pack, with the checksums of the pack as it is written."""

    def tree(count: int) -> Any:
        content = sound_pack(names)[name].decode()
        if name.endswith(".jsonl"):
            return tree_of([json.loads(line) for line in content.splitlines()])
        return tree_of(json.loads(content))

    def write(content: Any, folder: Path) -> None:
        files = dict(sound_pack(names))
        is_lines = name.endswith(".jsonl") and type(content) is list
        lines = [f"{to_json(line)}\n" for line in content] if is_lines else [to_json(content)]
        files[name] = "".join(lines).encode()
        if is_lines and _LINE_INDEX in files:
            files[_LINE_INDEX] = _line_index([line.encode() for line in lines])
        if is_signed:
            files[pack_description.DESCRIPTION] = signed(files)
        for each, data in files.items():
            (folder / each).write_bytes(data)

    def prepare(folder: Path) -> None:
        for each, content in sound_pack(names).items():
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).write_bytes(content)

    def read(folder: Path) -> None:
        pack_description._read_description.cache_clear()
        records = open_source("detection", folder, "train", objects=True)
        for record in records:
            assert all(isinstance(image, bytes) for image in record.images)
        ShardGroups(records.shard_map())

    return Document("packs", f"{name} of {len(names)}", tree, write, read, prepare)


def documents() -> list[Document]:
    """Tables, shards and their index."""
    captions = _text_document(
        "tables", "Train_GCC-training.tsv", _captions_tsv, _tsv,
        _reads("conceptual_captions", "Train_GCC-training.tsv"), _image,
    )  # fmt: skip
    return [
        *_csv_documents(),
        captions,
        *_objects365_documents(),
        *_flickr_documents(),
        *_arrow_documents(),
        *_tar_documents(),
    ]


def packs() -> list[Document]:
    """JSON files of packs, with right checksums and, of pack.json, also without."""
    found = [_pack_document(name, PACK_FILES, is_signed=True) for name in PACK_FILES[:2]]
    found += [
        _pack_document(name, PACK_FILES_1, is_signed=True)
        for name in PACK_FILES_1
        if name.endswith((".json", ".jsonl"))
    ]
    return [*found, _pack_document(PACK_FILES[0], PACK_FILES, is_signed=False)]
