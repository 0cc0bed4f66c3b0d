"""Readers of captions as their authors give them: Karpathy's splits of COCO and Flickr30k, Visual
Genome, SBU and Conceptual Captions.

Each gives one record for each caption, those of one picture together. What a download is known to
lack is left out and counted in `RecordList.counts`: pictures without captions, empty captions,
captions that repeat one of the same picture (as in published training; the first stays, so that
every process has the same order), and, of sets that are lists of addresses, pictures that could
not be had. A picture that a download always holds must be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import (
    RecordList,
    SourceFile,
    read_json,
    read_json_array,
    read_text,
    without_garbage_collection,
)
from fiber.data.record import Record

AnyPath = str | PathLike[str]

#: Names of the annotation files, in the order in which they are looked for.
COCO_KARPATHY = ("dataset_coco.json", "karpathy/dataset_coco.json")
FLICKR30K_KARPATHY = ("dataset_flickr30k.json", "karpathy/dataset_flickr30k.json")
VISUAL_GENOME = ("region_descriptions.json", "annotations/region_descriptions.json")
SBU = ("sbu-captions-all.json", "annot.json")
CONCEPTUAL_CAPTIONS = {
    "train": ("Train_GCC-training.tsv", "Train-GCC-training.tsv", "train_annot.json"),
    "val": (
        "Validation_GCC-1.1.0-Validation.tsv",
        "Validation-GCC-1.1.0-Validation.tsv",
        "val_annot.json",
    ),
}
#: Rows of a list of addresses that img2dataset puts into one folder.
_ROWS_PER_FOLDER = 10_000
_MISSING = "pictures that are missing"


class _Pictures:
    """Where the pictures of a download are: each folder is listed once."""

    def __init__(self, folder: AnyPath, images: AnyPath | None, below: Sequence[str]) -> None:
        """Args: data folder, folder of pictures or None, folders below it to look in as well."""
        root = Path(images) if images is not None else Path(folder) / "images"
        roots = [root] if images is not None else [root, Path(folder)]
        self._folders = [top / name for top in roots for name in ("", *below)]
        self._listed: dict[Path, set[str]] = {}

    def find(self, *names: str) -> str | None:
        """Return the path of the first of these file names (they may have folders) that exists."""
        for name in names:
            for folder in self._folders:
                path = folder / name
                if path.name in self._list(path.parent):
                    return str(path)
        return None

    def needed(self, file: SourceFile, name: str) -> str:
        """Return the path of a picture that must be there."""
        path = self.find(name)
        if path is None:
            looked = ", ".join(map(str, self._folders))
            raise FileNotFoundError(
                f"{file.path}: {file.where} shows {name!r}, which is in none of {looked}"
            )
        return path

    def _list(self, folder: Path) -> set[str]:
        if folder not in self._listed:
            entries = folder.iterdir() if folder.is_dir() else ()
            self._listed[folder] = {entry.name for entry in entries}
        return self._listed[folder]


@without_garbage_collection
def coco_karpathy(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read a split of dataset_coco.json: "train", "restval", "val" or "test".

    Args:
        folder: a data folder.
        split: of the pictures. The published code trains on "train" and "val" and selects on
            "test"; most others train on "train" and "restval" and select on "val".
        annotations: the file, if it has another name or is elsewhere.
        images: what holds train2014 and val2014, if neither the folder nor "images" in it.

    Raises:
        FileNotFoundError: if the file or a picture is missing.
        ValueError: if an entry is not as expected, with file, entry and key; if the split is not
            in the file, with those that are.

    Source: Karpathy and Fei-Fei 2015, with COCO's captions.
    """
    path = _first_file(folder, annotations, COCO_KARPATHY)
    return _karpathy(path, "COCO, Karpathy's splits", split, _Pictures(folder, images, ()))


@without_garbage_collection
def flickr30k_karpathy(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read a split of dataset_flickr30k.json: "train", "val" or "test".

    Arguments and errors are those of `coco_karpathy`; pictures are in the folder of pictures or in
    "flickr30k-images" or "flickr30k_images" there.
    """
    path = _first_file(folder, annotations, FLICKR30K_KARPATHY)
    pictures = _Pictures(folder, images, ("flickr30k-images", "flickr30k_images"))
    return _karpathy(path, "Flickr30k, Karpathy's splits", split, pictures)


def _karpathy(path: Path, kind: str, split: str, pictures: _Pictures) -> RecordList:
    file, out, splits = read_json(path, kind), RecordList(), set()
    for entry in file.walk("images"):
        own = file.text(entry, "split")
        splits.add(own)
        if own != split:
            continue
        name = file.text(entry, "filename")
        if "filepath" in entry:
            name = f"{file.text(entry, 'filepath')}/{name}"
        found = []
        for sentence in file.get(entry, "sentences", list):
            if not isinstance(sentence, dict):
                raise file.error(f"has {str(sentence)[:40]!r} in 'sentences'; expected an object")
            number = file.get(sentence, "sentid", int, str)
            found.append((number, file.get(sentence, "raw", str)))
        _add(out, path.stem, pictures.needed(file, name), found)
    _check_split(path, split, splits)
    return out


@without_garbage_collection
def visual_genome(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read region_descriptions.json of Visual Genome: each phrase is a caption of its picture.

    Arguments and errors are those of `coco_karpathy`; the only split is "train", and pictures are
    in "VG_100K" or "VG_100K_2".

    Source: Krishna et al. 2017; phrases as captions as in the published pre-training.
    """
    path = _first_file(folder, annotations, VISUAL_GENOME)
    pictures = _Pictures(folder, images, ("VG_100K", "VG_100K_2"))
    file, out = read_json_array(path, "Visual Genome's region descriptions"), RecordList()
    _check_split(path, split, {"train"})
    for entry in file.walk("entries"):
        number = file.get(entry, "id", int)
        found = []
        for region in file.get(entry, "regions", list):
            if not isinstance(region, dict):
                raise file.error(f"has {str(region)[:40]!r} in 'regions'; expected an object")
            found.append((file.get(region, "region_id", int), file.get(region, "phrase", str)))
        _add(out, path.stem, pictures.needed(file, f"{number}.jpg"), found)
    return out


@without_garbage_collection
def sbu(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read SBU's captions: sbu-captions-all.json, or annot.json.

    The first holds the lists `image_urls` and `captions`; a picture has the name that ends its
    address, or that of `conceptual_captions`. The second is a list of [path, caption].
    Arguments and errors are those of `coco_karpathy`; the only split is "train". Pictures that are
    not there are counted; if none is, that is an error.

    Source: Ordonez et al. 2011.
    """
    path = _first_file(folder, annotations, SBU)
    _check_split(path, split, {"train"})
    kind = "SBU captions"
    if path.name == "annot.json":
        rows = _path_rows(read_json_array(path, kind))
    else:
        file = read_json(path, kind)
        addresses, texts = (file.get(file.data, key, list) for key in ("image_urls", "captions"))
        if len(addresses) != len(texts):
            raise file.error(
                f"has {len(addresses)} 'image_urls' and {len(texts)} 'captions'; expected as many"
            )
        rows = (
            ((str(url).rpartition("/")[2], _row_name(row)), text)
            for row, (url, text) in enumerate(zip(addresses, texts, strict=True))
        )
    return _from_rows(path, rows, _Pictures(folder, images, ()))


@without_garbage_collection
def conceptual_captions(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read Conceptual Captions (CC3M): its TSV of captions and addresses, or <split>_annot.json.

    The TSV has a line "caption<tab>address" for each picture. Row n, counted from 0, is the picture
    that img2dataset makes of it: "00012/000120345.jpg" for n = 120345. If the second column is no
    address, it is the path of the picture. The JSON file is a list of [path, caption].
    Arguments and errors are those of `coco_karpathy`; splits are "train" and "val". Pictures that
    are not there are counted, since many addresses are dead; if none is, that is an error.

    Source: Sharma et al. 2018.
    """
    if annotations is None:
        _check_split(Path(folder), split, CONCEPTUAL_CAPTIONS)
    path = _first_file(folder, annotations, CONCEPTUAL_CAPTIONS.get(split, ()))
    kind = "Conceptual Captions"
    rows = (
        _path_rows(read_json_array(path, kind))
        if path.suffix == ".json"
        else _tsv_rows(path, read_text(path, kind))
    )
    return _from_rows(path, rows, _Pictures(folder, images, ()))


def _tsv_rows(path: Path, text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield file names and caption of each line of a TSV."""
    lines = text.split("\n")
    header = int(lines[0].strip() == "caption\turl")
    for row, line in enumerate(lines[header:]):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 2:
            raise ValueError(
                f"{path}: line {row + header + 1} has {len(columns)} columns; expected caption and"
                " address with a tab between them"
            )
        caption, place = columns
        yield ((_row_name(row),) if "://" in place else (place,)), caption


def _path_rows(file: SourceFile) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield path and caption of each entry of a list of [path, caption]."""
    for index, pair in enumerate(file.data["entries"]):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)
        ):
            raise ValueError(
                f"{file.path}: entry {index} is {str(pair)[:40]!r}; expected [path, caption]"
            )
        yield (pair[0],), pair[1]


def _row_name(row: int) -> str:
    """Name the picture of a row of addresses as img2dataset does."""
    return f"{row // _ROWS_PER_FOLDER:05d}/{row:09d}.jpg"


def _from_rows(
    path: Path, rows: Iterable[tuple[tuple[str, ...], Any]], pictures: _Pictures
) -> RecordList:
    """Make records of rows with one caption each, whose pictures may be missing."""
    out, total, example = RecordList(), 0, ""
    for row, (names, caption) in enumerate(rows):
        total += 1
        if not isinstance(caption, str):
            raise ValueError(f"{path}: caption {row} is {str(caption)[:40]!r}; expected a text")
        image = pictures.find(*names)
        if image is None:
            out.add(_MISSING)
            example = example or names[-1]
        else:
            _add(out, path.stem, image, [(row, caption)])
    if total and out.count(_MISSING) == total:
        raise FileNotFoundError(
            f"{path}: none of the {total} pictures is there, the first would be {example!r};"
            " name their folder with `images`"
        )
    return out


def _add(out: RecordList, stem: str, image: str, found: Sequence[tuple[Any, str]]) -> None:
    """Add the captions of one picture: (id, text) each."""
    if not found:
        out.add("pictures without captions")
    seen = set()
    for number, text in found:
        if not text.strip():
            out.add("empty captions")
        elif text in seen:
            out.add("repeated captions")
        else:
            seen.add(text)
            out.append(Record(key=f"{stem}/{number}", images=(image,), image_id=image, text=text))


def _first_file(folder: AnyPath, given: AnyPath | None, names: Sequence[str]) -> Path:
    """Return the file given, or the first of the names that is there, or the first name."""
    if given is not None:
        return Path(given)
    paths = [Path(folder) / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def _check_split(path: Path, split: str, splits: Iterable[str]) -> None:
    if split not in splits:
        have = ", ".join(map(repr, sorted(splits))) or "none"
        raise ValueError(f"{path} has no split {split!r}; its splits are {have}")
