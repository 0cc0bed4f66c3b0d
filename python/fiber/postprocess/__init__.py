"""Post-processing: from raw predictions to `Detections` and `Segmentation`."""

from fiber.postprocess.detections import Detections
from fiber.postprocess.find import FoundBoxes, detect_boxes, ground_phrases, join_chunks
from fiber.postprocess.segmentation import Segmentation

__all__ = [
    "Detections",
    "FoundBoxes",
    "Segmentation",
    "detect_boxes",
    "ground_phrases",
    "join_chunks",
]
