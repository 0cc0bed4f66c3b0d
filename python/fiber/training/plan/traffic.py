"""Bytes that a training step sends through each GPU.

Counted as in ring algorithms: an all-reduce of n bytes moves 2 (W - 1) / W n through each of W
ranks, an all-gather or reduce-scatter (W - 1) / W n. `tests/training/plan/test_traffic.py` compares
them with the collectives of real steps.
"""

from __future__ import annotations

from typing import NamedTuple

from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import ImageTextTask
from fiber.training.plan.step_cost import ImageSize, prefix_bytes

#: Bytes of a float32 gradient, weight or embedding.
_FLOAT32 = 4
#: Bytes of an int64 number.
_INT64 = 8


class Traffic(NamedTuple):
    """Bytes of a step of one task through each GPU."""

    #: Embeddings of ITC, or the pairs that ranks add to its queue.
    contrast: float
    #: Negatives of ITM that other ranks encoded and their gradients, or images of the queue.
    negatives: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.contrast + self.negatives


def gradient_bytes(trained: int, gpus: int) -> float:
    """Return the bytes of the strategy "replicate": an all-reduce of float32 gradients.

    `trained` is the number of trained parameters.
    """
    return 2 * _ring(gpus) * _FLOAT32 * trained


def shard_bytes(parameters: int, trained: int, group: int, precision: str) -> float:
    """Return the bytes in a group of the strategies "shard" and "hybrid".

    Weights are gathered once a step, in the training precision, and float32 gradients are
    reduce-scattered.
    """
    return _ring(group) * (weight_bytes(precision) * parameters + _FLOAT32 * trained)


def weight_bytes(precision: str) -> int:
    """Return the bytes of a gathered weight in a training precision."""
    return 2 if precision == "bfloat16" else _FLOAT32


def loss_traffic(
    config: RunConfig, task: str, gpus: int, tokens: int, image_size: ImageSize
) -> Traffic:
    """Return the bytes that the losses of a step exchange, over all of its micro-batches.

    Counts, labels and masks are left out; they are a small part of the rest.

    Args:
        config: configuration of the run.
        task: name of a `TasksConfig` field.
        gpus: number of ranks.
        tokens: tokens of a text.
        image_size: size of all images.
    """
    samples = config.data.batch_size
    of_a_rank = samples / gpus
    image_text, ranking = config.tasks.image_text, config.tasks.ranking
    if gpus == 1 or task not in ("image_text", "ranking"):
        return Traffic(0.0, 0.0)
    contrast = 0.0
    has_itm, is_random = ranking.itm > 0, True
    if task == "image_text":
        contrast = _ring(gpus) * samples * _pair_bytes(config, image_text)
        has_queue = image_text.has_contrast and image_text.itc_form == "queue"
        if has_queue:
            # Images go to the rank that holds their slots.
            contrast += _ring(gpus) * of_a_rank * queue_image_bytes(config)
        has_itm = image_text.itm > 0
        is_random = image_text.itm_negatives == "random" or not image_text.has_contrast
        if has_itm and has_queue and not is_random:
            # Images of the queue are encoded by the rank that needs them.
            return Traffic(contrast, _ring(gpus) * of_a_rank * queue_image_bytes(config))
    if not has_itm:
        return Traffic(contrast, 0.0)
    image, text = prefix_bytes(config, tokens, image_size)
    row = image if is_random else image + text
    # Each row arrives in the forward pass; its gradient goes back.
    return Traffic(contrast, 2.0 * of_a_rank * row)


def _pair_bytes(config: RunConfig, task: ImageTextTask) -> float:
    """Return the bytes of a pair that all ranks gather for ITC."""
    if not task.has_contrast:
        return 0.0
    if task.itc_form == "queue":
        return queue_pair_bytes(config) - queue_image_bytes(config)
    # The gradients of the embeddings are reduce-scattered.
    return _embedding_bytes(config) * (2 if task.itc > 0 else 1)


def queue_pair_bytes(config: RunConfig) -> int:
    """Return the bytes of a pair in ITC's queue: embeddings, image, text and ids."""
    # Ids and mask of the text, and the two ids of the pair.
    texts = config.model.max_tokens * (_INT64 + 1) + 2 * _INT64
    return _embedding_bytes(config) + queue_image_bytes(config) + texts


def queue_image_bytes(config: RunConfig) -> int:
    """Return the bytes of an image in ITC's queue."""
    return 3 * config.model.image_size**2 * _FLOAT32


def _embedding_bytes(config: RunConfig) -> int:
    return 2 * config.model.roberta.width * _FLOAT32


def _ring(gpus: int) -> float:
    return (gpus - 1) / gpus
