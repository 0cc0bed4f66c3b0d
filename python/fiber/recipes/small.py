"""Recipes that train a small model on two CPU cores in minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fiber.config import ClipConfig, preset
from fiber.config_io import replace_fields
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import (
    CaptionTask,
    GroundingTask,
    ImageTextTask,
    QuestionTask,
    ReasoningTask,
    TasksConfig,
)


def scenes_fine() -> RunConfig:
    """Fine-stage model that finds boxes for texts in generated scenes, trained from scratch.

    Command: fiber data scenes --output runs/scenes
             fiber train scenes_fine --data runs/scenes --output runs/fine
    Data: rendered scenes with referring expressions, captions with phrases, and detection prompts.
    Hardware: two CPU cores; trains in minutes.
    Expected: see the table printed by `fiber demo`, which runs this recipe for fewer, larger steps
        at a higher learning rate, with relations first.
    """
    model = preset("small", stage="fine")
    return RunConfig(
        model=model,
        # Every prompt lists all eight classes in file order, as in evaluation. Most samples are
        # expressions, a quarter of which are relations: these need many samples to be learned.
        tasks=TasksConfig(
            grounding=GroundingTask(
                share=1,
                sources=(*("referring",) * 4, "phrases", "detection"),
                shuffle_classes=False,
            )
        ),
        data=DataConfig(
            batch_size=32,
            transform=TransformConfig(
                kind="shorter_side",
                shorter_sides=(model.detector.shorter_side,),
                max_size=model.detector.max_size,
            ),
        ),
        # Token logits of a narrow head change slowly, so it gets a high learning rate.
        optim=OptimConfig(
            lr=1e-3,
            head_lr_multiplier=3.0,
            cross_modal_lr_multiplier=1.0,
            muon_lr_multiplier=2.0,
            warmup_fraction=0.05,
            clip_norm=1.0,
        ),
        train=TrainConfig(steps=1700, checkpoint_every=340, ema_decay=0.99),
    )


def scenes_fine_masks() -> RunConfig:
    """Masks of the boxes that a fine-stage model finds for texts in generated scenes.

    Command: fiber train scenes_fine_masks --data runs/scenes --init runs/fine --output runs/masks
    Data: as for `scenes_fine`, with a mask for each box.
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/segmentation.md.

    Only the head of masks is trained: boxes and scores stay those of the initial model.
    """
    changes = {
        "model.detector.mask_width": 16,
        "tasks.grounding.mask_bce": 1.0,
        "tasks.grounding.mask_dice": 1.0,
        "optim.frozen": ("backbone", "stage_norms", "pyramid", "head"),
        "optim.muon_lr_multiplier": 0.0,
        "train.steps": 500,
        "train.checkpoint_every": 100,
    }
    return replace_fields(scenes_fine(), changes)


def scenes_coarse() -> RunConfig:
    """Coarse-stage model for captions and questions on generated scenes, trained in minutes.

    Command: fiber train scenes_coarse --data runs/scenes --init runs/fine --output runs/coarse
    Data: rendered scenes with captions (ITC, ITM, MLM) and questions (VQA).
    Hardware: two CPU cores; trains in minutes.
    Expected: see the table printed by `fiber demo`, which runs this recipe after `scenes_fine` for
        fewer and smaller steps, with more of them on captions, and fixes the first stages of the
        image encoder.
    """
    return RunConfig(
        model=preset("small"),
        tasks=TasksConfig(
            # Hard negatives need embeddings that have already been learned.
            image_text=ImageTextTask(share=1, itm_negatives="random"),
            # Questions need most of the steps: with few, answers follow what went with their words.
            question=QuestionTask(share=4),
        ),
        # Captions have about twelve tokens, so most would have at most one masked token at 0.15.
        data=DataConfig(batch_size=64, mlm_probability=0.3),
        # The encoders were trained only briefly, so heads need no higher learning rate. The fusion
        # does: questions are the first task that reads the image through the first text token.
        optim=OptimConfig(
            lr=1e-3,
            head_lr_multiplier=1.0,
            cross_modal_lr_multiplier=2.0,
            muon_lr_multiplier=2.0,
            warmup_fraction=0.15,
            clip_norm=1.0,
        ),
        train=TrainConfig(steps=1000, checkpoint_every=200),
    )


def small_vqa() -> RunConfig:
    """Small model for visual question answering, trained on a CPU.

    Command: fiber train small_vqa --data runs/scenes --init runs/demo/coarse
    Data: a folder written by `fiber data`, or questions in any other supported format (such as your
        own .jsonl).
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/results.md for results on scenes and stamps.
    """
    return _finetune("vqa", TasksConfig(question=QuestionTask(share=1)), "vqa")


def small_nlvr2() -> RunConfig:
    """Small model for true-or-false statements about two images (NLVR2), trained on a CPU.

    Command: fiber train small_nlvr2 --data runs/scenes --init runs/demo/coarse
    Data: a folder written by `fiber data`, or statements in any other supported format.
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/results.md for results on scenes and stamps.
    """
    tasks = TasksConfig(reasoning=ReasoningTask(share=1))
    return _finetune("nlvr2", tasks, "nlvr2", {"data.batch_size": 32})


def small_retrieval() -> RunConfig:
    """Small model for image-text retrieval, trained on a CPU with the ITC loss only.

    Command: fiber train small_retrieval --data runs/scenes --init runs/demo/coarse
    Data: a folder written by `fiber data`, or captions in any other supported format (such as your
        own .jsonl).
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/results.md for results on scenes and stamps.
    """
    tasks = TasksConfig(image_text=ImageTextTask(share=1, itm=0.0, mlm=0.0))
    return _finetune("itc", tasks, "retrieval", {"train.steps": 300, "validation.pictures": 500})


def small_matching() -> RunConfig:
    """Small model for image-text matching, trained on a CPU with the ITM loss only.

    Command: fiber train small_matching --data runs/scenes --init runs/demo/coarse
    Data: as for `small_retrieval`.
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/results.md for results on scenes and stamps.
    """
    task = ImageTextTask(share=1, itc=0.0, mlm=0.0, itm_negatives="random")
    return _finetune("itm", TasksConfig(image_text=task), "matching", {"train.steps": 300})


def small_caption() -> RunConfig:
    """Small model for captioning, trained on a CPU by maximum likelihood.

    Command: fiber train small_caption --data runs/scenes --init runs/demo/coarse
    Data: as for `small_retrieval`.
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/results.md for results on scenes and stamps.
    """
    changes = {"train.steps": 300, "train.checkpoint_every": 150}
    return _finetune("caption", TasksConfig(caption=CaptionTask(share=1)), "caption", changes)


def small_meter() -> RunConfig:
    """Small METER for questions, statements and retrieval on generated scenes, from scratch.

    Command: fiber data scenes --output runs/scenes
             fiber train small_meter --data runs/scenes --output runs/meter
    Data: rendered scenes with captions (ITM, MLM), questions (VQA) and statements (NLVR2).
    Hardware: two CPU cores; trains in minutes.
    Expected: see docs/results.md. Without a ranking head, retrieval ranks by ITM.

    Unlike FIBER, METER has no stage that learns from boxes, so everything is learned from texts.
    """
    small = preset("small")
    model = MeterConfig(
        image_size=64,
        max_tokens=small.max_tokens,
        weight_start="fan_in",
        clip=ClipConfig(patch_size=8, width=96, num_blocks=4, num_heads=4),
        roberta=small.roberta,
        cross=CrossConfig(
            width=small.roberta.width,
            num_layers=2,
            num_heads=small.roberta.num_heads,
            ffn_width=small.roberta.ffn_width,
            dropout=0.0,
        ),
        image_text=MeterHeadsConfig(
            heads=("itm", "mlm", "vqa", "nlvr2"), num_answers=small.num_answers
        ),
    )
    coarse = scenes_coarse()
    return dataclasses.replace(
        coarse,
        model=model,
        tasks=TasksConfig(
            image_text=ImageTextTask(share=1, itc=0.0, itm_negatives="random"),
            question=QuestionTask(share=1),
            reasoning=ReasoningTask(share=1),
        ),
        data=dataclasses.replace(coarse.data, transform=TransformConfig(kind="center_crop")),
        train=TrainConfig(steps=900, checkpoint_every=300),
    )


def small_detection() -> RunConfig:
    """Small detector for your own classes, trained on any dataset in COCO format.

    Command: fiber train small_detection --data DIR --output runs/own
    Data: class-labeled boxes in COCO format: an export from Roboflow, CVAT, Label Studio or
        FiftyOne, an ODinW dataset, or COCO itself. Without a validation split, a fifth of the
        images is held out.
    Hardware: two CPU cores.
    Expected: detections in images similar to the training images; see docs/detection.md. There is
        no published number. Images are resized to a shorter side of 128 pixels, so objects must be
        large; for real applications, use `own_detection`.

    Trains from scratch with a vocabulary built from the class names. Every prompt lists all classes
    in file order, as in evaluation.
    """
    small = preset("small", stage="fine")
    changes = {
        # Allow longer prompts and larger images than the preset does.
        "model.max_tokens": small.roberta.max_tokens,
        "model.detector.shorter_side": 128,
        "model.detector.max_size": 224,
        "model.detector.channels": 96,
        "model.detector.num_blocks": 1,
        "tasks.grounding.sources": ("detection",),
        "tasks.grounding.max_classes": 24,
        "data.train_tokenizer": True,
        "data.transform.shorter_sides": (96, 112, 128, 144),
        "data.transform.max_size": 224,
        "data.transform.flip_probability": 0.5,
        "data.batch_size": 16,
        "optim.lr": 5e-4,
        "optim.head_lr_multiplier": 2.0,
        "optim.warmup_fraction": 0.1,
        "train.ema_decay": 0.0,
        "train.steps": 600,
        "train.checkpoint_every": 100,
        "validation.task": "coco",
        "validation.pictures": 200,
    }
    return replace_fields(scenes_fine(), changes)


def _finetune(
    head: str, tasks: TasksConfig, validation: str, changes: Mapping[str, Any] | None = None
) -> RunConfig:
    """Configure fine-tuning of one head. `changes` overrides other fields by dotted name."""
    small = preset("small")
    image_text = dataclasses.replace(small.image_text, heads=(head,))
    config = RunConfig(
        model=dataclasses.replace(small, image_text=image_text),
        tasks=tasks,
        data=DataConfig(batch_size=64),
        # The initial model was trained only briefly: encoders still need a high learning rate.
        optim=OptimConfig(
            lr=3e-4, head_lr_multiplier=1.0, cross_modal_lr_multiplier=1.0, clip_norm=1.0
        ),
        train=TrainConfig(steps=400, checkpoint_every=100),
        validation=ValidationConfig(task=validation, pictures=200),
    )
    return replace_fields(config, changes or {})
