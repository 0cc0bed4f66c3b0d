"""Region descriptions of Visual Genome as captions.

Source: Krishna et al. 2017. The published pre-training also uses regions as captions.
"""

from __future__ import annotations

from pathlib import Path

from fiber.data.datasets.caption_files import ImageFinder, add_captions, check_split
from fiber.data.formats.annotation_file import RecordList, read_json_array
from fiber.data.record import AnyPath


def visual_genome(
    folder: AnyPath, split: str, *, annotations: AnyPath, images: AnyPath | None = None
) -> RecordList:
    """Read region_descriptions.json, using each phrase as a caption of its image.

    Arguments and errors are as in `karpathy.coco_karpathy`. The only split is "train". Images are
    in the subfolders "VG_100K" and "VG_100K_2".
    """
    file = read_json_array(Path(annotations), "Visual Genome's region descriptions")
    out = RecordList()
    finder = ImageFinder(folder, images, ("VG_100K", "VG_100K_2"))
    check_split(file.path, split, {"train"})
    for entry in file.walk("entries"):
        number = file.get(entry, "id", int)
        found = [
            (file.get(region, "region_id", int), file.get(region, "phrase", str))
            for region in file.objects(entry, "regions")
        ]
        image = finder.require(file, f"{number}.jpg")
        add_captions(out, file.path.stem, image, found, file.where)
    return out
