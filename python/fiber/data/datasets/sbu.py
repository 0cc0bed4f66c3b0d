"""SBU Captioned Photo Dataset.

Source: Ordonez et al. 2011.
"""

from __future__ import annotations

from pathlib import Path

from fiber.data.datasets.caption_files import (
    ImageFinder,
    caption_rows,
    check_split,
    path_rows,
    row_name,
)
from fiber.data.formats.annotation_file import RecordList, read_json
from fiber.data.record import AnyPath
from fiber.messages import shown

#: File type in messages.
KIND = "SBU captions"


def sbu(
    folder: AnyPath, split: str, *, annotations: AnyPath, images: AnyPath | None = None
) -> RecordList:
    """Read sbu-captions-all.json or annot.json.

    sbu-captions-all.json has the lists `image_urls` and `captions`; images are named by the last
    part of their URL or as img2dataset names them (see `conceptual_captions`). annot.json is a list
    of [path, caption] pairs.

    Arguments and errors are as in `karpathy.coco_karpathy`. The only split is "train". Missing
    images are skipped and counted; an error is raised only if all images are missing.
    """
    path = Path(annotations)
    check_split(path, split, {"train"})
    if path.name == "annot.json":
        rows = path_rows(path, KIND)
    else:
        file = read_json(path, KIND)
        urls, texts = (file.get(file.data, key, list) for key in ("image_urls", "captions"))
        if len(urls) != len(texts):
            raise file.error(
                f"has {len(urls)} 'image_urls' but {len(texts)} 'captions'; expected equal counts"
            )
        for row, url in enumerate(urls):
            if not isinstance(url, str):
                raise file.error(f"has {shown(url)} in 'image_urls'[{row}]; expected a string")
        rows = (
            ((url.rpartition("/")[2], row_name(row)), text)
            for row, (url, text) in enumerate(zip(urls, texts, strict=True))
        )
    return caption_rows(path, rows, ImageFinder(folder, images))
