"""The graphs into which a network is cut, and sample inputs of all of them.

Each side is encoded alone as far as it can be, so that an image is encoded once for many texts and
a text once for many images. A tensor has one name in all graphs: what one graph returns, others
read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fiber.messages import shown, shown_names
from fiber.models.abilities import (
    EmbedsAlone,
    PredictsMaskTensors,
    PredictsTensors,
    ScoresPairs,
    need_ability,
)
from fiber.models.caption_abilities import StepsCaptions
from fiber.models.encoders.swin import SwinBlock
from fiber.models.features import BackboneOutput, ImagePrefix
from fiber.models.heads import HasHeads
from fiber.models.mask_abilities import SegmentsByTensors
from fiber.models.registry import Network

#: Heads on pooled pairs of one image and one text, and the method that computes each.
POOLED_HEADS = {
    "itm": "itm_logits",
    "vqa": "vqa_logits",
    "snli": "snli_logits",
    "rank": "rank_scores",
}
#: Heads of models that find masks; the others of such a model cannot be exported.
MASK_HEADS = ("mask", "retrieval")
#: Tensors that the decoder of such a model reads of images.
PIXEL_MAPS = ("map_1", "map_2", "map_3", "mask_features")
#: Relative error of rounding of these tensors, the largest difference of outputs that it may make,
#: as a share of the largest value, and maximum number of draws of inputs with which it does not.
_ROUNDING, _STABLE, _MAX_DRAWS = 3e-6, 5e-5, 30
#: Smallest number of tokens of a text: its first and its last token.
MIN_TOKENS = 2
#: Values of dimensions, by name.
Sizes = Mapping[str, int]


class Subgraph(nn.Module):
    """A graph: a function of tensors of a network.

    Args:
        name: name of the graph.
        network: network whose weights the function uses.
        function: maps the inputs to a tensor or a tuple of tensors.
        inputs: names of the inputs.
        outputs: names of the outputs.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        function: Callable[..., Any],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.function = function
        self.inputs, self.outputs = inputs, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs."""
        found = self.function(*inputs)
        return found if isinstance(found, tuple) else (found,)


@dataclass(frozen=True)
class ExportPlan:
    """Graphs of a network, each after those whose outputs it reads."""

    parts: list[Subgraph]
    #: Names of the dimensions of height and width, unless images have one size.
    is_resizable: bool
    #: Number that divides the height and width of images.
    divisor: int
    #: Attention of the network depends on thresholds of what it computes, which rounding may cross.
    has_thresholds: bool = False


def plan_parts(network: Network, heads: tuple[str, ...]) -> ExportPlan:
    """List the graphs that some heads of a network need.

    Raises:
        ValueError: if the network lacks a head, or a head cannot be exported.
        MissingHeadError: if the network lacks an ability.
    """
    own, known = tuple(network.config.heads), exportable_heads(network.config)
    for head in heads:
        if head not in own:
            raise ValueError(f"heads: expected some of {', '.join(own)}, got {shown(head)}")
        if head not in known:
            raise ValueError(
                f"the head {shown(head)} of this model cannot be exported; expected some of"
                f" {shown_names(known)}"
            )
    if not heads:
        raise ValueError(f"heads: expected at least one of {', '.join(own)}, got none")
    if "grounding_mask" in heads and "grounding" not in heads:
        raise ValueError(
            "heads: 'grounding_mask' finds the masks of boxes; expected 'grounding', too"
        )
    if "grounding" in heads:
        return _detector(network, with_masks="grounding_mask" in heads)
    if set(heads) & set(MASK_HEADS):
        return _masks(need_ability(network, SegmentsByTensors, "export"), network, heads)
    return ExportPlan(_image_text(network, heads), is_resizable=False, divisor=1)


def exportable_heads(config: HasHeads) -> tuple[str, ...]:
    """List the heads of a model that can be exported."""
    known = {*POOLED_HEADS, "nlvr2", "mlm", "itc", "caption", "grounding", "grounding_mask"}
    if "mask" in config.heads or "retrieval" in config.heads:
        known = set(MASK_HEADS)
    return tuple(head for head in config.heads if head in known)


def _detector(network: Network, *, with_masks: bool) -> ExportPlan:
    finder = need_ability(network, PredictsTensors, "export", "grounding")
    backbone, outputs = finder.backbone, ("token_logits", "box_deltas", "centerness_logits")
    if with_masks:
        masks = need_ability(network, PredictsMaskTensors, "export", "grounding_mask")
        prefix_of, predict_all = masks.mask_prefix, masks.predict_all_masks
        outputs += ("mask_embeddings", "mask_features")
    else:
        prefix_of, predict_all = finder.image_prefix, finder.predict_all

    def encode_images(images: Tensor) -> tuple[Tensor, ...]:
        prefix = prefix_of(images)
        return (prefix.tokens, *prefix.stages)

    def predict(*inputs: Tensor) -> tuple[Tensor, ...]:
        tokens, *stages, text, text_mask = inputs
        return predict_all(backbone.fuse(ImagePrefix(tokens, tuple(stages)), text, text_mask))

    divisor = finder.size_divisor
    with torch.no_grad():
        image = torch.zeros(1, 3, divisor, divisor)
        stages = tuple(f"stage_{n}" for n in range(1, len(encode_images(image))))
    tokens = ("tokens", *stages)
    return ExportPlan(
        [
            Subgraph("image_prefix", network, encode_images, ("images",), tokens),
            _text_prefix(network),
            Subgraph(
                "pair",
                network,
                predict,
                (*tokens, "text", "text_mask"),
                outputs,
            ),
        ],
        is_resizable=True,
        divisor=divisor,
    )


def _masks(finder: SegmentsByTensors, network: Network, heads: tuple[str, ...]) -> ExportPlan:
    has_search = "retrieval" in heads

    def encode_images(images: Tensor) -> tuple[Tensor, ...]:
        return finder.pixel_maps(images)[: len(PIXEL_MAPS) + has_search]

    def find_classes(*inputs: Tensor) -> tuple[Tensor, ...]:
        return finder.class_mask_tensors(inputs[:-1], inputs[-1])

    def find_phrases(*inputs: Tensor) -> tuple[Tensor, ...]:
        return finder.phrase_mask_tensors(inputs[:-2], *inputs[-2:])

    def embed_images(*inputs: Tensor) -> Tensor:
        return finder.image_vector_tensors(inputs[:-1], inputs[-1])

    maps = (*PIXEL_MAPS, "image_means") if has_search else PIXEL_MAPS
    phrases, texts = ("phrase_tokens", "text_vectors"), ("token_ids", "text_mask")
    features = ("text_tokens", "text_vectors")
    parts = [
        Subgraph("pixel_maps", network, encode_images, ("images",), maps),
        Subgraph("texts", network, finder.text_features, texts, features),
    ]
    if "mask" in heads:
        own, outputs = (*PIXEL_MAPS, "class_vectors"), ("class_logits", "mask_logits")
        parts.append(Subgraph("class_masks", network, find_classes, own, outputs))
        own, outputs = (*PIXEL_MAPS, *phrases), ("phrase_scores", "phrase_mask_logits")
        parts.append(Subgraph("phrase_masks", network, find_phrases, own, outputs))
    if has_search:
        outputs = ("image_vectors",)
        parts.append(Subgraph("embed_images", network, embed_images, maps, outputs))
    return ExportPlan(parts, is_resizable=True, divisor=finder.size_divisor, has_thresholds=True)


def _text_prefix(network: Network) -> Subgraph:
    inputs = ("token_ids", "text_mask")
    return Subgraph("text_prefix", network, network.backbone.text_prefix, inputs, ("text",))


def _image_text(network: Network, heads: tuple[str, ...]) -> list[Subgraph]:
    parts = []
    # Right images of NLVR2 have a token type of their own in some families.
    if "nlvr2" in heads and getattr(network.config, "num_token_types", 0) > 2:
        marks = need_ability(network, ScoresPairs, "export", "nlvr2")

        def encode(images: Tensor, is_right: Tensor) -> Tensor:
            return marks.image_prefix(images, is_right).tokens

        parts.append(Subgraph("image_prefix", network, encode, ("images", "is_right"), ("tokens",)))
    else:

        def encode_all(images: Tensor) -> Tensor:
            return network.backbone.image_prefix(images).tokens

        parts.append(Subgraph("image_prefix", network, encode_all, ("images",), ("tokens",)))
    if set(heads) - {"caption"}:
        parts.append(_text_prefix(network))
    if scoring := [head for head in heads if head not in ("itc", "caption")]:
        parts += _pair_parts(need_ability(network, ScoresPairs, "export"), network, scoring)
    if "itc" in heads:
        parts += _embedding_parts(network)
    if "caption" in heads:
        parts += _caption_parts(network)
    return parts


def _pair_parts(scorer: ScoresPairs, network: Network, heads: list[str]) -> list[Subgraph]:
    backbone, inputs = network.backbone, ("tokens", "text", "text_mask")

    def pool(tokens: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        return scorer.pooled(backbone.fuse(ImagePrefix(tokens), text, text_mask, wanted="pooled"))

    def predict_tokens(tokens: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        fused = backbone.fuse(ImagePrefix(tokens), text, text_mask, wanted="text")
        assert fused.text is not None
        return scorer.mlm_logits(fused.text)

    parts = []
    if set(heads) != {"mlm"}:
        parts.append(Subgraph("pair", network, pool, inputs, ("pooled",)))
    for head in (each for each in POOLED_HEADS if each in heads):
        function, output = getattr(scorer, POOLED_HEADS[head]), f"{head}_logits"
        parts.append(Subgraph(f"head_{head}", network, function, ("pooled",), (output,)))
    if "nlvr2" in heads:
        both = ("pooled_left", "pooled_right")
        parts.append(Subgraph("head_nlvr2", network, scorer.nlvr2_logits, both, ("nlvr2_logits",)))
    if "mlm" in heads:
        parts.append(Subgraph("pair_mlm", network, predict_tokens, inputs, ("mlm_logits",)))
    return parts


def _embedding_parts(network: Network) -> list[Subgraph]:
    embeds = need_ability(network, EmbedsAlone, "export", "itc")

    def embed_images(tokens: Tensor) -> Tensor:
        return embeds.image_vectors(embeds.backbone.complete_image(ImagePrefix(tokens)))

    def embed_texts(text: Tensor, text_mask: Tensor) -> Tensor:
        whole = embeds.backbone.complete_text(text, text_mask, wanted="pooled")
        return embeds.text_vectors(whole)

    texts = ("text", "text_mask")
    return [
        Subgraph("embed_images", network, embed_images, ("tokens",), ("image_vectors",)),
        Subgraph("embed_texts", network, embed_texts, texts, ("text_vectors",)),
    ]


def _caption_parts(network: Network) -> list[Subgraph]:
    writer = need_ability(network, StepsCaptions, "export", "caption")

    def encode(tokens: Tensor) -> Tensor:
        output: BackboneOutput = network.backbone.complete_image(ImagePrefix(tokens))
        return writer.decoder_keys_values(output.stages[-1])

    inputs = ("caption_ids", "tokens_before", "own_tokens", "past", "image_keys_values")
    outputs = ("caption_logits", "newest")
    return [
        Subgraph("caption_image", network, encode, ("tokens",), ("image_keys_values",)),
        Subgraph("caption_step", network, writer.decode_step, inputs, outputs),
    ]


def dimension_names(plan: ExportPlan) -> tuple[str, ...]:
    """List the dimensions that vary."""
    names = {part.name for part in plan.parts}
    found = ("batch",)
    if not names.isdisjoint(("text_prefix", "texts")):
        found += ("length",)
    if plan.is_resizable:
        found += ("height", "width")
    if "texts" in names:
        found += ("texts",)
    if "class_masks" in names:
        found += ("classes", "phrase_length")
    return (*found, "texts", "earlier") if "caption_step" in names else found


def sample_sizes(network: Network, plan: ExportPlan) -> list[dict[str, int]]:
    """Choose values of all dimensions: those to trace first, then others to check.

    No dimension has the same value twice. In traced sizes, every map has several windows and no
    side is 1, since a size of 1 is taken for a fixed one. Others have maps below a window.
    """
    longest = network.config.max_tokens
    swin = (each.window_size for each in network.modules() if isinstance(each, SwinBlock))
    windows, side = max(swin, default=1), plan.divisor
    traced = {"batch": 2, "length": min(9, longest), "texts": 3, "earlier": 5}
    traced |= {"classes": 4, "phrase_length": 7}
    # The coarsest map of a pyramid has a quarter of the side of the last one of the encoder.
    traced |= {"height": side * max(windows + 1, 9), "width": side * max(windows + 5, 13)}
    if plan.has_thresholds:
        # Smaller maps have fewer thresholds.
        traced |= {"height": side * 4, "width": side * 6}
    small = {
        "batch": 1,
        "length": min(3, longest),
        "texts": 1,
        "earlier": 1,
        "classes": 2,
        "phrase_length": 1,
        "height": side,
        # A group norm of one channel needs two values.
        "width": side * 2 if plan.has_thresholds else side,
    }
    other = {"batch": 3, "length": longest, "texts": 2, "earlier": 8}
    other |= {"classes": 7, "phrase_length": 12}
    other |= {"height": side * 3, "width": side * 2}
    varying = dimension_names(plan)
    return [{name: each[name] for name in varying} for each in (traced, small, other)]


def sample_tensors(
    network: Network, plan: ExportPlan, sizes: Sizes, seed: int
) -> dict[str, Tensor]:
    """Draw the inputs of a network, and compute all tensors of its graphs by the network itself.

    With thresholds, inputs are drawn again while rounding would change the outputs.
    """
    tensors = _draw_tensors(network, plan, sizes, seed)
    for attempt in range(1, _MAX_DRAWS):
        if not plan.has_thresholds or _is_stable(plan, tensors):
            break
        tensors = _draw_tensors(network, plan, sizes, seed + 1000 * attempt)
    return tensors


def _is_stable(plan: ExportPlan, tensors: Mapping[str, Tensor]) -> bool:
    """Check that noise of the size of rounding errors on the pixel maps hardly changes outputs."""
    draw = torch.Generator().manual_seed(0)
    noisy = dict(tensors)
    for name in PIXEL_MAPS:
        noise = torch.randn(tensors[name].shape, generator=draw)
        noisy[name] = tensors[name] * (1 + _ROUNDING * noise)
    with torch.no_grad():
        for part in (each for each in plan.parts if set(PIXEL_MAPS) <= set(each.inputs)):
            outputs = part(*(noisy[name].clone() for name in part.inputs))
            for name, found in zip(part.outputs, outputs, strict=True):
                largest = max(1.0, float(tensors[name].abs().max()))
                if float((found - tensors[name]).abs().max()) > _STABLE * largest:
                    return False
    return True


def _draw_tensors(network: Network, plan: ExportPlan, sizes: Sizes, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    batch, config = sizes["batch"], network.config
    square = config.image_size
    height, width = sizes.get("height", square), sizes.get("width", square)
    tensors: dict[str, Tensor] = {
        "images": torch.randn(batch, 3, height, width, generator=draw),
        "is_right": torch.arange(batch) % 2 == 1,
    }
    names = {part.name for part in plan.parts}
    if "length" in sizes:
        length, count = sizes["length"], sizes["texts"] if "texts" in names else batch
        ids = torch.randint(3, config.vocab_size, (count, length), generator=draw)
        mask = torch.ones(count, length, dtype=torch.bool)
        # The last text is shorter than the others.
        mask[-1, max(MIN_TOKENS, length - 2) :] = False
        # Padding has the id 1 in RoBERTa; in BERT its id does not matter.
        tensors |= {"token_ids": ids.where(mask, 1), "text_mask": mask}
    if "class_masks" in names:
        width = config.width
        vectors = torch.randn(sizes["classes"], width, generator=draw)
        tensors["class_vectors"] = torch.nn.functional.normalize(vectors, dim=-1)
        shape = (batch, sizes["phrase_length"], width)
        tensors["phrase_tokens"] = torch.randn(shape, generator=draw)
    if "caption_step" in names:
        texts, earlier = sizes["texts"], sizes["earlier"]
        layers, heads, depth = need_ability(network, StepsCaptions, "export").past_sizes
        own = torch.arange(earlier) % texts == torch.arange(texts)[:, None]
        tensors |= {
            "caption_ids": torch.randint(3, config.vocab_size, (batch, texts), generator=draw),
            "tokens_before": torch.tensor(-(-earlier // texts)),
            "own_tokens": own.expand(batch, -1, -1).contiguous(),
            "past": torch.randn(batch, layers, 2, heads, earlier, depth, generator=draw),
        }
    with torch.no_grad():
        for part in plan.parts:
            outputs = part(*(tensors[name].clone() for name in part.inputs))
            tensors |= zip(part.outputs, outputs, strict=True)
            if part.name == "pair" and "pooled" in tensors:
                pooled = tensors["pooled"]
                tensors |= {"pooled_left": pooled, "pooled_right": pooled.flip(0)}
    return tensors
