"""NLVR2: statements about pairs of images."""

from __future__ import annotations

from fiber.data.formats.annotation_file import (
    RecordList,
    annotation_path,
    images_folder,
    read_json_lines,
    without_garbage_collection,
)
from fiber.data.formats.json_values import file_name_problem
from fiber.data.record import AnyPath
from fiber.messages import shown


@without_garbage_collection()
def reasoning(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read statements about two images (NLVR2), one record with two images per statement.

    `left_image` and `right_image` are image paths relative to the image folder. The files released
    with NLVR2 lack these keys. Their images are "<identifier without its last part>-img0.png" and
    "...-img1.png", in the entry's `directory` if it has one. These paths are relative to the
    subfolder "train", "dev" or "test1" (the first part of the identifier) if it exists, otherwise
    to the image folder.

    Arguments and errors are as in `captions`; the default file is "nlvr2_<split>.jsonl" (NLVR2's
    own train.json, dev.json and test1.json have the same format).
    """
    path = annotation_path(folder, split, "reasoning", annotations)
    file = read_json_lines(path, "NLVR2")
    # `roots` is keyed by subfolder name.
    out, roots = RecordList(), dict[str | None, str]()
    for entry in file.walk("lines"):
        identifier = file.file_name(entry, "identifier")
        is_named = "left_image" in entry
        part = None if is_named else identifier.partition("-")[0]
        if part not in roots:
            roots[part] = images_folder(folder, images, part)
        if is_named:
            names = [file.file_name(entry, f"{side}_image") for side in ("left", "right")]
        else:
            start = ""
            if "directory" in entry:
                start = f"{file.get(entry, 'directory', str, int)}/"
            start += identifier.rpartition("-")[0]
            names = [f"{start}-img0.png", f"{start}-img1.png"]
            if (problem := file_name_problem(names[0])) is not None:
                raise file.error(f"names image {problem}")
        label = str(file.get(entry, "label", str, bool)).lower()
        if label not in ("true", "false"):
            raise file.error(f"has label {shown(entry['label'])}; expected 'True' or 'False'")
        record = file.record(
            identifier,
            tuple(f"{roots[part]}/{name}" for name in names),
            text=file.text(entry, "sentence"),
            truth=label == "true",
            group=file.optional_text(entry, "group"),
        )
        out.append(record)
    return out
