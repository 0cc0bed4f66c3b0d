"""Losses of masks, regions and phrases, beyond the recorded ones of `tests.parity`."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fiber.losses.masks.point_sampling import seeded_points
from fiber.losses.masks.region_text import (
    next_word_loss,
    pair_contrast,
    region_text_loss,
    retrieval_loss,
    token_contrast,
)
from fiber.losses.masks.segmentation import (
    LossOptions,
    RegionTexts,
    mask_losses,
    phrase_losses,
    region_losses,
)
from fiber.models.features import MaskPrediction
from tests.losses.two_ranks import run_on_two_ranks

pytestmark = pytest.mark.oldest

CLASSES, QUERIES, ROWS, WIDTH = 3, 9, 8, 6
OPTIONS = LossOptions(num_points=40)
SCALE = torch.tensor(10.0)
#: Rounding of sums in another order.
ROUNDING = {"rtol": 2e-5, "atol": 1e-6}


@dataclasses.dataclass
class Targets:
    """Masks and phrases of some images, as a `SegmentationBatch` has them."""

    masks: list[torch.Tensor]
    labels: list[torch.Tensor]
    phrase_masks: list[torch.Tensor]

    mask_labels = property(lambda self: torch.cat(self.labels))
    masks_per_image = property(lambda self: torch.tensor([len(each) for each in self.masks]))
    phrases_per_image = property(
        lambda self: torch.tensor([len(each) for each in self.phrase_masks])
    )

    def masks_of(self, image):
        return self.masks[image]

    def phrase_masks_of(self, image):
        return self.phrase_masks[image]


def generated(images, counts=(2, 0, 3, 1), phrases=(1, 2, 1, 1)):
    """Predictions and targets of images by their number, whatever others are asked for."""
    predictions, masks, labels, phrase_masks, texts, vectors = [], [], [], [], [], []
    for number in images:
        random = torch.Generator().manual_seed(number)
        shapes = [(QUERIES, CLASSES + 1), (QUERIES, 6, 7), (QUERIES, WIDTH)]
        shapes += [(ROWS, 6, 7), (ROWS, WIDTH)]
        predictions.append([2 * torch.randn(shape, generator=random) for shape in shapes])
        masks.append(torch.rand(counts[number], 24, 28, generator=random) < 0.4)
        labels.append(torch.randint(CLASSES, (counts[number],), generator=random))
        phrase_masks.append(torch.rand(phrases[number], 24, 28, generator=random) < 0.4)
        vectors.append(torch.randn(phrases[number], WIDTH, generator=random))
        own = torch.randn(2, WIDTH, generator=random)
        # A text of the first image is the third image's, too.
        texts.append(RegionTexts(own, torch.tensor([10 + number % 2, 20 + number])))
    tensors = [torch.stack(each).requires_grad_() for each in zip(*predictions, strict=True)]
    targets = Targets(masks, labels, phrase_masks)
    return MaskPrediction(*tensors), targets, texts, torch.cat(vectors).requires_grad_()


def all_losses(images, **counts):
    """All losses of some images and the gradients of the predictions."""
    prediction, targets, texts, phrases = generated(images, **counts)
    masks = [targets.masks_of(n) for n in range(len(images))]
    phrase_masks = [targets.phrase_masks_of(n) for n in range(len(images))]
    points = seeded_points(5, images, "cpu")
    losses, matches = mask_losses(prediction, targets, masks, points, OPTIONS)
    classes = torch.nn.functional.normalize(
        torch.randn(CLASSES + 1, WIDTH, generator=torch.Generator().manual_seed(99)), dim=-1
    )
    losses["region"], _ = region_losses(
        prediction, targets, matches, texts, classes, torch.arange(CLASSES + 1), SCALE
    )
    ids = torch.arange(len(phrases))
    own, _ = phrase_losses(prediction, targets, phrase_masks, phrases, ids, SCALE, points, OPTIONS)
    losses |= own
    vectors, rows = prediction.vectors, prediction.phrase_vectors
    mask = torch.ones(len(images), 4, dtype=torch.bool)
    mask[torch.tensor(images) == 2, 2:] = False
    losses["retrieval"] = retrieval_loss(
        vectors[:, 0], vectors[:, 1:], rows[:, 0], rows[:, 1:5], mask, SCALE
    )
    words = (torch.tensor(images)[:, None] + torch.arange(4)) % 7
    losses["words"] = next_word_loss(prediction.phrase_mask_logits[:, :4, 0], words, mask)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [each.grad for each in (*prediction, phrases)]
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def of_a_rank():
    rank = torch.distributed.get_rank()
    return all_losses([2 * rank, 2 * rank + 1])


def test_two_ranks_have_the_losses_and_gradients_of_one(tmp_path):
    ranks = run_on_two_ranks(of_a_rank, tmp_path)
    losses, gradients = all_losses([0, 1, 2, 3])
    for name, loss in losses.items():
        mean = (ranks[0][0][name] + ranks[1][0][name]) / 2
        torch.testing.assert_close(mean, loss, **ROUNDING, msg=name)
    for number, gradient in enumerate(gradients):
        # Averaged over the ranks, as by DistributedDataParallel.
        both = torch.cat([ranks[rank][1][number] for rank in (0, 1)]) / 2
        torch.testing.assert_close(both, gradient, **ROUNDING)


def test_images_without_masks_have_losses_of_the_background_only():
    losses, gradients = all_losses([0, 1], counts=(0, 0))
    assert losses["mask_bce"] == losses["mask_dice"] == 0
    assert losses["mask_class"] > 0 and all(torch.isfinite(each).all() for each in gradients)


def test_an_image_without_phrases_leaves_out_those_of_all():
    losses, gradients = all_losses([0, 1], phrases=(2, 0))
    assert losses["phrase_bce"] == losses["phrase_dice"] == losses["phrase_alignment"] == 0
    assert losses["mask_bce"] > 0 and all(torch.isfinite(each).all() for each in gradients)


def test_phrases_need_rows():
    prediction, targets, _, phrases = generated([0])
    without = prediction._replace(phrase_mask_logits=None)
    with pytest.raises(ValueError, match="phrase_mask_logits"):
        phrase_losses(
            without,
            targets,
            [targets.phrase_masks_of(0)],
            phrases,
            torch.zeros(1, dtype=torch.int64),
            SCALE,
            seeded_points(0, [0], "cpu"),
        )


def test_no_regions_have_no_loss():
    nothing = torch.zeros(0, WIDTH, requires_grad=True)
    loss = region_text_loss(nothing, nothing, torch.zeros(0, dtype=torch.int64), SCALE)
    assert loss == 0
    loss.backward()


def test_equal_texts_are_one_class():
    random = torch.Generator().manual_seed(0)
    regions = torch.randn(3, WIDTH, generator=random)
    texts = torch.randn(2, WIDTH, generator=random)[[0, 1, 0]]
    same = region_text_loss(regions, texts, torch.tensor([4, 7, 4]), SCALE)
    unit = torch.nn.functional.normalize
    logits = SCALE * unit(regions, dim=-1) @ unit(texts[:2], dim=-1).T
    to_text = -logits.log_softmax(1)[[0, 1, 2], [0, 1, 0]].mean()
    columns = logits.log_softmax(0)
    to_region = -((columns[0, 0] + columns[2, 0]) / 2 + columns[1, 1]) / 2
    torch.testing.assert_close(same, 0.7 * to_text + 0.3 * to_region, **ROUNDING)


def test_pairs_of_one_image_have_no_contrast():
    vectors = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))
    assert pair_contrast(vectors, -vectors, SCALE).item() == 0


def test_later_tokens_weigh_more():
    """The target of an image with two tokens is 1/3 and 2/3."""
    queries = torch.eye(4)[None, :1]
    tokens = torch.stack([torch.eye(4)[0], torch.eye(4)[1]])[None]
    loss = token_contrast(queries, tokens, torch.ones(1, 2, dtype=torch.bool), torch.tensor(1.0))
    log = torch.tensor([1.0, 0.0]).log_softmax(0)
    # Of one image, each token has only that image, so that direction has no loss.
    assert loss.item() == pytest.approx(-0.7 * float(log[0] / 3 + 2 * log[1] / 3), abs=1e-6)


def test_captions_without_a_next_token():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    loss = next_word_loss(logits, torch.zeros(1, 3, dtype=torch.int64), mask)
    assert loss == 0
    loss.backward()
