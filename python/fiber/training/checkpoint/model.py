"""Read the model of a run's checkpoint, as its finished model would be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fiber.checkpoints.model_dir import StoredModel, load_tensors
from fiber.checkpoints.provenance import values_of
from fiber.checkpoints.torch_file import Weights
from fiber.messages import shown_names
from fiber.models.lora import merged_state
from fiber.models.registry import build_empty
from fiber.training.checkpoint.files import stored_tensors
from fiber.training.checkpoint.folder import RunCheckpoint, checkpoints_in
from fiber.training.checkpoint.layout import INDEX, STEP
from fiber.training.checkpoint.state import stored_weights
from fiber.training.run_dir import RunFolder


class CheckpointModel(NamedTuple):
    """Model of a checkpoint."""

    stored: StoredModel
    #: Which of the weights these are.
    weights: Weights


def read_checkpoint_model(
    folder: str | os.PathLike[str], weights: Weights | None = None, image_size: int | None = None
) -> CheckpointModel:
    """Read the model of `RUN/checkpoints/step-N` on the CPU.

    Args:
        folder: folder of a checkpoint in its run, which has the configuration and the tokenizer.
        weights: "raw" (as trained) or "ema". Default: "ema" if the run has one, as in its finished
            model.
        image_size: new input size in pixels.

    Raises:
        FileNotFoundError: if the checkpoint or the configuration of the run is missing.
        ValueError: if the folder is no checkpoint, a file is damaged or does not fit the run, or
            the run has no EMA.
    """
    folder = Path(folder).absolute()
    run, checkpoint = RunFolder(folder.parent.parent), _open(folder)
    config = run.stored_config() if folder.parent == run.checkpoints else None
    if config is None:
        raise FileNotFoundError(
            f"{folder} has no configuration and no tokenizer, which are in the folder of its run;"
            f" expected RUN/checkpoints/{folder.name}, with RUN/config.json"
        )
    run.check_vocabulary(checkpoint.read_position().vocabulary_sha256, folder)
    with checkpoint.explained(INDEX):
        tensors, is_average = _weights(folder, weights != "raw")
    if weights == "ema" and not is_average:
        raise ValueError(f"{folder} has no moving average (weights 'ema'); expected 'raw'")
    model_config = config.model
    if image_size is not None:
        model_config = model_config.with_image_size(image_size)
    with values_of(run.config_file, {}, "model: "):
        model = build_empty(model_config)
    for name, tensor in model.state_dict().items():
        # Where it is sharded, a 0-D parameter has one dimension.
        if tensor.ndim == 0 and name in tensors:
            tensors[name] = tensors[name].reshape(())
    if config.lora is not None:
        with checkpoint.explained(INDEX):
            options = {"r": config.lora.r, "alpha": config.lora.alpha}
            tensors = merged_state(config.model, tensors, **options)
    load_tensors(model, folder, tensors, resize=image_size is not None, device="cpu")
    vocabulary = run.vocabulary()
    parts: dict[str, Any] = vocabulary._asdict() if vocabulary is not None else {}
    stored = StoredModel(network=model.eval(), path=folder, **parts)
    return CheckpointModel(stored, "ema" if is_average else "raw")


def _open(folder: Path) -> RunCheckpoint:
    """Find a checkpoint and compare its files with their checksums."""
    step = folder.name.removeprefix(STEP)
    if not folder.name.startswith(STEP) or not step.isdecimal():
        raise ValueError(
            f"{folder} was set aside as damaged when its run resumed; expected a folder"
            f" {STEP}N next to it"
        )
    checkpoint = RunCheckpoint(folder=folder, step=int(step))
    if not folder.is_dir():
        known = shown_names([each.folder.name for each in checkpoints_in(folder.parent)])
        raise FileNotFoundError(f"{folder} does not exist; checkpoints in {folder.parent}: {known}")
    reason = checkpoint.damage(with_best=False)
    if reason is not None:
        others = [each.folder.name for each in checkpoints_in(folder.parent) if each != checkpoint]
        hint = f"; other checkpoints of the run: {shown_names(others)}" if others else ""
        raise ValueError(f"{folder} is damaged or incomplete: {reason}{hint}")
    return checkpoint


def _weights(folder: Path, with_average: bool) -> tuple[dict[str, Tensor], bool]:
    """Read the weights, or their EMA if there is one; return whether it is the EMA."""
    is_average = with_average and "average/updates" in stored_tensors(folder)
    return stored_weights(folder, average=is_average), is_average
