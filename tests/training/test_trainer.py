import dataclasses
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiber import DecodeError
from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.models.fiber.image_text import FiberImageText
from fiber.training import trainer
from fiber.training.checkpoint.folder import checkpoints_in
from fiber.training.objectives.step import TrainStep
from fiber.training.train import train
from tests.processes import start_python
from tests.training import micro_runs
from tests.training.micro_runs import coarse_config, fine_config, run, with_dropout

pytestmark = pytest.mark.oldest

#: Half of what is covered alike, run by `make test-all`.
SLOW = pytest.mark.slow
EITHER_SIDE = pytest.mark.parametrize(
    "stop_at", [pytest.param(1, marks=SLOW), 4], ids=["before a checkpoint", "after one"]
)


def weights_equal(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def numbers(folder: Path) -> list[dict]:
    """Lines of metrics without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "performance")}
        for line in lines
    ]


class StopError(Exception):
    """Stands for whatever ends a process."""


def stop_before(monkeypatch, step, error=StopError):
    """Let the run fail when it comes to a step for the first time."""
    real, stopped = trainer.lr_factor, []

    def factor(now, *rest):
        if now == step and not stopped:
            stopped.append(now)
            raise error
        return real(now, *rest)

    monkeypatch.setattr(trainer, "lr_factor", factor)


def test_empty_data_are_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"'grounding'.*record.*none"):
        train(fine_config(), data=[], output=tmp_path / "r", tokenizer=pictures / "tokenizer.json")
    assert not (tmp_path / "r").exists()


def test_run_folder_is_complete(pictures, tmp_path, curves):
    finished = run(coarse_config(), pictures, tmp_path / "r")
    assert sorted(path.name for path in finished.folder.iterdir()) == [
        "answers.json",
        "attempts.jsonl",
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [line["step"] for line in finished.metrics] == list(range(1, 11))
    for line in finished.metrics:
        assert set(line) == {
            *("step", "seconds", "images", "images_per_second", "losses"),
            *("gradient_norm", "mean_gate", "learning_rates", "performance"),
        }
    assert [name for line in finished.metrics[:5] for name in line["losses"]] == [
        *("itc", "itm", "mlm", "vqa", "nlvr2", "caption", "itc", "itm", "mlm"),
    ]
    written = json.loads((finished.folder / "config.json").read_text())
    assert written["fiber_version"] and written["model_type"] == "fiber"
    assert written["tasks"]["image_text"]["share"] == 2
    assert [path.name for path in sorted((finished.folder / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000008",
    ]
    stored = load_model(finished.folder)
    assert stored.config == finished.config.model
    assert stored.answers[:4] == ("blue", "green", "red", "white")
    assert stored.tokenizer is not None
    assert stored.config.roberta.vocab_size == stored.tokenizer.vocab_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "loss"),
    [(coarse_config, "caption"), (fine_config, "alignment")],
    ids=["coarse", "fine"],
)
def test_training_lowers_the_loss(pictures, tmp_path, build, loss):
    config = build(train__steps=40, optim__warmup_fraction=0.0)
    lines = run(config, pictures, tmp_path / "r").metrics
    values = [line["losses"][loss] for line in lines if loss in line["losses"]]
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A run with everything that a resume has to restore, never interrupted."""
    config = with_dropout(coarse_config(train__ema_decay=0.9, train__accumulation=2))
    torch.set_num_threads(1)
    return run(config, pictures, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def plain(pictures, tmp_path_factory):
    """A short run without options."""
    torch.set_num_threads(1)
    config = coarse_config(train__steps=5)
    return run(config, pictures, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(
    "stop_at",
    [0, pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW), 7],
    ids=lambda step: f"before step {step}",
)
def test_resumed_run_repeats_the_numbers_bit_for_bit(
    pictures, tmp_path, monkeypatch, whole, stop_at
):
    config = with_dropout(coarse_config(train__ema_decay=0.9, train__accumulation=2))
    stop_before(monkeypatch, stop_at)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "cut")
    resumed = run(config, pictures, tmp_path / "cut", resume=True)
    assert numbers(whole.folder) == numbers(resumed.folder)
    assert weights_equal(whole.folder, resumed.folder)


def test_every_micro_batch_has_a_number_of_its_own(pictures, tmp_path, monkeypatch):
    real, draws = TrainStep.branches, []

    def recorded(step, task, batch, draw, *rest):
        draws.append(draw)
        return real(step, task, batch, draw, *rest)

    monkeypatch.setattr(TrainStep, "branches", recorded)
    config = coarse_config(train__steps=3, train__accumulation=2, train__seed=7)
    run(config, pictures, tmp_path / "r")
    assert [(draw.seed, draw.number) for draw in draws] == [(7, n) for n in range(6)]


def test_the_finished_temperature_is_in_its_range(pictures, tmp_path):
    changes = {"optim__lr": 1e-2, "optim__warmup_fraction": 0.0, "train__steps": 1}
    config = coarse_config(model__image_text__temperature=1.0, **changes)
    finished = run(config, pictures, tmp_path / "r")
    # The first step would raise it to 1.01.
    assert load_file(finished.folder / "model.safetensors")["temperature"].item() == 1.0


def test_dropout_is_on(pictures, tmp_path, plain):
    dropped = run(with_dropout(coarse_config(train__steps=1)), pictures, tmp_path / "b")
    assert plain.metrics[0]["losses"] != dropped.metrics[0]["losses"]


@pytest.mark.parametrize("muon", [pytest.param(0.0, marks=SLOW), 2.0], ids=["AdamW", "Muon"])
def test_fine_run_resumes_too(pictures, tmp_path, monkeypatch, muon):
    config = fine_config(optim__muon_lr_multiplier=muon)
    whole = run(config, pictures, tmp_path / "whole")
    stop_before(monkeypatch, 5)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "cut")
    resumed = run(config, pictures, tmp_path / "cut", resume=True)
    assert numbers(whole.folder) == numbers(resumed.folder)
    assert weights_equal(whole.folder, resumed.folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_killed_process_resumes_bit_for_bit(pictures, tmp_path, stage):
    changes = {"train__steps": 60, "train__checkpoint_every": 7}
    arguments = {"stage": stage, "data": str(pictures), "changes": changes, "dropout": 0.1}

    def start(output, resume):
        settings = arguments | {"output": str(output), "resume": resume}
        return start_python([micro_runs.__file__, json.dumps(settings)])

    whole = start(tmp_path / "whole", False)
    whole.join()
    assert whole.exitcode == 0
    chance = random.Random(0)
    process = start(tmp_path / "cut", False)
    for moment in sorted(chance.sample(range(3, 50), 3)):
        metrics = tmp_path / "cut" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < moment:
            assert process.exitcode is None
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process = start(tmp_path / "cut", True)
    process.join()
    assert process.exitcode == 0
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    assert weights_equal(tmp_path / "whole", tmp_path / "cut")


@EITHER_SIDE
def test_resumed_run_keeps_what_it_started_with(pictures, tmp_path, monkeypatch, stop_at):
    coarse = run(coarse_config(train__steps=2), pictures, tmp_path / "coarse")
    stop_before(monkeypatch, stop_at)
    with pytest.raises(StopError):
        run(fine_config(), pictures, tmp_path / "cut", tokenizer=None, init=coarse.folder)
    # Neither the first model nor a tokenizer is named again.
    resumed = run(fine_config(), pictures, tmp_path / "cut", tokenizer=None, resume=True)
    whole = run(fine_config(), pictures, tmp_path / "whole", tokenizer=None, init=coarse.folder)
    assert weights_equal(whole.folder, resumed.folder)


@EITHER_SIDE
def test_resumed_run_keeps_the_answers_it_was_given(pictures, tmp_path, monkeypatch, stop_at):
    named = ("white", "never asked", "red")
    config = coarse_config(train__steps=6)
    whole = run(config, pictures, tmp_path / "whole", answers=named)
    stored = load_model(whole.folder)
    assert isinstance(stored.network, FiberImageText)
    assert stored.answers == named
    assert stored.network.vqa_head.output.out_features == 3
    stop_before(monkeypatch, stop_at)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "cut", answers=named)
    # None are named again, or others.
    for again in (None, ["blue"]):
        resumed = run(config, pictures, tmp_path / "cut", answers=again, resume=True)
        assert load_model(resumed.folder).answers == named
        assert weights_equal(whole.folder, resumed.folder)


def test_random_numbers_of_the_caller_are_not_touched(pictures, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(fine_config(train__steps=1), pictures, tmp_path / "r")
    assert torch.equal(torch.rand(2), expected)


def test_broken_pictures_are_skipped_and_counted(pictures, tmp_path, capsys):
    records = micro_runs.all_records(pictures)["grounding"]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    records[3] = dataclasses.replace(records[3], images=(str(broken),))
    options = {"tokenizer": pictures / "tokenizer.json", "device": "cpu", "threads": 1}
    with pytest.raises(DecodeError, match="g3"):
        train(fine_config(), data=records, output=tmp_path / "raise", quiet=True, **options)
    config = fine_config(data__on_error="skip")
    with pytest.warns(RuntimeWarning, match="'g3'"):
        train(config, data=records, output=tmp_path / "skip", **options)
    assert "grounding: 2 broken records were skipped, first 'g3'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_is_written_when_its_minutes_have_passed(pictures, tmp_path):
    config = coarse_config(
        train__checkpoint_every=0, train__checkpoint_minutes=1e-9, train__keep_checkpoints=20
    )
    run(config, pictures, tmp_path / "often")
    found = checkpoints_in(tmp_path / "often" / "checkpoints")
    assert [each.step for each in found] == list(range(1, 10))
    # It changes nothing, and may change on resume.
    rare = replace_fields(config, {"train.checkpoint_minutes": 60.0})
    run(rare, pictures, tmp_path / "rare")
    assert not checkpoints_in(tmp_path / "rare" / "checkpoints")
    assert weights_equal(tmp_path / "often", tmp_path / "rare")
    (tmp_path / "often" / "model.safetensors").unlink()
    run(rare, pictures, tmp_path / "often", resume=True)
    assert weights_equal(tmp_path / "often", tmp_path / "rare")


def test_ctrl_c_says_how_to_go_on(pictures, tmp_path, monkeypatch, capsys):
    stop_before(monkeypatch, 6, KeyboardInterrupt)
    records = micro_runs.all_records(pictures)
    config = coarse_config()
    data = {name: records[name] for name in config.tasks.active()}
    with pytest.raises(KeyboardInterrupt):
        train(
            config,
            data=data,
            output=tmp_path / "r",
            tokenizer=pictures / "tokenizer.json",
            device="cpu",
            threads=1,
        )
    assert "resume=True) continues after step 4" in capsys.readouterr().err
    assert not (tmp_path / "r" / "model.safetensors").exists()
    assert not list((tmp_path / "r").rglob(".part-*"))


def test_finished_run_is_not_trained_again(pictures, tmp_path):
    first = run(fine_config(), pictures, tmp_path / "r")
    before = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = run(fine_config(), pictures, tmp_path / "r", resume=True)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == before
    assert again.metrics == first.metrics


def test_a_finished_run_says_that_nothing_was_trained(pictures, tmp_path, capsys):
    run(fine_config(), pictures, tmp_path / "r")
    options = {"tokenizer": pictures / "tokenizer.json", "device": "cpu", "threads": 1}
    records = micro_runs.all_records(pictures)["grounding"]
    train(fine_config(), data=records, output=tmp_path / "r", resume=True, **options)
    said = f"{tmp_path / 'r'}: the run is already finished; nothing was trained\n"
    assert capsys.readouterr().err == said
    train(fine_config(), data=records, output=tmp_path / "r", resume=True, quiet=True, **options)
    assert capsys.readouterr().err == ""


def test_resume_under_another_config_lists_the_fields(pictures, tmp_path):
    run(fine_config(), pictures, tmp_path / "r")
    with pytest.raises(ValueError, match=r"optim.lr: 0.001.*0.002.*train.steps: 6.*8"):
        run(fine_config(optim__lr=0.002, train__steps=8), pictures, tmp_path / "r", resume=True)


def test_second_run_needs_resume_or_another_folder(pictures, tmp_path):
    run(fine_config(), pictures, tmp_path / "r")
    with pytest.raises(FileExistsError, match="already contains a run"):
        run(fine_config(), pictures, tmp_path / "r")


def test_coarse_run_starts_a_fine_one(pictures, tmp_path, capsys):
    coarse = run(coarse_config(train__steps=2), pictures, tmp_path / "coarse")
    records = micro_runs.all_records(pictures)["grounding"]
    # Without a step of learning the backbone must be the coarse one.
    config = fine_config(train__steps=1, optim__warmup_fraction=0.5, optim__lr=1e-3)
    config = replace_fields(config, {"optim.lr": 0.0})
    fine = train(
        config,
        data=records,
        output=tmp_path / "fine",
        init=coarse.folder,
        device="cpu",
        threads=1,
    )
    said = capsys.readouterr().err
    assert "taken:" in said and "created:" in said
    old, new = (
        load_file(coarse.folder / "model.safetensors"),
        load_file(fine.folder / "model.safetensors"),
    )
    shared = [name for name in new if name.startswith("backbone.")]
    assert shared and all(torch.equal(old[name], new[name]) for name in shared)


def test_fine_model_starts_a_coarse_one(pictures, tmp_path):
    fine = run(fine_config(train__steps=1), pictures, tmp_path / "fine")
    coarse = run(
        coarse_config(optim__lr=0.0, train__steps=1),
        pictures,
        tmp_path / "c",
        init=fine.folder,
        tokenizer=None,
    )
    old, new = (
        load_file(fine.folder / "model.safetensors"),
        load_file(coarse.folder / "model.safetensors"),
    )
    shared = [name for name in new if name.startswith("backbone.")]
    assert shared and all(torch.equal(old[name], new[name]) for name in shared)


def test_loss_that_is_not_finite_stops_the_run(pictures, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+.*lower optim.lr"):
        run(
            fine_config(optim__lr=1e30, optim__warmup_fraction=0.0, optim__clip_norm=0.0),
            pictures,
            tmp_path / "r",
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"train__precision": "bfloat16"},
        {"train__gradient_checkpointing": True},
        {"train__ema_decay": 0.9},
        {"tasks__image_text__itm_negatives": "half"},
        {"tasks__image_text__itc": 0.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_train(pictures, tmp_path, plain, changes):
    finished = run(coarse_config(train__steps=5, **changes), pictures, tmp_path / "r")
    same_losses = [line["losses"] for line in plain.metrics] == [
        line["losses"] for line in finished.metrics
    ]
    # Recomputing changes nothing; averaging changes the finished model alone.
    assert same_losses == (
        "train__gradient_checkpointing" in changes or "train__ema_decay" in changes
    )
    same_weights = weights_equal(plain.folder, finished.folder)
    assert same_weights == ("train__gradient_checkpointing" in changes)


def test_accumulated_passes_make_the_step_of_one_batch(pictures, tmp_path):
    # Losses that are means over samples do not depend on how the batch is cut.
    only_questions = {"tasks__image_text__share": 0, "tasks__reasoning__share": 0}
    only_questions |= {"tasks__caption__share": 0, "train__steps": 4}
    one = run(coarse_config(**only_questions), pictures, tmp_path / "one")
    two = run(coarse_config(**only_questions, train__accumulation=2), pictures, tmp_path / "two")
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert a["losses"]["vqa"] == pytest.approx(b["losses"]["vqa"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)


def test_single_set_of_records_serves_one_task_only(pictures, tmp_path):
    records = micro_runs.all_records(pictures)["question"]
    with pytest.raises(ValueError, match="expected a dict of records by task"):
        train(coarse_config(), data=records, output=tmp_path / "r")


def test_missing_folder_is_not_proposed_as_the_place_of_example_data(tmp_path):
    (tmp_path / "scenes").mkdir()
    for name, advice in (("none", "check its path"), ("scene", rf"mean {tmp_path}/scenes\?")):
        with pytest.raises(
            FileNotFoundError, match=rf"/{name} does not exist; .*{advice}"
        ) as error:
            train(fine_config(), data=tmp_path / name, output=tmp_path / "r")
        assert f"--output {tmp_path}" not in str(error.value)


def test_records_without_a_tokenizer_say_what_to_give(pictures, tmp_path):
    with pytest.raises(ValueError, match="Set tokenizer="):
        run(fine_config(), pictures, tmp_path / "r", tokenizer=None)
