import importlib

import pytest
import torch

from fiber import recipes
from fiber.fields import from_dict, to_dict
from fiber.training.checkpoint import build_model
from fiber.training.optim import build_optimizer, freeze_image_stages, lr_factor
from fiber.training.run_config import RunConfig, load_recipe


def test_names_are_those_of_the_modules():
    assert {"scenes_coarse", "scenes_fine", "pretrain", "refcoco"} <= set(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_builds_and_survives_json(name):
    config = load_recipe(name)
    assert from_dict(RunConfig, to_dict(config)) == config
    with torch.device("meta"):
        model = build_model(config.model)
    freeze_image_stages(model, config.optim.frozen_image_stages)
    optimizer = build_optimizer(model, config.optim)
    grouped = sum(len(group["params"]) for group in optimizer.param_groups)
    assert grouped == sum(p.requires_grad for p in model.parameters())
    assert 0 <= lr_factor(0, config.train.steps, config.optim) < 1e-2


@pytest.mark.parametrize("name", recipes.names())
def test_docstring_says_how_to_run_it_and_what_to_expect(name):
    module = importlib.import_module(f"fiber.recipes.{name}")
    text = module.__doc__ or ""
    assert text.splitlines()[0].endswith(".")
    for part in ("Command:", "Data:", "Hardware:", "Expected:", f"train {name} --data"):
        assert part in text, part


def test_published_numbers_of_trained_parameters():
    # As measured on the published models: patch embedding, first stage and unused classes are
    # frozen in pre-training, the unused classes alone in fine-tuning.
    frozen = {}
    for name in ("grounding", "coco_detection"):
        config = load_recipe(name)
        with torch.device("meta"):
            model = build_model(config.model)
        freeze_image_stages(model, config.optim.frozen_image_stages)
        frozen[name] = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == {"grounding": 559_960, "coco_detection": 20_560}
