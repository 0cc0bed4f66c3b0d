"""`fiber train --processes`: settings, exit codes, and what is printed."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from fiber.cli import launched, main
from fiber.training.distributed import launch as module
from fiber.training.distributed.launch import Job, launch

HERE = module._Node("localhost")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"processes": 0}, "--processes of 1 or more"),
        ({"processes": 1, "restarts": -1}, "--restarts of 0 or more"),
        ({"processes": 1, "nodes": (2, 1)}, "--nodes: expected 1 <= I <= J, got 2:1"),
        ({"processes": 1, "nodes": (1, 2)}, "needs --rendezvous HOST:PORT"),
        ({"processes": 1, "nodes": (2, 2), "rendezvous": "a:1"}, "and --job ID"),
        ({"processes": 1, "nodes": (2, 2), "rendezvous": "a", "id": "1"}, "HOST:PORT, got 'a'"),
    ],
)
def test_wrong_settings_are_named(settings, expected):
    with pytest.raises(ValueError, match=expected):
        Job(**settings)


@pytest.mark.parametrize("variable", [("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2")])
def test_processes_of_torchrun_start_no_others(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    with pytest.raises(ValueError, match="torchrun has started this process already"):
        launch(["train"], Job(processes=2))


def test_one_node_needs_no_address_and_several_share_one():
    alone = module._config(Job(processes=2, restarts=5), HERE)
    assert (alone.min_nodes, alone.max_nodes, alone.nproc_per_node) == (1, 1, 2)
    assert (alone.rdzv_backend, alone.max_restarts) == ("c10d", 5)
    assert alone.run_id != module._config(Job(processes=2), HERE).run_id
    several = Job(processes=2, nodes=(1, 4), rendezvous="first:29400", id="42")
    config = module._config(several, module._Node("10.0.0.2"))
    assert (config.min_nodes, config.max_nodes) == (1, 4)
    assert (config.rdzv_endpoint, config.run_id) == ("first:29400", "42")
    assert (alone.local_addr, config.local_addr) == ("localhost", "10.0.0.2")
    # Otherwise the agent finds it out.
    assert "is_host" not in config.rdzv_configs
    host = module._config(several, module._Node("10.0.0.1", is_host=True))
    assert host.rdzv_configs["is_host"] is True


def test_nohup_keeps_the_job_alive(monkeypatch):
    node, job = module._Node("localhost"), module.Job(processes=1)
    names = {field.name for field in dataclasses.fields(module.LaunchConfig)}
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    before = module._config(job, node)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    if "signals_to_handle" in names:
        assert "SIGHUP" in before.signals_to_handle
        assert module._config(job, node).signals_to_handle == "SIGTERM,SIGINT,SIGQUIT"


def test_processes_of_a_node_share_their_notes(monkeypatch, tmp_path):
    monkeypatch.delenv(module.NOTES, raising=False)
    assert not launched.is_launched()
    assert [launched.is_new("a"), launched.is_new("a")] == [True, True]
    assert launched.keep_code(2) == 2
    monkeypatch.setenv(module.NOTES, str(tmp_path))
    assert launched.is_launched()
    assert [launched.is_new("a"), launched.is_new("a"), launched.is_new("b")] == [True, False, True]
    for code in (0, 1, 75):
        assert launched.keep_code(code) == code
        assert launched.final_code() is None
    launched.keep_code(2)
    assert launched.final_code() == 2
    # A restarted process ends at once.
    assert main(["train", "no such recipe", "--data", "x"]) == 2


def test_the_node_of_the_rendezvous_does_not_wait_for_itself(monkeypatch):
    def connect(*where, **options):
        raise AssertionError(f"it asks {where} whether it listens")

    monkeypatch.setattr(socket, "create_connection", connect)
    for name in ("localhost", socket.gethostname()):
        assert module._wait_for_host(f"{name}:1") == (name, None)


def test_other_nodes_wait_until_it_listens(monkeypatch):
    monkeypatch.setattr(module, "_matches_machine_hostname", lambda host: False)
    monkeypatch.setattr(module, "_is_own", lambda host: False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"{address} does not answer after 0 s"):
            module._wait_for_host(address, longest=0)
        found = []
        waiting = threading.Thread(
            target=lambda: found.append(module._wait_for_host(address)), daemon=True
        )
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        server.listen()
        waiting.join(10)
    # The address of this node from which it has reached the other.
    assert found == [("127.0.0.1", None)]
    with pytest.raises(ConnectionError, match=r"no-such-host\.invalid:5 does not"):
        module._wait_for_host("no-such-host.invalid:5", longest=0)
    with pytest.raises(ValueError, match="port"):
        module._wait_for_host("node0:first")


def test_an_address_that_is_not_that_of_the_host_name(monkeypatch):
    monkeypatch.setattr(module, "_matches_machine_hostname", lambda host: False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert module._wait_for_host(address) == ("127.0.0.1", True)
        # A second node of this machine joins.
        server.listen()
        assert module._wait_for_host(address) == ("127.0.0.1", None)
    # An address for documentation, of nobody.
    assert not module._is_own("203.0.113.1")
    assert not module._is_own("no-such-host.invalid")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_a_node_that_waits_for_others(monkeypatch, name):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    # It arrives while the node waits.
    monkeypatch.setattr(
        module, "_wait_for_host", lambda rendezvous: signal.raise_signal(signal.Signals[name])
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = dict(os.environ)
    job = Job(processes=1, nodes=(2, 2), rendezvous="node0:29400", id="a")
    try:
        assert launch(["train"], job) == 75
        # The caller goes on, as `fiber demo` does.
        assert {number: signal.getsignal(number) for number in before} == before
        assert dict(os.environ) == environment
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ctrl_c_is_explained_once(monkeypatch, capsys):
    monkeypatch.setattr(module, "launch", lambda arguments, job: module.INTERRUPTED)
    assert main(["train", "scenes_coarse", "--data", "x", "--processes", "2"]) == 130
    assert capsys.readouterr().err.count("rerun the same command with --resume") == 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1:", ":2", "a:b"])
def test_wrong_numbers_are_named(text, capsys):
    option = "--nodes" if ":" in text else "--processes"
    with pytest.raises(SystemExit):
        main(
            ["train", "pretrain", "--data", "x", option, text]
            if text[0] != "-"
            else ["train", "pretrain", "--data", "x", f"{option}={text}"]
        )
    assert repr(text) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("nodes", "2"), ("rendezvous", "a:1"), ("restarts", "0")]
)
def test_options_of_processes_without_processes_are_refused(capsys, option, value):
    assert main(["train", "pretrain", "--data", "x", f"--{option}", value]) == 2
    assert f"--{option} needs --processes N" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_input_is_printed_once_and_not_tried_again(tmp_path):
    command = ["train", "scenes_coarse", "--data", str(tmp_path / "missing"), "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "fiber.cli", *command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fiber: error: ")
    assert "missing" in lines[0]


def test_the_last_sentence_has_the_error_of_the_process_that_failed(tmp_path):
    (tmp_path / "error-12").write_text("the cache is full")
    failure = ProcessFailure(local_rank=0, pid=12, exitcode=1, error_file="")
    job = Job(processes=1, restarts=2)
    expected = r"exit code 1, after 2 restarts: the cache is full; --resume continues"
    with pytest.raises(ChildProcessError, match=expected):
        module._explain(ChildFailedError("fiber", {0: failure}), job, tmp_path)


@pytest.mark.slow
def test_a_death_without_restarts_is_one_sentence(tmp_path):
    # The process kills itself as the system would when memory runs out.
    script = tmp_path / "sitecustomize.py"
    script.write_text("import os\nif 'LOCAL_RANK' in os.environ: os.kill(os.getpid(), 9)\n")
    command = ["train", "scenes_coarse", "--data", "x", "--processes", "1", "--restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "fiber.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fiber: error: rank 0 (process ")
    assert "was killed by SIGKILL, after 1 restarts; --resume continues the run" in last


@pytest.mark.slow
def test_files_of_the_working_directory_are_no_modules(tmp_path):
    (tmp_path / "grp.py").write_text("raise SystemExit('not the module grp')")
    command = ["train", "scenes_coarse", "--data", "missing", "--processes", "1", "--output", "run"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fiber.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "missing" in done.stderr and "grp" not in done.stderr
