"""A step is the same on any number of ranks, in any number of passes."""

import itertools
from pathlib import Path

import pytest
import torch

from tests.losses.two_ranks import run_on_ranks
from tests.strategies import FLOAT32_LIMITS, differences
from tests.training.distributed.strategy_runs import trained
from tests.training.micro_runs import make_data

pytestmark = pytest.mark.slow

#: Not a multiple of 3 ranks.
BATCH = 8
COMMON = {"data__batch_size": BATCH}


def run(output, pictures, stage, changes):
    """Train in a rank, or alone."""
    torch.set_num_threads(1)
    return trained(Path(pictures), Path(output), stage, **COMMON, **changes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    make_data(folder := tmp_path_factory.mktemp("pictures"))
    return folder


def compare(pictures, tmp_path, stage, settings, changes):
    whole = run(str(tmp_path / "whole"), str(pictures), stage, changes)
    for ranks, parts in settings:
        samples = -(-BATCH // ranks // parts) if parts > 1 else 0
        options = changes | {"train__samples_per_pass": samples}
        place = tmp_path / f"{ranks}-{parts}"
        place.mkdir()
        arguments = str(place / "run"), str(pictures), stage, options
        found = run(*arguments) if ranks == 1 else run_on_ranks(ranks, run, place, *arguments)[0]
        losses, norms = differences(whole, found)
        assert losses <= FLOAT32_LIMITS[0], (ranks, parts)
        assert norms <= FLOAT32_LIMITS[1], (ranks, parts)


def test_contrast_over_the_step(pictures, tmp_path):
    """ITC, hard negatives and MLM of one step, in 1, 2 and 4 passes on 1, 2 and 3 ranks."""
    shares = {f"tasks__{name}__share": 0 for name in ("question", "reasoning", "caption")}
    settings = [each for each in itertools.product((1, 2, 3), (1, 2, 4)) if each != (1, 1)]
    compare(pictures, tmp_path, "coarse", settings, shares)


@pytest.mark.parametrize("stage", ["coarse", "fine", "meter"])
def test_every_task(pictures, tmp_path, stage):
    changes = {"tasks__image_text__itm_negatives": "half"} if stage == "coarse" else {}
    compare(pictures, tmp_path, stage, [(1, 4), (3, 1), (3, 3)], changes)


@pytest.mark.parametrize("stage", ["coarse", "fine", "meter"])
def test_dropout_by_row(pictures, tmp_path, stage):
    changes = {"train__draws": "row", "model__roberta__dropout": 0.1}
    if stage == "meter":
        changes["model__cross__dropout"] = 0.1
    else:
        changes["model__swin__drop_path"] = 0.1
    if stage == "fine":
        changes["model__detector__drop_block"] = True
    compare(pictures, tmp_path, stage, [(1, 4), (2, 1), (3, 1), (3, 3)], changes)


def test_dropout_by_row_of_sampled_captions(pictures, tmp_path):
    shares = {f"tasks__{name}__share": 0 for name in ("question", "reasoning", "image_text")}
    changes = shares | {"tasks__caption__objective": "cider", "model__roberta__dropout": 0.1}
    compare(pictures, tmp_path, "coarse", [(1, 4), (3, 1)], changes | {"train__draws": "row"})
