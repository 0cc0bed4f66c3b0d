"""Mistakes in readers of files: lines that took unbounded time or memory, or named no file.

Most were in the readers once. `tests/fuzz` must see each: cases of the generator, or their growth.
"""

from __future__ import annotations

from tests.plant.mistakes import Check, Mistake

_PICKLE = "python/fiber/inert_pickle/reader.py"
_TORCH_FILE = "python/fiber/checkpoints/torch_file.py"
_SAFETENSORS = "python/fiber/checkpoints/mapped_file.py"
_INDEX = "python/fiber/training/checkpoint/index.py"
_FAMILIES = "python/fiber/models/registry.py"
_CONFIG = "python/fiber/config_io.py"
_STORED = "python/fiber/models/infer.py"
_RUN = "python/fiber/training/run_dir.py"
_MESSAGES = "python/fiber/messages.py"
_DATA = "python/fiber/data"
_JSON = f"{_DATA}/formats/json_values.py"
_LINES = f"{_DATA}/formats/line_reader.py"
_RECORD = f"{_DATA}/record.py"
_PHRASES = f"{_DATA}/datasets/mdetr.py"
_OBJECTS365 = f"{_DATA}/datasets/objects365.py"
_TAR = f"{_DATA}/storage/tar.py"
_GENERATED = f"{_DATA}/formats/generated.py"
_PACK_INDEX = f"{_DATA}/storage/pack_index.py"
_SEGMENTATION = f"{_DATA}/masks/segmentation.py"
_GRAPHS = "python/fiber/runtime/networks.py"
_ADAPTER = "python/fiber/checkpoints/adapters/files.py"


def _seen_by(kind: str) -> Check:
    """Return the tests of one kind of document: odd values at its places, and growth of work."""
    wanted = f"(hostile_values or linearly) and {kind}"
    return Check(kind, ("tests/fuzz/generated", "tests/fuzz/scaling", "-k", wanted))


_PROGRAMS, _STORED_CONFIGS, _HEADERS = map(_seen_by, ("programs", "stored_configs", "headers"))
_RUNS, _CONFIGS = map(_seen_by, ("runs", "configs"))
_ANNOTATIONS, _TABLES, _PACKS, _MASKS = map(_seen_by, ("annotations", "tables", "packs", "masks"))
_GRAPH_FOLDERS, _ADAPTERS = map(_seen_by, ("graphs", "adapters"))

READERS = (
    # Quadratic: work for each of many references to one long value.
    Mistake(
        "pickle: the name of a class is joined by every opcode that names it",
        _PICKLE,
        "if max(len(module), len(name)) > MAX_NAME:",
        "if False:",
        _PROGRAMS,
        more=(("return Inert(name, module)", 'return Inert(f"{module}.{name}")'),),
    ),
    Mistake(
        "pickle: names of classes of any length, joined in every call",
        _PICKLE,
        "if max(len(module), len(name)) > MAX_NAME:",
        "if False:",
        _PROGRAMS,
    ),
    Mistake(
        "pickle: indices of the memo without a bound",
        _PICKLE,
        "if not 0 <= index <= self.number:",
        "if not 0 <= index < 2**31:",
        _PROGRAMS,
    ),
    Mistake(
        "safetensors: each stride from a slice of the shape",
        _SAFETENSORS,
        "strides = [*itertools.accumulate(shape[:0:-1], operator.mul, initial=1)][::-1]",
        "strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]",
        _HEADERS,
        more=(("if len(shape) > MAX_DIMS:", "if False:"),),
    ),
    Mistake(
        "config: the message of a range is made for every item",
        _CONFIG,
        """            if not least <= each <= most:
                raise ValueError(f"{name}{field}: expected {least} to {most}, got {shown(value)}")
""",
        """            message = f"{name}{field}: expected {least} to {most}, got {value!r:.60}"
            require(least <= each <= most, message)
""",
        _STORED_CONFIGS,
    ),
    Mistake(
        "CSV: each column is compared with a list of those before it",
        _LINES,
        "if field in seen:",
        "if field in fields[: len(seen)]:",
        _TABLES,
        more=(
            ("if field not in _FIELDS:\n                raise", "if False:\n                raise"),
        ),
    ),
    Mistake(
        "records: spans that all records of a file share are checked in each",
        _RECORD,
        "elif spans.checked_text is not text:",
        "else:",
        _ANNOTATIONS,
    ),
    Mistake(
        "phrases: each box is compared with all phrases",
        _PHRASES,
        "found = (self._first.get(span_key(span)) for span in spans)",
        "found = (i for span in spans for i, own in enumerate(self.spans) if span in own)",
        _ANNOTATIONS,
    ),
    Mistake(
        "index: offsets of any integers, whose hashes can be equal",
        _INDEX,
        "        if any(offset[1:]):\n",
        "        if False:\n",
        _RUNS,
        more=(("    if math.prod(max(each, 1) for each in sizes) >= 2**48:\n", "    if False:\n"),),
    ),
    Mistake(
        "Objects365: lines are listed any number of times",
        _OBJECTS365,
        "            if listed > most:\n",
        "            if False:\n",
        _TABLES,
    ),
    Mistake(
        "pack: records share a line",
        _PACK_INDEX,
        "        if entry.start != expected:\n",
        "        if False:\n",
        _PACKS,
    ),
    # Exponential: the text or the hash of a value that contains another one twice, on 60 levels.
    Mistake(
        "pickle: keys of storages by their text",
        _PICKLE,
        "key = storage_key(key)",
        "key = str(key)",
        _PROGRAMS,
    ),
    Mistake(
        "legacy: keys of storages by their text",
        _TORCH_FILE,
        "for key in map(storage_key, keys):",
        "for key in map(str, keys):",
        _PROGRAMS,
    ),
    Mistake(
        "pickle: any value as a key of a dict",
        _PICKLE,
        "    return Inert(type(key).__name__)\n",
        "    return key\n",
        _PROGRAMS,
    ),
    Mistake(
        "index: the file of a part by its text",
        _INDEX,
        "if not isinstance(file, str) or not file.endswith(SUFFIX) or len(file) > MAX_NAME:",
        "if not str(file).endswith(SUFFIX):",
        _RUNS,
    ),
    Mistake("index: the repr of a dtype", _INDEX, "{shown(dtype)}", "{dtype!r:.60}", _RUNS),
    Mistake(
        "config: the repr of a value of another type",
        _CONFIG,
        "got {shown(value)} ({type(value).__name__})",
        "got {value!r:.200} ({type(value).__name__})",
        _STORED_CONFIGS,
    ),
    Mistake(
        "config: the repr of a value that is none of some",
        _CONFIG,
        "join(map(repr, arguments))}, got {shown(value)}",
        "join(map(repr, arguments))}, got {value!r}",
        _STORED_CONFIGS,
    ),
    Mistake(
        "stored config: the repr of what is no integer",
        _STORED,
        "integer >= {least}, got {shown(value)}",
        "integer >= {least}, got {value!r}",
        _STORED_CONFIGS,
    ),
    Mistake(
        "messages: containers of any depth",
        _MESSAGES,
        "if depth >= _MAX_DEPTH and len(value) > 0:",
        "if depth >= 99 and len(value) > 0:",
        _PROGRAMS,
    ),
    # Other errors than the documented ones, and messages without the file or with anything in them.
    Mistake(
        "config: names of fields of any type",
        _CONFIG,
        "if not isinstance(name, str):",
        "if False:",
        _STORED_CONFIGS,
    ),
    Mistake(
        "config: a family of any type",
        _FAMILIES,
        "    if isinstance(family, str):\n",
        "    if True:\n",
        _CONFIGS,
    ),
    Mistake(
        "safetensors: shapes without a bound",
        _SAFETENSORS,
        "if math.prod(max(size, 1) for size in shape) >= 2**63:",
        "if False:",
        _HEADERS,
    ),
    Mistake(
        "annotations: finite numbers by conversion to a float",
        _JSON,
        "and -MAX_NUMBER <= value <= MAX_NUMBER",
        "and math.isfinite(value)",
        _ANNOTATIONS,
        more=(("import json\nimport re\n", "import json\nimport math\nimport re\n"),),
    ),
    Mistake(
        "phrases: what is evaluated may be of any type",
        _PHRASES,
        'for phrase in file.get(entry, "tokens_positive_eval", list):',
        "for phrase in evaluated:",
        _ANNOTATIONS,
    ),
    Mistake(
        "Objects365: classes of any type",
        _OBJECTS365,
        'elif not isinstance(entry.get("class"), str) or (',
        "elif False or (",
        _TABLES,
    ),
    Mistake(
        "Objects365: names of files with NUL",
        _OBJECTS365,
        "if problem := file_name_problem(value):",
        "if problem := None:",
        _TABLES,
        more=(("if not value.isprintable():", "if False:"),),
    ),
    Mistake(
        "tar: counts and notes of an index are not checked",
        _TAR,
        "if not (_are_counts(counts) and _are_notes(notes) and isinstance(members, list)):",
        "if not isinstance(members, list):",
        _TABLES,
    ),
    Mistake(
        "generated data: parameters of any type",
        _GENERATED,
        'if not isinstance(parameters, dict) or not isinstance(parameters.get("generator"), str):',
        "if parameters is None:",
        _CONFIGS,
    ),
    Mistake(
        "masks: numbers of a polygon that overflow",
        _SEGMENTATION,
        "contextlib.suppress(TypeError, OverflowError)",
        "contextlib.suppress(TypeError)",
        _MASKS,
    ),
    Mistake(
        "exported graphs: one that is missing",
        _GRAPHS,
        "graphs.metadata.graphs.get(name)",
        "graphs.metadata.graphs[name]",
        _GRAPH_FOLDERS,
    ),
    Mistake(
        "adapter: errors of its model without the file",
        _ADAPTER,
        "    with values_of(path, values):\n",
        "    if True:\n",
        _ADAPTERS,
    ),
    Mistake(
        "run: errors of its config without the file",
        _RUN,
        "    with values_of(path, values):\n",
        "    if True:\n",
        _CONFIGS,
    ),
    Mistake(
        "messages: control characters as they are",
        _MESSAGES,
        "    if cut.isprintable():\n",
        "    if cut:\n",
        _TABLES,
    ),
)
