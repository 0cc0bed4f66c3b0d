"""Detector post-processing: from raw predictions to scored boxes and `Detections`."""

from fiber.postprocess.detections import Detections
from fiber.postprocess.find import FoundBoxes, detect_boxes, ground_phrases, join_chunks

__all__ = ["Detections", "FoundBoxes", "detect_boxes", "ground_phrases", "join_chunks"]
