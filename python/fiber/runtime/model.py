"""`GraphModel`: exported graphs with the methods of `fiber.Model`, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fiber.data import Tokenizer
from fiber.data.image_file import MAX_PIXELS, DecodeLimits
from fiber.inference.by_head import Stages
from fiber.inference.inputs import ArrayInputs
from fiber.inference.masks.segment import MaskMethods
from fiber.inference.suggestions import (
    not_callable,
    suggest_keywords_of_methods,
    unknown_attribute,
)
from fiber.messages import shown, shown_names
from fiber.models.heads import MissingHeadError, need_head
from fiber.models.model_config import ModelConfig
from fiber.models.registry import CONFIGS, read_config
from fiber.runtime.graphs import Graphs
from fiber.runtime.image_transform import read_transform
from fiber.runtime.mask_networks import GraphSegmenter
from fiber.runtime.metadata import FILE, Metadata
from fiber.runtime.networks import GraphDetector, GraphImageText

if TYPE_CHECKING:
    from fiber.models.abilities import AbilityT

#: Graphs with the abilities of their heads.
GraphNetwork = GraphDetector | GraphSegmenter | GraphImageText
_EXPORT_AGAIN = (
    "the graphs in {0} have no {1}; export the model with it: `fiber export MODEL OUT {2}`"
)


@suggest_keywords_of_methods
class GraphModel(MaskMethods):
    """Exported graphs of a model, with the methods and the results of `fiber.Model`.

    Only `caption` differs: it does not sample. A method whose head the graphs lack raises
    `fiber.MissingHeadError`.

    Args:
        graphs: graphs of one model.
        max_pixels, max_decode_bytes: limits of decoding one image; see `fiber.data.load_image`.

    Raises:
        ValueError: if metadata.json lacks what a method needs.
    """

    def __init__(
        self,
        graphs: Graphs,
        *,
        max_pixels: int = MAX_PIXELS,
        max_decode_bytes: int | None = None,
    ) -> None:
        about = graphs.metadata
        self.graphs = graphs
        self.config = _config(about, graphs.folder / FILE)
        self.answers, self.classes = about.answers, about.classes
        self.tokenizer = _tokenizer(graphs)
        self.network = graph_network(graphs, self.config)
        try:
            transform = read_transform(about.image_transform)
            own = {
                task: read_transform(each, f"task_transforms.{task}")
                for task, each in about.task_transforms.items()
            }
        except ValueError as error:
            raise ValueError(f"{graphs.folder / FILE}: {error}") from error
        self._inputs = ArrayInputs(
            lambda task: own.get(task or "", transform),
            self.tokenizer,
            self.config.max_tokens,
            DecodeLimits(max_pixels, max_decode_bytes),
            _EXPORT_AGAIN.format(graphs.folder, "tokenizer", "--tokenizer DIR"),
            cleaning=about.text.cleaning,
        )
        self._no_answers = _EXPORT_AGAIN.format(graphs.folder, "answers", "--answers FILE")
        self.presence = about.presence
        self._start_boxes()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that the graphs have."""
        return self.graphs.metadata.heads

    def __repr__(self) -> str:
        engine, folder = self.graphs.engine, self.graphs.folder
        return f"GraphModel({str(folder)!r}, heads={', '.join(self.heads)}, engine={engine})"

    def need_head(self, head: str, asked: str) -> None:
        """Raise MissingHeadError if the graphs lack a head.

        The message names `asked`, a method, and how to export the head, if the model has it.
        """
        if head in self.heads:
            return
        try:
            need_head(read_config(dict(self.graphs.metadata.model), "model"), head, asked)
        except ValueError as error:
            raise MissingHeadError(str(error)) from None
        raise MissingHeadError(
            f"{asked} needs the head {head!r}; the graphs in {self.graphs.folder} have"
            f" {', '.join(self.heads)}. The model has it: export it with"
            f" `fiber export MODEL OUT --heads {','.join([*self.heads, head])}`"
        )

    def _able(self, ability: type[AbilityT], head: str, asked: str) -> AbilityT:
        # Graphs have what inference needs of an ability.
        self.need_head(head, asked)
        network: Any = self.network
        return network

    def _computing(self) -> nullcontext[None]:
        return nullcontext()

    def _caption_writer(self, *arguments: Any, sample: bool, **options: Any) -> Any:
        # Other types than bool are an error of their own.
        if sample is True:
            raise ValueError(
                "caption: exported graphs do not sample; leave sample out for beam search, or load"
                " the model itself with fiber.load"
            )
        return super()._caption_writer(*arguments, sample=sample, **options)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name)

        def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
            """Raise TypeError, which names the methods."""
            raise not_callable(self)


@suggest_keywords_of_methods
class StagedGraphModel(Stages, GraphModel):
    """Graphs of several stages. Each method runs on the stage that has the head for it.

    Args:
        stages: model of each stage, by name.
    """

    _called = "these graphs have"

    def __init__(self, stages: Mapping[str, GraphModel]) -> None:
        self.stages = dict(stages)


def _config(about: Metadata, path: Path) -> ModelConfig:
    """Read the config of a model, with the heads of its graphs, from metadata.json."""
    family = about.model.get("family", "fiber")
    if not isinstance(family, str) or family not in CONFIGS:
        raise ValueError(
            f"{path}: model.family: the graphs are of a model of the family {shown(family)};"
            f" without the network, models of {' and '.join(CONFIGS)} run"
        )
    try:
        config: Any = read_config(dict(about.model), "model")
        unknown = [head for head in about.heads if head not in config.heads]
        if unknown or not about.heads:
            raise ValueError(
                f"heads: expected some of {shown_names(config.heads)}, which the model has, got"
                f" {shown_names(unknown)}"
            )
        return _with_heads(config, about.heads)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def _with_heads(config: Any, heads: tuple[str, ...]) -> Any:
    """Return a config whose heads are those of graphs."""
    if tuple(config.heads) == heads:
        return config
    if "heads" in {each.name for each in dataclasses.fields(config)}:
        return dataclasses.replace(config, heads=heads)
    if "grounding" in heads:
        # Without masks.
        detector = dataclasses.replace(config.detector, mask_width=0)
        return dataclasses.replace(config, detector=detector)
    image_text = dataclasses.replace(config.image_text, heads=heads)
    return dataclasses.replace(config, image_text=image_text)


def graph_network(
    graphs: Graphs, config: ModelConfig
) -> GraphDetector | GraphSegmenter | GraphImageText:
    """Return the graphs as a network with the abilities of their heads."""
    heads = set(graphs.metadata.heads)
    if "grounding" in heads:
        return GraphDetector(graphs, config)
    if heads & {"mask", "retrieval"}:
        return GraphSegmenter(graphs, config)
    return GraphImageText(graphs, config)


def _tokenizer(graphs: Graphs) -> Tokenizer | None:
    name = graphs.metadata.tokenizer
    return None if name is None else Tokenizer.from_file(graphs.folder / name)
