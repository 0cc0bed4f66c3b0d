"""METER's published runs: their numbers, and a step of each with a small model."""

import dataclasses
import json
import math
import re
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

import fiber
from fiber import recipes
from fiber.checkpoints.encoders import encoder_states
from fiber.cli import main
from fiber.config_io import replace_fields
from fiber.data import RandAugment
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.models.meter.config import METER_PRESETS, METER_TEXT_ENCODERS, meter_preset
from fiber.models.meter.keys import meter_keys
from fiber.models.meter.preprocess import CLIP_STATISTICS
from fiber.models.registry import build_model
from fiber.synthetic.scenes import generate
from fiber.training.config.run import load_recipe
from fiber.training.optim import build_optimizer, freeze, lr_factor
from fiber.training.run_dir import RunFolder
from fiber.training.task_loaders import training_transform
from fiber.training.train import train
from tests.golden import METER
from tests.published_keys import METER_FILES as FILES
from tests.published_keys import meter_shapes as keys_of
from tests.training.test_meter import TINY

#: Recipe -> the file of its run, whose configuration was recorded.
RUNS = {
    "meter_pretrain_published": "meter_clip16_288_roberta_pretrain.ckpt",
    "meter_vqav2_published": "meter_clip16_288_roberta_vqa.ckpt",
    "meter_nlvr2_published": "meter_clip16_288_roberta_nlvr2.ckpt",
    "meter_snli_ve_published": "meter_clip16_288_roberta_snli.ckpt",
    "meter_retrieval_coco_published": "meter_clip16_288_roberta_coco.ckpt",
    "meter_retrieval_flickr30k_published": "meter_clip16_288_roberta_flickr.ckpt",
}
#: Recipe -> training splits, split that selects the checkpoint (specification, sections 4 to 6).
#: The published "val" of COCO and Flickr30k is the test split, and that of VQAv2 is trained on.
SPLITS = {
    "meter_pretrain_published": ("train+restval", None),
    "meter_vqav2_published": ("train+val", None),
    "meter_nlvr2_published": ("train", "dev"),
    "meter_snli_ve_published": ("train", "dev"),
    "meter_retrieval_coco_published": ("train+restval", None),
    "meter_retrieval_flickr30k_published": ("train+val", None),
}
#: Loss of the published code -> ours. Its numbers only switch losses on.
LOSSES = {"irtr": "rank"}
#: Tensors of published files that nothing reads, and those that are no parameters.
NO_PARAMETERS = re.compile(r".*\.(position_ids|relative_position_index|attn_mask)")


def published(name):
    return FILES[RUNS[name]]["config"]


def test_every_recipe_has_a_recorded_run():
    assert set(recipes.families()["meter"]) == set(RUNS) == set(SPLITS)


@pytest.mark.parametrize("name", RUNS)
def test_published_hyper_parameters(name):
    config, theirs = load_recipe(name), published(name)
    optim, train_config, model, data = config.optim, config.train, config.model, config.data
    assert optim.lr == theirs["learning_rate"]
    assert optim.head_lr_multiplier == theirs["lr_mult_head"]
    assert optim.cross_modal_lr_multiplier == theirs["lr_mult_cross_modal"]
    assert (optim.weight_decay, optim.warmup_fraction) == (0.01, 0.1)
    assert (theirs["weight_decay"], theirs["warmup_steps"]) == (0.01, 0.1)
    assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.98), 1e-8, 0)
    assert optim.schedule == "linear" and theirs["decay_power"] == 1 and theirs["end_lr"] == 0
    assert optim.published_coarse and optim.warmup_start == 0 and optim.muon_lr_multiplier == 0
    assert (data.batch_size, train_config.seed) == (theirs["batch_size"], theirs["seed"])
    assert (train_config.precision, theirs["precision"]) == ("float32", 32)
    assert train_config.ema_decay == 0
    if "pretrain" in name:
        assert (train_config.steps, train_config.epochs) == (theirs["max_steps"], 0)
    else:
        assert train_config.epochs == theirs["max_epoch"]
        # The number of steps does not end the run.
        assert config.with_length(10**6).train.steps == math.ceil(
            theirs["max_epoch"] * 10**6 / theirs["batch_size"]
        )
    assert (model.image_size, model.max_tokens) == (theirs["image_size"], theirs["max_text_len"])
    assert (model.clip.patch_size, model.image_encoder) == (theirs["patch_size"], "clip")
    cross = model.cross
    assert (cross.width, cross.num_heads) == (theirs["hidden_size"], theirs["num_heads"])
    assert (cross.num_layers, cross.dropout) == (theirs["num_top_layer"], theirs["drop_rate"])
    assert cross.kind == "co_attention" and model.vocab_size == theirs["vocab_size"]


@pytest.mark.parametrize("name", RUNS)
def test_published_losses_and_data(name):
    config, theirs = load_recipe(name), published(name)
    tasks = config.tasks.active()
    (task,) = tasks.values()
    losses = {LOSSES.get(loss, loss) for loss, on in theirs["loss_names"].items() if on}
    weights = {loss: weight for loss, weight in task.weights().items() if weight}
    assert weights == dict.fromkeys(losses, 1.0)
    assert set(config.needed_heads()) == set(config.model.heads) == losses
    if "ranking" in tasks:
        assert task.false_texts == theirs["draw_false_text"] == 15
    if "image_text" in tasks:
        assert task.itm_negatives == "random"
    # Elsewhere, the collator's choice has no effect.
    assert config.data.mlm_unit == ("position" if "pretrain" in name else "token")
    assert theirs["whole_word_masking"] == ("pretrain" in name)
    assert config.data.mlm_probability == theirs["mlm_prob"]
    split, selects = SPLITS[name]
    assert config.data.split == split
    assert (config.validation.split if config.validation.task else None) == selects
    assert config.optim.frozen == (("itm_head",) if "retrieval" in name else ())


@pytest.mark.parametrize("recipe", RUNS)
def test_published_images(recipe):
    """The shorter side is resized, and the central square cut out; nothing flips."""
    config, theirs = load_recipe(recipe), published(recipe)
    assert theirs["val_transform_keys"] == ["clip"]
    is_augmented = "pretrain" not in recipe
    assert theirs["train_transform_keys"] == ["clip_randaug" if is_augmented else "clip"]
    described = training_transform(config.model, config.data.transform).describe()
    assert (described["kind"], described["size"]) == ("center_crop", theirs["image_size"])
    assert described["filter"] == "bicubic" and described["color_jitter"] is None
    assert config.data.transform.flip_probability == 0
    augment = RandAugment(policy="meter").describe() if is_augmented else None
    assert described["rand_augment"] == augment
    assert described["alpha"] == "premultiply"
    for name, expected in CLIP_STATISTICS.items():
        assert described[name] == pytest.approx(expected)
    swin = replace_fields(config.model, {"image_encoder": "swin"})
    # Pre-training has 384 pixels with Swin.
    size = 384 if "pretrain" in recipe else config.model.image_size
    assert swin.swin.window_size == size // 32
    imagenet = training_transform(swin, config.data.transform).describe()
    assert imagenet["mean"] == pytest.approx((0.485, 0.456, 0.406))
    assert imagenet["alpha"] == "drop"


@pytest.mark.parametrize("name", RUNS)
def test_published_parameter_groups(name):
    """Number of published tensors, learning rate and weight decay of each group."""
    config, shapes = load_recipe(name), keys_of(RUNS[name])
    with torch.device("meta"):
        model = build_model(config.model)
    keys, names = meter_keys(config.model), {p: n for n, p in model.named_parameters()}
    found = Counter()
    # The published groups list the frozen head, too.
    for group in build_optimizer(model, config.optim).param_groups:
        rate = config.optim.lr * group["lr_factor"]
        tensors = sum(len(keys[names[parameter]]) for parameter in group["params"])
        found[f"{rate:.3g}", group["weight_decay"]] += tensors
    read = {theirs for own in keys.values() for theirs in own}
    for unread in set(shapes) - read:
        # Text pooler, and parts of CLIP's text encoder.
        if not NO_PARAMETERS.fullmatch(unread):
            found[f"{config.optim.lr:.3g}", 0.0 if unread.endswith("bias") else 0.01] += 1
    expected = Counter()
    for tensors, rate, decay in FILES[RUNS[name]]["groups"]:
        expected[f"{rate:.3g}", decay] += tensors
    assert found == expected
    freeze(model, config.optim.frozen)
    frozen = {names[parameter] for parameter in names if not parameter.requires_grad}
    assert frozen == ({"itm_head.weight", "itm_head.bias"} if "retrieval" in name else set())


def test_published_schedule():
    recorded = json.loads((METER / "extras.json").read_text())["schedule, 20 steps, warm-up 2"]
    optim = load_recipe("meter_vqav2_published").optim
    ours = [lr_factor(step, 20, optim) for step in range(20)]
    assert ours == pytest.approx(recorded[:20])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "model.image_size 384 or model.swin.window_size 9"),
        ({"model.image_size": "224"}, "model.image_size 384 or model.swin.window_size 7"),
    ],
)
def test_windows_that_contradict_the_image_size_are_refused(options, expected):
    """Pre-training of Swin needs images of 384 pixels, which its docstring says."""
    recipe, swin = load_recipe("meter_pretrain_published"), {"model.image_encoder": "swin"}
    with pytest.raises(ValueError, match=f"model.swin.window_size 12 with .* expected {expected}"):
        replace_fields(recipe, swin | options)
    small = {"model.image_size": "224", "model.swin.window_size": "7"}
    assert replace_fields(recipe, swin | small).model.swin.window_size == 7


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({}, "meter_clip16_288_roberta_pretrain.ckpt"),
        ({"model.image_size": "224"}, "meter_clip16_224_roberta_pretrain.ckpt"),
        (
            {"model.image_encoder": "swin", "model.image_size": "384"},
            "meter_swinbase_384_roberta_pretrain.ckpt",
        ),
    ],
    ids=["288", "224", "Swin"],
)
def test_published_models_are_had_by_options(options, file):
    """As the docstring of pre-training has them."""
    config = replace_fields(load_recipe("meter_pretrain_published"), options).model
    for name, value in options.items():
        assert f"--set {name}={value}" in recipes.describe("meter_pretrain_published")
    shapes = keys_of(file)
    with torch.device("meta"):
        own = build_model(config).state_dict()
    for ours, names in meter_keys(config).items():
        assert list(own[ours].shape) == [sum(shapes[n][0] for n in names), *shapes[names[0]][1:]]
    if config.image_encoder == "swin":
        # int(384 / 32), whatever the name says.
        assert config.swin.window_size == 12


def test_presets():
    sizes = {}
    for name in METER_PRESETS:
        config = meter_preset(name)
        with torch.device("meta"):
            model = build_model(config)
        image = sum(p.numel() for p in model.backbone.image.parameters())
        sizes[name] = (config.image_size, round(image / 1e6), config.image_width)
    # Millions of parameters of the image encoders: CLIP's have 86.2 and 87.8 with the last block
    # (7.1) and projection (0.4) that METER drops; Swin's 86.7 and 195.0, in wider windows.
    assert sizes == {
        "clip16": (288, 79, 768),
        "clip32": (224, 80, 768),
        "swin_base": (384, 87, 1024),
        "swin_large": (384, 195, 1536),
    }
    large = meter_preset("clip16", text_encoder="roberta_large").roberta
    assert (large.width, large.num_layers, large.num_heads) == (1024, 24, 16)
    assert list(METER_TEXT_ENCODERS) == ["roberta_base", "roberta_large", "bert_base"]
    bert = meter_preset("clip16", text_encoder="bert_base")
    assert (bert.text_encoder, bert.vocab_size, bert.max_tokens) == ("bert", 30522, 50)
    with pytest.raises(ValueError, match=r"'clip_16'.*clip16"):
        meter_preset("clip_16")
    with pytest.raises(ValueError, match=r"'roberta_larg'.*roberta_large"):
        meter_preset("clip16", text_encoder="roberta_larg")


# Runs of a small model


#: The published runs with a small model, on a few scenes.
SMALL = {
    "model.image_size": TINY.image_size,
    "model.clip": TINY.clip,
    "model.roberta": dataclasses.replace(TINY.roberta, max_positions=64),
    "model.cross": TINY.cross,
    "train.steps": 2,
    "train.epochs": 0.0,
    "train.checkpoint_epochs": 0.0,
    "train.checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes with the splits of the published data."""
    scenes = generate(tmp_path_factory.mktemp("meter") / "scenes", train=24, val=8, novel=4)
    shutil.copy(scenes / "captions_val.json", scenes / "captions_restval.json")
    shutil.copy(scenes / "nlvr2_val.jsonl", scenes / "nlvr2_dev.jsonl")
    for split, source in (("train", "train"), ("dev", "val")):
        captions = json.loads((scenes / f"captions_{source}.json").read_text())
        files = {image["id"]: image["file_name"] for image in captions["images"]}
        lines = [
            {
                "Flickr30K_ID": files[caption["image_id"]].removesuffix(".jpg"),
                "sentence2": caption["caption"],
                "gold_label": ENTAILMENT[number % 3],
            }
            for number, caption in enumerate(captions["annotations"])
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (scenes / f"snli_ve_{split}.jsonl").write_text(text)
    return scenes


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(RunFolder, "draw", lambda folder, priors: None)


@pytest.mark.parametrize("name", RUNS)
def test_a_small_model_makes_steps(name, folder, tmp_path):
    config = load_recipe(name)
    # Two samples a micro-batch.
    changes = SMALL | {"data.batch_size": 2 * config.train.accumulation}
    config = replace_fields(config, changes)
    run = train(config, data=folder, output=tmp_path / "run", quiet=True, device="cpu")
    losses = run.metrics[-1]["losses"]
    (task,) = config.tasks.active().values()
    assert set(losses) == {loss for loss, weight in task.weights().items() if weight}
    assert all(math.isfinite(loss) for loss in losses.values())
    assert ("validation" in run.metrics[-1]) == (config.validation.task is not None)
    assert fiber.load(tmp_path / "run").heads == config.model.heads


def as_options(changes):
    """Options of the command line that set fields, those of dataclasses one by one."""
    options = []
    for name, value in changes.items():
        if dataclasses.is_dataclass(value):
            fields = {f"{name}.{f}": getattr(value, f) for f in vars(value)}
            options += as_options(fields)
        else:
            options += ["--set", f"{name}={value}"]
    return options


@pytest.mark.parametrize("encoder", ["clip", "swin"])
def test_pretraining_starts_from_encoders_on_the_command_line(encoder, folder, tmp_path, capsys):
    # The learning rate of the first step, which is the only one, is 0.
    steps = {"train.steps": 1, "train.checkpoint_every": 0, "optim.warmup_fraction": 0.9}
    changes = SMALL | steps | {"data.batch_size": 32}
    if encoder == "swin":
        changes |= {
            "model.image_encoder": "swin",
            "model.image_size": 64,
            "model.swin.embed_dim": 16,
            "model.swin.depths": "1,1,1,1",
            "model.swin.num_heads": "1,1,2,2",
            "model.swin.window_size": 2,
        }
    # The run's vocabulary is that of the data.
    vocabulary = fiber.data.Tokenizer.from_file(str(folder / "tokenizer.json")).vocab_size
    model = replace_fields(
        load_recipe("meter_pretrain_published").model,
        {name.removeprefix("model."): v for name, v in changes.items() if name.startswith("model")},
    ).with_vocabulary(vocabulary)
    torch.manual_seed(7)
    given = build_model(model)
    encoders = tmp_path / "encoders"
    encoders.mkdir()
    for name, state in encoder_states(given).items():
        tensors = {key: tensor.contiguous() for key, tensor in state.items()}
        save_file(tensors, encoders / f"{name}.safetensors")
    arguments = ["train", "meter_pretrain_published", "--data", str(folder)]
    arguments += ["--init", str(encoders), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*arguments, *as_options(changes)]) == 0
    assert "taken" in capsys.readouterr().err
    found, expected = fiber.load(tmp_path / "run").network.state_dict(), given.state_dict()
    parts = ("backbone.image.", "backbone.image_norm.", "backbone.text.")
    for name, tensor in expected.items():
        # Vectors start at 0 or 1, whatever the seed.
        if name.startswith(parts) or tensor.ndim > 1:
            assert torch.equal(found[name], tensor) == name.startswith(parts), name
