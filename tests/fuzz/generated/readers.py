"""Every function of the package that parses a file, with a document that it reads.

`functions` finds them by what they call, so that a new reader needs an entry here: a document, for
which work is counted and odd values are put at each place, or a reason why there is none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[3] / "python" / "fiber"
#: Folders of the package that read files which others may have written.
_FOLDERS = (
    *("data", "checkpoints", "inference", "metrics", "models", "runtime", "training"),
    *("hf", "tasks", "evaluation", "bulk", "cli", "serve", "web"),
)
#: Functions and methods that parse, or return the content of a file.
_PARSERS = frozenset(
    {
        *("read_json", "read_text", "read_bytes", "read_pickle", "read_integers", "read_small"),
        *("loads", "parse_json", "reader", "fromstring", "ZipFile", "open_file", "open_stream"),
        *("frombuf", "safe_open", "unpack", "iter_unpack", "frombuffer", "from_file", "from_json"),
        *("b64decode", "fromfile", "literal_eval", "ParquetFile", "read_table", "read_schema"),
    }
)


class Reason(NamedTuple):
    """Why a function has no document."""

    text: str


_OWN = Reason("reads what this process or another one of the same run has written")
_IMAGES = Reason("reads an encoded image, of which `tests.fuzz` has targets")
_OWN_FOLDERS = Reason("tests/data/formats/test_hostile_values.py has hostile files of own folders")
_FOLDER_FORMATS = Reason("tests/data/formats/test_box_folders.py has hostile YOLO and VOC files")
_REQUESTS = Reason("tests/serve and tests/web send hostile requests")

#: Readers by file and name.
READERS: dict[str, str | Reason] = {
    "atomic_io.py:read_json": "config.json",
    # Records.
    "data/datasets/conceptual_captions.py:_tsv_rows": "Train_GCC-training.tsv",
    "data/datasets/flickr30k_entities.py:_read_boxes": "Annotations/12.xml",
    "data/datasets/flickr30k_entities.py:flickr_entities": "val.txt",
    "data/datasets/karpathy.py:_reader.read": "dataset_coco.json",
    "data/datasets/mdetr.py:mixed": "final_mixed_train.json",
    "data/datasets/mdetr.py:phrases": "flickr_train.json",
    "data/datasets/mdetr.py:referring": "refcoco_train.json",
    "data/datasets/objects365.py:Objects365Records.__init__": "lines.tsv",
    "data/datasets/objects365.py:Objects365Records._image": "images.tsv",
    "data/datasets/objects365.py:_read_labelmap": "map.json",
    "data/datasets/objects365.py:_second_column": "label.tsv",
    "data/datasets/objects365.py:_values": "objects365_train.yaml",
    "data/datasets/resolve.py:_read": "own.jsonl",
    "data/datasets/sbu.py:sbu": "sbu-captions-all.json",
    "data/datasets/vqa.py:questions": "vqa_questions_train.json",
    "data/datasets/vqa_answers.py:_from_originals": "v2_mscoco_train2014_annotations.json",
    "data/formats/annotation_file.py:_read": "captions_train.json",
    "data/formats/annotation_file.py:read_json_lines": "nlvr2_train.jsonl",
    "data/formats/annotation_file.py:read_text": "val.txt",
    "data/formats/arrow_table.py:names_of_classes": "train.arrow boxes",
    "data/formats/arrow_table.py:_open_arrow": "train.arrow captions",
    "data/formats/coco.py:captions": "captions_train.json",
    "data/formats/coco.py:detection": "boxes of one file",
    "data/formats/coco_folders.py:coco_detection": "instances_train.json",
    "data/formats/folders/image_folder.py:_Metadata._cells": _OWN_FOLDERS,
    "data/formats/folders/image_folder.py:_Metadata._objects": _OWN_FOLDERS,
    "data/formats/folders/image_folder.py:fields_of": _OWN_FOLDERS,
    "data/formats/folders/rows.py:class_list": _OWN_FOLDERS,
    "data/formats/folders/voc.py:_Annotations.__init__": _FOLDER_FORMATS,
    "data/formats/folders/voc.py:read_xml": _FOLDER_FORMATS,
    "data/formats/folders/yolo.py:_Labels._read": _FOLDER_FORMATS,
    "data/formats/folders/yolo.py:_listed": _FOLDER_FORMATS,
    "data/formats/folders/yolo.py:_names_of": _FOLDER_FORMATS,
    "data/formats/folders/yaml_file.py:read_yaml": _FOLDER_FORMATS,
    "data/formats/generated.py:other_version": "dataset.json",
    "data/formats/json_values.py:parse_json": "own.jsonl",
    "data/formats/line_reader.py:LineReader._cells": "train.csv",
    "data/formats/line_reader.py:LineReader.entries": "own.jsonl",
    "data/formats/tsv.py:TsvFile.__init__": "label.tsv",
    "data/formats/tsv.py:read_integers": "lines.tsv",
    "data/image.py:_read_file": _IMAGES,
    "data/image_file.py:check_image": _IMAGES,
    "data/masks/codec.py:decode_masks": "run lengths",
    "data/masks/codec.py:read_map": "id maps",
    "data/masks/expressions.py:expression_masks": "expression_masks_train.json",
    "data/masks/label_maps.py:_read_classes": "objectInfo150.txt",
    "data/masks/panoptic.py:panoptic": "id maps",
    "data/masks/refer.py:_parse": "refs(unc).p",
    "data/masks/refer.py:_read": "refs(unc).p",
    "data/masks/refer.py:read_refer": "refs(unc).p",
    "data/prompts/classes.py:read_classes": "classes.json",
    "data/tools/discover.py:_karpathy_splits": "inspected splits",
    "data/tools/discover.py:_keys_of": "inspected annotations",
    # Packs and archives.
    "data/storage/pack_description.py:_read_description": "pack.json",
    "data/storage/pack_description.py:parse_description": "pack.json without checksums",
    "data/storage/pack_index.py:FlatIndex.__getitem__": "index/train-detection.bin",
    "data/storage/pack_index.py:FlatIndex.line": "index/train-detection.bin",
    "data/storage/pack_index.py:FlatIndex.numbers": "index/train-detection.bin",
    "data/storage/packed.py:PackedRecords._record": "index/train-detection.jsonl",
    "data/storage/packed.py:PackedRecords.check_image": "pack.json",
    "data/storage/record_entry.py:_from_base64": "entries.json",
    "data/storage/remote_pack.py:_stored_remote": "pack.json",
    "data/storage/tar.py:TarFile._read_index": "train.tar.index",
    "data/storage/tar.py:as_json": "train.tar captions",
    "data/tools/pack.py:_Packer.add_part": _OWN,
    "data/tools/pack.py:_Packer.finish": _OWN,
    "data/tools/pack.py:_members": _IMAGES,
    "data/collate.py:_to_tensor": _OWN,
    # Folders of `fiber map`, `fiber index` and `fiber data score`.
    "bulk/cleaning/filter.py:_copy_images": _IMAGES,
    "bulk/output.py:_compare": _OWN,
    "bulk/output.py:join_errors": "map.json of embeddings",
    "bulk/output.py:read_format": "map.json of embeddings",
    "bulk/parquet.py:read_table_of": "index.json",
    "data/formats/arrow_table.py:_open_parquet": Reason("tests.fuzz has a target of such files"),
    # Requests.
    "serve/body.py:_from_base64": _REQUESTS,
    "serve/body.py:_read_json": _REQUESTS,
    "serve/requests.py:_from_json": _REQUESTS,
    "web/page.py:_foreign_path": _REQUESTS,
    "web/tabs.py:_compute": _REQUESTS,
    "cli/data/inspect.py:_parameters": "dataset.json",
    # Models.
    "checkpoints/adapters/files.py:read_about": "fiber.json",
    "checkpoints/adapters/files.py:read_adapter_config": "adapter_config.json",
    "checkpoints/hub/card.py:publish": _OWN,
    "checkpoints/kept.py:read_kept": "config.json of a model",
    "checkpoints/kept.py:read_presence": "presence.json",
    "checkpoints/load.py:_is_ours": "config.json of an encoder",
    "checkpoints/load.py:_read_settings": "config.json of an encoder",
    "checkpoints/mapped_file.py:MappedFile.__init__": "header",
    "checkpoints/mapped_file.py:read_safetensors": "header",
    "checkpoints/model_dir.py:read_model_config": "config.json of a model",
    "checkpoints/stages.py:check_not_transformers": "config.json of a model",
    "checkpoints/torch_archive.py:_first_byte": "tensors",
    "checkpoints/torch_archive.py:read_archive": "tensors",
    "checkpoints/torch_file.py:_read_legacy": "legacy",
    "checkpoints/torch_file.py:_read_settings": "published header",
    "checkpoints/torch_file.py:_read_settings_tensor": "settings in a tensor",
    "checkpoints/torch_file.py:settings_tensor": _OWN,
    "checkpoints/transformers_files.py:_token_names": _OWN,
    "checkpoints/vocabulary/files.py:read_strings": "answers.json of a model",
    "checkpoints/vocabulary/files.py:read_tokenizer": "tokenizer.json",
    "checkpoints/vocabulary/wordpiece.py:_is_lowercase": "tokenizer_config.json",
    "checkpoints/vocabulary/wordpiece.py:read_vocab_txt": "tokenizer_config.json",
    "hf/processing.py:fiber_tokenizer": _OWN,
    "inference/masks/class_vectors.py:ClassVectors.load": "classes.safetensors",
    "metrics/cider.py:DocumentFrequencies.read": "document frequencies",
    "runtime/graphs.py:_marks_in": "pair.onnx",
    "runtime/graphs.py:_torch_mark": "pair.pt2",
    "runtime/metadata.py:is_graphs": "metadata.json of fine",
    "runtime/metadata.py:read_metadata": "metadata.json of fine",
    "runtime/model.py:_tokenizer": "metadata.json of fine",
    # Runs.
    "training/checkpoint/folder.py:RunCheckpoint.damage": "SHA256SUMS",
    "training/checkpoint/folder.py:RunCheckpoint.read_position": "data.json",
    "training/checkpoint/index.py:read_index": ".metadata",
    "training/distributed/heartbeat.py:Heartbeat._lost_peers": _OWN,
    "training/distributed/heartbeat.py:Heartbeat._peers": _OWN,
    "training/distributed/heartbeat.py:Heartbeat._wait_for": _OWN,
    "training/distributed/launch.py:_explain": _OWN,
    "training/machine_memory.py:_find": Reason("reads files of the system"),
    "training/metrics_file.py:read_metrics": "metrics.jsonl",
    "training/run_dir.py:RunFolder._stored_values": "config.json",
    "training/run_dir.py:read_run_config": "printed.json",
    "training/run_dir.py:RunFolder.is_restart": Reason("compares bytes"),
    "training/tracking/goodput.py:_last_attempt": "metrics.jsonl",
    "training/tracking/goodput.py:begin_attempt": "metrics.jsonl",
    "training/tracking/kept.py:read_kept": "kept.json",
    "training/tracking/tracker.py:stored_id": Reason("reads a line: tests/training/tracking"),
}


def functions() -> Iterator[str]:
    """Yield the functions of the package that call one of `_PARSERS`, as keys of `READERS`."""
    folders = (path for name in _FOLDERS for path in (PACKAGE / name).rglob("*.py"))
    for path in sorted((PACKAGE / "atomic_io.py", *folders)):
        where = path.relative_to(PACKAGE).as_posix()
        found = _calling(ast.parse(path.read_text(encoding="utf-8")), ())
        yield from dict.fromkeys(f"{where}:{'.'.join(names)}" for names in found)


def _calling(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for child in ast.iter_child_nodes(node):
        is_named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if isinstance(child, ast.Call) and _name(child.func) in _PARSERS:
            yield names
        yield from _calling(child, (*names, child.name) if is_named else names)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
