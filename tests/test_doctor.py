import importlib.metadata
import subprocess
import sys

import pytest

from fiber import doctor
from fiber.doctor import Requirement
from fiber.kernels.runtime import dispatch
from fiber.models import registry
from fiber.models.architecture import Architecture


@pytest.fixture
def no_torch_rows(monkeypatch):
    """Leave out what needs torch to be loaded; it has its own test."""
    monkeypatch.setattr(doctor, "_torch_rows", lambda: None)


def pretend(monkeypatch, lines):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)


def test_nothing_is_required(monkeypatch, capsys, no_torch_rows):
    pretend(monkeypatch, [])
    assert doctor.main() == 1
    assert "no package metadata" in capsys.readouterr().out


def test_metadata_is_absent(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert doctor.requirements() == []


def test_requirements_are_read_from_the_metadata(monkeypatch):
    pretend(
        monkeypatch,
        ["numpy>=1.26", "rich>=14 ; extra == 'train'", "fiber-vl[train] ; extra == 'demo'", "six"],
    )
    assert doctor.requirements() == [
        Requirement(name="numpy", minimum="1.26", extra=""),
        Requirement(name="rich", minimum="14", extra="train"),
        Requirement(name="six", minimum="", extra=""),
    ]


@pytest.mark.parametrize(
    ("minimum", "fits"), [("", True), ("0.1", True), ("9", True), ("9.1.1", False), ("10", False)]
)
def test_versions_compare_by_number(monkeypatch, minimum, fits):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.1.0+cpu")
    assert Requirement(name="torch", minimum=minimum, extra="").state()[1] is fits


def test_a_missing_package_is_named_with_the_line_that_gets_it(monkeypatch, capsys, no_torch_rows):
    pretend(monkeypatch, ["numpy>=1.26", "no-such-package>=1.5", "torch>=999"])
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "no-such-package: not installed" in out
    assert "older than the tested 999" in out
    assert "pip install --upgrade 'no-such-package>=1.5' 'torch>=999'" in out


def test_a_missing_extra_is_no_fault(monkeypatch, capsys, no_torch_rows):
    pretend(monkeypatch, ["numpy>=1.26", "no-such-package>=1 ; extra == 'train'"])
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert "pip install 'fiber-vl[train]'" in out
    assert "pip install 'fiber-vl[demo]'" in out


def test_torch_that_does_not_load_is_a_fault(monkeypatch, capsys):
    def broken(name):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert doctor.main() == 1
    assert "libcudart.so.13" in capsys.readouterr().out


def test_this_environment(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for name in (
        "rust core",
        "cores",
        "free disk",
        "torch build",
        "kernels",
        "tile sizes",
        "triton",
    ):
        assert f"\n  {name} " in out, name


def test_an_untested_triton_is_named(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.2.0")
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert "Triton 3.2.0 is not among the tested versions (3.5 to 3.9); GPUs use PyTorch" in out


def test_a_broken_table_of_tile_sizes_is_a_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = tmp_path / "fiber" / "tiles.json"
    table.parent.mkdir()
    table.write_text("[")
    assert doctor.main() == 1
    assert f"tile sizes   {table}, line 1: " in capsys.readouterr().out


def test_model_families_of_other_packages_are_listed(tmp_path, monkeypatch, capsys, no_torch_rows):
    folder = tmp_path / "other_package-2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: other_package\nVersion: 2.0\n")
    (folder / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\n"
        "absent = no_such_package.family:ARCHITECTURES\n"
        f"toy = {__name__}:families_of_a_test\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    toy = Architecture.__new__(Architecture)
    object.__setattr__(toy, "family", "toy")
    monkeypatch.setattr(sys.modules[__name__], "families_of_a_test", (toy,), raising=False)
    registry.installed_families.cache_clear()
    try:
        assert doctor.main() == 1
    finally:
        registry.installed_families.cache_clear()
    out = capsys.readouterr().out
    assert "  built in       meter, fiber, xdecoder\n" in out
    assert f"  toy            other_package 2.0 ({__name__}:families_of_a_test)\n" in out
    assert "! absent       other_package 2.0 (no_such_package.family:ARCHITECTURES): Module" in out
    assert "model family 'absent' of other_package 2.0" in out


def test_the_wheel_alone(tmp_path):
    """Only fiber and the standard library can be imported: as after `pip install --no-deps`."""
    code = (
        "import sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in {*sys.stdlib_module_names, 'fiber'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name != 'fiber-vl':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
        "import fiber.cli\n"
        "sys.exit(fiber.cli.main(sys.argv[1:]))"
    )

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    report = run("doctor")
    assert (report.returncode, report.stderr) == (1, "")
    assert "torch: not installed" in report.stdout
    assert "models cannot run" in report.stdout
    assert run("--help").returncode == 0
