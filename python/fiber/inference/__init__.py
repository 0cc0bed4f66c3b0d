"""Inference: models and their results. `fiber.load` loads a model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiber.bulk.annotator import Annotator
    from fiber.evaluation.evaluate import evaluate
    from fiber.inference.image_text import Answer, Entailment
    from fiber.inference.model import Model
    from fiber.inference.pairs import Hit
    from fiber.inference.stages import StagedModel
    from fiber.models.heads import MissingHeadError

__all__ = [
    "Annotator",
    "Answer",
    "Entailment",
    "Hit",
    "MissingHeadError",
    "Model",
    "StagedModel",
    "evaluate",
]

# Module of each public name, imported on first use since models of exported graphs need no torch.
_HOMES = {
    "Annotator": "fiber.bulk.annotator",
    "Answer": "fiber.inference.image_text",
    "Entailment": "fiber.inference.image_text",
    "Hit": "fiber.inference.pairs",
    "MissingHeadError": "fiber.models.heads",
    "Model": "fiber.inference.model",
    "StagedModel": "fiber.inference.stages",
    "evaluate": "fiber.evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fiber.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
