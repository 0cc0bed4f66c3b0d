"""Losses of masks, classes and phrases of `eager_xdecoder.py`, with the published computation.

All predictions are matched with the masks of their image by SciPy, masks are numbers that are
padded to the largest count of the batch, and every mask has its own random points.

Letters: B images, Q queries, K classes, M masks of an image, P points.

Source: Mask2Former (Cheng et al. 2022), X-Decoder (Zou et al. 2023), structure of their code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benches.eager_xdecoder import NORM_EPS, EagerXDecoder, Prediction

#: Draws points: (number of masks, P) -> (number of masks, P, 2) in [0, 1).
Points = Callable[[int, int], Tensor]
#: Costs of a class, of cross entropy and of dice in matching.
COSTS = (2.0, 5.0, 5.0)
#: Weight of the background in the class loss.
BACKGROUND = 0.1

#: Queries and targets that are matched in each image.
Pairs = list[tuple[Tensor, Tensor]]


class Targets(NamedTuple):
    """Masks of a batch: of each image (M,) classes and (M, H, W) bool masks."""

    labels: Sequence[Tensor]
    masks: Sequence[Tensor]


class Phrases(NamedTuple):
    """Phrases of a batch, of each image in turn, with their masks."""

    #: (n, L) ids at all positions of the text encoder, and (n, L) bool, True = real token.
    ids: Tensor
    text_mask: Tensor
    #: (p, H, W) bool masks of the phrases of each image, and the weight of its alignment.
    masks: Sequence[Tensor]
    weights: Sequence[float]


class Options(NamedTuple):
    """Number of points of a mask, and of last layers with losses of phrases."""

    num_points: int
    phrase_layers: int


def random_points(count: int, num_points: int) -> Tensor:
    """Draw points."""
    return torch.rand(count, num_points, 2)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps: (n, H, W), (n, P, 2) -> (n, P)."""
    if not len(maps):
        return points[..., 0]
    found = F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)
    return found[:, 0, :, 0]


def unit(vectors: Tensor) -> Tensor:
    """Divide vectors by their norm."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPS)


@torch.no_grad()
def match(label_costs: Tensor, logits: Tensor, masks: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Match (Q, h, w) logits with (M, H, W) masks at (1, P, 2) points; (Q, M) costs of labels."""
    wanted = at_points(masks.to(logits.dtype), own.repeat(len(masks), 1, 1))
    found = at_points(logits, own.repeat(len(logits), 1, 1))
    positive = F.binary_cross_entropy_with_logits(found, torch.ones_like(found), reduction="none")
    negative = F.binary_cross_entropy_with_logits(found, torch.zeros_like(found), reduction="none")
    bce = torch.einsum("qp,mp->qm", positive, wanted)
    bce = (bce + torch.einsum("qp,mp->qm", negative, 1 - wanted)) / found.shape[1]
    probabilities = found.sigmoid()
    both = 2 * torch.einsum("qp,mp->qm", probabilities, wanted)
    either = probabilities.sum(-1)[:, None] + wanted.sum(-1)[None]
    dice = 1 - (both + 1) / (either + 1)
    costs = COSTS[1] * bce + COSTS[0] * label_costs + COSTS[2] * dice
    queries, targets = linear_sum_assignment(costs.cpu())
    return torch.as_tensor(queries), torch.as_tensor(targets)


def mask_losses(
    logits: Tensor, masks: Sequence[Tensor], pairs: Pairs, num_points: int, draw: Points
) -> tuple[Tensor, Tensor]:
    """Sums of cross entropy and of dice over the matched masks, at uncertain points."""
    largest = max(len(each) for each in masks)
    padded = logits.new_zeros(len(masks), largest, *masks[0].shape[-2:])
    for row, each in enumerate(masks):
        padded[row, : len(each)] = each
    found = torch.cat([logits[row][queries] for row, (queries, _) in enumerate(pairs)])
    wanted = torch.cat([padded[row][targets] for row, (_, targets) in enumerate(pairs)])
    with torch.no_grad():
        drawn = draw(len(found), 3 * num_points)
        uncertain = int(0.75 * num_points)
        chosen = (-at_points(found, drawn).abs()).topk(uncertain, 1).indices
        points = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
        points = torch.cat((points, draw(len(found), num_points - uncertain)), 1)
        labels = at_points(wanted, points)
    own = at_points(found, points)
    bce = F.binary_cross_entropy_with_logits(own, labels, reduction="none").mean(1).sum()
    probabilities = own.sigmoid()
    both, either = 2 * (probabilities * labels).sum(-1), probabilities.sum(-1) + labels.sum(-1)
    return bce, (1 - (both + 1) / (either + 1)).sum()


def class_losses(
    prediction: Prediction, targets: Targets, queries: int, options: Options, draw: Points
) -> tuple[dict[str, Tensor], Pairs]:
    """Losses of masks and classes of a layer; the class query, number `queries`, has none."""
    assert prediction.classes is not None
    classes, logits = prediction.classes[:, :queries], prediction.masks[:, :queries]
    pairs = []
    for row, (labels, masks) in enumerate(zip(*targets, strict=True)):
        costs = -classes[row].softmax(-1)[:, labels]
        pairs.append(match(costs, logits[row], masks, draw(1, options.num_points)))
    wanted = torch.full(classes.shape[:2], classes.shape[2] - 1)
    for row, (own, each) in enumerate(pairs):
        wanted[row, own] = targets.labels[row][each]
    weights = classes.new_ones(classes.shape[2])
    weights[-1] = BACKGROUND
    bce, dice = mask_losses(logits, targets.masks, pairs, options.num_points, draw)
    count = max(sum(map(len, targets.labels)), 1)
    losses = {
        "mask_class": F.cross_entropy(classes.transpose(1, 2), wanted, weights),
        "mask_bce": bce / count,
        "mask_dice": dice / count,
    }
    return losses, pairs


def phrase_losses(
    prediction: Prediction,
    phrases: Phrases,
    vectors: Sequence[Tensor],
    scale: Tensor,
    queries: int,
    options: Options,
    draw: Points,
) -> tuple[dict[str, Tensor], Pairs]:
    """Losses of the masks of phrases of a layer, with their (p, D) vectors of each image."""
    rows = slice(queries + 1, None)
    logits, pairs, alignment = prediction.masks[:, rows], [], []
    texts = phrases.ids.split([len(each) for each in phrases.masks])
    for row, masks in enumerate(phrases.masks):
        similarity = scale * unit(prediction.vectors[row, rows]) @ unit(vectors[row]).T
        costs = -similarity.softmax(0)
        pairs.append(match(costs, logits[row], masks, draw(1, options.num_points)))
        own = torch.zeros_like(similarity)
        own[pairs[-1]] = 1.0
        same = (texts[row][:, None] == texts[row]).all(-1).to(own.dtype)
        own = own @ (same / same.sum(1, keepdim=True))
        loss = -(own * similarity.log_softmax(0)).sum(0).mean()
        alignment.append(phrases.weights[row] * loss)
    bce, dice = mask_losses(logits, phrases.masks, pairs, options.num_points, draw)
    count = sum(len(own) for own, _ in pairs)
    losses = {
        "phrase_bce": bce / count,
        "phrase_dice": dice / count,
        "phrase_alignment": torch.stack(alignment).mean(),
    }
    return losses, pairs


def layer_losses(
    model: EagerXDecoder,
    images: Tensor,
    class_ids: Tensor,
    targets: Targets,
    phrases: Phrases,
    options: Options,
    draw: Points = random_points,
) -> list[dict[str, Tensor]]:
    """Unweighted losses of each layer, the last first.

    Args:
        model: the model.
        images: (B, 3, H, W).
        class_ids: (K + 1, L) a text of each class and of the background.
        targets: masks and classes.
        phrases: phrases, at least one of each image.
        options: points and layers.
        draw: draws points.
    """
    queries = model.config.decoder.num_queries - 1
    classes = unit(model.text.vectors(class_ids))
    tokens = model.text(phrases.ids)
    counts = [len(each) for each in phrases.masks]
    last = phrases.text_mask.sum(1) - 1
    vectors = tokens[torch.arange(len(tokens)), last].split(counts)
    # Of equal phrases of an image, the first is read. Zeros that pad an image are read, too.
    joined = []
    for own, mask, ids in zip(
        tokens.split(counts),
        phrases.text_mask.split(counts),
        phrases.ids.split(counts),
        strict=True,
    ):
        same = (ids[:, None] == ids).all(-1)
        first = ~same.tril(-1).any(1)
        joined.append(own[first][mask[first]])
    padded = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)
    predictions = model.sem_seg_head.predictor(*model.read(images), classes, phrases=padded)
    scale = model.text.logit_scale.exp().clamp(max=100.0)
    found = []
    for number, each in enumerate(reversed(predictions)):
        losses, _ = class_losses(each, targets, queries, options, draw)
        if number < options.phrase_layers:
            own, _ = phrase_losses(each, phrases, vectors, scale, queries, options, draw)
            losses |= own
        found.append(losses)
    return found
