"""What networks can do, as protocols.

A task or a method asks for a head and for an ability, once (`need_ability`), and then uses what the
protocol lists, never the class of a family. A family implements the abilities of its heads;
`ImageTextModel` has most of `ScoresPairs`.

Shapes:
    images: (B, 3, H, W) normalized pixels.
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
    prefix: features that do not depend on the other side, images' as `ImagePrefix`, those of texts
        (B, L, D).
    pooled: (B, P) features of an (image, text) pair; P is `pooled_width`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from fiber.models.caption_abilities import (
    StepsCaptions,
    WritesCaptions,
    WritesRegionCaptions,
)
from fiber.models.features import BackboneOutput, DetectorOutput, ImagePrefix, ImageSizes, Wanted
from fiber.models.heads import (
    EMBEDDING_HEADS,
    HEAD_RECIPES,
    HasConfig,
    MissingHeadError,
    need_head,
)
from fiber.models.mask_abilities import SegmentsMasks

if TYPE_CHECKING:
    from torch import Tensor, nn


class FusesPairs(Protocol):
    """Backbone that encodes both sides of a pair up to where they first meet, then fuses them."""

    def image_prefix(self, images: Tensor) -> ImagePrefix:
        """Compute what does not depend on the text."""
        ...

    def text_prefix(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute what does not depend on the image: (B, L) -> (B, L, D)."""
        ...

    def fuse(
        self,
        image_prefix: ImagePrefix,
        text_prefix: Tensor,
        text_mask: Tensor,
        *,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Run the fused layers on prefixes, as far as `wanted` needs them."""
        ...

    def encode_pair(
        self, images: Tensor, token_ids: Tensor, text_mask: Tensor, *, wanted: Wanted = "all"
    ) -> BackboneOutput:
        """Encode pairs with fusion."""
        ...


class EncodesAlone(FusesPairs, Protocol):
    """Backbone that also encodes each side without the other."""

    def encode_image(self, images: Tensor) -> BackboneOutput:
        """Encode images without fusion."""
        ...

    def complete_image(self, prefix: ImagePrefix) -> BackboneOutput:
        """Run the rest of the image encoder on the output of `image_prefix`."""
        ...

    def complete_text(self, prefix: Tensor, text_mask: Tensor, *, wanted: Wanted = "all") -> Tensor:
        """Run the rest of the text encoder on the output of `text_prefix`: (B, L, D).

        (B, 1, D) features of the first token if `wanted` is "pooled".
        """
        ...


class FusesSizes(FusesPairs, Protocol):
    """Backbone for images of several sizes in a batch."""

    def image_prefix(self, images: Tensor, sizes: ImageSizes | None = None) -> ImagePrefix:
        """Compute what does not depend on the text; `sizes` are the valid regions of images."""
        ...

    @property
    def text(self) -> nn.Module | None:
        """The text encoder, whose weights tell whether kept features are current, or None."""
        ...


class ScoresPairs(HasConfig, Protocol):
    """Scores (image, text) pairs: ITM, MLM, VQA and NLVR2.

    Each method needs the head of its name in `config.heads`.
    """

    @property
    def backbone(self) -> FusesPairs:
        """Encoders and fusion."""
        ...

    @property
    def pooled_width(self) -> int:
        """Number of channels of a pooled pair."""
        ...

    @property
    def scores_are_log_odds(self) -> bool:
        """True if the sigmoid of `ranking_scores` is the probability of a match."""
        ...

    def image_prefix(self, images: Tensor, is_right: Tensor | None = None) -> ImagePrefix:
        """Run the backbone's `image_prefix`; `is_right` is True for right images of NLVR2."""
        ...

    def pooled(self, output: BackboneOutput) -> Tensor:
        """Pool the output of `encode_pair` or `fuse`, with `wanted` "pooled" or "all"."""
        ...

    def scoring_head(self, head: str) -> nn.Module:
        """Return the last layers of a head, whose dtype is that of its scores."""
        ...

    def itm_logits(self, pooled: Tensor) -> Tensor:
        """Compute ITM logits: (B, P) -> (B, 2); column 1 = match."""
        ...

    def ranking_scores(self, pooled: Tensor) -> Tensor:
        """Score pairs for retrieval: (B, P) -> (B,), higher = better."""
        ...

    def mlm_logits(self, text: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute vocabulary logits of all or of n chosen tokens of the fused text features.

        (B, L, D) -> (B, L, vocabulary) or (n, vocabulary); `positions` is a (B, L) bool mask or
        (n,) int64 indices into the B * L tokens.
        """
        ...

    def vqa_logits(self, pooled: Tensor) -> Tensor:
        """Compute logits of answers: (B, P) -> (B, answers)."""
        ...

    def nlvr2_logits(self, pooled_left: Tensor, pooled_right: Tensor) -> Tensor:
        """Compute NLVR2 logits from two pooled pairs: (B, P) each -> (B, 2); column 1 = true."""
        ...

    def statement_logits(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute NLVR2 logits: (B, 2, 3, H, W) images, left first -> (B, 2); column 1 = true."""
        ...


class RanksCaptions(ScoresPairs, Protocol):
    """Ranks captions of an image by a ranking head of its own."""

    def rank_scores(self, pooled: Tensor) -> Tensor:
        """Compute scores of captions: (B, P) -> (B,); the softmax is over those of an image."""
        ...


class ClassifiesEntailment(ScoresPairs, Protocol):
    """Decides whether images entail hypotheses (SNLI-VE)."""

    def snli_logits(self, pooled: Tensor) -> Tensor:
        """Compute logits: (B, P) -> (B, 3), in the order of `ENTAILMENT`."""
        ...


class Embeds(HasConfig, Protocol):
    """Embeds images and texts without fusion, in one space."""

    @property
    def embedding_width(self) -> int:
        """Number of channels E of an embedding."""
        ...

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images: (B, E) unit vectors."""
        ...

    def embed_texts(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Embed texts: (B, E) unit vectors."""
        ...


class EmbedsAlone(Embeds, Protocol):
    """Embeds images and texts by its encoders, as ITC trains them."""

    @property
    def backbone(self) -> EncodesAlone:
        """Encoders and fusion."""
        ...

    @property
    def temperature(self) -> Tensor:
        """Learned scalar by which similarities are divided."""
        ...

    def image_vectors(self, output: BackboneOutput) -> Tensor:
        """Embed images from the output of `encode_image` or `complete_image`."""
        ...

    def text_vectors(self, text: Tensor) -> Tensor:
        """Embed texts from the output of `complete_text`."""
        ...


class FindsBoxes(HasConfig, Protocol):
    """Finds boxes for the tokens of a text (grounding and detection)."""

    @property
    def backbone(self) -> FusesSizes:
        """Encoders and fusion."""
        ...

    @property
    def size_divisor(self) -> int:
        """Number that divides the height and width of padded images."""
        ...

    def __call__(
        self,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        image_sizes: Tensor | None = None,
        /,
    ) -> DetectorOutput:
        """Predict from images with (B, 2) int64 sizes without padding, and texts."""
        ...

    def image_prefix(self, images: Tensor, image_sizes: Tensor | None = None) -> ImagePrefix:
        """Run what precedes fusion; `image_sizes` are (B, 2) int64 without padding."""
        ...

    def predict(self, features: BackboneOutput) -> DetectorOutput:
        """Predict from the output of the backbone's `fuse` or `encode_pair`."""
        ...

    def locations(
        self, images: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return `anchors` and `inside` of the output, without running the network."""
        ...


class FindsMasks(FindsBoxes, Protocol):
    """Finds boxes and their masks for the tokens of a text."""

    def mask_prefix(self, images: Tensor, image_sizes: Tensor | None = None) -> ImagePrefix:
        """Run what precedes fusion, as `image_prefix`, and keep what masks need."""
        ...

    def predict_masks(self, features: BackboneOutput) -> DetectorOutput:
        """Predict as `predict` does, with `DetectorOutput.masks`."""
        ...


class PredictsTensors(FindsBoxes, Protocol):
    """Finds boxes by a function of tensors, which can be exported."""

    def predict_all(self, features: BackboneOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Predict token logits (B, A, L), box deltas (B, A, 4) and centerness logits (B, A).

        `features` are of images of one size. Locations are in the order of `locations`.
        """
        ...


class PredictsMaskTensors(FindsMasks, Protocol):
    """Finds boxes and their masks by a function of tensors, which can be exported."""

    def predict_all_masks(
        self, features: BackboneOutput
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Predict as `PredictsTensors.predict_all` from the stages of `mask_prefix`.

        The last two are mask embeddings (B, A, M + `PLACE_TERMS`) and mask features
        (B, M, H / s, W / s), as in `MaskOutput`.
        """
        ...

    @property
    def mask_stride(self) -> int:
        """Stride of mask features in pixels."""
        ...


@runtime_checkable
class StartsAtAnswerPriors(Protocol):
    """Initializes its VQA head from the frequencies of answers."""

    @property
    def answer_bias(self) -> str:
        """Name of the tensor that `init_answer_priors` sets."""
        ...

    def init_answer_priors(self, priors: Tensor) -> None:
        """Start each answer at its mean target: (answers,) in [0, 1]."""
        ...


@runtime_checkable
class CentersEmbeddings(Protocol):
    """Centers its embeddings on a batch before training."""

    @property
    def embedding_weight(self) -> str:
        """Name of the first tensor that `init_embeddings` sets."""
        ...

    def init_embeddings(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> None:
        """Center the embeddings on a batch."""
        ...


#: Heads of which an ability needs one.
_HEADS: dict[Any, tuple[str, ...]] = {
    ScoresPairs: ("itm", "mlm", "vqa", "nlvr2", "rank", "snli"),
    RanksCaptions: ("rank",),
    ClassifiesEntailment: ("snli",),
    Embeds: EMBEDDING_HEADS,
    EmbedsAlone: ("itc",),
    WritesCaptions: ("caption",),
    StepsCaptions: ("caption",),
    FindsBoxes: ("grounding",),
    FindsMasks: ("grounding_mask",),
    PredictsTensors: ("grounding",),
    SegmentsMasks: ("mask",),
    WritesRegionCaptions: ("caption",),
}

AbilityT = TypeVar("AbilityT")


class MissingAbilityError(MissingHeadError):
    """Raised if the model has the head that a task or method needs, but cannot use it so."""


def need_ability(
    network: Any, ability: type[AbilityT], asked: str, head: str | None = None
) -> AbilityT:
    """Return a network as one with an ability that a task or method (`asked`) needs.

    Args:
        network: network of any family.
        ability: protocol of this module or of another package.
        asked: task or method, for messages.
        head: head to use. Default: any of those that the ability needs; an ability of another
            package has none.

    Raises:
        MissingHeadError: if the model lacks the head; see `need_head`.
        MissingAbilityError: if it has the head, but not all methods of the ability. The message
            lists them, and recipes that train a model with them.
    """
    heads = _HEADS.get(ability, ()) if head is None else (head,)
    if heads:
        need_head(network.config, heads, asked)
    missing = _missing(network, ability)
    if not missing:
        return cast(AbilityT, network)
    own = " or ".join(repr(each) for each in heads if each in network.config.heads)
    has = f"has the head {own}, but lacks" if own else "lacks"
    message = (
        f"{asked} needs a model with the ability {ability.__name__}; {type(network).__name__} {has}"
        f" {', '.join(missing)}."
    )
    trained = dict.fromkeys(
        f"`fiber train {recipes[each]}`"
        for recipes in HEAD_RECIPES.values()
        for each in heads
        if each in recipes
    )
    if trained:
        message += f" To train a model that has them, run {' or '.join(trained)}."
    raise MissingAbilityError(message)


def has_ability(network: Any, ability: type) -> bool:
    """Return True if a network has all methods of an ability, whatever its heads."""
    return not _missing(network, ability)


def _missing(network: Any, ability: type) -> list[str]:
    """Return the names of a protocol's methods and properties that a network lacks."""
    # Properties of the class are not evaluated.
    return [
        name
        for name in _members(ability)
        if not hasattr(type(network), name) and not hasattr(network, name)
    ]


def _members(ability: type) -> list[str]:
    """Return the names of a protocol's methods and properties."""
    protocols = [base for base in ability.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in protocols for name in vars(base) if not name.startswith("_")}
    return sorted(names)
