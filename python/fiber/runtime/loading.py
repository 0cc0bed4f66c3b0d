"""`fiber.runtime.load`: open exported graphs for inference without torch."""

from __future__ import annotations

import os
from pathlib import Path

from fiber.data.image_file import MAX_PIXELS, check_not_url
from fiber.data.loader_config import check_arguments
from fiber.inference.suggestions import suggest_keywords
from fiber.messages import shown
from fiber.runtime.graphs import Engine, Graphs
from fiber.runtime.metadata import FILE, is_graphs
from fiber.runtime.model import GraphModel, StagedGraphModel

#: Folders of a model in several stages, as in `fiber.checkpoints.model_dir`, which needs torch.
STAGES = ("coarse", "fine")


@suggest_keywords
def load(
    path: str | os.PathLike[str],
    engine: Engine | None = None,
    *,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_decode_bytes: int | None = None,
) -> GraphModel:
    """Open graphs that `fiber export` wrote, as a model that needs no torch.

    Args:
        path: folder of exported graphs, or a folder with one for each stage.
        engine: library that runs the graphs: "onnxruntime", "openvino" or "torch". Default: the one
            of the format, onnxruntime for ONNX.
        threads: maximum number of threads of a graph. Default: the engine's own.
        max_pixels: maximum number of pixels of an image file that the model is given.
        max_decode_bytes: maximum memory in bytes for decoding one image; None means no limit. See
            `fiber.data.load_image`.

    Raises:
        FileNotFoundError: if there are no graphs, or a file of theirs is missing.
        TypeError: if `path` is no path.
        ValueError: if metadata.json is invalid or of another version, a file is damaged or of
            another model, or the engine does not run the format.
        ModuleNotFoundError: if the engine is not installed; the message names the extra.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            "path: expected the path of a folder that `fiber export` wrote, got"
            f" {type(path).__name__} {shown(path)}"
        )
    check_arguments(max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)
    check_not_url(path, "folder")
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder} does not exist; expected a folder that `fiber export` wrote"
        )

    def model(own: Path) -> GraphModel:
        graphs = Graphs(own, engine=engine, threads=threads)
        return GraphModel(graphs, max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)

    stages = graph_stages(folder)
    if not stages:
        return model(folder)
    return StagedGraphModel({stage: model(own) for stage, own in stages.items()})


def graph_stages(folder: Path) -> dict[str, Path]:
    """Return the folder of each stage by name; empty if `folder` has none or graphs of its own."""
    if is_graphs(folder):
        return {}
    return {stage: folder / stage for stage in STAGES if is_graphs(folder / stage)}


def has_graphs(path: str | os.PathLike[str]) -> bool:
    """Return True if a path is a folder of exported graphs, or of stages of them."""
    folder = Path(path)
    try:
        # One that is damaged is opened as well, which says so, unless it is in a model folder.
        is_damaged = (folder / FILE).is_file() and not (folder / "config.json").exists()
        return is_damaged or is_graphs(folder) or bool(graph_stages(folder))
    except (OSError, ValueError):
        # Too long for a name, or with a null character.
        return False
