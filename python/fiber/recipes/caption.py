"""Fine-tuning for captioning: maximum likelihood, then GOLD, then CIDEr-D."""

from __future__ import annotations

from fiber.config_io import replace_fields
from fiber.recipes.finetune import as_published, finetune
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import CaptionTask, TasksConfig

#: Steps in ten epochs over Karpathy's train and val splits.
_PUBLISHED_STEPS = 8574


def caption_coco() -> RunConfig:
    """Published COCO captioning, stage 1 (maximum likelihood): ten epochs of 414,113 captions.

    Command: fiber train caption_coco --data DIR --init PRETRAINED --processes 8
    Data: DIR/dataset_coco.json with Karpathy's splits, and train2014 and val2014 in DIR (or
        captions in any other supported format, such as your own .jsonl). Trains on the split
        "train" and keeps the checkpoint with the best CIDEr-D on 1,000 images of "val". Most other
        work trains with `--set data.split=train+restval`; for FIBER's own run, see
        `caption_coco_published`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU.
    Expected: FIBER's README gives CIDEr 144.4 on the Karpathy test split after two more stages,
        GOLD (`caption_coco_gold`) and CIDEr-D (`caption_coco_cider`), but no number for this one.
    """
    return finetune(
        "caption",
        TasksConfig(caption=CaptionTask(share=1)),
        image_size=576,
        lr=5e-5,
        changes={
            "optim.head_lr_multiplier": 5.0,
            "train.steps": 8088,
            "validation.task": "caption",
            "validation.pictures": 1000,
        },
    )


def caption_coco_published() -> RunConfig:
    """Published COCO captioning, stage 1, on train and val, for ten epochs of 439,000 captions.

    Command: fiber train caption_coco_published --data DIR --init PRETRAINED --processes 8
    Data: as for `caption_coco`. Trains on Karpathy's "train" and "val" together and skips
        "restval". The published code uses the test split as "val" and selects its checkpoint on it,
        so the published scores are not on unseen images. This recipe keeps the last checkpoint.
    Hardware: the published run used 8 GPUs, 8 samples per GPU.
    Expected: as for `caption_coco`.
    """
    return as_published(caption_coco(), steps=_PUBLISHED_STEPS)


def caption_coco_gold() -> RunConfig:
    """Published COCO captioning, stage 2 (off-policy GOLD): ten epochs of 414,113 captions.

    Command: fiber train caption_coco_gold --data DIR --init CAPTIONS --processes 8
    Data: as for `caption_coco`. CAPTIONS is the finished model of `caption_coco`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU. A frozen copy of the model is also
        kept in memory.
    Expected: FIBER's README gives no number for this stage. This recipe divides a caption's loss by
        its number of target tokens, the published code by its number of positions without a target
        (see `caption_coco_gold_published`).
    """
    changes = {"tasks.caption.objective": "gold", "optim.lr": 1e-5}
    return replace_fields(caption_coco(), changes)


def caption_coco_gold_published() -> RunConfig:
    """Published COCO captioning, stage 2, on train and val, for ten epochs of 439,000 captions.

    Command: fiber train caption_coco_gold_published --data DIR --init MODEL --processes 8
    Data: as for `caption_coco_published`. MODEL is the finished model of `caption_coco_published`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU.
    Expected: FIBER's README gives no number for this stage. A caption's loss is divided by its
        number of positions without a target, as in the published code.
    """
    changes = {"tasks.caption.gold_divisor": "padding"}
    return as_published(caption_coco_gold(), steps=_PUBLISHED_STEPS, changes=changes)


def caption_coco_cider() -> RunConfig:
    """Published COCO captioning, stage 3 (self-critical CIDEr-D): ten epochs of 414,113 captions.

    Command: fiber train caption_coco_cider --data DIR --init GOLD --processes 8
    Data: as for `caption_coco`. GOLD is the finished model of `caption_coco_gold`. Document
        frequencies are computed from the training captions. The published run read them from
        coco-train-words.p, which was not released; to use such a file, add
        `--set tasks.caption.cider_frequencies=FILE`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU; each step also samples five captions
        per image.
    Expected: FIBER's README gives CIDEr 144.4 on the Karpathy test split after this stage.
    """
    changes = {"tasks.caption.objective": "cider", "optim.lr": 1e-6}
    return replace_fields(caption_coco(), changes)


def caption_coco_cider_published() -> RunConfig:
    """Published COCO captioning, stage 3, on train and val, for ten epochs of 439,000 captions.

    Command: fiber train caption_coco_cider_published --data DIR --init MODEL --processes 8
    Data: as for `caption_coco_published`. MODEL is the finished model of
        `caption_coco_gold_published`. Document frequencies are as for `caption_coco_cider`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU.
    Expected: FIBER's README gives CIDEr 144.4 on the Karpathy test split after this stage.
    """
    return as_published(caption_coco_cider(), steps=_PUBLISHED_STEPS)
