"""SNLI-VE: hypotheses that an image entails or contradicts, or neither.

Source: SNLI-VE (Xie et al. 2019), whose images are those of Flickr30k.
"""

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

#: Classes, in the order of their numbers in METER's files and of the head's logits.
ENTAILMENT = ("contradiction", "neutral", "entailment")


@without_garbage_collection()
def entailment(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
) -> RecordList:
    """Read hypotheses about images (SNLI-VE), one record per line.

    `answers` of a record is its class with score 1. An image is "<Flickr30K_ID>.jpg" in the image
    folder, "images" or Flickr30k's own "flickr30k-images". Lines whose annotators did not agree
    (`gold_label` "-") are skipped and counted.

    Arguments and errors are as in `captions`; the default file is "snli_ve_<split>.jsonl".
    """
    path = annotation_path(folder, split, "entailment", annotations)
    file = read_json_lines(path, "SNLI-VE")
    root = images_folder(folder, images, "flickr30k-images")
    out = RecordList()
    for number, entry in enumerate(file.walk("lines")):
        label = file.text(entry, "gold_label")
        if label == "-":
            out.skip("hypotheses without a gold label")
            continue
        if label not in ENTAILMENT:
            raise file.error(
                f"has gold_label {shown(label)}; expected {', '.join(ENTAILMENT)} or '-'"
            )
        name = str(file.get(entry, "Flickr30K_ID", str, int)).removesuffix(".jpg")
        if (problem := file_name_problem(name)) is not None:
            raise file.error(f"has 'Flickr30K_ID' {problem}")
        own = file.get(entry, "pairID", str, int) if "pairID" in entry else number
        record = file.record(
            own,
            f"{root}/{name}.jpg",
            image_id=name,
            text=file.text(entry, "sentence2"),
            answers={label: 1.0},
            group=label,
        )
        out.append(record)
    return out
