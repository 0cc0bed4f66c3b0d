"""Published coarse pre-training: contrast, matching and masked words on four million pictures.

Command: torchrun --nproc-per-node 8 -m fiber.cli train pretrain --data DIR --init TOWERS
Data: DIR/captions_train.json in COCO's form, with the captions of COCO, Visual Genome, SBU and
    Conceptual Captions, and their pictures below DIR/images. The original downloads in one folder
    (or the published Arrow files), each named in `fiber.data.opening`, are read with
    --set tasks.image_text.sources=coco_karpathy,visual_genome,sbu,conceptual_captions
Hardware: published on 64 GPUs with 8 samples a pass. `train.accumulation` times the number of
    processes times the samples of a pass must be `data.batch_size`.
Expected: no metric of its own; `vqav2`, `nlvr2`, `retrieval_coco` and `caption_coco` start from it.
    Hyper-parameters: configuration task_pretrain_mlm_itm_itc of the published code, whose
    contrast holds a queue of 4,096 older samples (`pretrain_published`, in 32 bit too); here it is
    the whole batch of a pass.
"""

from fiber.config import preset
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import ImageTextTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    return RunConfig(
        model=preset("base"),
        tasks=TasksConfig(image_text=ImageTextTask(share=1)),
        data=DataConfig(batch_size=4096),
        optim=OptimConfig(lr=1e-5, published_coarse=True),
        train=TrainConfig(
            steps=100_000,
            accumulation=8,
            precision="bfloat16",
            log_every=50,
            checkpoint_every=2500,
        ),
    )
