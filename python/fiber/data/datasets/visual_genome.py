"""Region descriptions of Visual Genome as captions.

Source: Krishna et al. 2017; regions as captions as in the published pre-training.
"""

from __future__ import annotations

from fiber.data.datasets.caption_files import ImageFinder, add_captions, check_split, first_file
from fiber.data.formats.annotation_file import (
    RecordList,
    read_json_array,
    without_garbage_collection,
)
from fiber.data.record import AnyPath

#: Kind of file in messages.
KIND = "Visual Genome's region descriptions"
#: Names of the annotation file; the first one that exists is used.
FILES = ("region_descriptions.json", "annotations/region_descriptions.json")


@without_garbage_collection
def visual_genome(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read region_descriptions.json: each phrase is a caption of its image.

    Arguments and errors as in `karpathy.coco_karpathy`. The only split is "train"; images are in
    "VG_100K" or "VG_100K_2".
    """
    path = first_file(folder, annotations, FILES)
    finder = ImageFinder(folder, images, ("VG_100K", "VG_100K_2"))
    file, out = read_json_array(path, KIND), RecordList()
    check_split(path, split, {"train"})
    for entry in file.walk("entries"):
        number = file.get(entry, "id", int)
        found = []
        for region in file.get(entry, "regions", list):
            if not isinstance(region, dict):
                raise file.error(f"has {str(region)[:40]!r} in 'regions'; expected an object")
            found.append((file.get(region, "region_id", int), file.get(region, "phrase", str)))
        add_captions(out, path.stem, finder.require(file, f"{number}.jpg"), found)
    return out
