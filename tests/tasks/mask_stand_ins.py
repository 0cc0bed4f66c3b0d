"""Networks, records and batches with masks for tests of the task "segmentation"."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.record import Record
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRecord(Record):
    """Record with masks, here (M, H, W) arrays."""

    masks: Any = ()
    mask_labels: tuple[int, ...] = ()
    mask_crowd: tuple[bool, ...] = ()
    phrases: tuple[str, ...] = ()
    phrase_masks: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.image_id:
            object.__setattr__(self, "image_id", self.key)


def decode_masks(masks: Any, height: int, width: int) -> np.ndarray:
    """In place of the decoder of stored masks."""
    return np.asarray(masks, bool).reshape(-1, height, width)


@dataclasses.dataclass(frozen=True)
class MaskBatch:
    """Fields of a `SegmentationBatch`, with masks that are not packed."""

    images: Tensor
    own_masks: tuple[Tensor, ...]
    mask_labels: Tensor
    phrase_ids: Tensor
    phrase_mask: Tensor
    own_phrase_masks: tuple[Tensor, ...]

    def __len__(self):
        return len(self.images)

    @property
    def token_ids(self):
        return torch.zeros(len(self), 2, dtype=torch.int64)

    @property
    def masks_per_image(self):
        return torch.tensor([len(each) for each in self.own_masks])

    @property
    def phrases_per_image(self):
        return torch.tensor([len(each) for each in self.own_phrase_masks])

    def masks_of(self, row):
        return self.own_masks[row]

    def phrase_masks_of(self, row):
        return self.own_phrase_masks[row]


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


def batch(count: int, phrases: tuple[int, ...], seed: int = 0, first: int = 0) -> MaskBatch:
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
    return MaskBatch(
        torch.stack(images), tuple(masks), torch.tensor(labels), ids, mask, tuple(phrase_masks)
    )


def tokens(texts: list[str]) -> tuple[Tensor, Tensor]:
    if not texts:
        return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.bool)
    arrays = TOKENIZER.encode_batch(texts, max_tokens=SMALL.max_tokens)
    ids, mask = (np.asarray(arrays[name]).copy() for name in ("token_ids", "text_mask"))
    return torch.from_numpy(ids), torch.from_numpy(mask).bool()
