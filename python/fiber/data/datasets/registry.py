"""The table of sources: a row for each kind of records and each named dataset.

A new source is a row of `SOURCES` and its reader. Configs check the names of sources, so this
module imports no reader: readers are named as "module:function" and imported when they are used.
"""

from __future__ import annotations

from functools import cache

from fiber.data.formats.layout import (
    LINES,
    PUBLISHED_ARROW,
    Layout,
    Source,
    arrow_layout,
    folder_layout,
    image_folder,
    own_layouts,
    rows_layouts,
)

_CAPTION_ROWS = "fiber.data.formats.row_records:caption_records"
_QUESTION_ROWS = "fiber.data.formats.row_records:question_records"
_STATEMENT_ROWS = "fiber.data.formats.arrow:statement_records"
_ENTAILMENT_ROWS = "fiber.data.formats.arrow:entailment_records"


def _in_mdetr(*names: str) -> tuple[str, ...]:
    """Return `names` both with and without the prefix of MDETR's archive folder."""
    return (*names, *(f"mdetr_annotations/{name}" for name in names))


_ANSWERS_FILE = "vqa_annotations_{split}.json"
_CONCEPTUAL_CAPTIONS = "fiber.data.datasets.conceptual_captions:conceptual_captions"
_QUESTIONS = "fiber.data.datasets.vqa:questions"
_REASONING = "fiber.data.datasets.nlvr2:reasoning"
_PHRASES = "fiber.data.datasets.mdetr:phrases"
_REFERRING = "fiber.data.datasets.mdetr:referring"
_DETECTION = "fiber.data.formats.coco_folders:coco_detection"
_MAY_BE_COCO = "fiber.data.formats.coco_folders:may_be_coco"
_PANOPTIC = "fiber.data.masks.panoptic:panoptic"
_EXPRESSION_MASKS = "fiber.data.masks.expressions:expression_masks"
_REFERRING_FILE = Layout(_REFERRING, "RefCOCO, MDETR format", ("refcoco_{split}.json",))


def _refcoco(*names: str) -> tuple[Layout, ...]:
    """Return the layout of one RefCOCO-style dataset."""
    return (Layout(_REFERRING, "RefCOCO, MDETR files", _in_mdetr(*names)),)


#: Files of one split with boxes in COCO format, by tool; the first match is used.
SPLIT_FILES = {
    "COCO, original layout": (
        "annotations/instances_{split}.json",
        "annotations/instances_{split}20*.json",
    ),
    "ODinW": (
        "{split}/annotations_without_background.json",
        "{split}_annotations_without_background.json",
    ),
    "Roboflow": ("{split}/_annotations.coco.json",),
    "COCO format": (
        "annotations/{split}.json",
        "{split}/annotations.json",
        "{split}/labels.json",
        "{split}.json",
    ),
    "LVIS": (
        "lvis_v1_{split}.json",
        "annotations/lvis_v1_{split}.json",
        # File names in the published code.
        "lvis_od_{split}.json",
        "lvis_v1_{split}_inserted_image_name.json",
    ),
}
#: Files that describe all images of a folder, regardless of split.
WHOLE_FILES = (
    *("annotations.json", "_annotations.coco.json", "annotations/annotations.json"),
    *("annotations/instances_default.json", "annotations/instances.json"),
    *("instances_default.json", "instances.json", "labels.json", "result.json", "coco.json"),
)
#: Split that is held out from the training images if it has no file.
HELD_OUT = "val"

#: Sources by name, in the order in which the parts of a folder are listed.
SOURCES = {
    "captions": Source(
        standard=Layout(
            "fiber.data.formats.coco:captions", "COCO captions", ("captions_{split}.json",)
        ),
        layouts=(*own_layouts("fiber.data.formats.jsonl:jsonl_captions"), image_folder("captions")),
        row_reader=_CAPTION_ROWS,
        rows="captions",
        marks=(("json.images.sentences",), ("json.annotations.caption",)),
        where={"COCO": "https://cocodataset.org"},
    ),
    "coco_karpathy": Source(
        of="captions",
        layouts=(
            Layout(
                "fiber.data.datasets.karpathy:coco_karpathy",
                "COCO, Karpathy's splits",
                ("dataset_coco.json", "karpathy/dataset_coco.json"),
                has_splits=True,
            ),
            arrow_layout(_CAPTION_ROWS, "coco_caption_karpathy_{split}.arrow"),
        ),
        where={
            "COCO, Karpathy": "caption_datasets.zip of Karpathy and Fei-Fei (2015), its images from"
            " https://cocodataset.org"
        },
    ),
    "flickr30k_karpathy": Source(
        of="captions",
        layouts=(
            Layout(
                "fiber.data.datasets.karpathy:flickr30k_karpathy",
                "Flickr30k, Karpathy's splits",
                ("dataset_flickr30k.json", "karpathy/dataset_flickr30k.json"),
                has_splits=True,
            ),
            arrow_layout(_CAPTION_ROWS, "f30k_caption_karpathy_{split}.arrow"),
        ),
        where={"Flickr30k, Karpathy": "caption_datasets.zip of Karpathy and Fei-Fei (2015)"},
    ),
    "visual_genome": Source(
        of="captions",
        layouts=(
            Layout(
                "fiber.data.datasets.visual_genome:visual_genome",
                "Visual Genome's region descriptions",
                ("region_descriptions.json", "annotations/region_descriptions.json"),
                "train",
            ),
            arrow_layout(_CAPTION_ROWS, "vg.arrow", "train"),
        ),
        where={"Visual Genome": "the official page of Visual Genome (Krishna et al. 2017)"},
    ),
    "sbu": Source(
        of="captions",
        layouts=(
            Layout(
                "fiber.data.datasets.sbu:sbu",
                "SBU captions",
                ("sbu-captions-all.json", "annot.json"),
                "train",
            ),
            arrow_layout(_CAPTION_ROWS, "sbu_*.arrow", "train"),
        ),
        where={"SBU": "the official page of the SBU Captioned Photo Dataset (Ordonez et al. 2011)"},
    ),
    "conceptual_captions": Source(
        of="captions",
        layouts=(
            Layout(
                _CONCEPTUAL_CAPTIONS,
                "Conceptual Captions",
                ("Train_GCC-training.tsv", "Train-GCC-training.tsv", "train_annot.json"),
                "train",
            ),
            Layout(
                _CONCEPTUAL_CAPTIONS,
                "Conceptual Captions",
                (
                    "Validation_GCC-1.1.0-Validation.tsv",
                    "Validation-GCC-1.1.0-Validation.tsv",
                    "val_annot.json",
                ),
                "val",
            ),
            arrow_layout(_CAPTION_ROWS, "conceptual_caption_{split}_*.arrow"),
        ),
        optional_splits=("val", "restval"),
        where={
            "Conceptual Captions": "the official page of Conceptual Captions (Sharma et al. 2018)"
        },
    ),
    "questions": Source(
        standard=Layout(
            _QUESTIONS, "VQAv2 questions", ("vqa_questions_{split}.json",), companion=_ANSWERS_FILE
        ),
        layouts=(
            *own_layouts("fiber.data.formats.jsonl:jsonl_questions"),
            Layout(
                _QUESTIONS,
                "VQAv2, original layout",
                ("v2_OpenEnded_mscoco_{split}20*_questions.json",),
                companion="v2_mscoco_{split}20*_annotations.json",
            ),
            image_folder("questions"),
            arrow_layout(_QUESTION_ROWS, "vqav2_{split}.arrow"),
        ),
        row_reader=_QUESTION_ROWS,
        rows="questions",
        marks=(("json.questions",),),
        where={"VQAv2": "https://visualqa.org"},
    ),
    "reasoning": Source(
        standard=Layout(_REASONING, "NLVR2", ("nlvr2_{split}.jsonl",)),
        layouts=(
            Layout(_REASONING, "NLVR2, original layout", ("{split}.json",)),
            arrow_layout(_STATEMENT_ROWS, "nlvr2_{split}.arrow"),
        ),
        row_reader=_STATEMENT_ROWS,
        marks=(
            ("rows.image_0",),
            ("lines.sentence", "lines.label"),
            ("json.identifier", "json.sentence"),
        ),
        where={"NLVR2": "https://lil.nlp.cornell.edu/nlvr"},
    ),
    "entailment": Source(
        standard=Layout(
            "fiber.data.datasets.snli_ve:entailment", "SNLI-VE", ("snli_ve_{split}.jsonl",)
        ),
        layouts=(arrow_layout(_ENTAILMENT_ROWS, "snli_{split}.arrow"),),
        row_reader=_ENTAILMENT_ROWS,
        marks=(("rows.sentences", "rows.labels"), ("lines.gold_label",)),
        where={"SNLI-VE": "https://github.com/necla-ml/SNLI-VE"},
    ),
    "phrases": Source(
        standard=Layout(_PHRASES, "Flickr30k Entities, MDETR format", ("flickr_{split}.json",)),
        layouts=(
            Layout(
                _PHRASES,
                "Flickr30k Entities, MDETR files",
                _in_mdetr("final_flickr_separateGT_{split}.json"),
            ),
            Layout(
                "fiber.data.datasets.flickr30k_entities:flickr_entities",
                "Flickr30k Entities, original layout",
                ("{split}.txt", "flickr30k_entities/{split}.txt", "flickr30k/{split}.txt"),
                is_fallback=True,
            ),
        ),
        marks=(("json.images.caption",),),
        options=("on_error", "masks"),
        where={
            "Flickr30k Entities, original": "https://github.com/BryanPlummer/flickr30k_entities",
            "Flickr30k": "MDETR's mdetr_annotations (final_flickr_separateGT_*.json)",
        },
    ),
    "mixed": Source(
        layouts=(
            Layout(
                "fiber.data.datasets.mdetr:mixed",
                "MDETR's mixed set",
                # The first file excludes images of COCO's val2017.
                (
                    *_in_mdetr("final_mixed_train_no_coco.json"),
                    *_in_mdetr("final_mixed_train.json"),
                ),
                "train",
            ),
        ),
        marks=(("json.images.caption", "json.images.data_source"),),
        options=("on_error",),
        where={"MDETR's mixed set": "MDETR's mdetr_annotations (final_mixed_train_no_coco.json)"},
    ),
    "referring": Source(
        standard=_REFERRING_FILE,
        marks=(("json.images.caption", "*refcoco*"),),
        options=("on_error", "masks"),
        where={"RefCOCO": "MDETR's mdetr_annotations (finetune_refcoco_*.json)"},
    ),
    "refcoco": Source(
        of="referring",
        standard=_REFERRING_FILE,
        layouts=_refcoco("finetune_refcoco_{split}.json"),
        options=("on_error", "masks"),
    ),
    "refcocoplus": Source(
        of="referring",
        layouts=_refcoco("finetune_refcoco+_{split}.json"),
        options=("on_error", "masks"),
    ),
    "refcocog": Source(
        of="referring",
        # RefCOCOg's published test file is a corrected version.
        layouts=_refcoco(
            "finetune_refcocog_{split}_corrected.json", "finetune_refcocog_{split}.json"
        ),
        options=("on_error", "masks"),
    ),
    "objects365": Source(
        layouts=(
            Layout(
                "fiber.data.datasets.objects365:Objects365Records",
                "Objects365, the published TSV files",
                ("objects365_train*.yaml", "Objects365/objects365_train*.yaml", "*.yaml"),
                "train",
                accepts="fiber.data.datasets.objects365:is_description",
            ),
        ),
        marks=(("yaml.img", "yaml.label", "yaml.labelmap"),),
        options=("on_error",),
        has_classes=True,
        where={
            "Objects365": "the page of Objects365 (Shao et al. 2019), converted as in GLIP's"
            " DATA.md"
        },
    ),
    "detection": Source(
        standard=Layout(_DETECTION, "COCO instances", ("instances_{split}.json",)),
        layouts=(
            *(
                Layout(_DETECTION, kind, names, accepts=_MAY_BE_COCO)
                for kind, names in SPLIT_FILES.items()
            ),
            Layout(_DETECTION, "one file for all images", WHOLE_FILES, "train"),
            Layout(_DETECTION, "one file for all images", WHOLE_FILES, HELD_OUT),
            Layout(
                "fiber.data.formats.jsonl:jsonl_boxes", LINES, ("{split}.jsonl",), holds_out=True
            ),
            folder_layout("YOLO", "yolo", "data.yaml", "*.yaml", "*.yml"),
            folder_layout("Pascal VOC", "voc", "Annotations/*.xml"),
            folder_layout("Label Studio", "label_studio", "*.json"),
            image_folder("boxes"),
        ),
        row_reader="fiber.data.formats.row_records:box_records",
        rows="boxes",
        marks=(("json.images", "json.annotations"), ("yaml.names",), ("yaml.nc",)),
        options=("on_error", "shots", "objects", "masks"),
        has_classes=True,
        find="fiber.data.formats.coco_folders:find",
    ),
    "instances": Source(
        of="detection",
        standard=Layout(
            "fiber.data.formats.coco_folders:instances",
            "COCO instances with masks",
            ("instances_{split}.json",),
        ),
        options=("on_error", "objects"),
        has_classes=True,
        find="fiber.data.formats.coco_folders:find",
        where={"COCO instances with masks": "https://cocodataset.org"},
    ),
    "panoptic": Source(
        standard=Layout(_PANOPTIC, "COCO panoptic", ("panoptic_{split}.json",)),
        layouts=(
            Layout(
                _PANOPTIC,
                "COCO panoptic, original layout",
                ("annotations/panoptic_{split}.json", "annotations/panoptic_{split}20*.json"),
            ),
        ),
        marks=(("json.images", "json.annotations.segments_info"),),
        has_classes=True,
        where={"COCO panoptic": "https://cocodataset.org"},
    ),
    "label_maps": Source(
        layouts=tuple(
            Layout(
                "fiber.data.masks.label_maps:ade20k",
                "ADE20K label maps",
                ("objectInfo150.txt", "ADEChallengeData2016/objectInfo150.txt"),
                split,
            )
            for split in ("train", "val")
        ),
        has_classes=True,
        where={"ADE20K": "the MIT scene parsing benchmark (ADEChallengeData2016)"},
    ),
    "expression_masks": Source(
        standard=Layout(
            _EXPRESSION_MASKS, "masks of expressions", ("expression_masks_{split}.json",)
        ),
        layouts=(
            Layout(
                _EXPRESSION_MASKS,
                "RefCOCOg with masks",
                ("refcocog_umd_{split}.json", "annotations/refcocog_umd_{split}.json"),
            ),
            Layout(
                _EXPRESSION_MASKS,
                "RefCOCO, REFER's files",
                ("refs(unc).p", "refs(umd).p", "refs(google).p"),
                companion="instances.json",
                recognize="fiber.data.masks.refer:find",
            ),
        ),
        marks=(("json.images", "json.annotations.sentences"),),
        has_classes=True,
        where={
            "RefCOCOg with masks": "the prepared annotations of Zou et al. (CVPR 2023)",
            "RefCOCO, REFER's files": "https://github.com/lichengunc/refer",
        },
    ),
    "swapped": Source(
        standard=Layout(
            "fiber.data.datasets.winoground:swapped", "Winoground", ("winoground_{split}.jsonl",)
        ),
        marks=(("lines.caption_0", "lines.image_0"),),
        in_tasks=False,
        where={"Winoground": "https://huggingface.co/datasets/facebook/winoground"},
    ),
}
#: Sources that are kinds of records. The others are named datasets of these kinds.
KINDS = {name: source for name, source in SOURCES.items() if not source.of}
#: Names of files that readers find in a folder by themselves.
FILES = {name: kind.standard.names[0] for name, kind in KINDS.items() if kind.standard}
FILES["answers"] = _ANSWERS_FILE
#: Split names recognized in "{split}.json", a pattern that unrelated files may also match.
SPLIT_NAMES = r"train|val|dev|novel|test[\w-]*"


@cache
def layouts_of(name: str) -> tuple[Layout, ...]:
    """Return the layouts of a source; those of a kind of records include its named datasets'."""
    source = SOURCES[name]
    return (
        *((source.standard,) if source.standard else ()),
        *source.layouts,
        *(layout for other in SOURCES.values() if other.of == name for layout in other.layouts),
        *(rows_layouts(source.row_reader) if source.rows else ()),
    )


#: Where to get a kind of file, by the beginning of the kind.
_WHERE = {
    PUBLISHED_ARROW: "the published code's write_*.py, which convert the downloaded datasets",
    **{kind: where for source in SOURCES.values() for kind, where in source.where.items()},
}


def where_to_get(kind: str) -> str:
    """Return where to get a kind of file, or "" if unknown."""
    found = [beginning for beginning in _WHERE if kind.startswith(beginning)]
    return _WHERE[max(found, key=len)] if found else ""
