"""Losses that align queries, masks and images with texts.

Vectors of queries and of texts are in one space; similarities are cosines times a scale, a scalar
tensor. Rows of all ranks take part in contrasts, as in `losses.distributed`.

Shapes: n regions or phrases, D channels, B images, Q queries, L text tokens.

Source: Zou et al. (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import (
    all_rank_max,
    all_rank_sum,
    gather_rows,
    rank,
    rank_mean,
    row_counts,
    wide,
    world_size,
)

#: Added to norms before dividing by them, and to sums of targets, as published.
_EPS = 1e-7
#: Weights of the directions of contrasts with soft targets: from regions to texts, and back.
TO_TEXT, TO_REGION = 0.7, 0.3
#: Weight of the contrast with the tokens of texts, beside 1 of that with whole texts.
TOKEN_WEIGHT = 0.5


def unit(vectors: Tensor) -> Tensor:
    """Divide vectors by their L2 norm, in float32 at least."""
    vectors = wide(vectors)
    return vectors / (vectors.norm(dim=-1, keepdim=True) + _EPS)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross entropy of each row with a distribution, or any weights: (n, K) -> (n,)."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def region_text_loss(
    region_vectors: Tensor, text_vectors: Tensor, text_ids: Tensor, scale: Tensor
) -> Tensor:
    """Contrast regions with texts, of which equal ones are one class.

    Args:
        region_vectors: (n, D) of queries.
        text_vectors: (n, D), the text of each region.
        text_ids: (n,) int64, equal for equal texts on all ranks.
        scale: factor of the cosines.

    Returns:
        Scalar: 0.7 times the cross entropy of the text of each region, and 0.3 times that of the
        regions of each text, over which its target is spread evenly. 0 if there are no regions.
    """
    counts = row_counts(region_vectors)
    if not sum(counts):
        return region_vectors.sum() + text_vectors.sum()
    regions, texts = (
        gather_rows(unit(region_vectors), counts),
        gather_rows(unit(text_vectors), counts),
    )
    ids = gather_rows(text_ids, counts)
    distinct, which = ids.unique(return_inverse=True)
    # The first of equal texts stands for all.
    first = torch.full_like(distinct, len(ids)).scatter_reduce_(
        0, which, torch.arange(len(ids), device=ids.device), "amin"
    )
    logits = scale * regions @ texts[first].T
    to_text = F.cross_entropy(logits, which)
    members = F.one_hot(which, len(distinct)).to(logits.dtype).T
    members = members / members.sum(1, keepdim=True)
    to_region = soft_cross_entropy(logits.T, members).mean()
    return TO_TEXT * to_text + TO_REGION * to_region


def pair_contrast(image_vectors: Tensor, text_vectors: Tensor, scale: Tensor) -> Tensor:
    """Contrast images with texts of the batch of all ranks, in both directions.

    Args:
        image_vectors: (B, D).
        text_vectors: (B, D), row i is the text of image i. Equal texts count as different ones, as
            published.
        scale: factor of the cosines.
    """
    counts = row_counts(image_vectors)
    images, texts = (
        gather_rows(unit(image_vectors), counts),
        gather_rows(unit(text_vectors), counts),
    )
    logits = scale * images @ texts.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def token_contrast(
    query_vectors: Tensor, token_vectors: Tensor, text_mask: Tensor, scale: Tensor
) -> Tensor:
    """Contrast images, by their latent queries, with the tokens of texts.

    The logit of an image and a token is the mean over the queries. An image's own tokens are its
    targets, weighted by their position, from 1, as published.

    Args:
        query_vectors: (B, Q, D).
        token_vectors: (B, L, D).
        text_mask: (B, L) bool, True = real token.
        scale: factor of the cosines.

    Returns:
        Scalar: 0.7 times the cross entropy of each image, with targets that sum to 1, and 0.3 times
        that of each token, whose target is its weight in its image, as published.
    """
    # Mean of cosines with a token: the cosine is linear in the unit vector of a query.
    images = unit(query_vectors).mean(1)
    positions = text_mask.cumsum(1) * text_mask
    own = positions[text_mask].to(images.dtype)
    image_of = text_mask.nonzero()[:, 0]
    tokens, counts = unit(token_vectors[text_mask]), row_counts(images)
    if world_size() > 1:
        image_of = image_of + sum(counts[: rank()])
        images, tokens = gather_rows(images, counts), gather_rows(tokens)
        own, image_of = gather_rows(own), gather_rows(image_of)
    logits = scale * images @ tokens.T
    targets = torch.zeros_like(logits)
    targets[image_of, torch.arange(len(own), device=own.device)] = own
    targets = targets / (targets.sum(1, keepdim=True) + _EPS)
    to_text = soft_cross_entropy(logits, targets).mean()
    to_region = soft_cross_entropy(logits.T, targets.T).mean()
    return TO_TEXT * to_text + TO_REGION * to_region


def retrieval_loss(
    image_vectors: Tensor,
    query_vectors: Tensor,
    text_vectors: Tensor,
    token_vectors: Tensor,
    text_mask: Tensor,
    scale: Tensor,
) -> Tensor:
    """Contrast images with their texts, as a whole and by token.

    Args:
        image_vectors: (B, D) of whole images.
        query_vectors: (B, Q, D) of latent queries.
        text_vectors: (B, D).
        token_vectors: (B, L, D).
        text_mask: (B, L) bool, True = real token.
        scale: factor of the cosines.
    """
    whole = pair_contrast(image_vectors, text_vectors, scale)
    return whole + TOKEN_WEIGHT * token_contrast(query_vectors, token_vectors, text_mask, scale)


def next_word_loss(logits: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Compute the next-token cross entropy of captions: the sum over (number of tokens + 1).

    Args:
        logits: (B, L, V); position t predicts token t + 1.
        token_ids: (B, L) int64.
        text_mask: (B, L) bool, True = real token. Tokens that are not real are no targets.

    Returns:
        Scalar, over the tokens of all ranks.
    """
    is_target = text_mask[:, 1:]
    found, wanted = wide(logits[:, :-1][is_target]), token_ids[:, 1:][is_target]
    total = F.cross_entropy(found, wanted, reduction="sum")
    return total * world_size() / (all_rank_sum(is_target.sum()) + 1)


def phrase_alignment_loss(
    similarities: Sequence[Tensor],
    queries: Sequence[Tensor],
    phrases: Sequence[Tensor],
    phrase_ids: Sequence[Tensor],
    weights: Sequence[float],
) -> Tensor:
    """Compute the cross entropy of the queries that phrases are matched with.

    The softmax is over queries. Equal phrases of an image share their queries evenly.

    Args:
        similarities: for each image, (Q, n) scaled cosines of queries and its phrases.
        queries: for each image, (m,) int64 queries of the pairs.
        phrases: for each image, (m,) int64 phrases of the pairs.
        phrase_ids: for each image, (n,) int64, equal for equal phrases.
        weights: weight of each image.

    Returns:
        Scalar: the weighted mean over a phrase's image, then over the images of all ranks.
    """
    losses = []
    for logits, rows, columns, ids, weight in zip(
        similarities, queries, phrases, phrase_ids, weights, strict=True
    ):
        logits = wide(logits)
        targets = torch.zeros_like(logits)
        targets[rows, columns] = 1.0
        is_same = (ids[:, None] == ids).to(logits.dtype)
        targets = targets @ (is_same / is_same.sum(1, keepdim=True))
        losses.append(weight * soft_cross_entropy(logits.T, targets.T).mean())
    total = torch.stack(losses).sum()
    return rank_mean(total, torch.tensor(len(losses), device=total.device))


def have_all(counts: Tensor) -> bool:
    """Return whether every image of all ranks has at least one: (B,) int64 counts."""
    lacking = int((counts < 1).sum())
    return all_rank_max(lacking, counts.device) == 0
