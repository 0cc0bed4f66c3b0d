"""From the detector's raw predictions to boxes, and to what a user reads."""

from fiber.postprocess.detections import Detections
from fiber.postprocess.find import FoundBoxes, detect_boxes, ground_phrases, join_chunks

__all__ = ["Detections", "FoundBoxes", "detect_boxes", "ground_phrases", "join_chunks"]
