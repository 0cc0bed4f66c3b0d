"""Documents of annotations, in every format that `fiber.data` reads from JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fiber.data.datasets.vqa_answers import published_answers
from fiber.data.formats import coco
from fiber.data.tools.discover import parts_of
from tests.fuzz.generated.documents import Document, json_document, reads
from tests.fuzz.generated.encodings import to_json, to_pickle
from tests.fuzz.generated.trees import tree_of

_KIND = "annotations"
_SENTENCE = "a red cup on a table"
Entries = Callable[[int], Any]


def _images(folder: Path) -> None:
    """Files that the readers look for; only whether they exist counts."""
    for name in ("images", "images/train2014", "flickr30k-images", "VG_100K", "panoptic_train"):
        (folder / name).mkdir(exist_ok=True)
        for number in range(3):
            (folder / name / f"{number}.jpg").touch()


def _line(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"i{number}", "image": "images/0.jpg", "split": "train", **fields}


def _images_of(count: int, **fields: Any) -> list[dict[str, Any]]:
    entries = range(max(count, 1))
    size = {"height": 480, "width": 640}
    return [{"id": n, "file_name": f"{n % 3}.jpg", **size, **fields} for n in entries]


def _coco(count: int, **fields: Any) -> dict[str, Any]:
    box = {"bbox": [1, 2, 30.5, 40], "area": 900.0, "iscrowd": 0}
    return {
        "images": _images_of(count),
        "annotations": [
            {"id": n, "image_id": n, "category_id": n, **box, **fields} for n in range(count)
        ],
        "categories": [
            {"id": n, "name": f"class {n}", "frequency": "r"} for n in range(max(count, 1))
        ],
    }


def _masks(count: int) -> dict[str, Any]:
    found = _coco(count, sentences=[{"sent_id": 0, "sent": _SENTENCE}])
    for number, entry in enumerate(found["annotations"]):
        runs = {"counts": [9, 307191] if number % 3 else "oW9", "size": [480, 640]}
        rings = [[1, 2, 30.5, 2, 30.5, 40, 1, 40], [5, 5, 9, 9, 5, 9]]
        entry |= {"segmentation": rings if number % 2 else runs, "iscrowd": number % 4 // 3}
    return found


def _references(count: int) -> list[dict[str, Any]]:
    return [
        {"ann_id": n % 100, "split": "train", "sentences": [{"sent_id": n, "sent": _SENTENCE}]}
        for n in range(max(count, 1))
    ]


def _prepare_references(folder: Path) -> None:
    _images(folder)
    (folder / "instances.json").write_text(to_json(_masks(100)))


def _panoptic(count: int) -> dict[str, Any]:
    found = _coco(count)
    found["categories"] = [
        {"id": n, "name": f"class {n}", "isthing": n % 2} for n in range(max(count, 1))
    ]
    found["annotations"] = [
        {
            "image_id": n,
            "file_name": f"{n % 3}.jpg",
            "segments_info": [{"id": n + 1, "category_id": n, "iscrowd": 0, "area": 9}],
        }
        for n in range(max(count, 1))
    ]
    return found


def _segments(count: int) -> dict[str, Any]:
    """All segments in one image."""
    found = _panoptic(1)
    segments = [{"id": n + 1, "category_id": 0, "iscrowd": n % 2} for n in range(max(count, 1))]
    found["annotations"][0]["segments_info"] = segments
    return found


def _captions(count: int) -> dict[str, Any]:
    entries = [{"id": n, "image_id": n, "caption": _SENTENCE} for n in range(count)]
    return {"images": _images_of(count), "annotations": entries}


def _phrases(count: int) -> dict[str, Any]:
    found = _coco(count, tokens_positive=[[2, 9]])
    found["images"] = _images_of(
        count, caption=_SENTENCE, tokens_positive_eval=[[[2, 9]]], data_source="coco", group="a"
    )
    return found


def _many_phrases(count: int) -> dict[str, Any]:
    """All boxes and phrases in one image."""
    found = _phrases(1)
    text = " ".join(f"cup{n:06d}" for n in range(max(count, 1)))
    spans = [[10 * n, 10 * n + 9] for n in range(max(count, 1))]
    found["images"][0] |= {"caption": text, "tokens_positive_eval": [[span] for span in spans]}
    box = found["annotations"][0]
    found["annotations"] = [box | {"id": n, "tokens_positive": [s]} for n, s in enumerate(spans)]
    return found


def _karpathy(count: int) -> dict[str, Any]:
    return {
        "images": [
            {
                "filepath": "images",
                "filename": f"{n % 3}.jpg",
                "split": "train",
                "sentences": [{"raw": _SENTENCE, "sentid": n}],
            }
            for n in range(max(count, 1))
        ]
    }


def _lines(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [_line(n, **fields) for n in range(max(count, 1))]


def _regions(count: int) -> list[dict[str, Any]]:
    regions = [{"region_id": n, "phrase": f"{_SENTENCE} {n}"} for n in range(max(count, 1))]
    return [{"id": 0, "regions": regions}]


def _urls(count: int) -> dict[str, Any]:
    entries = range(max(count, 1))
    return {
        "image_urls": [f"http://a/{n % 3}.jpg" for n in entries],
        "captions": [_SENTENCE for _ in entries],
    }


def _pairs(count: int) -> list[list[str]]:
    return [[f"images/{n % 3}.jpg", _SENTENCE] for n in range(max(count, 1))]


def _statements(count: int) -> list[dict[str, Any]]:
    fields = {"sentence": _SENTENCE, "label": "True", "left_image": "a", "right_image": "b"}
    return [{"identifier": f"dev-{n}-0-0", **fields} for n in range(max(count, 1))]


def _entailment(count: int) -> list[dict[str, Any]]:
    fields = {"gold_label": "neutral", "sentence2": _SENTENCE, "Flickr30K_ID": "1"}
    return [{"pairID": f"{n}", **fields} for n in range(max(count, 1))]


def _swapped(count: int) -> list[dict[str, Any]]:
    fields = {"image_0": "a", "image_1": "b", "caption_0": _SENTENCE, "caption_1": "b", "tag": "t"}
    return [{"id": n, **fields} for n in range(max(count, 1))]


def _questions(count: int) -> dict[str, Any]:
    entries = range(max(count, 1))
    return {
        "data_subtype": "train2014",
        "questions": [{"question_id": n, "image_id": n, "question": _SENTENCE} for n in entries],
    }


def _answers(count: int) -> dict[str, Any]:
    return {
        "annotations": [
            {"question_id": n, "question_type": "what", "answers": [{"answer": f"a{n}"}] * 3}
            for n in range(max(count, 1))
        ]
    }


#: Files of the annotations that list the answers of published models.
_MAJORITY = [f"v2_mscoco_{part}2014_annotations.json" for part in ("train", "val")]


def _majority(count: int) -> dict[str, Any]:
    entries = [{"multiple_choice_answer": f"a{n % 9}"} for n in range(count + 1)]
    return {"annotations": entries + [{"multiple_choice_answer": "cup"}] * 9}


def _write_majority(folder: Path) -> None:
    (folder / _MAJORITY[1]).write_text(json.dumps(_majority(1)))


def _write(folder: Path, document: Document, count: int = 100) -> None:
    document.write(document.tree(count), folder)


def _document(
    source: str, file: str, tree: Entries, name: str | None = None, **options: Any
) -> Document:
    return json_document(_KIND, file, tree, reads(source, file, **options), _images, name or file)


_BOX = {"boxes_xyxy": [[1, 2, 30, 40]], "labels": ["cup"], "width": 640, "height": 480}
_QUESTION = {"question": "what is it?", "answers": {"cup": 1.0, "mug": 0.3}}


def documents() -> list[Document]:
    """Every format."""
    questions = _document("questions", "vqa_questions_train.json", _questions)
    answers = json_document(
        _KIND,
        "vqa_annotations_train.json",
        _answers,
        reads("questions", "vqa_questions_train.json"),
        lambda folder: (_images(folder), _write(folder, questions, 1)),
    )
    questions_and_answers = json_document(
        _KIND,
        "vqa_questions_train.json",
        _questions,
        questions.read,
        lambda folder: (_images(folder), _write(folder, answers, 1000)),
    )
    return [
        _document("captions", "own.jsonl", lambda n: _lines(n, text=_SENTENCE)),
        _document("captions", "list.json", lambda n: _lines(n, texts=[_SENTENCE, "a cup"])),
        _document("questions", "q.jsonl", lambda n: _lines(n, **_QUESTION)),
        _document("questions", "r.jsonl", lambda n: _lines(n, question="a?", answers=["a"] * 10)),
        _document("detection", "boxes.jsonl", lambda n: _lines(n, **_BOX)),
        _document("captions", "captions_train.json", _captions),
        _document("detection", "instances_train.json", _coco, objects=True),
        _document("detection", "instances_train.json", _coco, "LVIS boxes"),
        _document("instances", "instances_train.json", _masks, "masks of instances"),
        _document("panoptic", "panoptic_train.json", _panoptic),
        _document("panoptic", "panoptic_train.json", _segments, "segments of one image"),
        _document("expression_masks", "expression_masks_train.json", _masks),
        Document(
            _KIND,
            "refs(unc).p",
            lambda n: tree_of(_references(n)),
            lambda tree, folder: (folder / "refs(unc).p").write_bytes(to_pickle(tree)),
            reads("expression_masks", "refs(unc).p"),
            _prepare_references,
            is_pickle=True,
        ),
        _document("phrases", "flickr_train.json", _phrases),
        _document("phrases", "flickr_train.json", _many_phrases, "phrases of one image"),
        _document("phrases", "flickr_train.json", _phrases, "skipped errors", on_error="skip"),
        _document("mixed", "final_mixed_train.json", _phrases),
        _document("referring", "refcoco_train.json", _phrases),
        _document("coco_karpathy", "dataset_coco.json", _karpathy),
        _document("visual_genome", "region_descriptions.json", _regions),
        _document("sbu", "sbu-captions-all.json", _urls),
        _document("sbu", "annot.json", _pairs),
        _document("reasoning", "nlvr2_train.jsonl", _statements),
        _document("entailment", "snli_ve_train.jsonl", _entailment),
        _document("swapped", "winoground_train.jsonl", _swapped),
        questions_and_answers,
        answers,
        json_document(_KIND, _MAJORITY[0], _majority, published_answers, _write_majority),
        json_document(
            _KIND,
            "instances_train.json",
            _coco,
            lambda folder: coco.detection(folder, "train", objects=True),
            _images,
            "boxes of one file",
        ),
        *(
            json_document(_KIND, file, tree, lambda folder: parts_of(folder), _images, name)
            for name, file, tree in (
                ("inspected splits", "dataset_coco.json", _karpathy),
                ("inspected annotations", "train.json", _coco),
            )
        ),
    ]
