"""Exported graphs as a network of tensors, with which `fiber.evaluate` measures them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from fiber.checkpoints.model_dir import StoredModel
from fiber.models.architecture import Network
from fiber.models.features import BackboneOutput, DetectorOutput, ImagePrefix, Wanted
from fiber.models.image_text import ImageTextModel
from fiber.runtime.graphs import Engine, Graphs
from fiber.runtime.loading import graph_stages
from fiber.runtime.metadata import read_metadata
from fiber.runtime.model import GraphModel, GraphNetwork


def load_graphs(
    folder: str | os.PathLike[str],
    heads: Collection[str] = (),
    *,
    engine: Engine | None = None,
    threads: int | None = None,
) -> StoredModel:
    """Open a folder that `fiber export` wrote, as a model that `fiber.evaluate` takes.

    Args:
        folder: folder with metadata.json, or with one such folder for each stage.
        heads: heads of which the model needs one; choose the stage of a folder with several.
        engine: library that runs the graphs, as in `Graphs`.
        threads: maximum number of threads of a graph. Default: the engine's own.

    Raises:
        FileNotFoundError: if the folder contains no exported graphs, or a file is missing.
        ValueError: if a file is invalid, damaged or of another model.
        ModuleNotFoundError: if the engine is not installed.
    """
    chosen = Path(folder)
    for stage in graph_stages(chosen).values():
        if not set(heads).isdisjoint(read_metadata(stage).heads):
            chosen = stage
            break
    model = GraphModel(Graphs(chosen, engine=engine, threads=threads))
    return StoredModel(
        network=TorchGraphs(model.network),
        path=model.graphs.folder,
        tokenizer=model.tokenizer,
        answers=model.answers,
        classes=model.classes,
    )


class TorchGraphs(Network):
    """Network of tensors whose methods are those of graphs. It runs on the CPU in float32.

    It has the abilities of its heads for evaluation and inference; nothing can be trained.

    Args:
        graphs: graphs with the methods of a network, on arrays of numpy.
    """

    def __init__(self, graphs: GraphNetwork) -> None:
        super().__init__()
        self.config = graphs.config
        self.backbone = _Backbone(graphs)
        # Callers read device and dtype off the parameters of a network.
        self.marker = nn.Parameter(torch.empty(0), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        """Return a module or parameter, or what the graphs have under this name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return on_tensors(getattr(self.backbone.graphs, name))

    statement_logits = ImageTextModel.statement_logits

    def image_prefix(self, images: Tensor, second: Tensor | None = None) -> ImagePrefix:
        """See `ScoresPairs` and `FindsBoxes`; `second` is `is_right` or `image_sizes`.

        Raises:
            ValueError: if images of a detector differ in size, which its graphs do not take.
        """
        if second is not None and "grounding" in self.config.heads:
            divisor = self.size_divisor
            padded = (second + divisor - 1) // divisor * divisor
            if (padded != torch.tensor(images.shape[-2:])).any():
                raise ValueError(
                    "exported graphs take images of one size; got"
                    f" {second.tolist()} in a batch of {images.shape[-2]} x {images.shape[-1]}"
                )
        return self.backbone.image_prefix(images, second)

    def mask_prefix(self, images: Tensor, image_sizes: Tensor | None = None) -> ImagePrefix:
        """See `FindsMasks`."""
        return self.image_prefix(images, image_sizes)

    def scoring_head(self, head: str) -> nn.Module:
        """See `ScoresPairs`."""
        return self

    def rank_scores(self, pooled: Tensor) -> Tensor:
        """See `RanksCaptions`."""
        return self.ranking_scores(pooled)

    def mlm_logits(self, text: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `ScoresPairs`; `text` are the logits of all tokens, as `fuse` returns them."""
        return text if positions is None else text.flatten(0, 1)[positions.flatten()]

    def _train(self, *_: Any) -> NoReturn:
        raise NotImplementedError("exported graphs cannot be trained; load the model itself")

    # Members of abilities that only training uses.
    next_token_logits = decode_text = locations = _train
    temperature = property(_train)

    def forward(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> DetectorOutput:
        """See `FindsBoxes`."""
        return self.predict(self.backbone.encode_pair(images, token_ids, text_mask))


class _Backbone(nn.Module):
    """Graphs that encode and fuse; see `EncodesAlone` and `FusesSizes`."""

    #: There is no text encoder whose weights may change.
    text = None

    def __init__(self, graphs: GraphNetwork) -> None:
        super().__init__()
        self.graphs = graphs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return on_tensors(getattr(self.graphs, name))

    def encode_image(self, images: Tensor) -> Any:
        return self.complete_image(self.image_prefix(images))

    def encode_pair(
        self, images: Tensor, token_ids: Tensor, text_mask: Tensor, *, wanted: Wanted = "all"
    ) -> Any:
        text = self.text_prefix(token_ids, text_mask)
        return self.fuse(self.image_prefix(images), text, text_mask, wanted=wanted)

    def fuse(
        self, prefix: ImagePrefix, text: Tensor, text_mask: Tensor, *, wanted: Wanted = "all"
    ) -> Any:
        if wanted != "text":
            return on_tensors(self.graphs.fuse)(prefix, text, text_mask)
        given = _arrays({"tokens": prefix.tokens, "text": text, "text_mask": text_mask})
        logits = self.graphs.graphs.run("pair_mlm", given)["mlm_logits"]
        return BackboneOutput((), torch.from_numpy(logits), text_mask)


def on_tensors(member: Any) -> Any:
    """Return a method of graphs as one that takes and returns tensors; leave other members."""
    if not callable(member):
        return member
    method: Callable[..., Any] = member
    return lambda *arguments, **options: _tensors(method(*_arrays(arguments), **_arrays(options)))


def _arrays(value: Any) -> Any:
    return _converted(value, Tensor, lambda tensor: tensor.detach().cpu().numpy())


def _tensors(value: Any) -> Any:
    return _converted(value, np.ndarray, torch.from_numpy)


def _converted(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Convert all arrays in a value, its containers kept."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, dict):
        return {name: _converted(each, kind, convert) for name, each in value.items()}
    if isinstance(value, tuple | list):
        own = [_converted(each, kind, convert) for each in value]
        return type(value)(*own) if hasattr(value, "_fields") else type(value)(own)
    if isinstance(value, DetectorOutput):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return DetectorOutput(**_converted(fields, kind, convert))
    return value
