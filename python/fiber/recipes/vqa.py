"""Fine-tuning for visual question answering."""

from __future__ import annotations

from fiber.recipes.finetune import as_published, finetune
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import QuestionTask, TasksConfig


def vqav2() -> RunConfig:
    """Published fine-tuning on VQAv2 for ten epochs of 443,757 questions.

    Command: fiber train vqav2 --data DIR --init PRETRAINED --processes 8
    Data: DIR/v2_OpenEnded_mscoco_train2014_questions.json, DIR/v2_mscoco_train2014_annotations.json
        and DIR/train2014 (or questions in any other supported format, such as your own .jsonl).
        Trains on the split "train" and keeps the checkpoint with the best accuracy on 4,000 images
        of "val". For the published run, see `vqav2_published`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU.
    Expected: below 78.55 on test-dev, the result of the published run, which trains on 1.5 times as
        many questions. The answer list is the data's 3,129 most frequent top-scoring answers. The
        published list contains normalized answers that occur at least nine times. To use it, build
        it from VQAv2's train and val annotations with `fiber data answers DIR --output FILE`, and
        add `--answers FILE`. Training skips and counts questions without an answer in the list, as
        in the published code. In evaluation, these questions score 0; the published code skips
        them.
    """
    return finetune(
        "vqa",
        TasksConfig(question=QuestionTask(share=1)),
        image_size=576,
        lr=2e-5,
        changes={"train.steps": 8667, "validation.task": "vqa", "validation.pictures": 4000},
    )


def vqav2_published() -> RunConfig:
    """Published fine-tuning on VQAv2 train and val for ten epochs of 658,111 questions.

    Command: fiber train vqav2_published --data DIR --init PRETRAINED --processes 8
    Data: as for `vqav2`, plus the same files for val2014. Trains on train and val together, so only
        the evaluation server's test splits can be used for evaluation; the published code reports
        val accuracy on questions that it trained on. Trains in float32, as in the published run.
        The answer list is that of `vqav2`. To use the published list of 3,129 answers, build it
        from the same files with `fiber data answers DIR --output FILE`, and add `--answers FILE`.
    Hardware: the published run used 8 GPUs, 8 samples per GPU.
    Expected: 78.55 on test-dev and 78.46 on test-std (FIBER's README).
    """
    return as_published(vqav2(), steps=12_850)
