"""Export a model to a folder of graphs, and check them against the network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from fiber.atomic_io import new_directory, write_json
from fiber.checkpoints.load import load_stored
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.stages import model_path, stage_folders
from fiber.checkpoints.torch_file import Weights
from fiber.config_io import to_dict
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.env import provenance
from fiber.export import formats
from fiber.export.parts import (
    MIN_TOKENS,
    ExportPlan,
    Subgraph,
    dimension_names,
    exportable_heads,
    plan_parts,
    sample_sizes,
    sample_tensors,
)
from fiber.export.quantize import quantize
from fiber.export.trace import ExportError, Shapes, infer_shapes, trace
from fiber.inference.masks.class_vectors import text_checksum
from fiber.messages import shown
from fiber.models.abilities import need_ability
from fiber.models.fiber.beam_search import CAPTION_BEAMS, END_ID, PAD_ID, START_ID
from fiber.models.mask_abilities import SegmentsByTensors
from fiber.models.model_config import text_cleaning
from fiber.models.registry import Network, architecture_of, inference_transform, own_transforms
from fiber.ops.boxes import DELTA_WEIGHTS, MAX_LOG_SCALE
from fiber.runtime import metadata as stored_form
from fiber.runtime.graphs import Graphs
from fiber.runtime.image_transform import describe_transform
from fiber.runtime.metadata import (
    CaptionSettings,
    DetectorSettings,
    Dimension,
    DType,
    Format,
    Graph,
    MaskSettings,
    Metadata,
    Precision,
    RankingSettings,
    TextSettings,
    describe_file,
)

#: Largest difference of a graph's output from the network's, of the largest value of the output, or
#: of 1 if all values are smaller.
TOLERANCE = 1e-4


def export_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Format = "onnx",
    *,
    heads: Sequence[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    answers: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    weights: Weights = "raw",
    int8: bool = False,
    progress: Callable[[str], object] = lambda line: None,
) -> list[Path]:
    """Export a model to a new folder of graphs that run without this package.

    The network is cut into graphs where image and text meet, so that an image is encoded once for
    many texts. Batch and text length are dynamic in all of them, and height and width in those of
    detectors. Each graph is run at other sizes than the traced ones, and compared with the network.
    A model in several stages gives a folder for each.

    Args:
        source: model to read, as in `fiber.load`.
        target: folder to create.
        to: "onnx", "openvino" or "torch", a file of `torch.export`.
        heads: heads to export. Default: all.
        tokenizer: replacement for the model's tokenizer, as in `fiber.load`.
        answers: replacement for the model's VQA answers, as in `fiber.load`.
        image_size: new input size in pixels, except for detectors.
        weights: "raw" or "ema", as in `fiber.load`.
        int8: multiply by weights in 8-bit integers; for ONNX only. The graphs then differ from the
            network, by as much as `progress` says; `fiber eval` measures what that costs.
        progress: called with a line about each graph.

    Returns:
        Folders with graphs.

    Raises:
        FileNotFoundError: if the model or one of its files is missing.
        FileExistsError: if `target` exists and is not empty.
        ValueError: if the model or an argument is invalid.
        ExportError: if a graph cannot be traced, or differs from the network.
        ModuleNotFoundError: if a package of the format is missing; the message names the extra.
    """
    path = Path(target)
    if to not in get_args(Format):
        expected = ", ".join(map(repr, get_args(Format)))
        raise ValueError(f"to: expected one of {expected}, got {shown(to)}")
    if int8 and to != "onnx":
        raise ValueError(f"int8: graphs in 8-bit integers are ONNX; got the format {shown(to)}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists; expected a new or empty folder")
    formats.need_packages(to)
    precision: Precision = "int8" if int8 else "float32"
    found = model_path(source)
    stages = stage_folders(found)
    if not stages:
        options: dict[str, Any] = {"image_size": image_size, "weights": weights}
        stored = load_stored(found, tokenizer, answers, "cpu", **options)
        with new_directory(path) as part:
            _export(stored, part, path, to, heads, precision, progress)
        return [path]
    if answers is not None or image_size is not None or weights != "raw":
        raise ValueError(
            f"answers, image_size and weights are for one model; {found} has the stages"
            f" {', '.join(stages)}: export them one by one"
        )
    own = {name: load_stored(folder, tokenizer, None, "cpu") for name, folder in stages.items()}
    chosen = _heads_of_stages(own, heads)
    with new_directory(path) as part:
        for name, some in chosen.items():
            (part / name).mkdir()
            _export(own[name], part / name, path / name, to, some, precision, progress)
    return [path / name for name in chosen]


def _heads_of_stages(
    stages: Mapping[str, StoredModel], heads: Sequence[str] | None
) -> dict[str, list[str]]:
    """Return the heads to export of each stage that has some of them."""
    known = [head for stored in stages.values() for head in exportable_heads(stored.config)]
    for head in heads or ():
        if head not in known:
            raise ValueError(f"heads: expected some of {', '.join(known)}, got {shown(head)}")
    chosen = {
        name: [head for head in exportable_heads(stored.config) if heads is None or head in heads]
        for name, stored in stages.items()
    }
    return {name: some for name, some in chosen.items() if some}


def _export(
    stored: StoredModel,
    folder: Path,
    shown_as: Path,
    to: Format,
    heads: Sequence[str] | None,
    precision: Precision,
    progress: Callable[[str], object],
) -> None:
    """Write the folder of a model; its later name is `shown_as`."""
    network = stored.network.float().eval().requires_grad_(False)
    config = network.config
    known = exportable_heads(config)
    left_out = () if heads is not None else [head for head in config.heads if head not in known]
    heads = tuple(known if heads is None else dict.fromkeys(heads))
    plan = plan_parts(network, heads)
    progress(f"{shown_as}: {architecture_of(config).describe(config)}")
    if left_out:
        progress(f"  without the heads that cannot be exported: {', '.join(left_out)}")
    sizes = sample_sizes(network, plan)
    samples = [sample_tensors(network, plan, each, seed) for seed, each in enumerate(sizes)]
    dimensions = _dimensions(network, plan)
    shapes = infer_shapes(samples, sizes, dimensions)
    fingerprint = _fingerprint(network)
    writer = _Writer(folder, to, precision, fingerprint, shapes)
    for part in plan.parts:
        writer.write(part, trace(part, samples[0], shapes, dimensions))
        progress(f"  {writer.graphs[part.name].file}: {_signature(part, shapes)}")
    writer.close()
    if stored.tokenizer is not None:
        stored.tokenizer.save(folder / "tokenizer.json")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    used = {size.split("/")[0] for shape in shapes.values() for size in shape if type(size) is str}
    metadata = Metadata(
        to=to,
        precision=precision,
        made_with=_made_with(to),
        fingerprint=fingerprint,
        model=to_dict(config),
        heads=heads,
        files={path.name: describe_file(path) for path in files},
        graphs=writer.graphs,
        dimensions={name: each for name, each in dimensions.items() if name in used},
        tokenizer=None if stored.tokenizer is None else "tokenizer.json",
        answers=stored.answers if "vqa" in heads else (),
        classes=stored.classes if {"grounding", "mask"}.intersection(heads) else (),
        # Scores of int8 graphs are others.
        presence=stored.kept.presence if precision == "float32" else None,
        entailment=tuple(ENTAILMENT) if "snli" in heads else (),
        **_settings(network, plan, heads),
    )
    write_json(folder / stored_form.FILE, stored_form.to_json(metadata))
    # The default engine, but for files of torch, which were written here and hold no foreign code.
    graphs = Graphs(folder, engine="torch" if to == "torch" else None)
    differences = check_graphs(graphs, plan, samples)
    total = sum(path.stat().st_size for path in folder.iterdir())
    progress(f"  checked at {len(samples)} sizes: {total / 1e6:,.1f} MB in all")
    if precision == "int8":
        each = ", ".join(f"{name} {value:.1%}" for name, value in differences.items())
        progress(f"  int8: differences from the network, of the largest value: {each}")


def check_graphs(
    graphs: Graphs, plan: ExportPlan, samples: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Compare the outputs of graphs with those of the network.

    Args:
        graphs: exported graphs.
        plan: their parts.
        samples: tensors of all parts at several sizes, as the network computes them.

    Returns:
        Largest difference of each output, of the largest value, or of 1 if all are smaller.

    Raises:
        ExportError: if an output has another shape or NaN, or that of a graph in float32 differs by
            more than `TOLERANCE`.
    """
    limit = TOLERANCE if graphs.metadata.precision == "float32" else math.inf
    differences: dict[str, float] = {}
    for sample in samples:
        for part in plan.parts:
            inputs = {name: sample[name].numpy() for name in part.inputs}
            for name, found in graphs.run(part.name, inputs).items():
                difference = _compare(part, name, found, sample[name].numpy(), inputs, limit)
                differences[name] = max(differences.get(name, 0.0), difference)
    return differences


def _compare(
    part: Subgraph,
    name: str,
    found: np.ndarray,
    expected: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    limit: float,
) -> float:
    shapes = ", ".join(f"{each} {array.shape}" for each, array in inputs.items())
    if found.shape != expected.shape:
        raise ExportError(
            f"graph {part.name}: {name} has the shape {found.shape}, expected {expected.shape},"
            f" for {shapes}"
        )
    if not expected.size:
        return 0.0
    largest = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(found - expected).max())
    # NaN is no difference that is small enough.
    if not difference / largest <= limit:
        raise ExportError(
            f"graph {part.name}: {name} differs by {difference:.1e} from the network's, whose"
            f" largest value is {largest:.1e}, for {shapes}"
        )
    return difference / largest


class _Writer:
    """Writes the graphs of a folder in one format."""

    def __init__(
        self, folder: Path, to: Format, precision: Precision, fingerprint: str, shapes: Shapes
    ) -> None:
        self.graphs: dict[str, Graph] = {}
        self._folder, self._shapes = folder, shapes
        self._to: Format = to
        self._precision: Precision = precision
        self._fingerprint = fingerprint
        self._weights = formats.SharedWeights(folder) if to == "onnx" else None

    def write(self, part: Subgraph, program: Any) -> None:
        """Write a traced part."""
        formats.drop_unused(program)
        mark = {stored_form.MODEL_KEY: self._fingerprint, stored_form.PART_KEY: part.name}
        path = self._folder / f"{part.name}{formats.SUFFIXES[self._to]}"
        if self._to == "torch":
            formats.write_torch(program, path, mark)
        elif self._precision == "int8":
            assert self._weights is not None
            formats.write_onnx(part, program, path, self._shapes, mark, None)
            quantize(path)
            self._weights.move_from(path)
        elif self._to == "onnx":
            formats.write_onnx(part, program, path, self._shapes, mark, self._weights)
        else:
            between = path.with_suffix(".onnx")
            formats.write_onnx(part, program, between, self._shapes, mark, None)
            formats.write_openvino(between, path, mark)
            between.unlink()
        self.graphs[part.name] = Graph(
            path.name, self._tensors(part.inputs), self._tensors(part.outputs)
        )

    def close(self) -> None:
        """Finish the files that graphs share."""
        if self._weights is not None:
            self._weights.close()

    def _tensors(self, names: Sequence[str]) -> tuple[stored_form.TensorSpec, ...]:
        return tuple(
            stored_form.TensorSpec(name, _DTYPES.get(name, "float32"), self._shapes[name])
            for name in names
        )


#: Types of tensors that are not float32.
_DTYPES: dict[str, DType] = {
    "is_right": "bool",
    "token_ids": "int64",
    "text_mask": "bool",
    "caption_ids": "int64",
    "tokens_before": "int64",
    "own_tokens": "bool",
}


def _signature(part: Subgraph, shapes: Shapes) -> str:
    """Describe inputs and outputs of a graph in a line."""

    def describe(names: Sequence[str]) -> str:
        return ", ".join(f"{name} ({', '.join(map(str, shapes[name]))})" for name in names)

    return f"{describe(part.inputs)} -> {describe(part.outputs)}"


def _dimensions(network: Network, plan: ExportPlan) -> dict[str, Dimension]:
    found = {name: Dimension() for name in dimension_names(plan)}
    if "length" in found:
        found["length"] = Dimension(MIN_TOKENS, network.config.max_tokens)
    if "classes" in found:
        # A class and the background.
        found["classes"] = Dimension(2)
    if plan.is_resizable:
        side = Dimension(plan.divisor, None, plan.divisor)
        found |= {"height": side, "width": side, "locations": Dimension()}
    return found


def _settings(network: Network, plan: ExportPlan, heads: Sequence[str]) -> dict[str, Any]:
    """Return the fields of metadata.json about preprocessing and about each kind of head."""
    config = network.config
    settings: dict[str, Any] = {
        "image_transform": describe_transform(inference_transform(config)),
        "task_transforms": {
            task: describe_transform(own) for task, own in own_transforms(config).items()
        },
        "text": TextSettings(
            max_tokens=config.max_tokens,
            vocab_size=config.vocab_size,
            cleaning=text_cleaning(config),
        ),
    }
    if "mask" in heads:
        finder = need_ability(network, SegmentsByTensors, "export", "mask")
        texts = dataclasses.asdict(finder.class_texts)
        settings["masks"] = MaskSettings(**texts, text_checksum=text_checksum(finder))
    if "grounding" in heads:
        detector = config.detector
        settings["detector"] = DetectorSettings(
            strides=detector.strides,
            anchor_scale=detector.anchor_scale,
            size_divisor=plan.divisor,
            delta_weights=DELTA_WEIGHTS,
            max_log_scale=MAX_LOG_SCALE,
            mask_stride=cast(int, network.mask_stride) if "grounding_mask" in heads else None,
        )
    if "caption" in heads:
        settings["caption"] = CaptionSettings(
            start_id=START_ID,
            end_id=END_ID,
            pad_id=PAD_ID,
            mask_id=cast(int, network.mask_id),
            longest=cast(int, network.longest_caption),
            beams=CAPTION_BEAMS,
        )
    ranks = [head for head in ("rank", "itc", "itm") if head in heads]
    if ranks:
        is_log_odds = bool(getattr(network, "scores_are_log_odds", True))
        settings["ranking"] = RankingSettings(heads=tuple(ranks), scores_are_log_odds=is_log_odds)
    return settings


def _made_with(to: Format) -> dict[str, str]:
    found = dict(provenance())
    for name in ("torch", *formats.PACKAGES[to]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _fingerprint(network: Network) -> str:
    """Return a checksum of the config and the weights of a network."""
    checksum = hashlib.sha256(json.dumps(to_dict(network.config), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        values: Tensor = tensor.detach().cpu().contiguous()
        checksum.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        checksum.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()
