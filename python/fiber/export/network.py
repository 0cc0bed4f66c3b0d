"""A network that is computed by exported graphs, with which `fiber.evaluate` measures them.

Where a network hands on features that a graph does not return, this one hands on what the graph
returns instead: the pooled pair, logits of MLM, vectors, predictions of boxes. Only evaluation and
inference may use it; nothing can be trained.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiber.checkpoints.model_dir import StoredModel
from fiber.data import Tokenizer
from fiber.models.abilities import FindsBoxes, need_ability
from fiber.models.families import read_config
from fiber.models.features import BackboneOutput, DetectorOutput, ImagePrefix, Wanted
from fiber.models.image_text import ImageTextModel
from fiber.models.registry import ModelConfig, build_empty
from fiber.runtime.graphs import Engine, Graphs
from fiber.runtime.metadata import terms


def load_graphs(
    folder: str | os.PathLike[str], *, engine: Engine | None = None, threads: int | None = None
) -> StoredModel:
    """Open a folder that `fiber export` wrote, as a model that `fiber.evaluate` takes.

    Args:
        folder: folder with metadata.json.
        engine: library that runs the graphs, as in `Graphs`.
        threads: maximum number of threads of a graph. Default: the engine's own.

    Raises:
        FileNotFoundError: if the folder contains no exported graphs, or a file is missing.
        ValueError: if a file is invalid, damaged or of another model.
        ModuleNotFoundError: if the engine is not installed.
    """
    graphs = Graphs(folder, engine=engine, threads=threads)
    about = graphs.metadata
    network = GraphNetwork(graphs)
    tokenizer = None
    if about.tokenizer is not None:
        tokenizer = Tokenizer.from_file(graphs.folder / about.tokenizer)
    return StoredModel(
        network=network,
        path=graphs.folder,
        tokenizer=tokenizer,
        answers=about.answers,
        classes=about.classes,
    )


class GraphNetwork(ImageTextModel):
    """Network of exported graphs, with the abilities of its heads. It runs on the CPU in float32.

    Args:
        graphs: graphs of a model.
    """

    def __init__(self, graphs: Graphs) -> None:
        super().__init__()
        about = graphs.metadata
        self.config: ModelConfig = _with_heads(read_config(about.model), about.heads)
        self._graphs = _Runner(graphs)
        # A network has a device and a dtype, which callers read off its parameters.
        self.marker = nn.Parameter(torch.empty(0), requires_grad=False)
        self.backbone: Any = _Backbone(self._graphs)
        # Not a module of this one: its tensors have no values.
        self._empty = (build_empty(read_config(about.model)),)

    @property
    def pooled_width(self) -> int:
        """Number of channels of a pooled pair."""
        return self._graphs.channels("pair", "pooled")

    def scoring_head(self, head: str) -> nn.Module:
        """See `ScoresPairs`."""
        return self

    def image_prefix(self, images: Tensor, is_right: Tensor | None = None) -> ImagePrefix:
        """See `ScoresPairs`, and `FindsBoxes`, whose second argument is `image_sizes` instead.

        Raises:
            ValueError: if images of a detector differ in size, which its graphs do not take.
        """
        if "grounding" not in self.config.heads:
            return self.backbone.image_prefix(images, is_right)
        _, inside = self.locations(images, is_right)
        if inside is not None and not bool(inside.all()):
            raise ValueError("exported graphs take images of one size; got several in a batch")
        return self.backbone.image_prefix(images)

    def pooled(self, output: BackboneOutput) -> Tensor:
        """See `ScoresPairs`."""
        assert output.text is not None
        return output.text

    def itm_logits(self, pooled: Tensor) -> Tensor:
        """See `ScoresPairs`."""
        return self._head("itm", pooled)

    def rank_scores(self, pooled: Tensor) -> Tensor:
        """See `RanksCaptions`."""
        return self._head("rank", pooled)

    def vqa_logits(self, pooled: Tensor) -> Tensor:
        """See `ScoresPairs`."""
        return self._head("vqa", pooled)

    def snli_logits(self, pooled: Tensor) -> Tensor:
        """See `ClassifiesEntailment`."""
        return self._head("snli", pooled)

    def nlvr2_logits(self, pooled_left: Tensor, pooled_right: Tensor) -> Tensor:
        """See `ScoresPairs`."""
        both = {"pooled_left": pooled_left, "pooled_right": pooled_right}
        return self._graphs("head_nlvr2", both)["nlvr2_logits"]

    @property
    def scores_are_log_odds(self) -> bool:
        """See `ScoresPairs`."""
        return bool((self._graphs.about.ranking or {}).get("scores_are_log_odds", True))

    def ranking_scores(self, pooled: Tensor) -> Tensor:
        """See `ScoresPairs`."""
        if "rank" in self.config.heads:
            return self.rank_scores(pooled)
        logits = self.itm_logits(pooled)
        return logits[:, 1] - logits[:, 0] if self.scores_are_log_odds else logits[:, 1]

    def mlm_logits(self, text: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `ScoresPairs`; `text` are the logits of all tokens."""
        if positions is None:
            return text
        chosen = positions.flatten()
        return text.flatten(0, 1)[chosen]

    @property
    def temperature(self) -> Tensor:
        """See `EmbedsAlone`. It is for training only, so no graph has it."""
        raise NotImplementedError("exported graphs have no temperature of ITC")

    @property
    def embedding_width(self) -> int:
        """See `EmbedsAlone`."""
        return self._graphs.channels("embed_images", "image_vectors")

    def embed_images(self, images: Tensor) -> Tensor:
        """See `EmbedsAlone`."""
        return self.image_vectors(self.backbone.complete_image(self.backbone.image_prefix(images)))

    def embed_texts(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """See `EmbedsAlone`."""
        text = self.backbone.text_prefix(token_ids, text_mask)
        return self.text_vectors(self.backbone.complete_text(text, text_mask))

    def image_vectors(self, output: BackboneOutput) -> Tensor:
        """See `EmbedsAlone`."""
        return output.stages[-1]

    def text_vectors(self, text: Tensor) -> Tensor:
        """See `EmbedsAlone`."""
        return text

    @property
    def mask_id(self) -> int:
        """See `WritesCaptions`."""
        return self._caption("mask_id")

    @property
    def longest_caption(self) -> int:
        """See `WritesCaptions`."""
        return self._caption("longest")

    def image_tokens(self, images: Tensor) -> Tensor:
        """See `WritesCaptions`; these are the decoder's keys and values of the images."""
        prefix = self.backbone.image_prefix(images)
        return self._graphs("caption_image", {"tokens": prefix.tokens})["image_keys_values"]

    def start_decoding(self, image_tokens: Tensor) -> GraphDecoding:
        """See `WritesCaptions`."""
        shape = self._graphs.shape("caption_step", "past")
        fixed = [1 if isinstance(size, str) else size for size in shape[1:]]
        past = torch.zeros(len(image_tokens), *fixed)
        return GraphDecoding(image_tokens, past, torch.zeros(len(image_tokens), 1, 1).bool())

    def decode_next(self, decoding: GraphDecoding, token_ids: Tensor) -> Tensor:
        """See `WritesCaptions`; the result are the logits of the next tokens."""
        found = self._graphs(
            "caption_step",
            {
                "caption_ids": token_ids,
                "tokens_before": torch.tensor(decoding.length),
                "own_tokens": decoding.own_tokens,
                "past": decoding.past,
                "image_keys_values": decoding.image_keys_values,
            },
        )
        decoding.append(found["newest"])
        return found["caption_logits"]

    def caption_logits(self, text: Tensor) -> Tensor:
        """See `WritesCaptions`."""
        return text

    def decode_text(self, image_tokens: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """See `WritesCaptions`. It is for training only."""
        raise NotImplementedError("exported graphs write captions token by token; use decode_next")

    next_token_logits = decode_text

    @property
    def size_divisor(self) -> int:
        """See `FindsBoxes`."""
        return self._finder().size_divisor

    def locations(
        self, images: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """See `FindsBoxes`."""
        return self._finder().locations(images, image_sizes)

    def predict(self, features: BackboneOutput) -> DetectorOutput:
        """See `FindsBoxes`."""
        assert features.sizes is not None
        assert features.text_mask is not None
        anchors, _ = self.locations(torch.empty(0, 3, *features.sizes[0]))
        lengths = [len(level) for level in anchors]
        tokens, deltas, centerness = (list(each.split(lengths, 1)) for each in features.stages)
        return DetectorOutput(tokens, deltas, centerness, anchors, features.text_mask)

    def forward(
        self,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        image_sizes: Tensor | None = None,
    ) -> DetectorOutput:
        """See `FindsBoxes`."""
        text = self.backbone.text_prefix(token_ids, text_mask)
        return self.predict(
            self.backbone.fuse(self.image_prefix(images, image_sizes), text, text_mask)
        )

    def _head(self, name: str, pooled: Tensor) -> Tensor:
        return self._graphs(f"head_{name}", {"pooled": pooled})[f"{name}_logits"]

    def _caption(self, name: str) -> int:
        return int((self._graphs.about.caption or {})[name])

    def _finder(self) -> FindsBoxes:
        return need_ability(self._empty[0], FindsBoxes, "exported graphs", "grounding")


@dataclass
class GraphDecoding:
    """State of `GraphNetwork.decode_next`; shapes are those of `StepsCaptions.decode_step`."""

    image_keys_values: Tensor
    past: Tensor
    own_tokens: Tensor
    #: Tokens per text.
    length: int = 0

    def select(self, sources: Tensor) -> None:
        """Select the texts to continue for each image, by (B, m) int64 indices."""
        index = sources[..., None].expand(-1, -1, self.own_tokens.shape[2])
        self.own_tokens = self.own_tokens.gather(1, index)

    def append(self, newest: Tensor) -> None:
        """Append keys and values of a token of each text."""
        batch, texts = self.own_tokens.shape[:2]
        own = torch.eye(texts, dtype=torch.bool).expand(batch, -1, -1)
        self.own_tokens = torch.cat((self.own_tokens, own), 2)
        self.past = torch.cat((self.past, newest), 4)
        self.length += 1


class _Backbone(nn.Module):
    """Graphs that encode and fuse; see `EncodesAlone` and `FusesSizes`."""

    def __init__(self, graphs: _Runner) -> None:
        super().__init__()
        self._graphs = graphs
        self.text = nn.Module()
        self.text.marker = nn.Parameter(torch.empty(0), requires_grad=False)

    def image_prefix(self, images: Tensor, is_right: Tensor | None = None) -> ImagePrefix:
        given = {"images": images}
        if "is_right" in self._graphs.inputs("image_prefix"):
            given["is_right"] = torch.zeros(len(images)).bool() if is_right is None else is_right
        tokens, *stages = self._graphs("image_prefix", given).values()
        return ImagePrefix(tokens, tuple(stages))

    def text_prefix(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        given = {"token_ids": token_ids, "text_mask": text_mask}
        return self._graphs("text_prefix", given)["text"]

    def encode_pair(
        self, images: Tensor, token_ids: Tensor, text_mask: Tensor, *, wanted: Wanted = "all"
    ) -> BackboneOutput:
        text = self.text_prefix(token_ids, text_mask)
        return self.fuse(self.image_prefix(images), text, text_mask, wanted=wanted)

    def fuse(
        self,
        image_prefix: ImagePrefix,
        text_prefix: Tensor,
        text_mask: Tensor,
        *,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        name = "pair_mlm" if wanted == "text" else "pair"
        given = {"tokens": image_prefix.tokens, "text": text_prefix, "text_mask": text_mask}
        given |= {f"stage_{n}": stage for n, stage in enumerate(image_prefix.stages, 1)}
        own = self._graphs.inputs(name)
        found = self._graphs(name, {each: given[each] for each in own})
        if name == "pair" and "pooled" not in found:
            height, width = (
                size * divisor
                for size, divisor in zip(
                    image_prefix.tokens.shape[1:3], self._graphs.strides(), strict=True
                )
            )
            sizes = ((height, width),) * len(text_mask)
            return BackboneOutput(tuple(found.values()), None, text_mask, sizes)
        (output,) = found.values()
        return BackboneOutput((), output, text_mask)

    def encode_image(self, images: Tensor) -> BackboneOutput:
        return self.complete_image(self.image_prefix(images))

    def complete_image(self, prefix: ImagePrefix) -> BackboneOutput:
        vectors = self._graphs("embed_images", {"tokens": prefix.tokens})["image_vectors"]
        return BackboneOutput((vectors,))

    def complete_text(self, prefix: Tensor, text_mask: Tensor, *, wanted: Wanted = "all") -> Tensor:
        given = {"text": prefix, "text_mask": text_mask}
        return self._graphs("embed_texts", given)["text_vectors"]


class _Runner:
    """Graphs on tensors."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self.about = graphs.metadata

    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = {each: np.asarray(tensor.cpu()) for each, tensor in inputs.items()}
        found = self._graphs.run(name, arrays)
        return {each: torch.from_numpy(array) for each, array in found.items()}

    def inputs(self, name: str) -> list[str]:
        """Names of the inputs of a graph; `Graphs.run` refuses one that is not there."""
        graph = self.about.graphs.get(name)
        return [each.name for each in graph.inputs] if graph else []

    def shape(self, name: str, tensor: str) -> tuple[int | str, ...]:
        """Return the shape of an input or an output."""
        graph = self.about.graphs[name]
        return next(each.shape for each in (*graph.inputs, *graph.outputs) if each.name == tensor)

    def channels(self, name: str, tensor: str) -> int:
        """Return the last size of an input or an output."""
        return int(self.shape(name, tensor)[-1])

    def strides(self) -> list[int]:
        """Return the pixels of an image for each place of `tokens`, vertically, horizontally."""
        return [terms(str(size))[1] for size in self.shape("image_prefix", "tokens")[1:3]]


def _with_heads(config: ModelConfig, heads: tuple[str, ...]) -> ModelConfig:
    """Return a config that names the exported heads only."""
    if tuple(config.heads) == heads:
        return config
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if hasattr(section, "heads"):
            chosen = dataclasses.replace(section, heads=heads)
            return dataclasses.replace(config, **{field.name: chosen})
    return config
