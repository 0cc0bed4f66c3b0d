"""The bench of masks: its baselines, its rows and its table."""

import numpy as np
import pytest

from fiber.synthetic.scenes import generate


def test_the_filled_box_has_the_pixels_whose_centers_are_in_it(bench):
    assert not bench.filled_box((1, 1, 1, 3), 5, 5).any()
    found = bench.filled_box((0.6, 1.0, 3.4, 2.5), 4, 5)
    assert np.argwhere(found).tolist() == [[1, 1], [1, 2]]


def test_colors_are_compared_with_that_of_the_center(bench):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[2, 3] = (3, 0, 4)
    distances = bench.color_distances(pixels, (1, 1, 6, 4))
    assert distances[2, 3] == 0
    assert (np.delete(distances.ravel(), 2 * 6 + 3) == 5).all()
    # A center on the border is that of the last pixel.
    assert bench.color_distances(pixels, (5, 2, 7, 6)).shape == (4, 6)


def test_the_page_has_the_table_of_the_rows(bench):
    rows = bench.Rows("evidence_masks", ("seed",)).rows
    block = f"{bench.START}\n{bench.table(rows)}\n{bench.END}\n"
    assert block in bench.PAGE.read_text(encoding="utf-8")


def test_masks_beat_both_baselines_for_every_seed(bench):
    for row in bench.Rows("evidence_masks", ("seed",)).rows:
        for split in bench.SPLITS:
            found, box, color = (
                float(row[f"{name}_ciou/{split}"]) for name in ("model", "box", "color")
            )
            assert found > box + 0.08
            assert found > color


@pytest.mark.slow
def test_a_seed_has_a_row_with_every_metric(bench, tmp_path):
    scenes = generate(tmp_path / "scenes", train=80, val=40, novel=40)
    steps = {"scenes_fine": 2, "scenes_fine_masks": 2}
    [row] = bench.run(scenes, 1, steps, expressions=20, fitted=10)
    assert row["seed"] == 1
    assert row["distance"] in bench.DISTANCES
    for split in bench.SPLITS:
        for name in ("model", "box", "color"):
            assert 0 <= float(row[f"{name}_ciou/{split}"]) <= 1
        # Masks change no box.
        assert row[f"plain_accuracy/{split}"] == row[f"masked_accuracy/{split}"]
    assert "one seed" in bench.table([row])
    assert "2 seeds" in bench.table([row, row])
