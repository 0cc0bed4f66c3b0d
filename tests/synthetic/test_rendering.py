"""Pictures of scenes: outlines, boxes from alpha."""

import numpy as np
import pytest

from fiber.data.rng import Rng
from fiber.synthetic.rendering import draw_scene, shape_distance
from fiber.synthetic.scene_graph import RADII, SHAPES, SIZES, Scene, Thing
from fiber.synthetic.scenes import SceneRecipe


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_bounds_of_alpha_above_a_half(shape):
    """Against the same outline cut up 16 times finer, counted pixel by pixel."""
    for size in SIZES:
        thing = Thing(shape, "white", size, "plain", x=31.3, y=24.8, radius=RADII[size][0] * 64)
        _, (box,), *_ = draw_scene_without_jitter(thing)
        fine = (np.arange(64 * 16) + 0.5) / 16
        u, v = fine[None, :] - thing.x, fine[:, None] - thing.y
        inside = shape_distance(shape, u + 0 * v, v + 0 * u, thing.radius) < 0
        coverage = inside.reshape(64, 16, 64, 16).mean((1, 3))
        rows, columns = np.nonzero(coverage > 0.5)
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # Where the outline has a sharp tip, distance and coverage may differ by a pixel.
        assert np.abs(np.subtract(box, expected)).max() <= 1
        across = box[2] - box[0], box[3] - box[1]
        low, high = (9, 18) if size == "small" else (15, 30)
        assert all(low <= side <= high for side in across)


def draw_scene_without_jitter(thing):
    """Draw one thing, not turned."""

    class Middle(Rng):
        def uniform(self, low, high):
            return (low + high) / 2

    return draw_scene(Scene((thing,)), 64, Middle(0, 0, 0))


def test_shapes_are_distinct():
    """No two shapes of one size overlap by more than nine tenths (IoU)."""
    steps = np.arange(-20, 20) + 0.5
    u, v = np.meshgrid(steps, steps)
    masks = [shape_distance(shape, u, v, 14.0) < 0 for shape in SHAPES]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask & other).sum() / (mask | other).sum() < 0.85


def test_objects_of_varied_scenes_stand_out_from_their_background():
    recipe = SceneRecipe(varied=True)
    corners = []
    for index in range(60):
        image, boxes, *_ = recipe.render("train", index)
        image = image.astype(float)
        corners.append(image[0, 0])
        for (x0, y0, x1, y1), thing in zip(boxes, recipe.scene("train", index).things, strict=True):
            inside = image[y0:y1, x0:x1].reshape(-1, 3)
            assert np.linalg.norm(inside - image[0, 0], axis=1).max() > 60, (index, thing)
    plain = [corner for corner in corners if (corner > 250).all()]
    assert 3 < len(plain) < 30  # up to a quarter of the backgrounds is white
    assert recipe.parameters() == {"varied": True}
    assert SceneRecipe().parameters() == {}
