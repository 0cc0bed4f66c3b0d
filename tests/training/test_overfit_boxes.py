"""The fine stage learns the boxes of 32 pictures by heart, from the pictures and the texts.

Each picture shows two things and has an expression for one of them, "the heart" or "the striped
object", so that a picture alone does not tell which is meant. The same expression is asked of three
other pictures, where what it means lies elsewhere, and the prompt of all classes is the same for
every picture: texts alone do not tell where anything is. So what was learned must be lost when
every text is asked about the picture of another one.
"""

from pathlib import Path

import numpy as np
import pytest

from fiber.checkpoints.model_dir import StoredModel, load_model
from fiber.config import preset
from fiber.data import sources
from fiber.data.record import Record
from fiber.evaluation import box_baselines
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.detection import TrueBoxes
from fiber.synthetic.scenes import generate
from fiber.training.train import train
from tests.training.test_overfit import LEARNED, SAMPLES, balanced, with_luck

pytestmark = pytest.mark.slow

SIDE = 64
#: Things in a picture, and pictures that are asked for the same expression.
THINGS, ALIKE = 2, 4
#: Fields of the recipe `scenes_fine` that change: what 32 pictures and a model from nothing need.
CHANGES = {
    "model": preset("micro", stage="fine"),
    "model.weight_start": "fan_in",
    "model.max_tokens": 24,
    "model.fusion.gate_start": 1.0,
    "data.batch_size": SAMPLES,
    "data.transform.shorter_sides": (SIDE,),
    "data.transform.max_size": SIDE,
    "optim.lr": 1e-3,
    "optim.head_lr_multiplier": 1.0,
    "train.steps": 250,
    "train.checkpoint_every": 0,
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Pictures from which samples are chosen."""
    folder = tmp_path_factory.mktemp("overfit_boxes") / "scenes"
    return generate(folder, train=800, val=1, novel=1, image_size=SIDE, max_objects=THINGS)


def samples(scenes: Path) -> tuple[list[Record], list[Record]]:
    """Expressions about 32 pictures, and the same pictures with all classes."""
    pictures = {record.image_id: record for record in sources.detection(scenes, "train")}
    short = [
        record
        for record in sources.referring(scenes, "train")
        if len(pictures[record.image_id].boxes_xyxy) == THINGS and len(record.text.split()) <= 3
    ]
    expressions = balanced(short, lambda record: record.boxes_xyxy, answers=ALIKE)
    return expressions, [pictures[record.image_id] for record in expressions]


def without_picture(expressions: list[Record]) -> float:
    """Recall of the one box for each expression that is right in most of its pictures."""
    shares = []
    for text in dict.fromkeys(record.text for record in expressions):
        own = [record.boxes_xyxy[0] for record in expressions if record.text == text]
        shares.append(box_baselines.frequent_boxes(own).shares[0])
    return float(np.mean(shares))


def measure(
    model: StoredModel, expressions: list[Record], pictures: list[Record], *, permuted: bool
) -> tuple[float, float]:
    """Recall at 1 of the expressions, AP50 of the pictures."""
    options = {"threads": 1, "permute_images": permuted}
    recall = evaluate(model, "flickr", data=expressions, **options)["any_recall_at_1"]
    return recall, evaluate(model, "coco", data=pictures, **options)["ap50"]


def test_fine_stage_learns_32_pictures_and_permuted_pictures_lose_it(scenes, tmp_path):
    expressions, pictures = samples(scenes)
    assert len({record.image_id for record in expressions}) == SAMPLES
    run = train(
        "scenes_fine",
        data=[*expressions, *pictures],
        output=tmp_path / "run",
        set=CHANGES,
        tokenizer=scenes / "tokenizer.json",
        device="cpu",
        threads=1,
        quiet=True,
    )
    model = load_model(run.folder)
    recall, ap50 = measure(model, expressions, pictures, permuted=False)
    lost_recall, lost_ap50 = measure(model, expressions, pictures, permuted=True)
    print(f"R@1 {recall:.3f}, AP50 {ap50:.3f}; permuted: R@1 {lost_recall:.3f}, {lost_ap50:.3f}")
    assert recall >= LEARNED
    assert ap50 >= LEARNED

    # Who sees another picture does no better than who sees none but knows all these boxes: for
    # recall but for the luck of 32 draws, for AP50 with ten boxes of each class.
    bound = with_luck(without_picture(expressions), SAMPLES)
    assert bound < 0.6
    assert lost_recall <= bound
    truths = [TrueBoxes(record.boxes_xyxy, record.box_labels) for record in pictures]
    bound = box_baselines.detection_blind(truths, truths)["ap50"]
    assert bound < 0.2
    assert lost_ap50 <= bound
