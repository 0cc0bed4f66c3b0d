"""Models of fiber as models of the transformers library. `import fiber.hf` registers them.

Auto classes, `Trainer` and pipelines then take every folder that `Model.save` or a run has written,
and `fiber.load` reads what they save. Needs the extra `hf`.
"""

from __future__ import annotations

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "fiber.hf needs transformers and accelerate, which are in the extra hf: pip install"
        " 'fiber-vl[hf]'"
    ) from error

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(
        f"fiber.hf needs transformers 5.0 or newer, but {transformers.__version__} is installed:"
        " pip install --upgrade 'fiber-vl[hf]'"
    )

from fiber.hf.collate import TrainingCollator
from fiber.hf.config import FiberVLConfig
from fiber.hf.detector import FiberVLDetectionOutput, FiberVLForZeroShotObjectDetection
from fiber.hf.image_processing import FiberVLImageProcessor
from fiber.hf.image_text import (
    FiberVLForImageText,
    FiberVLForVisualQuestionAnswering,
    FiberVLImageTextOutput,
)
from fiber.hf.modeling import FiberVLPreTrainedModel
from fiber.hf.pipelines import (
    AnswerPipeline,
    CaptionPipeline,
    DetectPipeline,
    GroundPipeline,
    SegmentPipeline,
)
from fiber.hf.processing import FiberVLProcessor
from fiber.hf.register import register
from fiber.hf.segmentation import FiberVLForUniversalSegmentation, FiberVLSegmentationOutput

__all__ = [
    "AnswerPipeline",
    "CaptionPipeline",
    "DetectPipeline",
    "FiberVLConfig",
    "FiberVLDetectionOutput",
    "FiberVLForImageText",
    "FiberVLForUniversalSegmentation",
    "FiberVLForVisualQuestionAnswering",
    "FiberVLForZeroShotObjectDetection",
    "FiberVLImageProcessor",
    "FiberVLImageTextOutput",
    "FiberVLPreTrainedModel",
    "FiberVLProcessor",
    "FiberVLSegmentationOutput",
    "GroundPipeline",
    "SegmentPipeline",
    "TrainingCollator",
]

register()
