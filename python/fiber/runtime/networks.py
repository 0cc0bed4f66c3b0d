"""Exported graphs in place of a network: what `fiber.models.abilities` lists, on arrays of numpy.

Code that runs networks, such as `fiber.inference`, runs these as well. They have the abilities of
their heads, but for training: nothing needs torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from types import EllipsisType
from typing import Any

import numpy as np

from fiber.messages import shown, shown_names
from fiber.models.features import DetectorOutput, ImagePrefix, MaskOutput
from fiber.models.model_config import ModelConfig
from fiber.ops.anchors import level_anchor_array, level_sizes
from fiber.ops.boxes import DELTA_WEIGHTS, MAX_LOG_SCALE
from fiber.runtime.graphs import Graphs
from fiber.runtime.metadata import FILE, CaptionSettings, terms

Arrays = dict[str, np.ndarray]
#: Names of the outputs of each graph that a kind of network runs.
Needed = dict[str, tuple[str | EllipsisType, ...]]
#: Graphs of a detector. What follows the tokens are stages of the image encoder.
_DETECTOR: Needed = {
    "image_prefix": ("tokens", ...),
    "text_prefix": ("text",),
    "pair": ("token_logits", "box_deltas", "centerness_logits"),
}
#: Tensors of fixed sizes: their number of dimensions, and those that are integers.
_FIXED = {
    "pooled": (2, (1,)),
    "image_vectors": (2, (1,)),
    "past": (6, (1, 2, 3, 5)),
    "rank_logits": (1, ()),
    "text_tokens": (3, (2,)),
    "text_vectors": (2, (1,)),
    **{f"{head}_logits": (2, (1,)) for head in ("itm", "vqa", "snli", "nlvr2")},
}


def _image_text(heads: Collection[str]) -> Needed:
    """List the graphs of heads on images and texts."""
    needed: Needed = {"image_prefix": ("tokens",)}
    if set(heads) - {"caption"}:
        needed["text_prefix"] = ("text",)
    scoring = [head for head in heads if head not in ("itc", "caption", "mlm")]
    if scoring:
        needed["pair"] = ("pooled",)
        needed |= {f"head_{head}": (f"{head}_logits",) for head in scoring}
    if "itc" in heads:
        needed |= {"embed_images": ("image_vectors",), "embed_texts": ("text_vectors",)}
    if "caption" in heads:
        needed["caption_image"] = ("image_keys_values",)
        needed["caption_step"] = ("caption_logits", "newest")
    return needed


def need_graphs(graphs: Graphs, needed: Needed) -> None:
    """Check that metadata.json lists some graphs with their outputs.

    Args:
        graphs: exported graphs.
        needed: names of graphs and of their outputs, in order; `...` at the end are any more.

    Raises:
        ValueError: if it does not, or the sizes of a tensor that must be fixed are not.
    """
    path = graphs.folder / FILE
    for name, outputs in needed.items():
        graph = graphs.metadata.graphs.get(name)
        if graph is None:
            raise ValueError(
                f"{path}: graphs.{name}: missing; expected the graphs {shown_names(needed)}"
            )
        first = outputs[:-1] if outputs[-1] is ... else outputs
        found = tuple(each.name for each in graph.outputs)
        if found[: len(first)] != first or (first == outputs and len(found) != len(first)):
            raise ValueError(
                f"{path}: graphs.{name}.outputs: expected {shown_names(first)}, got"
                f" {shown_names(found)}"
            )
        for each in (*graph.inputs, *graph.outputs):
            rank, fixed = _FIXED.get(each.name, (len(each.shape), ()))
            is_fixed = len(each.shape) == rank and all(type(each.shape[n]) is int for n in fixed)
            if not is_fixed:
                raise ValueError(
                    f"{path}: graphs.{name}: the shape of {each.name} must have {rank} sizes, with"
                    f" integers in the places {', '.join(map(str, fixed))}, got {shown(each.shape)}"
                )


class ArrayNetwork:
    """What graphs of detectors and of others have in common.

    Args:
        graphs: exported graphs.
        config: config of the model, whose heads are those of the graphs.
    """

    #: There is no text encoder whose weights may change.
    text = None

    def __init__(self, graphs: Graphs, config: ModelConfig) -> None:
        self.graphs, self.config = graphs, config

    @property
    def backbone(self) -> Any:
        """These graphs themselves."""
        return self

    def text_prefix(self, token_ids: np.ndarray, text_mask: np.ndarray) -> np.ndarray:
        """Compute what does not depend on the image: (B, L) -> (B, L, D)."""
        return self._run("text_prefix", {"token_ids": token_ids, "text_mask": text_mask})["text"]

    def fuse(
        self, prefix: ImagePrefix, text: np.ndarray, text_mask: np.ndarray, **_: object
    ) -> Arrays:
        """Return the inputs of the graph that fuses images and texts, for the heads."""
        images: Any = {"tokens": prefix.tokens}
        images |= {f"stage_{n}": stage for n, stage in enumerate(prefix.stages, start=1)}
        return {**images, "text": text, "text_mask": text_mask}

    def _run(self, name: str, values: Mapping[str, Any]) -> Arrays:
        return self.graphs.run(name, values)

    def _prefix(self, values: Mapping[str, Any]) -> ImagePrefix:
        tokens, *stages = self._run("image_prefix", values).values()
        given: Any = (tokens, tuple(stages))
        return ImagePrefix(*given)

    def _size(self, graph: str, output: str, axis: int) -> int:
        """Return a fixed size of an output."""
        found = next(e for e in self.graphs.metadata.graphs[graph].outputs if e.name == output)
        # An integer, which `need_graphs` has checked.
        return int(found.shape[axis])


class GraphDetector(ArrayNetwork):
    """Graphs that find boxes: the ability `FindsBoxes`.

    Raises:
        ValueError: if the graphs code boxes in another way than this version.
    """

    def __init__(self, graphs: Graphs, config: ModelConfig) -> None:
        super().__init__(graphs, config)
        path, about = graphs.folder / FILE, graphs.metadata.detector
        if about is None:
            raise ValueError(f"{path}: detector: expected an object, got None")
        self._strides, self._scale = about.strides, about.anchor_scale
        #: Number that divides the height and width of padded images.
        self.size_divisor = about.size_divisor
        coding = (about.delta_weights, about.max_log_scale)
        if coding != (DELTA_WEIGHTS, MAX_LOG_SCALE):
            raise ValueError(
                f"{path}: detector: boxes are coded with the delta_weights and the max_log_scale"
                f" {shown(coding)}; expected {(DELTA_WEIGHTS, MAX_LOG_SCALE)}, as this version does"
            )
        self._mask_stride = about.mask_stride if "grounding_mask" in config.heads else None
        needed = _DETECTOR
        if "grounding_mask" in config.heads:
            if self._mask_stride is None:
                raise ValueError(f"{path}: detector.mask_stride: expected an integer, got None")
            needed = {**_DETECTOR, "pair": (*_DETECTOR["pair"], "mask_embeddings", "mask_features")}
        need_graphs(graphs, needed)
        tokens = graphs.metadata.graphs["image_prefix"].outputs[0]
        rows = tokens.shape[1] if len(tokens.shape) == 4 else None
        if not isinstance(rows, str) or terms(rows)[0] != "height":
            raise ValueError(
                f"{path}: graphs.image_prefix.outputs.tokens: expected a shape like batch,"
                f" height/16, width/16, 64, got {shown(tokens.shape)}"
            )
        #: Pixels of an image for each row and column of its tokens.
        self._pixels = terms(rows)[1]
        self._anchors = lru_cache(maxsize=16)(self._all_anchors)

    def image_prefix(self, images: np.ndarray, image_sizes: object = None) -> ImagePrefix:
        """Run what precedes fusion on images of one size, whose padding is read as well."""
        return self._prefix({"images": images})

    #: Graphs with masks read the same of images.
    mask_prefix = image_prefix

    def predict_masks(self, fused: Arrays) -> DetectorOutput:
        """Predict from the output of `fuse`, with masks."""
        return self.predict(fused)

    def predict(self, fused: Arrays) -> DetectorOutput:
        """Predict from the output of `fuse`; graphs with masks predict these, too."""
        found = self._run("pair", fused)
        _, rows, columns, _ = fused["tokens"].shape
        anchors = self._anchors(rows * self._pixels, columns * self._pixels)
        ends = np.cumsum([len(level) for level in anchors])[:-1]
        parts = ("token_logits", "box_deltas", "centerness_logits")
        levels: list[Any] = [np.split(found[name], ends, 1) for name in parts]
        own: Any = (*levels, list(anchors), fused["text_mask"])
        if self._mask_stride is None:
            return DetectorOutput(*own)
        embeddings: Any = np.split(found["mask_embeddings"], ends, 1)
        features: Any = found["mask_features"]
        return DetectorOutput(*own, masks=MaskOutput(embeddings, features, self._mask_stride))

    def _all_anchors(self, height: int, width: int) -> list[np.ndarray]:
        sizes = level_sizes(height, width, self._strides)
        return [
            level_anchor_array(size, stride, self._scale)
            for size, stride in zip(sizes, self._strides, strict=True)
        ]


class GraphImageText(ArrayNetwork):
    """Graphs on images and texts: the abilities of their heads but `grounding`."""

    def __init__(self, graphs: Graphs, config: ModelConfig) -> None:
        super().__init__(graphs, config)
        path, about = graphs.folder / FILE, graphs.metadata
        need_graphs(graphs, _image_text(about.heads))
        if "caption" in about.heads and about.caption is None:
            raise ValueError(f"{path}: caption: expected an object, got None")
        for head, name in (("vqa", "answers"), ("snli", "entailment")):
            strings = getattr(about, name)
            if head not in about.heads or not strings:
                continue
            found = self._size(f"head_{head}", f"{head}_logits", -1)
            if len(strings) != found:
                raise ValueError(
                    f"{path}: {name}: got {len(strings)} strings, but the graph head_{head}"
                    f" returns {found} logits"
                )

    @property
    def pooled_width(self) -> int:
        """Number of channels of a pooled pair."""
        return self._size("pair", "pooled", -1)

    @property
    def embedding_width(self) -> int:
        """Number of channels of an embedding."""
        return self._size("embed_images", "image_vectors", -1)

    @property
    def scores_are_log_odds(self) -> bool:
        """True if the sigmoid of `ranking_scores` is the probability of a match."""
        ranking = self.graphs.metadata.ranking
        return True if ranking is None else ranking.scores_are_log_odds

    def image_prefix(self, images: np.ndarray, is_right: np.ndarray | None = None) -> ImagePrefix:
        """Compute what does not depend on the text; `is_right` marks right images of NLVR2."""
        inputs = {each.name for each in self.graphs.metadata.graphs["image_prefix"].inputs}
        if "is_right" not in inputs:
            return self._prefix({"images": images})
        marks = np.zeros(len(images), bool) if is_right is None else is_right
        return self._prefix({"images": images, "is_right": marks})

    def pooled(self, fused: Arrays) -> np.ndarray:
        """Run the fused layers on the output of `fuse`: (B, P)."""
        return self._run("pair", fused)["pooled"]

    def scoring_head(self, head: str) -> None:
        """Return no module: graphs compute in float32."""

    def itm_logits(self, pooled: np.ndarray) -> np.ndarray:
        """Compute ITM logits: (B, P) -> (B, 2); column 1 = match."""
        return self._head("itm", pooled=pooled)

    def vqa_logits(self, pooled: np.ndarray) -> np.ndarray:
        """Compute logits of answers: (B, P) -> (B, answers)."""
        return self._head("vqa", pooled=pooled)

    def snli_logits(self, pooled: np.ndarray) -> np.ndarray:
        """Compute logits of entailment: (B, P) -> (B, 3)."""
        return self._head("snli", pooled=pooled)

    def nlvr2_logits(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Compute NLVR2 logits from two pooled pairs: (B, P) each -> (B, 2); column 1 = true."""
        return self._head("nlvr2", pooled_left=left, pooled_right=right)

    def ranking_scores(self, pooled: np.ndarray) -> np.ndarray:
        """Score pairs for retrieval: (B, P) -> (B,), higher = better."""
        if "rank" in self.config.heads:
            return self._head("rank", pooled=pooled)
        logits = self.itm_logits(pooled)
        return logits[:, 1] - logits[:, 0] if self.scores_are_log_odds else logits[:, 1]

    def _head(self, head: str, **pooled: np.ndarray) -> np.ndarray:
        name, output = f"head_{head}", f"{head}_logits"
        if not len(next(iter(pooled.values()))):
            # Graphs take one pair or more.
            shape = self.graphs.metadata.graphs[name].outputs[0].shape[1:]
            return np.zeros((0, *map(int, shape)), np.float32)
        return self._run(name, pooled)[output]

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Embed images: (B, E) unit vectors."""
        return self.image_vectors(self.image_prefix(images))

    def embed_texts(self, token_ids: np.ndarray, text_mask: np.ndarray) -> np.ndarray:
        """Embed texts: (B, E) unit vectors."""
        text = self.text_prefix(token_ids, text_mask)
        return self.text_vectors(self.complete_text(text, text_mask))

    def complete_image(self, prefix: ImagePrefix) -> ImagePrefix:
        """Return the output of `image_prefix`: `image_vectors` runs the rest."""
        return prefix

    def complete_text(self, text: np.ndarray, text_mask: np.ndarray, **_: object) -> Arrays:
        """Return the inputs of `text_vectors`, which runs the rest."""
        return {"text": text, "text_mask": text_mask}

    def image_vectors(self, prefix: ImagePrefix) -> np.ndarray:
        """Embed images from the output of `complete_image`."""
        return self._run("embed_images", {"tokens": prefix.tokens})["image_vectors"]

    def text_vectors(self, text: Arrays) -> np.ndarray:
        """Embed texts from the output of `complete_text`."""
        return self._run("embed_texts", text)["text_vectors"]

    @property
    def mask_id(self) -> int:
        """Id of <mask>, which is never written."""
        return self._caption.mask_id

    @property
    def longest_caption(self) -> int:
        """Maximum number of tokens, including <s> and </s>."""
        return self._caption.longest

    @property
    def _caption(self) -> CaptionSettings:
        found = self.graphs.metadata.caption
        assert found is not None
        return found

    def image_tokens(self, images: np.ndarray) -> np.ndarray:
        """Encode images for the decoder: keys and values of its layers."""
        prefix = self.image_prefix(images)
        return self._run("caption_image", {"tokens": prefix.tokens})["image_keys_values"]

    def start_decoding(self, image_tokens: np.ndarray) -> ArrayDecoding:
        """Start incremental decoding from the output of `image_tokens`."""
        inputs = {e.name: e.shape for e in self.graphs.metadata.graphs["caption_step"].inputs}
        return ArrayDecoding(image_tokens, inputs["past"])

    def decode_next(self, decoding: ArrayDecoding, token_ids: np.ndarray) -> np.ndarray:
        """Process the next token of each text: (B, n) -> (B, n, V) logits of the one after it."""
        given = {"caption_ids": token_ids, **decoding.inputs()}
        found = self._run("caption_step", given)
        decoding.append(found["newest"])
        return found["caption_logits"]

    def caption_logits(self, logits: np.ndarray) -> np.ndarray:
        """Return the output of `decode_next`, which the graph has turned into logits."""
        return logits


class ArrayDecoding:
    """State of writing several texts for each image, token by token.

    Args:
        image_keys_values: keys and values of B images.
        past: shape of keys and values of earlier tokens, in the graph of a step.
    """

    def __init__(self, image_keys_values: np.ndarray, past: tuple[int | str, ...]) -> None:
        count = len(image_keys_values)
        _, layers, both, heads, _, depth = past
        sizes = [int(size) for size in (layers, both, heads, 1, depth)]
        self._image_keys_values = image_keys_values
        # A first token that belongs to no text: graphs have no empty dimensions.
        self._past = np.zeros((count, *sizes), np.float32)
        self._own = np.zeros((count, 1, 1), bool)
        self._before = 0

    def inputs(self) -> Arrays:
        """Return inputs of the graph of a step."""
        return {
            "tokens_before": np.array(self._before),
            "own_tokens": self._own,
            "past": self._past,
            "image_keys_values": self._image_keys_values,
        }

    def append(self, newest: np.ndarray) -> None:
        """Append keys and values of the newest token of each text: (B, layers, 2, h, n, d)."""
        batch, texts = len(newest), newest.shape[4]
        self._past = np.concatenate((self._past, newest), 4)
        own = np.broadcast_to(np.eye(texts, dtype=bool), (batch, texts, texts))
        self._own = np.concatenate((self._own, own), 2)
        self._before += 1

    def select(self, sources: np.ndarray) -> None:
        """Select the texts to continue for each image, by (B, m) int64 indices."""
        self._own = np.take_along_axis(self._own, np.asarray(sources)[..., None], 1)
