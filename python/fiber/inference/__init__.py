"""Inference: `load` a trained model and run it on images."""

from fiber.evaluation.evaluate import evaluate
from fiber.inference.load import load
from fiber.inference.model import Answer, Model
from fiber.inference.pairs import Hit
from fiber.inference.stages import StagedModel
from fiber.models.heads import MissingHeadError

__all__ = ["Answer", "Hit", "MissingHeadError", "Model", "StagedModel", "evaluate", "load"]
