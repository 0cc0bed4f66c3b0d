"""Initialization from the data of a run, and what stays random."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Sequence

import torch

from fiber.models.abilities import CentersEmbeddings, StartsAtAnswerPriors
from fiber.models.registry import Network
from fiber.training.config.run import RunConfig
from fiber.training.data import TrainingData
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders


def init_from_data(
    model: Network,
    new: Collection[str],
    config: RunConfig,
    data: TrainingData,
    processes: Processes,
) -> None:
    """Start heads of a model with `weight_start` "fan_in" from the data.

    Answers of the VQA head start at their frequencies, and embeddings for ITC are centered.

    Args:
        model: model whose weights are all initialized otherwise.
        new: names of the tensors that are not copied from another model; others are kept.
        config: configuration of the run.
        data: records of the run. The first batch of captions is read.
        processes: the result does not depend on the rank or the world size.
    """
    if config.model.weight_start != "fan_in":
        return
    has_questions = "question" in data.records
    if has_questions and isinstance(model, StartsAtAnswerPriors) and model.answer_bias in new:
        model.init_answer_priors(torch.tensor(data.answer_priors))
    has_contrast = "image_text" in data.records and config.tasks.image_text.has_contrast
    if has_contrast and isinstance(model, CentersEmbeddings) and model.embedding_weight in new:
        alone = dataclasses.replace(processes, rank=0, world_size=1)
        loaders = TaskLoaders(config, data, alone, consumed={}, threads=1)
        batch = loaders.next_batch("image_text").to(processes.device)
        model.init_embeddings(batch.images, batch.token_ids, batch.text_mask)


def warn_of_frozen(frozen: Sequence[str], new: Collection[str]) -> None:
    """Warn of frozen parameters that are among `new`, those that no other model has set."""
    names = [name for name in frozen if name in new]
    if names:
        warnings.warn(
            f"optim.frozen: {len(names)} parameters keep their random values, such as {names[0]};"
            " start from a model that has them (--init)",
            RuntimeWarning,
            stacklevel=2,
        )
