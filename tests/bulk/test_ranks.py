"""Which units a process does, and processes on one machine."""

import json
import os

import pyarrow.parquet
import pytest

from fiber.bulk.ranks import PARENT, Rank, is_orphan, rank_of, run_processes
from tests.processes import run_python


def array(task, first, last, step=1, count=None):
    names = {"ID": task, "MIN": first, "MAX": last, "STEP": step}
    if count is not None:
        names["COUNT"] = count
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "5"}, (2, 5)),
        (array(3, 0, 7), (3, 8)),
        (array(14, 10, 18, 2, 5), (2, 5)),
        (array(3, 0, 7) | {"RANK": "0", "WORLD_SIZE": "2"}, (0, 2)),
    ],
)
def test_variables(variables, rank):
    assert rank_of(variables) == rank


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "2"}, "WORLD_SIZE"),
        ({"RANK": "5", "WORLD_SIZE": "5"}, "rank 5 of 5"),
        ({"RANK": "-1", "WORLD_SIZE": "5"}, "RANK is '-1'"),
        ({"RANK": "one", "WORLD_SIZE": "5"}, "'one'"),
        # --array=0,3,7 would leave what the missing tasks own.
        (array(3, 0, 7, 1, 3), "3 tasks"),
    ],
)
def test_wrong_variables(variables, named):
    with pytest.raises(ValueError, match=named):
        rank_of(variables)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_unit_belongs_to_one_rank(count):
    for unit in range(20):
        assert sum(Rank(number, count).owns(unit) for number in range(count)) == 1


def test_processes_of_a_task_of_an_array():
    ranks = [Rank(task, 3).among(4, own) for task in range(3) for own in range(4)]
    assert [rank.number for rank in ranks] == list(range(12))
    assert {rank.total for rank in ranks} == {12}


def test_a_process_whose_command_has_ended(monkeypatch):
    assert not is_orphan()
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert not is_orphan()
    monkeypatch.setenv(PARENT, "1000000000")
    assert is_orphan()


def test_a_process_that_is_killed_is_named(monkeypatch, tmp_path):
    script = tmp_path / "dies"
    script.write_text('#!/bin/sh\n[ "$RANK" = 1 ] && kill -9 $$\nexit 0\n')
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(ChildProcessError, match="rank 1 of 2 was killed by SIGKILL"):
        run_processes(["map"], 2, Rank())


def run_map(*arguments):
    result = run_python(["-m", "fiber.cli", "map", *arguments])
    return result.returncode, result.stdout, result.stderr


def test_the_command(micro_models, mixed_images, tmp_path):
    given = (mixed_images, "--task", "embed", "--model", micro_models["coarse"], "--device", "cpu")
    code, out, err = run_map(*given, "--output", tmp_path / "one")
    assert code == 0, err
    (line,) = out.splitlines()
    assert json.loads(line)["total"] == {"rows": 20, "errors": 3, "truncated": 0}
    assert "3 records failed" in err
    assert "errors.parquet" in err


@pytest.mark.slow
def test_processes_share_the_work(micro_models, mixed_images, tmp_path):
    given = (mixed_images, "--task", "embed", "--model", micro_models["coarse"], "--device", "cpu")
    code, out, err = run_map(*given, "--output", tmp_path / "two", "--processes", 2)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["ranks"] == 2
    assert found["total"] == {"rows": 20, "errors": 3, "truncated": 0}
    code, _, err = run_map(
        *given, "--output", tmp_path / "two", "--processes", 2, "--batch-size", 3
    )
    assert code == 2
    assert err.count("options.batch_size is 16, now 3") == 1


def test_a_plan(micro_models, mixed_images):
    given = (mixed_images, "--task", "embed", "--model", micro_models["coarse"], "--device", "cpu")
    code, out, err = run_map(*given, "--plan", 1000000)
    assert code == 0, err
    found = json.loads(out)
    assert found["measured"] == 23
    assert found["images"] == 1000000
    assert found["bytes_per_image"] > 32 * 4
    assert found["files"] == -(-1000000 // 23)
    assert found["hours"]["8"] == pytest.approx(found["core_hours"] / 8, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--task", "embed"), "--output DIR, or --plan N"),
        (("--task", "embed", "--output", "o", "--text", "a"), "--text is not for --task embed"),
        (("--task", "answer", "--output", "o", "--threshold", ".3"), "--top-k"),
        (("--task", "answer", "--output", "o"), "--question"),
        (("--task", "sing", "--output", "o"), "segment"),
    ],
)
def test_wrong_options(mixed_images, capsys, arguments, named, tmp_path, monkeypatch):
    from fiber.cli import main

    monkeypatch.chdir(tmp_path)
    try:
        code = main(["map", str(mixed_images), *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_results_are_read_by_their_schema(micro_models, mixed_images, tmp_path):
    from fiber.cli import main

    given = ["--task", "caption", "--model", str(micro_models["coarse"]), "--num-beams", "1"]
    assert main(["map", str(mixed_images), *given, "--output", str(tmp_path / "o")]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "o" / "rows" / "000000.parquet")
    assert table.schema.metadata[b"fiber.map.version"] == b"1"
    assert table.column_names == ["record", "key", "image", "height", "width", "text", "caption"]
