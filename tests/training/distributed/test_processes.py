import faulthandler
import json
import signal
import socket
import threading

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fiber.training.distributed.preemption import Preempted, StopSignal
from fiber.training.distributed.processes import _wait_for_ranks, destroy_group, joined
from fiber.training.metrics_file import read_metrics
from tests.losses.two_ranks import LONGEST
from tests.processes import start_python, start_server
from tests.training import micro_runs
from tests.training.micro_runs import coarse_config, fine_config, run


def test_one_process_is_its_own_world():
    with joined("cpu") as processes:
        assert (processes.rank, processes.world_size, processes.is_first) == (0, 1, True)


def test_ranks_that_are_not_there_are_named():
    store = dist.HashStore()
    with pytest.raises(ConnectionError, match=r"ranks 0, 2 of 3 are not there after 0\.1 s"):
        _wait_for_ranks(store, 1, 3, longest=0.1)
    threads = [threading.Timer(0.1, _wait_for_ranks, (store, rank, 3)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    _wait_for_ranks(store, 1, 3, longest=60)


def test_a_signal_ends_the_wait_for_other_ranks():
    threading.Timer(0.2, signal.raise_signal, [signal.SIGTERM]).start()
    with StopSignal(at_once=True), pytest.raises(Preempted):
        _wait_for_ranks(dist.HashStore(), 1, 2)


def test_a_group_is_destroyed_while_threads_drop_what_they_gathered(tmp_path):
    start_server()
    mp.start_processes(open_and_destroy, (tmp_path,), nprocs=2, start_method="forkserver")


def open_and_destroy(rank, folder):
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    torch.set_num_threads(1)
    # Without the pause, torch 2.6 hangs in one of a few.
    for attempt in range(10):
        store = f"file://{folder / str(attempt)}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        for _ in range(5):
            dist.all_gather([torch.empty(1000) for _ in range(2)], torch.zeros(1000))
        destroy_group()


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"RANK.*LOCAL_RANK"), joined("cpu"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "objective"),
    [("coarse", "likelihood"), ("coarse", "cider"), ("fine", "likelihood"), ("fine", "plateau")],
    ids=["coarse", "self-critical", "fine", "slowing down"],
)
def test_two_processes_train_as_one_with_twice_the_batch(pictures, tmp_path, stage, objective):
    # data.batch_size counts samples over all processes, so both runs have the same configuration.
    # An odd batch a rank, so that nothing may depend on where ranks are cut.
    changes = {"data__batch_size": 6, "train__steps": 10, "train__checkpoint_every": 0}
    if stage == "coarse":
        changes["validation__task"] = "vqa"
        changes["tasks__image_text__itm_negatives"] = "half"
        changes["tasks__caption__objective"] = objective
    measured = stage == "coarse" or objective == "plateau"
    if objective == "plateau":
        # The ranks measure together, and both slow down.
        changes |= {"validation__task": "refcoco", "train__checkpoint_every": 2}
        changes |= {"optim__schedule": "plateau", "optim__plateau_patience": 0}
    settings = {"stage": stage, "data": str(pictures), "changes": changes}
    settings |= {"output": str(tmp_path / "two"), "resume": False}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start_python(
            [micro_runs.__file__, json.dumps(settings)],
            environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    build = fine_config if stage == "fine" else coarse_config
    one = run(build(**changes), pictures, tmp_path / "one").metrics
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    two = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert len(one) == len(two) == 10
    for ours, theirs in zip(one, two, strict=True):
        assert ours["losses"].keys() == theirs["losses"].keys()
        for name, loss in ours["losses"].items():
            assert theirs["losses"][name] == pytest.approx(loss, rel=1e-5), (name, ours["step"])
        # Adam hides a gradient of the wrong size from the losses, its norm does not.
        assert theirs["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-3)
        assert ours["images"] == theirs["images"]
        assert ours.get("validation") == theirs.get("validation")
        assert ours["learning_rates"] == theirs["learning_rates"]
    assert ("validation" in two[-1]) == measured
    if objective == "plateau":
        assert two[-1]["learning_rates"]["x1"] < 0.5 * two[2]["learning_rates"]["x1"]
    assert (tmp_path / "two" / "model.safetensors").exists()
