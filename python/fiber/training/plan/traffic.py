"""Bytes that a training step sends through each GPU.

Counted as in ring algorithms: an all-reduce of n bytes moves 2 (W - 1) / W n through each of W
ranks, an all-gather or reduce-scatter (W - 1) / W n. `tests/training/plan/test_traffic.py` compares
them with the collectives of real steps.
"""

from __future__ import annotations

from fiber.models.abilities import EmbedsAlone, need_ability
from fiber.models.registry import build_empty
from fiber.training.config.run import RunConfig
from fiber.training.plan.step_cost import prefix_bytes
from fiber.training.task_training import ImageSize, Traffic, trainings_of

#: Bytes of a float32 gradient, weight or embedding.
_FLOAT32 = 4
#: Bytes of an int64 number.
_INT64 = 8


def gradient_bytes(trained: int, gpus: int) -> float:
    """Return the bytes of the strategy "replicate": an all-reduce of float32 gradients.

    `trained` is the number of trained parameters.
    """
    return 2 * ring(gpus) * _FLOAT32 * trained


def shard_bytes(parameters: int, trained: int, group: int, precision: str) -> float:
    """Return the bytes in a group of the strategies "shard" and "hybrid".

    Weights are gathered once a step, in the training precision, and float32 gradients are
    reduce-scattered.
    """
    return ring(group) * (weight_bytes(precision) * parameters + _FLOAT32 * trained)


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
    if gpus == 1:
        return Traffic()
    training = trainings_of(config.tasks.active())[task]
    return training.traffic(config, gpus, tokens, image_size)


def negatives_traffic(
    config: RunConfig, task: str, gpus: int, tokens: int, image_size: ImageSize, *, texts: bool
) -> float:
    """Return the bytes of ITM's negatives that other ranks encode: images, and maybe `texts`."""
    image, text = prefix_bytes(config, tokens, image_size)
    row = image + text if texts else image
    # Each row arrives in the forward pass; its gradient goes back.
    return 2.0 * config.batch_size(task) / gpus * row


def queue_pair_bytes(config: RunConfig) -> int:
    """Return the bytes of a pair in ITC's queue: embeddings, image, text and ids."""
    # Ids and mask of the text, and the two ids of the pair.
    texts = config.model.max_tokens * (_INT64 + 1) + 2 * _INT64
    return embedding_bytes(config) + queue_image_bytes(config) + texts


def queue_image_bytes(config: RunConfig) -> int:
    """Return the bytes of an image in ITC's queue."""
    return 3 * config.model.image_size**2 * _FLOAT32


def embedding_bytes(config: RunConfig) -> int:
    """Return the bytes of the two embeddings of a pair."""
    return 2 * embedding_width(config) * _FLOAT32


def embedding_width(config: RunConfig) -> int:
    """Return the number of channels of an embedding of ITC."""
    return need_ability(build_empty(config.model), EmbedsAlone, "ITC").embedding_width


def ring(gpus: int) -> float:
    """Return the share of bytes that an all-gather moves through each rank."""
    return (gpus - 1) / gpus
