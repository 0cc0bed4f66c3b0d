"""Process of a peer: requests, measurement, and shutdown."""

import json
import os
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from fiber.benchmarks import processes
from fiber.benchmarks.peers import BY_NAME, Peer
from fiber.benchmarks.peers.task import PeerTask, fine_size, padded_side
from fiber.benchmarks.processes import (
    PeerError,
    PeerProcess,
    _process_cpu_seconds,
    members_of_session,
    not_installed,
)

NUMPY = BY_NAME["numpy"]
BOXES = PeerTask(
    work="boxes",
    output="float32",
    variant="",
    batch_size=1,
    threads=1,
    sizes=((480, 640), (640, 480)),
    boxes=(((-5.0, 10.0, 700.0, 20.0),), ((0.0, 0.0, 48.0, 64.0),)),
)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_task_round_trips_through_json():
    text = json.dumps(asdict(BOXES))
    assert json.dumps(asdict(PeerTask(**json.loads(text)))) == text


def test_an_epoch_is_counted_and_measured(tmp_path):
    with PeerProcess(NUMPY, replace(BOXES, repeats=300), sys.executable, tmp_path / "log") as peer:
        assert peer.versions == {"numpy": np.__version__}
        one = peer.epoch(0)
        assert one.count == 600
        assert 0 < one.cpu_seconds < 10
        assert one.wall_seconds > 0
        assert peer.peak_bytes() > 10_000_000
        pid = peer._process.pid
    assert not alive(pid)


def test_a_sample_is_the_start_of_the_first_batch(tmp_path):
    with PeerProcess(NUMPY, BOXES, sys.executable, tmp_path / "log") as peer:
        peer.epoch(0, tmp_path / "sample.npy")
    moved = np.load(tmp_path / "sample.npy")
    # 640 x 480 becomes 1066 x 800; the first box is clipped, both are mirrored.
    assert moved[0].tolist() == [pytest.approx([0, 10 * 800 / 480, 1066, 20 * 800 / 480], rel=1e-5)]
    assert moved[1].tolist() == [pytest.approx([720, 0, 800, 64 / 640 * 1066], rel=1e-5)]


def test_a_module_that_does_not_load(tmp_path):
    peer = replace(NUMPY, module="not_there")
    with pytest.raises(PeerError, match=r"ModuleNotFoundError.*not_there"):
        PeerProcess(peer, BOXES, sys.executable, tmp_path / "log")


def test_an_epoch_that_fails_has_a_reason(tmp_path):
    task = replace(BOXES, sizes=BOXES.sizes[:1])
    peer = PeerProcess(NUMPY, task, sys.executable, tmp_path / "log")
    with peer, pytest.raises(PeerError, match="ValueError: zip"):
        peer.epoch(0)


def test_a_process_that_exits(tmp_path):
    script = tmp_path / "interpreter"
    script.write_text("#!/bin/sh\necho the last word >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(PeerError, match=r"exited with code 3: the last word"):
        PeerProcess(NUMPY, BOXES, str(script), tmp_path / "log")


@pytest.mark.slow
def test_a_peer_that_is_stuck_is_named(tmp_path, monkeypatch):
    """A peer that uses no CPU time is stuck; one that computes for as long is not."""
    monkeypatch.setattr(processes, "STUCK_SECONDS", 3.0)
    script = tmp_path / "interpreter"
    script.write_text("#!/bin/sh\necho waiting for a worker >&2\nexec sleep 300\n")
    script.chmod(0o755)
    with pytest.raises(PeerError, match=r"^stuck: .*: waiting for a worker$"):
        PeerProcess(NUMPY, BOXES, str(script), tmp_path / "log")
    code = "import time\nwhile time.process_time() < 4: pass\nprint('{\"versions\": {}}')"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    with PeerProcess(NUMPY, BOXES, str(script), tmp_path / "log") as peer:
        assert peer.versions == {}


def test_children_of_a_peer_are_killed(tmp_path):
    script = tmp_path / "interpreter"
    script.write_text("#!/bin/sh\nsleep 300 &\necho '{\"versions\": {}}'\nread order\nread more\n")
    script.chmod(0o755)
    with PeerProcess(NUMPY, BOXES, str(script), tmp_path / "log") as peer:
        leader = peer._process.pid
        assert len(members_of_session(leader)) == 2
    deadline = time.monotonic() + 600
    while members_of_session(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members_of_session(leader) == []


CHILD = """
import sys, time
while time.process_time() < 0.3: pass
print(time.process_time(), flush=True)
sys.stdin.readline()
"""
PARENT = f"""
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
sys.stdin.readline()
spent = {{"child": child.stdout.readline().strip(), "parent": time.process_time()}}
print(json.dumps({{"versions": spent}}), flush=True)
sys.stdin.readline()
child.communicate()
print(json.dumps({{"count": 1}}), flush=True)
sys.stdin.readline()
"""


def test_cpu_time_includes_children(tmp_path):
    """Each process reports its own time, since the cost of a start depends on the machine."""
    script = tmp_path / "interpreter"
    script.write_text(f"#!{sys.executable}\n{PARENT}")
    script.chmod(0o755)
    with PeerProcess(NUMPY, BOXES, str(script), tmp_path / "log") as peer:
        parent, child = float(peer.versions["parent"]), float(peer.versions["child"])
        pid = peer._process.pid
        assert len(members_of_session(pid)) == 2
        assert child >= 0.3
        assert parent + child <= peer.cpu_seconds() < parent + 2 * child
        peer.epoch(0)
        assert members_of_session(pid) == [pid]
        # A child that has ended is in its parent's time, in ticks that are rounded down.
        ticks = 2 / os.sysconf("SC_CLK_TCK")
        assert parent + child - ticks <= peer.cpu_seconds() < parent + 2 * child
    assert members_of_session(pid) == []
    assert peer.cpu_seconds() == _process_cpu_seconds(pid) == 0


class TestInstalled:
    def test_missing_peers_have_an_install_command(self):
        absent = Peer(
            name="nobody",
            title="",
            module="nobody",
            does=frozenset(),
            distributions=("fiber-no-such-package",),
            install="pip install fiber-no-such-package",
        )
        library = replace(NUMPY, name="library", preload="libfiber-no-such-library.so.1")
        found = not_installed([NUMPY, absent, library], {})
        assert set(found) == {"nobody", "library"}
        assert "pip install fiber-no-such-package" in found["nobody"]
        assert "libfiber-no-such-library.so.1 is not installed" in found["library"]

    def test_another_interpreter_is_asked(self, tmp_path):
        empty = tmp_path / "python"
        empty.write_text("#!/bin/sh\necho '{}'\n")
        empty.chmod(0o755)
        assert set(not_installed([NUMPY], {"numpy": str(empty)})) == {"numpy"}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((100, 100), (800, 800)),
        ((300, 1000), (400, 1333)),
        ((301, 1000), (401, 1332)),
        ((427, 640), (800, 1199)),
    ],
)
def test_sizes_of_the_fine_stage(size, expected):
    assert fine_size(*size) == expected


def test_padding():
    assert [padded_side(n) for n in (1, 32, 33)] == [32, 32, 64]
