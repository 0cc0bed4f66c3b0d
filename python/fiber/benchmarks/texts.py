"""Captions, a class prompt and boxes for the benchmark, generated from fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Sequence

_CLASSES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
_LOOKS = """
small large young old red blue green white black brown wooden striped wet dusty colorful busy quiet
empty modern rusty
"""
_PEOPLE = """
man woman boy girl child skier surfer chef farmer tourist musician cyclist pedestrian toddler player
"""
_ACTIONS = """
holding, standing next to, sitting beside, looking at, walking past, leaning on, reaching for,
riding behind, playing with, taking a picture of, waiting near, carrying
"""
_PLACES = """
on a crowded street, in a kitchen, at the beach, in a grassy field, under a bridge,
near the window of a restaurant, in front of a brick building, on top of a snowy mountain,
in the middle of a parking lot, by the side of a river, inside a living room, at a train station,
during the afternoon, while people watch
"""


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


#: COCO's classes, in the order of their ids.
COCO_CLASSES = _phrases(_CLASSES)


def generate_captions(count: int) -> list[str]:
    """Generate the same captions on every call, about as long and repetitive as COCO's."""
    draw = random.Random("captions")
    looks, people = _LOOKS.split(), _PEOPLE.split()
    actions, places = _phrases(_ACTIONS), _phrases(_PLACES)

    def noun_phrase() -> str:
        name = draw.choice(COCO_CLASSES if draw.random() < 0.6 else people)
        words = f"{draw.choice(looks)} {name}" if draw.random() < 0.6 else name
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    captions = []
    for _ in range(count):
        text = f"{noun_phrase()} {draw.choice(actions)} {noun_phrase()} {draw.choice(places)}"
        text = text[0].upper() + text[1:]
        captions.append(f"{text}." if draw.random() < 0.7 else text)
    return captions


def class_prompt(boxes: int) -> tuple[str, list[tuple[int, int]]]:
    """Return a prompt of COCO's classes, and the (start, end) spans of `boxes` random classes."""
    spans, start = [], 0
    for name in COCO_CLASSES:
        spans.append((start, start + len(name)))
        start += len(name) + 2
    return ". ".join(COCO_CLASSES) + ".", random.Random("prompt").sample(spans, boxes)


def generate_boxes(
    sizes: Sequence[tuple[int, int]], fewest: int, most: int
) -> list[tuple[tuple[float, float, float, float], ...]]:
    """Generate boxes (x0, y0, x1, y1) in pixels inside images of the given (height, width)."""
    images = []
    for index, (height, width) in enumerate(sizes):
        draw = random.Random(f"boxes {index}")
        boxes = []
        for _ in range(draw.randint(fewest, most)):
            w, h = draw.uniform(0.05, 0.6) * width, draw.uniform(0.05, 0.6) * height
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            box = (left, top, left + w, top + h)
            boxes.append(tuple(round(value, 2) for value in box))
        images.append(tuple(boxes))
    return images
