"""Runs that train adapters (`RunConfig.lora`)."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fiber
from fiber.checkpoints.convert import convert
from fiber.checkpoints.model_dir import load_model
from fiber.cli import main
from fiber.config_io import replace_fields
from fiber.models.lora import PREFIX, adapter_tensors, find_targets
from fiber.training.checkpoint.model import read_checkpoint_model
from fiber.training.config.lora import LoraConfig
from fiber.training.machine_memory import count_parameters
from fiber.training.optim import MuonAdamW
from fiber.training.plan.step_cost import TextShape, count_step
from fiber.training.trainer import Trainer
from tests.losses.two_ranks import run_on_two_ranks
from tests.processes import start_python
from tests.training import micro_runs
from tests.training.distributed.strategy_runs import sharded_on_cpu
from tests.training.micro_runs import coarse_config, fine_config, run, with_dropout
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

pytestmark = pytest.mark.oldest

SLOW = pytest.mark.slow
#: A few steps, with learning rates that move weights.
COMMON = {
    "lora__r": 3,
    "train__steps": 6,
    "train__checkpoint_every": 2,
    "optim__warmup_fraction": 0.0,
    "optim__lr": 1e-3,
}


def lora_config(build=coarse_config, **changes):
    return build(**COMMON | changes)


@pytest.fixture(scope="module")
def base(pictures, tmp_path_factory):
    """A model of all coarse tasks."""
    torch.set_num_threads(1)
    return run(coarse_config(train__steps=2), pictures, tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def fine_base(pictures, tmp_path_factory):
    torch.set_num_threads(1)
    return run(fine_config(train__steps=2), pictures, tmp_path_factory.mktemp("fine") / "run")


@pytest.fixture(scope="module")
def finished(base, pictures, tmp_path_factory):
    """A run with everything that a resume has to restore, never interrupted."""
    config = with_dropout(lora_config(train__ema_decay=0.9, lora__dropout=0.1))
    folder = tmp_path_factory.mktemp("lora") / "run"
    return run(config, pictures, folder, init=base.folder)


def state(folder):
    return load_file(folder / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def adapters_equal(one: Path, other: Path) -> bool:
    files = [folder / "adapter" / "adapter_model.safetensors" for folder in (one, other)]
    return equal(*map(load_file, files))


def test_only_the_adapted_layers_differ_from_the_base(base, finished):
    before, after = state(base.folder), state(finished.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = find_targets(load_model(base.folder).network)
    assert changed == {f"{name}.weight" for name in targets}


def test_the_adapter_and_its_base_are_the_model_of_the_run(base, finished, scene_picture):
    model = fiber.load(finished.folder / "adapter")
    assert equal(model.network.state_dict(), state(finished.folder))
    assert model.answers == fiber.load(finished.folder).answers
    question = (scene_picture, "what colour is the square?")
    scores = {
        folder: fiber.load(folder).answer(*question, top_k=3)
        for folder in (base.folder, finished.folder, finished.folder / "adapter")
    }
    before, after, again = scores.values()
    assert before != after == again
    about = json.loads((finished.folder / "adapter" / "fiber.json").read_text())
    assert about["base"] == str(base.folder)
    stored = json.loads((finished.folder / "config.json").read_text())
    assert stored["base_sha256"] == about["base_sha256"]
    assert stored["lora"]["r"] == 3


def test_plain_peft_reads_the_adapter_of_a_run(base, finished):
    import peft

    network = load_model(base.folder).network
    wrapped = peft.PeftModel.from_pretrained(network, str(finished.folder / "adapter"))
    assert equal(wrapped.merge_and_unload().state_dict(), state(finished.folder))
    names = load_file(finished.folder / "adapter" / "adapter_model.safetensors").keys()
    assert {name.split(".lora_")[0].removeprefix(PREFIX) for name in names} == set(
        find_targets(load_model(base.folder).network)
    )


@pytest.mark.parametrize("stop_at", [1, pytest.param(2, marks=SLOW), 5])
def test_a_resumed_run_is_bit_identical(base, finished, pictures, tmp_path, monkeypatch, stop_at):
    stop_before(monkeypatch, stop_at)
    with pytest.raises(StopError):
        run(finished.config, pictures, tmp_path / "cut", init=base.folder)
    assert not (tmp_path / "cut" / "adapter").exists()
    # The base is not named again.
    resumed = run(finished.config, pictures, tmp_path / "cut", resume=True)
    assert numbers(finished.folder) == numbers(resumed.folder)
    assert weights_equal(finished.folder, resumed.folder)
    assert adapters_equal(finished.folder, resumed.folder)


def test_a_run_that_ends_before_its_model_is_written_is_completed(
    base, finished, pictures, tmp_path
):
    """The adapter is written first; then the process dies."""
    cut = shutil.copytree(finished.folder, tmp_path / "cut")
    (cut / "model.safetensors").unlink()
    (cut / "adapter" / "fiber.json").unlink()
    resumed = run(finished.config, pictures, cut, resume=True)
    assert weights_equal(finished.folder, resumed.folder)
    assert adapters_equal(finished.folder, resumed.folder)
    assert equal(fiber.load(cut / "adapter").network.state_dict(), state(cut))


@pytest.mark.slow
def test_a_killed_process_resumes_bit_for_bit(base, pictures, tmp_path):
    changes = COMMON | {"lora__dropout": 0.1, "train__steps": 12}
    arguments = {"stage": "coarse", "data": str(pictures), "changes": changes, "dropout": 0.1}
    arguments["init"] = str(base.folder)

    def start(output, **others):
        settings = arguments | {"output": str(output), "resume": True} | others
        return start_python([micro_runs.__file__, json.dumps(settings)])

    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    for step in (3, 7):
        process = start(tmp_path / "cut", hold_after=step)
        while not (tmp_path / "cut" / f"held-{step}").exists():
            assert process.exitcode is None
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (tmp_path / "cut" / f"held-{step}").unlink()
    last = start(tmp_path / "cut")
    last.join()
    assert last.exitcode == 0
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    assert weights_equal(tmp_path / "whole", tmp_path / "cut")
    assert adapters_equal(tmp_path / "whole", tmp_path / "cut")


def test_a_base_that_changes_before_a_resume_is_an_error(base, pictures, tmp_path, monkeypatch):
    own = shutil.copytree(base.folder, tmp_path / "base")
    stop_before(monkeypatch, 3)
    with pytest.raises(StopError):
        run(lora_config(), pictures, tmp_path / "cut", init=own)
    other = run(coarse_config(train__steps=1), pictures, tmp_path / "other")
    shutil.copy(other.folder / "model.safetensors", own)
    with pytest.raises(ValueError, match=r"base.* has changed since the run started"):
        run(lora_config(), pictures, tmp_path / "cut", resume=True)


def test_muon_leaves_adapters_alone(fine_base, pictures, tmp_path):
    changes = {"optim__muon_lr_multiplier": 2.0}
    seen = []
    real = Trainer.train_step

    def step(trainer, *rest):
        seen.append(trainer)
        return real(trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        done = run(
            lora_config(fine_config, **changes), pictures, tmp_path / "r", init=fine_base.folder
        )
    optimizer = seen[0].optimizer
    assert isinstance(optimizer, MuonAdamW)
    assert not any(group["by_muon"] for group in optimizer.param_groups)
    before, after = state(fine_base.folder), state(done.folder)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"{name}.weight" for name in find_targets(load_model(fine_base.folder).network)
    }
    assert equal(fiber.load(done.folder / "adapter").network.state_dict(), after)


def test_the_best_adapter_is_kept(base, pictures, tmp_path):
    """The score of the last step is made worse than that of the second."""
    from fiber.training.validation import Validation

    real, scores, kept = Validation.evaluate, iter([0.1, 0.9, 0.2]), []

    def evaluate(validation, *rest):
        return real(validation, *rest) | {"score": next(scores)}

    def keep(validation, weights, step):
        kept.append((step, {name: each.clone() for name, each in weights.items()}))
        return real_keep(validation, weights, step)

    real_keep = Validation.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "evaluate", evaluate)
        patch.setattr(Validation, "keep", keep)
        config = lora_config(validation__task="vqa")
        done = run(config, pictures, tmp_path / "r", init=base.folder)
    assert [step for step, _ in kept] == [2, 4]
    tensors = load_file(done.folder / "adapter" / "adapter_model.safetensors")
    assert equal(tensors, adapter_tensors(kept[-1][1]))
    assert equal(fiber.load(done.folder / "adapter").network.state_dict(), state(done.folder))
    assert not list((done.folder / "checkpoints").glob("best-*"))


def test_rates_of_adapters_are_multiplied(base, pictures, tmp_path):
    options = {"train__steps": 1, "optim__cross_modal_lr_multiplier": 3.0, "train__log_every": 1}
    done = run(
        lora_config(**options, lora__lr_multiplier=7.0), pictures, tmp_path / "r", init=base.folder
    )
    assert set(done.metrics[0]["learning_rates"]) == {"x7", "x21"}


def test_the_head_of_new_answers_is_trained_in_whole(base, pictures, tmp_path, capsys):
    answers = ("red", "green", "blue", "white", "none of these")
    changes = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")}
    done = run(
        lora_config(**changes),
        pictures,
        tmp_path / "r",
        init=base.folder,
        answers=answers,
        quiet=False,
    )
    said = capsys.readouterr().err
    assert "LoRA: " in said and "trained in whole: vqa_head.output" in said
    tensors = load_file(done.folder / "adapter" / "adapter_model.safetensors")
    assert tensors[f"{PREFIX}vqa_head.output.weight"].shape[0] == len(answers)
    model = fiber.load(done.folder / "adapter")
    assert model.answers == answers
    assert equal(model.network.state_dict(), state(done.folder))
    name = "vqa_head.hidden.weight"
    assert torch.equal(state(done.folder)[name], state(base.folder)[name])


def test_frozen_parts_have_no_trained_adapters(base, pictures, tmp_path):
    config = lora_config(optim__frozen=("backbone.image", "backbone.text"))
    with pytest.warns(RuntimeWarning, match=r"'image_text': itc is computed from frozen"):
        done = run(config, pictures, tmp_path / "r", init=base.folder)
    before, after = state(base.folder), state(done.folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("backbone.fusion.") for name in changed)
    with pytest.raises(ValueError, match=r"optim\.frozen freezes all layers.*lora\.targets"):
        run(
            lora_config(optim__frozen=("backbone.*",)), pictures, tmp_path / "all", init=base.folder
        )


@pytest.mark.slow
def test_a_frozen_copy_of_the_model_has_merged_weights(base, pictures, tmp_path):
    """GOLD copies the model into one without adapters."""
    shares = {f"tasks__{name}__share": 0 for name in ("image_text", "question", "reasoning")}
    gold = {"tasks__caption__objective": "gold", "tasks__caption__gold_copy_every": 2}
    done = run(lora_config(**shares, **gold), pictures, tmp_path / "r", init=base.folder)
    assert equal(fiber.load(done.folder / "adapter").network.state_dict(), state(done.folder))


def test_a_checkpoint_is_converted_as_its_finished_model(finished, tmp_path):
    newest = finished.folder / "checkpoints" / "step-00000004"
    stored = read_checkpoint_model(newest).stored
    assert stored.network.state_dict().keys() == state(finished.folder).keys()
    convert(stored, tmp_path / "out")
    assert fiber.load(tmp_path / "out").answers == fiber.load(finished.folder).answers


def test_parameters_are_counted_with_adapters(base, fine_base):
    plain, _ = count_parameters(coarse_config())
    count, trained = count_parameters(lora_config())
    assert count - plain == trained > 0
    assert trained < 0.2 * plain


@pytest.mark.parametrize("build", [pytest.param(coarse_config, marks=SLOW), fine_config])
def test_a_plan_counts_adapters(build):
    plain = build()
    lora = replace_fields(plain, {"lora.r": 8})
    task = next(reversed(plain.tasks.active()))
    costs = [count_step(each, task, TextShape(2, 8), (64, 64)) for each in (plain, lora)]
    # Frozen layers have no gradients of weights.
    assert costs[1].flops < costs[0].flops


def test_what_adapters_need(base, fine_base, pictures, tmp_path):
    def fails(match, config=None, **options):
        with pytest.raises(ValueError, match=match):
            run(config or lora_config(), pictures, tmp_path / "r", **options)
        assert not (tmp_path / "r").exists()

    fails(r"lora: .*trained model.*random weights")
    fails(r"lora: .*coarse FIBER.*fine FIBER", init=fine_base.folder)
    fails(
        r"no module is called 'backbone\.nothing'",
        lora_config(lora__targets=("backbone.nothing",)),
        init=base.folder,
    )


def test_an_adapter_is_no_base(finished, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"is an adapter; merge it first"):
        run(lora_config(), pictures, tmp_path / "r", init=finished.folder / "adapter")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"r": 0}, r"lora\.r: expected 1 to 65536, got 0"),
        ({"alpha": 0.0}, r"lora\.alpha must be above 0"),
        ({"alpha": float("nan")}, r"lora\.alpha: expected 0 to 65536"),
        ({"dropout": 1.0}, r"lora\.dropout must be in \[0, 1\), got 1\.0"),
        ({"lr_multiplier": -1.0}, r"lora\.lr_multiplier: expected 0 to"),
        ({"targets": (" ",)}, r"lora\.targets: expected names"),
    ],
)
def test_options_are_checked(fields, match):
    with pytest.raises(ValueError, match=match):
        LoraConfig(**fields)


def test_dropout_by_row_is_not_for_adapters():
    with pytest.raises(ValueError, match=r"lora\.dropout is for train\.draws 'rank'"):
        lora_config(lora__dropout=0.1, train__draws="row")
    assert lora_config(train__draws="row").lora is not None


def test_a_run_without_lora_is_read_as_before():
    assert coarse_config().lora is None
    assert replace_fields(coarse_config(), {"lora.alpha": "4"}).lora == LoraConfig(alpha=4.0)


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["rank=8"], r"--lora rank=8: .*r, alpha"),
        (["r"], r"--lora 'r': expected KEY=VALUE, such as r=8"),
        (["r=8,"], r"--lora ''"),
        (["r=many"], r"lora\.r: expected int, got 'many'"),
        (["targets=;"], r"lora\.targets: expected names"),
    ],
)
def test_wrong_use_of_the_option(texts, match, tmp_path, capsys):
    options = [f"--lora={text}" for text in texts]
    code = main(["train", "small_vqa", "--data", str(tmp_path), "--output", "r", *options])
    assert code == 2
    found = capsys.readouterr().err
    assert re.search(match, found), found


def test_the_option_sets_fields(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(fiber, "train", lambda recipe, **options: given.update(options))
    options = ["--lora", "r=4, alpha=8", "--lora", "targets=backbone.*.qkv; itm_head"]
    assert main(["train", "small_vqa", "--data", "d", "--output", str(tmp_path), *options]) == 0
    assert given["set"] == {
        "lora.r": "4",
        "lora.alpha": "8",
        "lora.targets": ("backbone.*.qkv", "itm_head"),
    }
    config = replace_fields(coarse_config(), given["set"])
    assert config.lora == LoraConfig(r=4, alpha=8.0, targets=("backbone.*.qkv", "itm_head"))


def train_on_ranks(pictures, output, base, strategy, stops):
    """Train on this rank, from the start or in two parts."""
    torch.set_num_threads(1)
    # Without the drawing, which takes longer than a run.
    from fiber.training.run_dir import RunFolder

    RunFolder.draw = lambda folder, priors: None
    changes = {"data__batch_size": 4, "train__strategy": strategy, "lora__dropout": 0.1}
    config = with_dropout(lora_config(**changes))
    with pytest.MonkeyPatch.context() as patch:
        if stops:
            stop_before(patch, 3)
            with pytest.raises(StopError):
                run(config, Path(pictures), Path(output), init=base)
        run(config, Path(pictures), Path(output), init=base, resume=stops)
    return []


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("replicate", marks=SLOW),
        pytest.param("shard", marks=[SLOW, sharded_on_cpu]),
    ],
)
def test_two_ranks_resume_bit_for_bit(base, pictures, tmp_path, strategy):
    for name, stops in (("whole", False), ("cut", True)):
        arguments = (str(pictures), str(tmp_path / name), str(base.folder), strategy, stops)
        run_on_two_ranks(train_on_ranks, tmp_path, *arguments)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    assert weights_equal(tmp_path / "whole", tmp_path / "cut")
    assert adapters_equal(tmp_path / "whole", tmp_path / "cut")
    model = fiber.load(tmp_path / "cut" / "adapter")
    assert equal(model.network.state_dict(), state(tmp_path / "cut"))
