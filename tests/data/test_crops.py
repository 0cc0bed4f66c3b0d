"""Parts cut out of pictures: boxes, words and spans stay together."""

import io

import numpy as np
import pytest
from PIL import Image

from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import Record

HEIGHT, WIDTH = 60, 100
#: Boxes of different colours on black, with the class of each.
BOXES = {
    "left mug": ((4, 6, 24, 30), (250, 0, 0)),
    "dog": ((70, 30, 96, 56), (0, 250, 0)),
    "tree": ((40, 20, 60, 40), (0, 0, 250)),
}
PROMPT = class_prompt([*BOXES, "right mug"])
TOKENIZER = Tokenizer.train([PROMPT.text, "right mug. left mug"] * 20, 300)


def record(names=tuple(BOXES), key="a"):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (x0, y0, x1, y1), colour in BOXES.values():
        pixels[y0:y1, x0:x1] = colour
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    places = [list(BOXES).index(name) for name in names]
    return Record(
        key=key,
        images=(file.getvalue(),),
        text=PROMPT.text,
        boxes_xyxy=tuple(BOXES[name][0] for name in names),
        char_spans=tuple(PROMPT.spans[place] for place in places),
    )


def batches(records, times, **settings):
    """Samples one by one, as many as asked for, and the loader that made them."""
    transform = ImageTransform.shorter_side(
        [48],
        200,
        **{"crop_probability": 1.0, "crop_scale": (0.2, 0.7), "filter": "bilinear", **settings},
    )
    loader = DataLoader(
        records,
        "grounding",
        tokenizer=TOKENIZER,
        transform=transform,
        batch_size=1,
        max_tokens=64,
        threads=1,
    )
    stream = loader.stream()
    return [next(stream) for _ in range(times)], loader


@pytest.mark.parametrize("flip", [0.0, 1.0], ids=["as it is", "mirrored"])
def test_boxes_follow_their_pixels_and_keep_their_words(flip):
    found, loader = batches([record()], 60, flip_probability=flip)
    total = sum(int(batch.boxes_per_image[0]) for batch in found)
    assert loader.cropped_boxes == 3 * len(found) - total
    assert 0.3 * 180 < total < 0.9 * 180
    seen = set()
    for batch in found:
        # The text is whole: what lost its box is a class that is not there.
        text = TOKENIZER.decode(batch.token_ids[0].tolist())
        assert text == ("left mug. dog. tree. right mug" if not flip else _mirrored())
        height, width = batch.image_sizes[0].tolist()
        assert min(height, width) == 48
        picture = batch.images[0].permute(1, 2, 0).numpy()
        for box, row in zip(batch.boxes_xyxy, batch.positive_map, strict=True):
            ids = [i for i, on in zip(batch.token_ids[0].tolist(), row.tolist(), strict=True) if on]
            named = TOKENIZER.decode(ids).strip()
            name = named.replace("right", "left") if flip else named
            assert named == (name.replace("left", "right") if flip else name)
            seen.add(name)
            x0, y0, x1, y1 = box.tolist()
            # Ends that are mirrored are rounded.
            assert -1e-9 < x0 < x1 < width + 1e-9 and 0 <= y0 < y1 < height + 1e-9
            # The middle of the box has the colour of its class.
            middle = picture[int((y0 + y1) / 2), int((x0 + x1) / 2)]
            assert np.argmax(middle) == np.argmax(BOXES[name][1])
    assert seen == set(BOXES)


def _mirrored():
    return "right mug. dog. tree. left mug"


def test_the_one_box_of_an_expression_is_never_lost():
    found, loader = batches([record(("dog",))], 60)
    assert [batch.boxes_per_image.tolist() for batch in found] == [[1]] * 60
    assert loader.cropped_boxes == 0
    whole = [batch.image_sizes[0].tolist() == [48, 80] for batch in found]
    assert 5 < sum(whole) < 55


def test_pictures_without_boxes_are_cut_too():
    found, _ = batches([record(())], 20)
    assert all(batch.boxes_per_image.tolist() == [0] for batch in found)
    assert any(batch.image_sizes[0].tolist() != [48, 80] for batch in found)


def test_without_a_probability_nothing_is_cut():
    found, _ = batches([record()], 10, crop_probability=0.0)
    assert all(batch.image_sizes[0].tolist() == [48, 80] for batch in found)
    plain = ImageTransform.shorter_side([48], 200).describe()
    assert (plain["crop_probability"], plain["crop_scale"]) == (0, [0.5, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_probability": 1.5}, "crop_probability: 1.5; expected 0 to 1"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale: \(0.0, 1.0\); expected a range"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform.shorter_side([48], 200, **settings)
