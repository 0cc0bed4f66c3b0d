"""Documents in text other than JSON: CSV, TSV, and the files of Flickr30k Entities."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fiber.data import open_source
from tests.fuzz import seeds
from tests.fuzz.generated.documents import Document, json_document, reads
from tests.fuzz.generated.encodings import to_json
from tests.fuzz.generated.trees import Pairs, tree_of

_SENTENCE = "a red cup"


def cell(value: Any) -> str:
    """A value as text of a cell: strings as they are, others as JSON."""
    if isinstance(value, str):
        return value
    text = to_json(value)
    return json.loads(text) if text.startswith('"') else text


def text_document(
    file: str,
    tree: Callable[[int], Any],
    to_text: Callable[[Any], str],
    read: Callable[[Path], object],
    prepare: Callable[[Path], object] = lambda folder: None,
    name: str | None = None,
    *,
    kind: str = "tables",
) -> Document:
    """A document in a text format, written as UTF-8, or else with lone surrogates."""

    def write(content: Any, folder: Path) -> None:
        text = to_text(content)
        (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))

    return Document(kind, name or file, tree, write, read, prepare)


def _rows(content: Any) -> list[list[Any]]:
    """Rows of a table whose rows or whole content may be any other value."""
    rows = content if isinstance(content, list) else [content]
    return [list(row) if isinstance(row, list | tuple) else [row] for row in rows]


def _csv(content: Any) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([map(cell, row) for row in _rows(content)])
    return out.getvalue()


def tsv(content: Any) -> str:
    """Rows as lines of cells, separated by tabs."""
    return "".join("\t".join(map(cell, row)) + "\n" for row in _rows(content))


def _image(folder: Path) -> None:
    (folder / "a.png").write_bytes(seeds.image())


def _csv_documents() -> list[Document]:
    def captions(count: int) -> list[list[str]]:
        return [["image", "text"], *(["a.png", f"{_SENTENCE} {n}"] for n in range(count))]

    read = reads("captions", "train.csv")

    def questions(count: int) -> list[list[str]]:
        return [["image", "question", "answer"], *[["a.png", "a?", "b"]] * count]

    return [
        text_document("train.csv", lambda n: captions(n + 1), _csv, read, _image),
        text_document(
            "train.csv", lambda n: questions(n + 1), _csv, reads("questions", "train.csv"),
            _image, "questions in train.csv",
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


def _write_labels(folder: Path, first: str, count: int = 50) -> None:
    rest = "".join(f"{n}\t[]\n" for n in range(1, count))
    (folder / "label.tsv").write_text(f"0\t{first}\n{rest}")


def _boxes(count: int) -> list[dict[str, Any]]:
    return [{"class": "class 0", "rect": [1, 2, 20.5, 20]} for _ in range(count + 1)]


def _labelmap(count: int) -> dict[str, int]:
    return {f"class {number}": number for number in range(count + 1)}


def _objects365_documents() -> list[Document]:
    read = reads("objects365", "objects365_train.yaml")
    whole = {"img": "images.tsv", "label": "label.tsv", "labelmap": "map.json"}

    def yaml(content: Any) -> str:
        pairs = content if isinstance(content, Pairs) else [(content, content)]
        return "".join(f"{cell(key)}: {cell(value)}\n" for key, value in pairs)

    def rows(column: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda n: [["0", tree_of(column(n))]] + [["1", tree_of(column(0))]] * 49

    def images(count: int) -> list[list[str]]:
        return [[str(n), base64.b64encode(seeds.image()).decode()] for n in range(50)]

    def read_images(folder: Path) -> None:
        for record in open_source("objects365", folder / "objects365_train.yaml", "train"):
            list(record.images)

    def write_lines(content: Any, folder: Path) -> None:
        """Write a line list, and boxes of the first line that are as many as its entries."""
        lines = _rows(content)
        (folder / "lines.tsv").write_text(tsv(lines), encoding="utf-8", errors="replace")
        _write_labels(folder, json.dumps(_boxes(len(lines))))

    return [
        Document(
            "tables", "lines.tsv of one long line", lambda n: [[0]] * n, write_lines, read,
            _objects365,
        ),
        text_document("label.tsv", rows(_boxes), tsv, read, _objects365),
        text_document(
            "hw.tsv", rows(lambda _: [{"height": 24, "width": 32}]), tsv, read,
            _objects365,
        ),
        text_document("lines.tsv", lambda n: [[1]] * n, tsv, read, _objects365),
        text_document("images.tsv", images, tsv, read_images, _objects365),
        json_document("tables", "map.json", _labelmap, read, _objects365),
        text_document(
            "objects365_train.yaml",
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


def _many_flickr(folder: Path, count: int = 1000) -> None:
    """Files of many images, which share their content."""
    _flickr(folder)
    for number in range(count):
        for file in ("Annotations/12.xml", "Sentences/12.txt"):
            path = folder / file
            path.with_stem(f"image{number}").hardlink_to(path)


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
    return cell(value).replace("&", "&amp;").replace("<", "&lt;")


def _flickr_documents() -> list[Document]:
    def sentences(count: int) -> list[list[str]]:
        phrases = [f"[/EN#{number}/people man]" for number in range(count + 1)]
        return [[f"{' '.join(phrases)} sit ."]]

    def many(count: int) -> list[list[str]]:
        return [["[/EN#0/people A man] sits ."]] * (count + 1)

    def listed(count: int) -> list[list[str]]:
        return [[f"image{number}"] for number in range(count + 1)]

    def read(folder: Path) -> None:
        list(open_source("phrases", folder, "val"))

    names = ("Annotations/12.xml", "Sentences/12.txt", "val.txt")
    return [
        text_document(names[0], _objects, _xml, read, _flickr),
        text_document(names[1], sentences, tsv, read, _flickr, "phrases of one caption"),
        text_document(names[1], many, tsv, read, _flickr),
        text_document(names[2], listed, tsv, read, _many_flickr),
    ]


def _captions_tsv(count: int) -> list[list[str]]:
    return [["caption", "url"], *([_SENTENCE, "a.png"] for _ in range(count + 1))]


def documents() -> list[Document]:
    """Every format."""
    file = "Train_GCC-training.tsv"
    read = reads("conceptual_captions", file)
    captions = text_document(file, _captions_tsv, tsv, read, _image)
    return [*_csv_documents(), captions, *_objects365_documents(), *_flickr_documents()]
