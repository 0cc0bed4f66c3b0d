"""Options of `fiber map --engine ray`; tests/ray_data has the runs, which need Ray."""

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fiber.bulk import ray_engine
from fiber.bulk.annotator import Annotator
from fiber.bulk.map import Work
from fiber.bulk.ray_engine import RayEngine
from fiber.cli import main


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"workers": 0}, "workers is 0; expected 1 or more"),
        ({"cpus": -1.0}, "cpus is -1.0; expected 0 or more"),
        ({"gpus": float("nan")}, "gpus is nan"),
        ({"gpus": float("inf")}, "gpus is inf"),
        ({"cpus": 0, "gpus": 0}, "cpus and gpus are 0"),
    ],
)
def test_wrong_numbers_are_named(given, named):
    with pytest.raises(ValueError, match=named):
        RayEngine(**given)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--address", "auto"], "--address is for --engine ray"),
        (["--worker-gpus", "1"], "--worker-gpus is for --engine ray"),
        (["--engine", "ray", "--processes", "2"], "--processes is not for --engine ray"),
        (["--engine", "ray", "--plan", "9"], "--plan is not for --engine ray"),
        (["--engine", "ray", "--worker-cpus", "0"], "cpus and gpus are 0"),
    ],
)
def test_wrong_options_are_named(arguments, named, tmp_path, capsys):
    command = ["map", "data", "--task", "caption", "--output", str(tmp_path / "rows")]
    assert main([*command, *arguments]) == 2
    assert named in capsys.readouterr().err


def work_of(**changes) -> Work:
    found = Work(
        data="images",
        output=Path("rows"),
        annotator=Annotator("scenes", "embed"),
        source=None,
        splits=(),
        batch_size=4,
        threads=1,
    )
    return replace(found, **changes)


def test_paths_are_absolute_for_workers(tmp_path, monkeypatch, micro_models):
    monkeypatch.chdir(tmp_path)
    for name in ("cpu", "ema"):
        (tmp_path / name).mkdir()
    (tmp_path / "own").symlink_to(micro_models["coarse"])
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    options = {"device": "cpu", "weights": "ema", "tokenizer": tokenizer.name}
    own = work_of(annotator=Annotator("own", "embed", base="own", **options))
    found = ray_engine._with_absolute_paths(own)
    assert (found.data, found.output) == (tmp_path / "images", tmp_path / "rows")
    assert found.annotator._source == found.annotator._loading["base"] == micro_models["coarse"]
    rest = {name: found.annotator._loading[name] for name in options}
    assert rest == {"device": "cpu", "weights": "ema", "tokenizer": tokenizer}
    assert own.annotator.name == "own"
    url = ray_engine._with_absolute_paths(work_of(data="s3://bucket/packed"))
    assert url.data == "s3://bucket/packed"


def test_the_model_in_the_package_is_not_data_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for there in (False, True):
        if there:
            (tmp_path / "scenes").mkdir()
        assert ray_engine._with_absolute_paths(work_of()).annotator.name == "scenes"


def stub(known, error=None):
    """A module ray that has no cluster."""

    def init(**settings):
        known.append(settings["address"])
        if error is not None:
            raise error

    return SimpleNamespace(
        is_initialized=lambda: False, init=init, shutdown=lambda: known.append("end")
    )


@pytest.mark.parametrize(
    ("variable", "address", "expected"),
    [(None, None, "local"), ("auto", None, "auto"), ("auto", "local", "local")],
)
def test_the_cluster_is_that_of_the_address(monkeypatch, variable, address, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setitem(os.environ, "RAY_ADDRESS", variable)
    known = []
    with ray_engine._cluster(stub(known), address):
        assert known == [expected]
    assert known == [expected, "end"]


def test_no_cluster_at_an_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, f"ray://{address}", "127.0.0.1:99999"):
        known = []
        with (
            pytest.raises(ConnectionError, match=f"no Ray cluster at '{given}'"),
            ray_engine._cluster(stub(known), given),
        ):
            pass
        assert known == []
    failing = stub([], ConnectionError("no head\nand more"))
    with (
        pytest.raises(ConnectionError, match=r"no Ray cluster at 'auto': no head$"),
        ray_engine._cluster(failing, "auto"),
    ):
        pass


def test_ray_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"fiber-vl\[ray\]"):
        RayEngine().run(work_of(output=tmp_path / "rows"))
