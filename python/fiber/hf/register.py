"""Register the classes of `fiber.hf` with transformers."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForUniversalSegmentation,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from fiber.checkpoints.transformers_files import MODEL_TYPE
from fiber.hf.config import FiberVLConfig
from fiber.hf.detector import FiberVLForZeroShotObjectDetection
from fiber.hf.image_processing import FiberVLImageProcessor
from fiber.hf.image_text import FiberVLForImageText, FiberVLForVisualQuestionAnswering
from fiber.hf.pipelines import PIPELINES
from fiber.hf.processing import FiberVLProcessor
from fiber.hf.segmentation import FiberVLForUniversalSegmentation


def register() -> None:
    """Register config, models, processors and pipelines. It may be called again."""
    AutoConfig.register(MODEL_TYPE, FiberVLConfig, exist_ok=True)
    # Of several classes, that of the field `architectures` is used.
    classes = (
        FiberVLForImageText,
        FiberVLForVisualQuestionAnswering,
        FiberVLForZeroShotObjectDetection,
        FiberVLForUniversalSegmentation,
    )
    AutoModel.register(FiberVLConfig, classes, exist_ok=True)  # type: ignore[arg-type]
    AutoModelForZeroShotObjectDetection.register(
        FiberVLConfig, FiberVLForZeroShotObjectDetection, exist_ok=True
    )
    AutoModelForVisualQuestionAnswering.register(
        FiberVLConfig, FiberVLForVisualQuestionAnswering, exist_ok=True
    )
    AutoModelForUniversalSegmentation.register(
        FiberVLConfig, FiberVLForUniversalSegmentation, exist_ok=True
    )
    try:
        backends: dict[str, type] = dict.fromkeys(("pil", "torchvision"), FiberVLImageProcessor)
        AutoImageProcessor.register(FiberVLConfig, image_processor_classes=backends, exist_ok=True)
    except TypeError:
        # The first versions of transformers 5 know one class of this kind.
        AutoImageProcessor.register(
            FiberVLConfig, slow_image_processor_class=FiberVLImageProcessor, exist_ok=True
        )
    AutoProcessor.register(FiberVLConfig, FiberVLProcessor, exist_ok=True)
    for task, pipeline in PIPELINES.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline, pt_model=AutoModel, type="multimodal"
            )
