"""Segmentation by X-Decoder: as published, and a small model on generated scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiber.config_io import replace_fields
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.models.xdecoder.config import DecoderConfig, XDecoderConfig, xdecoder_preset
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import SegmentationTask, TasksConfig


def coco_panoptic() -> RunConfig:
    """Panoptic segmentation of COCO by X-Decoder with Focal-T, for 50 epochs.

    Command: fiber train coco_panoptic --data DIR --init UNICL --tokenizer CLIP --processes 8
    Data: COCO's panoptic annotations in DIR/annotations, with the folder of their maps, and
        train2017 in DIR. UNICL is focalt_in21k_yfcc_gcc_xdecoder_unicl.pt, or a model to fine-tune,
        and CLIP a folder with CLIP's tokenizer.json.
    Hardware: the published run used 8 GPUs, one image per GPU. With less memory, add
        `--set train.gradient_checkpointing=true`.
    Expected: not measured. The published run reaches PQ 50.8, mask AP 39.5 and mIoU 62.4 on val2017
        (README of microsoft/X-Decoder, v2.0).

    Images, losses and the optimizer are those of the published run. It also learned from image-text
    pairs in each step, and from the expressions of RefCOCO; here, phrases are names of classes.
    """
    return _published(SegmentationTask(share=1, sources=("panoptic",)), {})


def refcocog_masks() -> RunConfig:
    """Masks of RefCOCOg's expressions by X-Decoder with Focal-T, for ten epochs.

    Command: fiber train refcocog_masks --data DIR --init MODEL --tokenizer CLIP --processes 8
    Data: DIR/refcocog_umd_train.json and refcocog_umd_val.json, the prepared annotations of Zou et
        al., and COCO's train2014 or train2017 in DIR. MODEL is a model that finds masks, such as
        xdecoder_focalt_last.pt, and CLIP a folder with CLIP's tokenizer.json.
    Hardware: 8 GPUs, one image per GPU.
    Expected: not measured. xdecoder_focalt_last.pt, which was trained on these expressions, has a
        cIoU of 57.6 on val (README of microsoft/X-Decoder, v2.0).

    Only masks of phrases are trained: the files lack the objects that no expression names, which
    losses of classes would take for background. Images and the optimizer are as in `coco_panoptic`.
    """
    task = SegmentationTask(
        share=1, sources=("expression_masks",), mask_class=0.0, mask_bce=0.0, mask_dice=0.0
    )
    changes = {
        "train.epochs": 10.0,
        "validation": ValidationConfig(task="refseg"),
    }
    return _published(task, changes)


def scenes_pixel() -> RunConfig:
    """Small X-Decoder that segments generated scenes by classes and phrases, trained from scratch.

    Command: fiber data scenes --stuff --output runs/stuff
             fiber train scenes_pixel --data runs/stuff --output runs/pixel
    Data: rendered scenes with textured regions, whose files have a mask of each object and region,
        with its class and phrases. The tokenizer is that of the data.
    Hardware: two CPU cores; trains in minutes.
    Expected: not measured at its full length. Regions are learned first; the shapes of objects take
        many more steps. benches/segmentation_evidence.py compares it with guesses.
    """
    model = XDecoderConfig(
        image_size=96,
        segment_size=96,
        instance_size=96,
        focalnet=FocalNetConfig(embed_dim=32, depths=(1, 1, 2, 1), drop_path=0.0),
        clip_text=ClipTextConfig(
            vocab_size=512, width=96, num_blocks=2, num_heads=4, max_positions=40
        ),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_width=256),
        decoder=DecoderConfig(
            num_queries=17, num_layers=3, num_heads=4, ffn_width=256, mask_width=64
        ),
        heads=("mask",),
        num_classes=13,
    )
    task = SegmentationTask(share=1, sources=("expression_masks",), num_points=256, phrase_layers=3)
    return RunConfig(
        model=model,
        tasks=TasksConfig(segmentation=task),
        data=DataConfig(
            batch_size=16,
            # Scenes have one size.
            transform=TransformConfig(
                kind="scale_jitter", jitter_scale=(1.0, 1.0), flip_probability=0.5
            ),
        ),
        optim=OptimConfig(
            lr=1e-3,
            head_lr_multiplier=1.0,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            warmup_fraction=0.05,
            clip_norm=5.0,
        ),
        train=TrainConfig(steps=1500, checkpoint_every=300),
    )


def _published(task: SegmentationTask, changes: Mapping[str, Any]) -> RunConfig:
    """Configure a run with the published images and optimizer.

    `changes` overrides fields by dotted name.
    """
    config = RunConfig(
        # Images of 1024 pixels are cut out of larger ones; heads with other images are not trained.
        model=replace_fields(xdecoder_preset("focalt"), {"image_size": 1024, "heads": ("mask",)}),
        tasks=TasksConfig(segmentation=task),
        data=DataConfig(
            batch_size=8, transform=TransformConfig(kind="scale_jitter", flip_probability=0.5)
        ),
        optim=OptimConfig(
            # Encoders have a tenth of the published rate of 1e-4.
            lr=1e-5,
            head_lr_multiplier=10.0,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            published_decay=True,
            warmup_fraction=0.0,
            schedule="multistep",
            milestones=(0.88889, 0.96296),
            clip_norm=5.0,
        ),
        train=TrainConfig(
            # Not reached: `epochs` ends the run.
            steps=10_000_000,
            epochs=50.0,
            checkpoint_epochs=1.0,
            log_every=50,
            precision="bfloat16",
        ),
    )
    return replace_fields(config, changes)
