"""Inference: `load` a trained model and run it on images."""

from fiber.evaluation.evaluate import evaluate
from fiber.inference.image_text import Answer, Entailment
from fiber.inference.load import load
from fiber.inference.model import Model
from fiber.inference.pairs import Hit
from fiber.inference.stages import StagedModel
from fiber.models.heads import MissingHeadError

__all__ = [
    "Answer",
    "Entailment",
    "Hit",
    "MissingHeadError",
    "Model",
    "StagedModel",
    "evaluate",
    "load",
]
