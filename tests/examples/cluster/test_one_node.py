"""one_node.sh, and that no file of the folder is without a test."""

import re
import signal
from pathlib import Path

import pytest

from tests.examples.cluster.local_cluster import (
    EXAMPLES,
    FEW,
    check_finished,
    end_of,
    small_run,
)

SCRIPT = EXAMPLES / "one_node.sh"


def test_every_file_is_tested_here():
    here = Path(__file__).parent
    files_of_tests = [*here.glob("test_*.py"), *(here.parents[1] / "ray_data").glob("test_*.py")]
    tests = "\n".join(path.read_text() for path in files_of_tests)
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == set(re.findall(r'EXAMPLES / "([\w.]+)"', tests))


def test_words_of_the_command(cluster, tmp_path):
    cluster.add_command("fiber", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    job = cluster.start([str(SCRIPT), "pretrain", "--data", "a folder"], tmp_path / "run")
    words = end_of(job).splitlines()
    assert words[:4] == ["train", "pretrain", "--data", "a folder"]
    assert words[4:] == ["--resume", "--processes", "auto", "--restarts", "3"]


def test_a_signal_to_the_script_is_one_to_fiber(cluster, tmp_path):
    cluster.add_command(
        "fiber", "#!/bin/bash\ntrap 'exit 75' USR1\necho ready\nwhile true; do sleep 0.05; done\n"
    )
    job = cluster.start([str(SCRIPT), "pretrain"], tmp_path / "run")
    while "ready" not in job.text():
        assert job.process.poll() is None
    job.process.send_signal(signal.SIGUSR1)
    end_of(job, code=75)


@pytest.mark.slow
def test_it_trains(cluster, data, tmp_path):
    output = tmp_path / "run"
    job = cluster.start([str(SCRIPT), *small_run(data, output)], output, {"PROCESSES": "2"})
    check_finished(output, FEW, end_of(job))
