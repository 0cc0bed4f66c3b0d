"""Commands of docs/scale.md that tests/test_docs.py does not run, and its table of files."""

import re
import shlex

import pytest

from fiber.cli import parser
from tests.examples.cluster.local_cluster import (
    EXAMPLES,
    FEW,
    check_finished,
    end_of,
    small_run,
)
from tests.kill_ranks import free_port, wait_for_port
from tests.test_docs import blocks_of

PAGE = EXAMPLES.parents[1] / "docs" / "scale.md"
#: The blocks that are run here, by the start of the reason for which test_docs.py skips them.
BLOCKS = {
    block.skip.partition(";")[0]: block.text.replace("\\\n", " ")
    for block in blocks_of(PAGE.read_text())
    if block.skip
}


def test_no_block_is_left_out():
    assert BLOCKS.keys() == {"torchrun", "several machines"}


def test_every_file_of_examples_is_in_the_table():
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    section = PAGE.read_text().partition("\n## Clusters\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)) == files


@pytest.mark.slow
def test_torchrun(cluster, data, tmp_path):
    output = tmp_path / "runs" / "two"
    output.parent.mkdir()
    output.with_name("scenes").symlink_to(data)
    settings = small_run(data, output)
    settings = settings[settings.index("--set") :]
    # The port of torchrun's default is taken where another test trains.
    own = {"SETTINGS": shlex.join(settings), "PET_MASTER_PORT": str(free_port())}
    run = f"cd {shlex.quote(str(tmp_path))}\n{BLOCKS['torchrun']}"
    check_finished(output, FEW, end_of(cluster.start(["bash", "-ec", run], output, own)))


@pytest.mark.slow
def test_bad_input_of_one_node_ends_all(cluster, data, tmp_path):
    port, jobs = free_port(), []
    for number, folder in enumerate((data, tmp_path / "missing")):
        output = tmp_path / f"run-{number}"
        command = ["fiber", "train", *small_run(folder, tmp_path / "run"), "--processes", "1"]
        command += ["--nodes", "2", "--rendezvous", f"localhost:{port}", "--job", "j"]
        jobs.append(cluster.start(command, output))
        if not number:
            wait_for_port(port)
    text = end_of(*jobs, code=2)
    assert "missing does not exist" in jobs[1].text()
    assert re.search(r"rank \d .*missing does not exist", jobs[0].text()), text
    assert "--resume" not in text


@pytest.mark.slow
def test_several_machines(cluster, data, tmp_path):
    command = BLOCKS["several machines"]
    options = parser().parse_args(shlex.split(command)[1:])
    assert (options.processes, options.nodes, options.job) == (8, (4, 8), "pretrain-1")
    output = tmp_path / "run"
    # The page's run is one of many GPUs; here, it is on two machines with one process each.
    for there, here in {
        "pretrain ": "scenes_coarse ",
        "--data DIR": f"--data {shlex.quote(str(data))}",
        "--init ENCODERS": "",
        "SHARED/run": shlex.quote(str(output)),
        "--processes 8": "--processes 1",
        "--nodes 4:8": "--nodes 2:4",
        "node0:29400": f"localhost:{free_port()}",
    }.items():
        assert command.count(there) == 1, there
        command = command.replace(there, here)
    settings = small_run(data, output)
    own = {"SETTINGS": shlex.join(settings[settings.index("--set") :])}
    jobs = [cluster.start(["bash", "-ec", command], output, own) for _ in range(2)]
    check_finished(output, FEW, end_of(*jobs))
