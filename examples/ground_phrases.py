"""Find phrases in a picture, print their boxes and draw them.

python examples/ground_phrases.py scenes drawing.png "a red circle" "the square"
"""

import argparse

import fiber

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("model", help="folder of a finished model of the fine stage")
options.add_argument("picture")
options.add_argument("phrases", nargs="+")
options.add_argument("--output", default="annotated.png")
given = options.parse_args()

model = fiber.load(given.model)
found = model.ground(given.picture, given.phrases)
for label, score, (x0, y0, x1, y1) in zip(
    found.labels, found.scores, found.boxes_xyxy, strict=True
):
    print(f"{score:.2f}  {label}: from ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}) pixels")
found.save(given.output)
