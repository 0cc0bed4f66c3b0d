"""Networks, pictures and batches with masks for tests of the task "segmentation"."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.batch import SegmentationBatch
from fiber.data.masks.mask import PackedMask
from fiber.models.xdecoder.class_texts import class_texts, mean_vectors, with_background
from fiber.models.xdecoder.segmenter import XDecoder
from tests.models.xdecoder.test_network import TINY

NAMES = ("red", "green", "blue")
#: Pure colors, the last of which is the background.
COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]], dtype=torch.uint8)
SIDE = 64
TOKENIZER = Tokenizer.train([f"the {name} one on the left" for name in NAMES] * 9, 270)
#: A network whose text encoder takes the words of the tests.
SMALL = dataclasses.replace(
    TINY,
    focalnet=dataclasses.replace(TINY.focalnet, drop_path=0.0),
    clip_text=dataclasses.replace(
        TINY.clip_text, vocab_size=TOKENIZER.vocab_size, max_positions=30
    ),
    decoder=dataclasses.replace(TINY.decoder, num_queries=12, num_layers=2),
)


class Segmenter(XDecoder):
    """Small network with the methods that training needs."""

    def class_prompts(self, names):
        return [class_texts(name)[:3] for name in with_background(names)]

    def class_vectors(self, vectors):
        return mean_vectors(vectors)


def segmenter(seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(SMALL)


def packed(masks: np.ndarray) -> tuple[PackedMask, ...]:
    """Pack (M, H, W) masks as a record stores them."""
    return tuple(PackedMask(np.packbits(mask, axis=1).tobytes(), mask.shape) for mask in masks)


def picture(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Paint a rectangle of each of some colors: an image, its (M, H, W) masks and their classes."""
    labels = tuple(random.permutation(len(NAMES))[: random.integers(1, 4)].tolist())
    place = np.full((SIDE, SIDE), len(NAMES))
    for label in labels:
        top, left = random.integers(0, SIDE // 2, 2)
        height, width = random.integers(SIDE // 4, SIDE // 2, 2)
        place[top : top + height, left : left + width] = label
    labels = tuple(label for label in labels if (place == label).any())
    return COLORS.numpy()[place], np.stack([place == label for label in labels]), labels


def batch(count: int, phrases: tuple[int, ...], seed: int = 0, first: int = 0) -> SegmentationBatch:
    """Make a batch of images with numbers of phrases; images depend on their number alone."""
    images, masks, labels, texts, phrase_masks = [], [], [], [], []
    for number in range(first, first + count):
        pixels, own, classes = picture(np.random.default_rng((seed, number)))
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 128 - 1)
        masks.append(torch.from_numpy(own))
        labels += classes
        chosen = range(min(phrases[number], len(classes)))
        texts += [f"the {NAMES[classes[n]]} one" for n in chosen]
        phrase_masks.append(masks[-1][list(chosen)])
    ids, mask = tokens(texts)
    return SegmentationBatch(
        keys=tuple(map(str, range(first, first + count))),
        images=torch.stack(images),
        original_sizes=torch.full((count, 2), SIDE),
        image_sizes=torch.full((count, 2), SIDE),
        token_ids=torch.zeros(count, 2, dtype=torch.int64),
        text_mask=torch.zeros(count, 2, dtype=torch.bool),
        masks=bits(masks),
        masks_per_image=torch.tensor([len(each) for each in masks]),
        mask_labels=torch.tensor(labels),
        phrase_ids=ids,
        phrase_mask=mask,
        phrase_masks=bits(phrase_masks),
        phrases_per_image=torch.tensor([len(each) for each in phrase_masks]),
    )


def bits(masks: list[Tensor]) -> Tensor:
    """Pack the masks of all images as a batch has them."""
    return torch.from_numpy(np.packbits(torch.cat(masks).numpy(), axis=-1))


def tokens(texts: list[str]) -> tuple[Tensor, Tensor]:
    if not texts:
        return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.bool)
    arrays = TOKENIZER.encode_batch(texts, max_tokens=SMALL.max_tokens)
    ids, mask = (np.asarray(arrays[name]).copy() for name in ("token_ids", "text_mask"))
    return torch.from_numpy(ids), torch.from_numpy(mask).bool()
