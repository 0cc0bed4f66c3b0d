"""`fiber map` on a Ray cluster of two nodes: the rows of one process, also after kills."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

import fiber.inference
from fiber.bulk.ray_engine import RayEngine
from fiber.cli import main
from fiber.data import pack
from tests.bulk.conftest import mixed_images  # noqa: F401 (a fixture)
from tests.examples.cluster.local_cluster import EXAMPLES
from tests.processes import run_python

ray = pytest.importorskip("ray")

# Warnings are those of Ray.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
HALF = RayEngine(cpus=0.5)
OPTIONS = {"model": "scenes", "split": "val", "batch_size": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread for each process: rows are compared to the bit, and cores are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster(one_thread):
    """Two logical nodes of four CPUs each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    made.add_node(num_cpus=4)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def shards(small_scenes, tmp_path_factory) -> Path:
    """A packed dataset of many shards, of which each is a unit."""
    folder = tmp_path_factory.mktemp("shards") / "data"
    pack(small_scenes, folder, splits=["val"], shard_bytes=9000)
    return folder


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "rows"
    fiber.map(shards, "embed", output, **OPTIONS)
    return output


def same(one: Path, other: Path) -> None:
    """Compare all files of rows and the errors bit by bit."""
    files = [{path.name for path in (each / "rows").iterdir()} for each in (one, other)]
    assert files[0] == files[1]
    for name in [*(f"rows/{name}" for name in files[0]), "errors.parquet"]:
        assert pyarrow.parquet.read_table(one / name).equals(
            pyarrow.parquet.read_table(other / name)
        ), name
    assert (one / "map.json").read_text() == (other / "map.json").read_text()


def test_rows_are_those_of_one_process(cluster, shards, alone, tmp_path, capsys):
    output = tmp_path / "rows"
    done = []
    found = fiber.map(
        shards, "embed", output, engine=HALF, progress=lambda *now: done.append(now), **OPTIONS
    )
    assert (found["engine"], found["workers"], found["complete"]) == ("ray", 16, True)
    assert found["rows"] == found["total"]["rows"] > 0
    assert found["units"] == found["done"] == len(list((output / "rows").iterdir())) > 4
    assert done[0][0] == 0 and done[-1][0] == done[-1][1]
    same(alone, output)
    # Again, as a command: nothing is left to do.
    arguments = ["map", str(shards), "--task", "embed", "--model", "scenes", "--split", "val"]
    arguments += ["--batch-size", "4", "--engine", "ray", "--worker-cpus", "0.5"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert '"rows": 0' in capsys.readouterr().out
    # Errors of workers are those of this process.
    with pytest.raises(ValueError, match=r"map\.json: the results there are of another run"):
        fiber.map(shards, "embed", output, engine=HALF, **OPTIONS | {"batch_size": 8})
    with pytest.raises(ValueError, match=r"a worker needs 1 CPUs and 1 GPUs; .* has 8 and 0"):
        fiber.map(shards, "embed", output, engine=RayEngine(gpus=1), **OPTIONS)


def ancestors(process: int) -> Iterator[int]:
    while process > 1:
        # Parentheses enclose the name, which may have spaces.
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
        process = int(stat.split()[1])
        yield process


def own_workers() -> Iterator[int]:
    """Yield the workers of Ray Data of this process, not those of another cluster."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Processes end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            process = int(path.parent.name)
            is_worker = path.read_bytes().startswith(b"ray::MapWorker")
            if is_worker and os.getpid() in ancestors(process):
                yield process


def kill_a_worker(rows: Path, killed: list[int], ended: threading.Event) -> None:
    """Kill a worker of Ray Data as soon as there is a file of rows."""
    while not ended.is_set():
        if rows.is_dir() and any(each.suffix == ".parquet" for each in rows.iterdir()):
            for process in own_workers():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
        time.sleep(0.005)


def test_a_worker_that_is_killed(cluster, shards, alone, tmp_path):
    output = tmp_path / "rows"
    killed, ended = [], threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(output / "rows", killed, ended))
    killer.start()
    try:
        engine = RayEngine(cpus=0.5, workers=2)
        found = fiber.map(shards, "embed", output, engine=engine, **OPTIONS)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 1
    assert found["complete"]
    same(alone, output)


def test_images_that_fail_have_their_reasons(cluster, mixed_images, tmp_path):  # noqa: F811
    settings = {"model": "scenes", "batch_size": 4}
    fiber.map(mixed_images, "embed", tmp_path / "one", **settings)
    found = fiber.map(mixed_images, "embed", tmp_path / "other", engine=HALF, **settings)
    assert found["total"]["errors"] == 3
    same(tmp_path / "one", tmp_path / "other")


def test_the_example_skips_what_it_wrote(cluster, mixed_images, tmp_path):  # noqa: F811
    arguments = [mixed_images, "--output", tmp_path / "out", "--cpus", "0.5"]
    for _ in range(2):
        variables = {"RAY_ADDRESS": cluster.address}
        done = run_python(
            [EXAMPLES / "ray_map.py", *arguments],
            folder=tmp_path,
            environment=os.environ | variables,
        )
        assert done.returncode == 0, done.stderr
        rows = pyarrow.dataset.dataset(tmp_path / "out" / "rows").to_table()
        assert len(rows) == len(set(rows["path"].to_pylist())) == 23
    assert sum(error is not None for error in rows["error"].to_pylist()) == 3


def test_the_lines_with_daft(mixed_images, tmp_path):  # noqa: F811
    page = (ROOT / "docs" / "bulk.md").read_text()
    [code] = re.findall(r"```python\n(import daft.*?)```", page, re.DOTALL)
    (tmp_path / "a.jpg").write_bytes((mixed_images / "00.png").read_bytes())
    # In a process of its own: Daft would use the Ray of this one.
    (tmp_path / "run.py").write_text(f"from fiber.inference import Annotator\n{code}")
    done = run_python(["run.py"], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pyarrow.dataset.dataset(tmp_path / "embedded").to_table()
    first, second = rows.sort_by("key")["embedding"].to_pylist()
    image = tmp_path / "a.jpg"
    found = fiber.inference.Annotator("scenes", "embed", device="cpu")({"image": [image]})
    assert first == pytest.approx(found["embedding"][0].tolist(), abs=1e-6)
    assert not any(second)
