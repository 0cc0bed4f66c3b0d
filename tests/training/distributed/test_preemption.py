"""Runs that are told to stop, share a folder, or find a damaged checkpoint."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import threading
import time

import pytest
import torch

from fiber.training import train as training
from fiber.training.checkpoint import files
from fiber.training.checkpoint.folder import checkpoints_in
from fiber.training.checkpoint.layout import CHECKSUMS
from fiber.training.distributed.preemption import EXIT_CODE, Preempted, StopSignal
from fiber.training.metrics_file import read_metrics
from fiber.training.run_dir import RunFolder
from fiber.training.trainer import Trainer
from tests.processes import start_python
from tests.training import micro_runs
from tests.training.micro_runs import coarse_config, run, with_dropout
from tests.training.test_other_data import FILES
from tests.training.test_trainer import numbers, weights_equal


def start(data, output, *, resume=False, stage="coarse", hold_after=0, **more):
    settings = {"stage": stage, "data": str(data), "output": str(output), "resume": resume}
    settings |= {"hold_after": hold_after}
    changes = {"train__steps": 40, "train__checkpoint_every": 15}
    settings |= {"changes": changes, "dropout": 0.1}
    return start_python([micro_runs.__file__, json.dumps(settings)], **more)


def wait_for(process, file):
    while not file.exists():
        assert process.exitcode is None
        time.sleep(0.001)


@pytest.mark.parametrize("stage", ["coarse", pytest.param("fine", marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_and_a_resume_is_bit_identical(pictures, tmp_path, stage):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(pictures, whole, stage=stage)
    process.join()
    assert process.exitcode == 0
    for number, step in (("SIGTERM", 4), ("SIGHUP", 9), ("SIGUSR1", 20)):
        process = start(pictures, cut, resume=step > 4, stage=stage, hold_after=step)
        held = cut / f"held-{step}"
        wait_for(process, held)
        os.kill(process.pid, signal.Signals[number])
        held.unlink()
        process.join()
        assert process.exitcode == EXIT_CODE
        newest = checkpoints_in(cut / "checkpoints")[-1]
        # The signal is looked for once a step.
        assert step <= newest.step <= step + 1
        assert newest.step == read_metrics(cut / "metrics.jsonl")[-1]["step"]
    process = start(pictures, cut, resume=True, stage=stage)
    process.join()
    assert process.exitcode == 0
    assert numbers(whole) == numbers(cut)
    assert weights_equal(whole, cut)


def test_a_signal_names_itself_and_the_step(pictures, tmp_path, capsys, monkeypatch):
    real = Trainer.train_step

    def signaled(trainer, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, *arguments)

    monkeypatch.setattr(Trainer, "train_step", signaled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted):
        run(coarse_config(), pictures, tmp_path / "r", quiet=False)
    assert re.search(r"SIGTERM.*resume.*step 1 ", " ".join(capsys.readouterr().err.split()))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_after_the_last_step_does_not_lose_the_model(
    pictures, tmp_path, monkeypatch, number
):
    real, before = Trainer._finish, signal.getsignal(signal.Signals[number])

    def signaled(trainer):
        os.kill(os.getpid(), signal.Signals[number])
        real(trainer)

    def ended(*_):
        raise AssertionError("the signal would have ended the process")

    monkeypatch.setattr(Trainer, "_finish", signaled)
    signal.signal(signal.Signals[number], ended)
    try:
        finished = run(coarse_config(train__steps=1), pictures, tmp_path / "r")
    finally:
        signal.signal(signal.Signals[number], before)
    assert (finished.folder / "model.safetensors").exists()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_before_the_first_step_ends_the_run_at_once(
    pictures, tmp_path, monkeypatch, number
):
    def signaled(*_, **__):
        os.kill(os.getpid(), signal.Signals[number])
        pytest.fail("the run went on")

    def ended(*_):
        raise AssertionError("the signal would have ended the process")

    monkeypatch.setattr(training, "open_data", signaled)
    before = signal.signal(signal.Signals[number], ended)
    try:
        with pytest.raises(Preempted) as caught:
            run(coarse_config(), pictures, tmp_path / "r")
        assert signal.getsignal(signal.Signals[number]) is ended
    finally:
        signal.signal(signal.Signals[number], before)
    assert caught.value.code == EXIT_CODE and caught.value.signal == number
    assert not (tmp_path / "r").exists()


def test_a_signal_while_a_checkpoint_is_read(pictures, tmp_path, stopped, capsys, monkeypatch):
    real, output = files._Reader.read_data, tmp_path / "r"

    def signaled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(files._Reader, "read_data", signaled)
    shutil.copytree(stopped[0], output)
    config = coarse_config(train__steps=9, train__checkpoint_every=3)
    with pytest.raises(Preempted) as caught:
        run(config, pictures, output, resume=True, quiet=False)
    assert caught.value.code == EXIT_CODE
    assert re.search(r"SIGTERM.*resume.*step 6 ", " ".join(capsys.readouterr().err.split()))


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_run_in_a_folder_names_the_first(pictures, tmp_path):
    first, held = start(pictures, tmp_path / "r", hold_after=2), tmp_path / "r" / "held-2"
    wait_for(first, held)
    with pytest.raises(FileExistsError, match=rf"process {first.pid} on"):
        config = coarse_config(train__steps=40, train__checkpoint_every=15)
        run(with_dropout(config), pictures, tmp_path / "r", resume=True)
    held.unlink()
    first.join()
    assert first.exitcode == 0
    assert len(read_metrics(tmp_path / "r" / "metrics.jsonl")) == 40


def test_a_lock_ends_with_its_block_and_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path / "r")
    refused = pytest.raises(FileExistsError, match=f"process {os.getpid()}")
    with folder.locked(), refused, folder.locked():
        pass
    assert not folder.path.exists()
    folder.path.mkdir()
    (folder.path / "config.json").touch()
    with folder.locked():
        pass
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_a_second_run_is_refused_before_it_opens_the_data(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_data", lambda *_, **__: pytest.fail("opened the data"))
    refused = pytest.raises(
        FileExistsError, match=rf"used for training by process {os.getpid()} on"
    )
    with RunFolder(tmp_path / "r").locked(), refused:
        run(coarse_config(), pictures, tmp_path / "r", resume=True)


def test_a_short_look_at_the_lock_keeps_nobody_out(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.check_unlocked()
    folder.path.mkdir()
    (folder.path / "config.json").touch()
    (folder.path / ".lock").write_text("process 1 on elsewhere\n")  # of a process that was killed
    folder.check_unlocked()
    with (folder.path / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.05, looking.close)
        timer.start()
        with folder.locked():
            text = (folder.path / ".lock").read_text()
        timer.join()
    assert text.startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    warned = pytest.warns(RuntimeWarning, match=r"r cannot be locked \(No locks available\)")
    with warned, RunFolder(tmp_path / "r").locked():
        pass


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """A run of 9 steps with checkpoints after steps 3 and 6, without its finished model."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("stopped") / "r"
    whole = run(coarse_config(train__steps=9, train__checkpoint_every=3), pictures, output)
    copy = output.with_name("whole")
    shutil.copytree(output, copy)
    (output / "model.safetensors").unlink()
    assert [each.step for each in checkpoints_in(output / "checkpoints")] == [3, 6]
    assert whole.folder == output
    return output, copy


@pytest.mark.parametrize(
    "place", [0, *(pytest.param(place, marks=pytest.mark.slow) for place in (0.3, 0.999))]
)
@pytest.mark.parametrize("name", [*FILES, CHECKSUMS])
def test_a_flipped_bit_makes_the_run_go_on_from_the_checkpoint_before(
    pictures, tmp_path, stopped, name, place
):
    output, whole = tmp_path / "r", stopped[1]
    shutil.copytree(stopped[0], output)
    path = output / "checkpoints" / "step-00000006" / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=rf"step-00000006.*{name}.*after step 3"):
        run(coarse_config(train__steps=9, train__checkpoint_every=3), pictures, output, resume=True)
    assert numbers(whole) == numbers(output)
    assert weights_equal(whole, output)


def test_only_damaged_checkpoints_are_an_error_and_stay(pictures, tmp_path, stopped):
    output = tmp_path / "r"
    shutil.copytree(stopped[0], output)
    for checkpoint in checkpoints_in(output / "checkpoints"):
        (checkpoint.folder / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000006: .*distcp.*step-00000003: "):
        run(coarse_config(train__steps=9, train__checkpoint_every=3), pictures, output, resume=True)
    assert [each.step for each in checkpoints_in(output / "checkpoints")] == [3, 6]
