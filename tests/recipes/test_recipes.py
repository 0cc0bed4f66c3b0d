import importlib
import inspect
import subprocess
import sys

import pytest
import torch

from fiber import recipes
from fiber.config import preset
from fiber.config_io import from_dict, to_dict
from fiber.evaluation.tasks import needed_head
from fiber.models.heads import HEAD_RECIPES
from fiber.models.meter.config import MeterConfig
from fiber.models.registry import build_model
from fiber.tasks.transform import RandAugmentConfig
from fiber.training.config.run import RunConfig, differences, load_recipe
from fiber.training.optim import build_optimizer, freeze, lr_factor
from fiber.training.task_loaders import training_transform


def test_registry_names_every_recipe_once():
    for family, names in recipes.families().items():
        module = importlib.import_module(f"fiber.recipes.{family}")
        # Public functions of the module that take no argument.
        defined = {
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
            and not inspect.signature(value).parameters
        }
        assert defined == set(names), family
    assert len(set(recipes.names())) == len(recipes.names()) == 52


def test_unknown_recipe():
    with pytest.raises(ValueError, match=r"'scenes_corse'.*scenes_coarse"):
        recipes.get("scenes_corse")


def no_recipe() -> int:
    return 3


def test_recipes_of_other_packages_are_named_by_their_place():
    assert load_recipe("fiber.recipes.small:small_vqa") == load_recipe("small_vqa")
    assert recipes.describe("fiber.recipes.small:small_vqa") == recipes.describe("small_vqa")
    for name, reason in {
        "no_such_package.recipes:mine": "no_such_package",
        f"{__name__}:absent": "absent",
        f"{__name__}:__name__": "expected a function",
        ":mine": "module",
    }.items():
        with pytest.raises(ValueError, match=rf"'{name}'.*{reason}"):
            recipes.get(name)
    with pytest.raises(ValueError, match=rf"'{__name__}:no_recipe'.*RunConfig.*3"):
        load_recipe(f"{__name__}:no_recipe")


def test_only_the_family_of_a_recipe_is_imported():
    code = (
        "import sys; from fiber import recipes; recipes.get('scenes_fine')();"
        " print([m for m in sys.modules if m.startswith('fiber.recipes.') or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fiber.recipes.small']"


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_builds_and_survives_json(name):
    config = load_recipe(name)
    assert from_dict(RunConfig, to_dict(config)) == config
    with torch.device("meta"):
        model = build_model(config.model)
    freeze(model, config.optim.frozen)
    optimizer = build_optimizer(model, config.optim)
    grouped = sum(len(group["params"]) for group in optimizer.param_groups)
    assert grouped == sum(p.requires_grad for p in model.parameters())
    # It rises from little, but where nothing is to warm up.
    first = lr_factor(0, config.train.steps, config.optim)
    assert first == 1 if config.optim.warmup_fraction == 0 else 0 <= first < 1e-2


@pytest.mark.parametrize(
    ("size", "head"), [(size, head) for size in HEAD_RECIPES for head in HEAD_RECIPES[size]]
)
def test_the_recipe_named_for_a_head_trains_it(size, head):
    run = load_recipe(HEAD_RECIPES[size][head])
    is_fine = "grounding" in run.model.heads
    assert head in (run.model.heads if is_fine else run.needed_heads())
    sizes = {name: preset(name).roberta.width for name in ("base", "small")}
    assert run.model.roberta.width == sizes.get(size, sizes["base"])
    assert isinstance(run.model, MeterConfig) == (size == "meter")


@pytest.mark.parametrize("name", recipes.names())
def test_docstring_says_how_to_run_it_and_what_to_expect(name):
    text = recipes.describe(name)
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
        freeze(model, config.optim.frozen)
        frozen[name] = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == {"grounding": 559_960, "coco_detection": 20_560}


def test_published_fine_tuning_on_odinw():
    """The specification's section 5.4, and its second row for few pictures."""
    config = load_recipe("odinw_full")
    optim, train, transform = config.optim, config.train, config.data.transform
    assert (optim.lr, optim.text_lr_multiplier, optim.weight_decay) == (1e-4, 0.1, 0.05)
    assert (optim.warmup_fraction, len(optim.frozen), train.ema_decay) == (0, 2, 0)
    assert (optim.schedule, optim.plateau_patience, optim.plateau_least_lr) == ("plateau", 3, 1e-6)
    assert (train.epochs, train.checkpoint_epochs, config.validation.stop_after) == (200, 1, 8)
    assert (config.data.batch_size, train.seed, transform.shorter_sides) == (4, 10, (800,))
    few = load_recipe("odinw_few_shot")
    assert {line.partition(":")[0] for line in differences(config, few)} == {
        "data.shots",
        "train.epochs",
        "train.checkpoint_epochs",
    }
    # One pass is over eight copies.
    assert few.train.epochs / few.train.checkpoint_epochs == 200
    assert few.with_length(4).train.steps == 1600


#: Recipe -> learning rate, factor of heads, samples of a step, tokens, pixels (specification of the
#: coarse stage, section 4); 5 on what joins the modalities, a tenth of the steps to warm up.
PUBLISHED = {
    "pretrain": (1e-5, 5, 4096, 40, 384),
    "pretrain_published": (1e-5, 5, 4096, 40, 384),
    "nlvr2": (2e-5, 50, 256, 50, 384),
    "vqav2": (2e-5, 50, 512, 50, 576),
    "retrieval_coco": (2e-5, 5, 1024, 50, 576),
    "retrieval_coco_itm": (2e-5, 5, 1024, 50, 384),
    "retrieval_flickr30k": (2e-5, 5, 1024, 50, 576),
    "retrieval_flickr30k_itm": (2e-5, 5, 1024, 50, 384),
    "caption_coco": (5e-5, 5, 512, 50, 576),
    "caption_coco_gold": (1e-5, 5, 512, 50, 576),
    "caption_coco_cider": (1e-6, 5, 512, 50, 576),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyper_parameters_of_the_coarse_stage(name):
    config = load_recipe(name)
    optim, model = config.optim, config.model
    found = optim.lr, optim.head_lr_multiplier, config.data.batch_size
    assert (*found, model.max_tokens, model.image_size) == PUBLISHED[name]
    assert (optim.cross_modal_lr_multiplier, optim.weight_decay, optim.warmup_fraction) == (
        5,
        0.01,
        0.1,
    )
    assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.98), 1e-8, 0)
    assert optim.published_coarse and optim.warmup_start == 0 and optim.schedule == "linear"
    assert model.swin.window_size == model.image_size // 32
    transform, augments = config.data.transform, not name.startswith("pretrain")
    assert (transform.kind == "crop") == augments
    assert transform.flip_probability == (0.5 if augments else 0)
    assert transform.rand_augment == RandAugmentConfig(num_ops=2 if augments else 0)
    # What the core fills in: the specification's section 5.
    described = training_transform(model, transform).describe()
    assert (described["size"], described["filter"]) == (model.image_size, "bicubic")
    if augments:
        assert (described["scale"], described["ratio"]) == ((0.5, 1.0), (3 / 4, 4 / 3))
        drawn = described["rand_augment"]
        assert (drawn["magnitude"], drawn["probability"], len(drawn["operations"])) == (7, 0.5, 10)
    else:
        assert described["rand_augment"] is None


def test_published_self_critical_training():
    task = load_recipe("caption_coco_cider").tasks.caption
    assert (task.objective, task.cider_samples, task.cider_baseline) == ("cider", 5, "constant")
    assert task.weights() == pytest.approx({"caption": 0.3, "self_critical": 0.7, "cider_d": 0})
    changed = {line.partition(":")[0] for line in differences(*map(load_recipe, CAPTIONS))}
    assert changed == {"tasks.caption.objective", "optim.lr"}


#: The second stage of captions and the third.
CAPTIONS = "caption_coco_gold", "caption_coco_cider"

#: Recipes that leave the split to choose on out of training -> (training samples, epochs) of these
#: and of the published variant, which trains on it: captions of Karpathy's splits (COCO: 82,783 and
#: 5,000 pictures; Flickr30k: 29,000 and 1,014 with five captions each), questions of VQAv2.
SAMPLES = {
    "vqav2": (443_757, 658_111, 10),
    "retrieval_coco": (414_113, 439_000, 10),
    "retrieval_coco_itm": (414_113, 439_000, 10),
    "retrieval_flickr30k": (145_000, 150_070, 10),
    "retrieval_flickr30k_itm": (145_000, 150_070, 10),
    "caption_coco": (414_113, 439_000, 10),
    "caption_coco_gold": (414_113, 439_000, 10),
    "caption_coco_cider": (414_113, 439_000, 10),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_published_variants_differ_in_what_was_published_and_in_nothing_else(name):
    own, published = load_recipe(name), load_recipe(f"{name}_published")
    assert (own.data.split, published.data.split) == ("train", "train+val")
    *counts, epochs = SAMPLES[name]
    for config, samples in zip((own, published), counts, strict=True):
        # A last, incomplete step of every epoch counts or not.
        assert config.train.steps == pytest.approx(
            epochs * samples / config.data.batch_size, abs=10
        )
    assert published.train.precision == "float32"
    # The published code chose a step on the test split, or on questions that it had trained on.
    assert own.validation.task is not None and published.validation.task is None
    changed = {"data.split", "train.steps", "train.precision", "validation.task"}
    changed |= {"validation.pictures"} if own.validation.pictures else set()
    if published.tasks.image_text.itc and "image_text" in published.tasks.active():
        task = published.tasks.image_text
        assert (task.itc_form, task.queue_length) == ("queue", 4096)
        # 4,096 is the form's own length.
        changed.add("tasks.image_text.itc_form")
    if published.tasks.caption.objective == "gold":
        assert published.tasks.caption.gold_divisor == "padding"
        changed.add("tasks.caption.gold_divisor")
    assert {line.partition(":")[0] for line in differences(own, published)} == changed


def test_published_variants_that_choose_no_step():
    changed = [
        {line.partition(":")[0] for line in differences(load_recipe(name), published)}
        for name in ("pretrain", "nlvr2")
        for published in [load_recipe(f"{name}_published")]
    ]
    assert changed == [
        {"data.split", "tasks.image_text.itc_form", "train.precision"},
        {"train.precision"},
    ]
    # COCO's part; the other sets have a training split alone.
    assert load_recipe("pretrain_published").data.split == "train+val"


@pytest.mark.parametrize("name", recipes.names())
def test_a_step_is_chosen_by_a_head_that_the_recipe_trains(name):
    config = load_recipe(name)
    task = config.validation.task
    measured = {needed_head(task, config.model.heads)} if task else set()
    boxes = {"grounding"} & set(config.tasks.active())
    assert measured <= set(config.needed_heads()) | boxes
    # A run is measured more than once, or nothing would be chosen.
    assert not task or config.train.steps >= 2 * config.train.checkpoint_every > 0
