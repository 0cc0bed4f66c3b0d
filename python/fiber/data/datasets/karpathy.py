"""Karpathy's splits of COCO and Flickr30k captions.

Source: Karpathy and Fei-Fei 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fiber.data.datasets.caption_files import ImageFinder, add_captions, check_split
from fiber.data.formats.annotation_file import RecordList, read_json
from fiber.data.record import AnyPath


def _reader(kind: str, *subfolders: str) -> Callable[..., RecordList]:
    def read(
        folder: AnyPath, split: str, *, annotations: AnyPath, images: AnyPath | None = None
    ) -> RecordList:
        """Read a split: "train", "val", "test" or, for COCO only, "restval".

        The published code trains on COCO's "train" and "val" and selects models on "test"; most
        other work trains on "train" and "restval" and selects on "val".

        `images` defaults to the data folder and its "images" subfolder. COCO images are in the
        subfolders "train2014" and "val2014" of the image folder; Flickr30k images may be in the
        subfolder "flickr30k-images" or "flickr30k_images".

        Raises:
            FileNotFoundError: if the file or an image is missing.
            ValueError: if an entry is invalid (the error names the file, entry and key), or if the
                file lacks the split (the error lists the available splits).
        """
        file, finder = read_json(Path(annotations), kind), ImageFinder(folder, images, subfolders)
        out, splits = RecordList(), set()
        for entry in file.walk("images"):
            own = file.text(entry, "split")
            splits.add(own)
            if own != split:
                continue
            name = file.file_name(entry, "filename")
            if "filepath" in entry:
                name = f"{file.file_name(entry, 'filepath')}/{name}"
            found = [
                (file.get(sentence, "sentid", int, str), file.get(sentence, "raw", str))
                for sentence in file.objects(entry, "sentences")
            ]
            add_captions(out, file.path.stem, finder.require(file, name), found, file.where)
        check_split(file.path, split, splits)
        return out

    return read


coco_karpathy = _reader("COCO, Karpathy's splits")
flickr30k_karpathy = _reader("Flickr30k, Karpathy's splits", "flickr30k-images", "flickr30k_images")
