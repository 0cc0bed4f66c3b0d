"""Karpathy's splits of COCO and Flickr30k captions.

Source: Karpathy and Fei-Fei 2015.
"""

from __future__ import annotations

from pathlib import Path

from fiber.data.datasets.caption_files import ImageFinder, add_captions, check_split, first_file
from fiber.data.formats.annotation_file import RecordList, read_json, without_garbage_collection
from fiber.data.record import AnyPath

#: Names of the annotation files; the first one that exists is used.
COCO_KARPATHY = ("dataset_coco.json", "karpathy/dataset_coco.json")
FLICKR30K_KARPATHY = ("dataset_flickr30k.json", "karpathy/dataset_flickr30k.json")


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
        folder: data folder.
        split: of the images. The published code trains on "train" and "val" and selects on "test";
            most others train on "train" and "restval" and select on "val".
        annotations: the file, if it has another name or folder.
        images: folder with train2014 and val2014; default: the data folder, or "images" in it.

    Raises:
        FileNotFoundError: if the file or an image is missing.
        ValueError: for an invalid entry, with file, entry and key; if the file does not have the
            split, with those that it has.
    """
    path = first_file(folder, annotations, COCO_KARPATHY)
    return _read(path, "COCO, Karpathy's splits", split, ImageFinder(folder, images))


@without_garbage_collection
def flickr30k_karpathy(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read a split of dataset_flickr30k.json: "train", "val" or "test".

    Arguments and errors as in `coco_karpathy`. Images are in the folder of images, or in
    "flickr30k-images" or "flickr30k_images" in it.
    """
    path = first_file(folder, annotations, FLICKR30K_KARPATHY)
    finder = ImageFinder(folder, images, ("flickr30k-images", "flickr30k_images"))
    return _read(path, "Flickr30k, Karpathy's splits", split, finder)


def _read(path: Path, kind: str, split: str, images: ImageFinder) -> RecordList:
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
        add_captions(out, path.stem, images.require(file, name), found)
    check_split(path, split, splits)
    return out
