"""Callbacks: when they are called, on which ranks, and what their errors do."""

import json

import pytest
import torch

import fiber
from fiber.training.distributed.preemption import Preempted
from fiber.training.tracking.callback import Callback, CallbackError, Callbacks, RunContext
from tests.training.micro_runs import coarse_config, run


class Recorder(Callback):
    """Notes every call."""

    def __init__(self):
        self.calls = []

    def on_run_start(self, run):
        self.run = run
        self.calls.append(("start", run.first_step))

    def on_validation(self, step, metrics):
        self.calls.append(("validation", step, metrics["score"]))

    def on_step_end(self, step, metrics):
        self.calls.append(("step", step, metrics))

    def on_checkpoint(self, step, folder):
        self.calls.append(("checkpoint", step, folder.name))

    def on_run_end(self, error):
        self.calls.append(("end", error))


class Failing(Callback):
    """Fails in one method."""

    def __init__(self, method, error=None):
        def fail(*arguments):
            raise error or ValueError("no space")

        # The name is that of a method, as of a subclass that overrides it.
        fail.__name__ = method
        setattr(self, method, fail)


def context(tmp_path, rank=0):
    return RunContext(
        folder=tmp_path,
        config=coarse_config(),
        model=torch.nn.Linear(1, 1),
        first_step=3,
        rank=rank,
        world_size=2,
        device=torch.device("cpu"),
    )


def names(recorder):
    return [call[0] for call in recorder.calls]


def test_no_callbacks(tmp_path):
    with Callbacks([], is_first=True).running(context(tmp_path)):
        pass


@pytest.mark.parametrize("wrong", [Recorder, print, "wandb", None])
def test_what_is_no_callback_is_refused(wrong):
    with pytest.raises(TypeError, match=r"callbacks\[1\]: expected an instance of fiber\.Callback"):
        Callbacks([Recorder(), wrong], is_first=True)


def test_the_public_name():
    assert fiber.Callback is Callback


def test_calls_of_a_run(pictures, tmp_path):
    recorder = Recorder()
    config = coarse_config(
        train__log_every=3, train__steps=5, train__checkpoint_every=2, validation__task="vqa"
    )
    finished = run(config, pictures, tmp_path / "r", callbacks=[recorder])
    # A checkpoint is reported when it is complete, which is at some later step.
    assert [name for name in names(recorder) if name != "checkpoint"] == [
        *("start", "step"),
        *("validation", "step"),
        "step",
        *("validation", "step"),
        *("validation", "step", "end"),
    ]
    for step in (2, 4):
        ended = [call[:2] for call in recorder.calls].index(("step", step))
        assert recorder.calls.index(("checkpoint", step, f"step-{step:08d}")) > ended
    assert recorder.calls[0] == ("start", 0)
    assert recorder.run.folder == tmp_path / "r"
    assert recorder.run.config == finished.config
    assert recorder.calls[-1] == ("end", None)
    steps = [call for call in recorder.calls if call[0] == "step"]
    assert [step for _, step, _ in steps] == [1, 2, 3, 4, 5]
    assert [step for _, step, metrics in steps if metrics is None] == [1]
    written = [json.loads(json.dumps(metrics)) for _, _, metrics in steps if metrics is not None]
    assert written == finished.metrics
    scores = [call[2] for call in recorder.calls if call[0] == "validation"]
    assert scores == [
        line["validation"]["score"] for line in finished.metrics if "validation" in line
    ]
    saved = [call[2] for call in recorder.calls if call[0] == "checkpoint"]
    assert saved == ["step-00000002", "step-00000004"]


@pytest.mark.slow
def test_a_resumed_run_starts_at_its_step(pictures, tmp_path):
    config = coarse_config(train__steps=6)
    with pytest.raises(CallbackError, match=r"Failing\.on_checkpoint.*no space"):
        run(config, pictures, tmp_path / "r", callbacks=[Failing("on_checkpoint")])
    recorder = Recorder()
    run(config, pictures, tmp_path / "r", callbacks=[recorder], resume=True)
    assert names(recorder) == ["start", "step", "step", "end"]
    assert recorder.calls[0] == ("start", 4)
    again = Recorder()
    run(config, pictures, tmp_path / "r", callbacks=[again], resume=True)
    assert again.calls == []


def test_other_ranks_call_only_callbacks_that_ask_for_it(tmp_path):
    shy, eager = Recorder(), Recorder()
    eager.all_ranks = True
    callbacks = Callbacks([shy, eager], is_first=False)
    with callbacks.running(context(tmp_path, rank=1)):
        callbacks.step_ended(4, None)
    assert shy.calls == []
    assert names(eager) == ["start", "step", "end"]


@pytest.mark.parametrize("method", ["on_step_end", "on_validation", "on_run_end"])
def test_an_error_ends_the_run_and_names_the_callback(pictures, tmp_path, method):
    recorder = Recorder()
    config = coarse_config(train__steps=2, train__checkpoint_every=1, validation__task="vqa")
    with pytest.raises(
        CallbackError, match=rf"Failing\.{method} failed after step \d.*no space"
    ) as e:
        run(config, pictures, tmp_path / "r", callbacks=[recorder, Failing(method)])
    assert isinstance(e.value.__cause__, ValueError)
    assert names(recorder)[-1] == "end"
    ended_by = recorder.calls[-1][1]
    assert (ended_by is None) == (method == "on_run_end")


def test_a_callback_that_did_not_start_does_not_end(tmp_path):
    first, last = Recorder(), Recorder()
    callbacks = Callbacks([first, Failing("on_run_start"), last], is_first=True)
    running = callbacks.running(context(tmp_path))
    with pytest.raises(CallbackError, match=r"on_run_start failed after step 3"), running:
        raise AssertionError("the run does not start")
    assert names(first) == ["start", "end"]
    assert isinstance(first.calls[-1][1], CallbackError)
    assert last.calls == []


def test_every_callback_ends(tmp_path):
    recorder = Recorder()
    callbacks = Callbacks([Failing("on_run_end"), Failing("on_run_end"), recorder], is_first=True)
    running = callbacks.running(context(tmp_path))
    with pytest.warns(RuntimeWarning, match="on_run_end"), pytest.raises(CallbackError), running:
        pass
    assert names(recorder) == ["start", "end"]


def test_an_error_at_the_end_does_not_hide_what_ended_the_run(tmp_path):
    callbacks = Callbacks([Failing("on_run_end")], is_first=True)
    running = callbacks.running(context(tmp_path))
    expected = pytest.warns(RuntimeWarning, match=r"on_run_end.*no space")
    with expected, pytest.raises(Preempted), running:
        raise Preempted("SIGTERM")


def test_interrupts_of_a_callback_stay_what_they_are(tmp_path):
    callbacks = Callbacks([Failing("on_step_end", KeyboardInterrupt())], is_first=True)
    with pytest.raises(KeyboardInterrupt), callbacks.running(context(tmp_path)):
        callbacks.step_ended(4, None)


def test_callbacks_do_not_change_the_run(pictures, tmp_path):
    """What a callback sees is the run itself, so a silent one must leave no trace in it."""
    plain = run(coarse_config(), pictures, tmp_path / "plain")
    seen = run(coarse_config(), pictures, tmp_path / "seen", callbacks=[Recorder()])
    for one, other in zip(plain.metrics, seen.metrics, strict=True):
        assert one["losses"] == other["losses"]
        assert one["gradient_norm"] == other["gradient_norm"]
