"""NLVR2 statements about image pairs."""

from __future__ import annotations

from fiber.data.formats.annotation_file import (
    AnyPath,
    RecordList,
    annotation_file,
    images_folder,
    picture_folder,
    read_json_lines,
    without_garbage_collection,
)
from fiber.data.record import Record


@without_garbage_collection
def reasoning(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read statements about two pictures (NLVR2): one record with two pictures for each.

    An entry without `left_image` and `right_image` shows "<identifier without its last
    part>-img0.png" and "-img1.png", below its `directory` if it has one, as NLVR2 has it, in the
    folder of pictures or in the one there that has the identifier's first part as its name:
    "train", "dev", "test1".
    Arguments and errors are those of `captions`; the file is "nlvr2_<split>.jsonl" (the original
    train.json, dev.json and test1.json have the same lines).
    """
    path = annotation_file(folder, split, "reasoning", annotations)
    file = read_json_lines(path, "NLVR2")
    out, root, folders = RecordList(), "", {}
    for entry in file.walk("lines"):
        identifier = file.text(entry, "identifier")
        if "left_image" in entry:
            root = root or images_folder(folder, images)
            names = tuple(
                f"{root}/{file.text(entry, f'{side}_image')}" for side in ("left", "right")
            )
        else:
            part, start = identifier.partition("-")[0], identifier.rpartition("-")[0]
            if part not in folders:
                folders[part] = picture_folder(folder, images, part)
            below = f"{entry['directory']}/" if "directory" in entry else ""
            start = f"{folders[part]}/{below}{start}"
            names = (f"{start}-img0.png", f"{start}-img1.png")
        label = str(file.get(entry, "label", str, bool)).lower()
        if label not in ("true", "false"):
            raise file.error(f"has label {entry['label']!r}; expected True or False")
        out.append(
            Record(
                key=f"{path.stem}/{identifier}",
                images=names,
                text=file.text(entry, "sentence"),
                truth=label == "true",
                group=entry.get("group", ""),
            )
        )
    return out
