"""Train a small detector on records of your own: any list of `fiber.data.Record` will do.

python examples/train_on_your_own_records.py runs/own

The pictures here are drawn on the spot; yours are paths or bytes of files.
"""

import argparse
import io
import random

from PIL import Image, ImageDraw

import fiber
from fiber.config import preset
from fiber.data import Record, Tokenizer
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("output", help="folder of the run")
options.add_argument("--steps", type=int, default=150)
given = options.parse_args()

COLORS = {"red": (210, 40, 40), "blue": (40, 60, 210), "green": (40, 160, 60)}


def draw_record(number: int) -> Record:
    """Draw two squares, and say which one is meant."""
    draws = random.Random(number)
    picture = Image.new("RGB", (64, 64), (225, 220, 210))
    named, other = draws.sample(list(COLORS), 2)
    boxes = []
    for left, color in ((draws.randint(2, 8), named), (draws.randint(36, 40), other)):
        side, top = draws.randint(16, 22), draws.randint(4, 38)
        boxes.append((left, top, left + side, top + side))
        # PIL counts the last pixel of a rectangle in; boxes of fiber end where it ends.
        ImageDraw.Draw(picture).rectangle(
            (left, top, left + side - 1, top + side - 1), fill=COLORS[color]
        )
    file = io.BytesIO()
    picture.save(file, "PNG")
    text = f"the {named} square"
    return Record(
        key=f"drawn/{number}",
        images=(file.getvalue(),),
        text=text,
        boxes_xyxy=(boxes[0],),
        # Which characters of the text name the box.
        char_spans=(((0, len(text)),),),
        labels=(text,),
        label_spans=(((0, len(text)),),),
        box_labels=(0,),
    )


records = [draw_record(number) for number in range(200)]
tokenizer = Tokenizer.train([record.text for record in records], vocab_size=300)

run = RunConfig(
    model=preset("micro", stage="fine"),
    tasks=TasksConfig(grounding=GroundingTask(share=1)),
    data=DataConfig(
        batch_size=16, transform=TransformConfig(kind="shorter_side", shorter_sides=(64,))
    ),
    optim=OptimConfig(
        lr=2e-3, head_lr_multiplier=1.0, cross_modal_lr_multiplier=2.0, clip_norm=1.0
    ),
    train=TrainConfig(steps=given.steps, log_every=10, checkpoint_every=0),
)
fiber.train(run, data=records, output=given.output, tokenizer=tokenizer)

# Pictures that training has not seen; a box counts that covers the right one by half.
model = fiber.load(given.output)
tests = [draw_record(number) for number in range(1000, 1050)]
found = model.ground([test.images[0] for test in tests], [[test.text] for test in tests])
right = 0
for test, boxes in zip(tests, found, strict=True):
    x0, y0, x1, y1 = test.boxes_xyxy[0]
    left, top, right_edge, bottom = boxes.boxes_xyxy[0]
    width = max(min(x1, right_edge) - max(x0, left), 0)
    height = max(min(y1, bottom) - max(y0, top), 0)
    union = (x1 - x0) * (y1 - y0) + (right_edge - left) * (bottom - top) - width * height
    right += width * height >= 0.5 * union
print(f"{right} of {len(tests)} squares found")
