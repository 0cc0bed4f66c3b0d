"""Cases that once showed a defect or show a planted one, by document; tests read them all."""

from __future__ import annotations

_FIELD = "hyper_parameters.config.fiber_model"
_CLASS = "state_dict.w0.arguments.5.callee"

#: Small cases: other errors than the documented ones, messages without the file, endless time.
SMALL = {
    "tensors": (
        "state_dict.w0.arguments.0.identity.2 = shared tuple",
        "state_dict.key w0 = shared tuple",
        "key state_dict = shared tuple",
    ),
    "legacy": ("4.0 = shared tuple", "4.0 = shared list"),
    "published coarse": (
        "hyper_parameters.config.num_heads = shared tuple",
        "hyper_parameters.config.max_text_len = shared list",
    ),
    "published fine": (
        f"{_FIELD}.image_size = shared tuple",
        f"{_FIELD}.stage = shared list",
        f"{_FIELD}.detector = shared list",
        f"{_FIELD}.swin.num_heads.0 = shared tuple",
        f"{_FIELD}.swin.drop_path = shared tuple",
        f"{_FIELD}.key stage = shared tuple",
        f"{_FIELD}.key image_size = None",
        f"{_FIELD}.key max_tokens = 2^63",
    ),
    "header": (
        "w0.dtype = escape",
        "empty.shape.1 = 2^63",
    ),
    ".metadata": (
        "BUILD sets exists of PosixPath",
        "BUILD sets name of Metadata",
        "state = None",
        "state.key state_dict_metadata = fraction",
        "state.storage_data.[0].state.relative_path = 2^31",
        "state.storage_data.[0].state.relative_path = path",
        "state.storage_data.[0].state.relative_path = shared tuple",
        "state.state_dict_metadata.model/w0.state.properties.state.0 = shared list",
        "state.key planner_data = shared tuple",
    ),
    "config.json": (
        "all = None",
        "all = object in list",
        "all = letter",
        "tasks = empty string",
        "model.key swin = family",
        "model.key max_tokens = family",
    ),
    "metrics.jsonl": (
        "0.losses.key itc = lone surrogate",
        "1.performance.wall_seconds = not a number",
        "1.performance.goodput = infinity",
    ),
    "dataset.json": ("parameters = None", "parameters = escape"),
    "tokenizer.json": ("version = escape", "model.merges.1.0 = NUL", "model.merges.1.1 = escape"),
    "boxes.jsonl": ("0.boxes_xyxy.0.1 = 10^400", "0.width = 10^400"),
    "q.jsonl": ("0.answers.cup = 10^400",),
    "instances_train.json": ("annotations.0.bbox.2 = 10^400", "annotations.0.area = 10^400"),
    "flickr_train.json": (
        "annotations.0.bbox.0 = 10^400",
        "images.0.tokens_positive_eval = true",
        "images.0.tokens_positive_eval = infinity",
    ),
    "sbu-captions-all.json": ("captions.0 = lone surrogate",),
    "snli_ve_train.jsonl": ("0.sentence2 = lone surrogate",),
    "train.csv": ("1.0 = NUL", "1.0 = escape"),
    "label.tsv": (
        "0.1.0.class = empty object",
        "0.1.0.rect = NUL",
        "0.1.0.rect.0 = 10^400",
    ),
    "hw.tsv": ("0.1.0.height = 10^400", "0.1.0 = escape"),
    "objects365_train.yaml": ("labelmap = NUL", "img = escape"),
    "Annotations/12.xml": ("0.3 = 10^400", "0.3 = infinity"),
    "val.txt": ("0.0 = NUL", "0.0 = escape"),
    "train.arrow boxes": ("objects.1.category.0 = empty string",),
    "train.tar.index": ("counts = object", "counts.links = letter"),
    "train.tar scores": ("answer_scores.0.0 = 10^400",),
    "train.tar boxes": (
        "objects.0.bbox.0 = 10^400",
        "objects.0.bbox = NUL",
        "objects.1.category = empty string",
    ),
    "pack.json": ("parts.0.source = escape", "parts.0.shared.0.key labels = escape"),
    "polygons": ("annotations.0.segmentation.0.1 = 10^400",),
    "metadata.json of fine": (
        "graphs.key pair = letter",
        "graphs.pair.outputs.0.shape.1 = 2^63",
        "detector.size_divisor = infinity",
        "detector.strides.0 = 10^400",
    ),
    "fiber.json": ("model.max_tokens = 10^400", "model.key swin = escape"),
    "map.json of embeddings": (
        "source.units = 2^62",
        "key model = None",
        "model = None",
        "source = path",
        "task = list of null",
        "texts = letter",
    ),
    "index.json": (
        "sources.0.source = letter",
        "segments.0.rows = 2^62",
        "deleted = path",
        "model = 10^400",
        "sources.0.key splits = empty object",
    ),
    "clean.json": ("source.splits = letter", "source = None", "key kind = None"),
    "index/train-detection.jsonl": (
        "0.key image_id = lone surrogate",
        "1.boxes_xyxy.0.2 = 10^400",
        "0.images.0 = true",
    ),
}
#: Growing cases: work that grows with the square of the size.
GROWING = {
    "tensors": (
        f"{_CLASS}.module = one long string, many times",
        f"{_CLASS}.name = one long string, popped",
        "state_dict.w0.arguments.0.identity.1.name = one long string, many times",
        "state_dict = sparse memo",
    ),
    "legacy": ("3.w0.arguments.0.identity.1.module = one long string, popped",),
    "published fine": (
        f"{_FIELD}.swin.depths = long tuple",
        f"{_FIELD}.swin.depths = long list",
        f"{_FIELD}.swin.depths.0 = deep tuple",
    ),
    "header": ("w0.shape has many items",),
    ".metadata": ("state = sparse memo",),
    ".metadata of parts": ("offsets of one hash",),
    "config.json": ("model.swin.depths = long list",),
    "train.csv": ("0 has many items",),
    "questions in train.csv": ("0 has many items",),
    "r.jsonl": ("0.answers.3 = deep list",),
    "instances_train.json": ("categories.0.frequency = deep list",),
    "label.tsv": ("0.1.0.rect = deep list", "1.1.0.rect.0 = deep list"),
    "hw.tsv": ("0.1.0 = deep list",),
    "index/train-detection.bin": ("0 many times",),
    "train.tar.index": ("members.0.0 = deep list",),
    "train.tar questions": ("answers.0 = deep list",),
    "train.tar boxes": ("objects.0.bbox.3 = deep list", "objects.0.category = deep list"),
}
