"""The built wheel: what it holds, where its names lie, and that it installs alone."""

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from fiber.distributions import TWO_DISTRIBUTIONS

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # The build reuses cargo's target folder; --no-deps keeps the other wheels out.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


def test_names(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not re.fullmatch(r"fiber_vl-.*\.(dist-info|data)", top)} == {
        "fiber"
    }
    # Everything that lies in the package, the kernels under their import name, and the extension.
    package = ROOT / "python" / "fiber"
    own = {
        f"fiber/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    kernels = ROOT / "triton_kernels"
    own |= {
        f"fiber/kernels/{path.relative_to(kernels)}"
        for path in kernels.rglob("*")
        if path.suffix in (".py", ".json")
    }
    known = {
        "_core.pyi",
        "demo/floors.json",
        "demo/report.html.j2",
        "packaged/scenes/README.md",
        "packaged/scenes/coarse/model.safetensors",
        "packaged/scenes/fine/model.safetensors",
        "kernels/runtime/tiles.json",
        "kernels/__init__.py",
    }
    assert {f"fiber/{name}" for name in known} < own
    inside = {name for name in names if name.startswith("fiber/") and not name.endswith("/")}
    assert inside == own | {"fiber/_core.abi3.so"}


@pytest.fixture(scope="module")
def runtime_wheel(wheel, tmp_path_factory):
    """The wheel of fiber-vl-runtime."""
    folder = tmp_path_factory.mktemp("runtime_wheel")
    script = ROOT / ".ci" / "runtime-wheel"
    done = subprocess.run(
        [sys.executable, script, wheel, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("fiber_vl_runtime-*.whl")
    assert done.stdout == f"{built}\n"
    return built


def test_the_runtime_has_the_same_files(wheel, runtime_wheel):
    ours, theirs = (zipfile.ZipFile(each) for each in (runtime_wheel, wheel))
    files = {name for name in theirs.namelist() if name.startswith("fiber/")}
    assert files == {name for name in ours.namelist() if name.startswith("fiber/")}
    assert all(ours.read(name) == theirs.read(name) for name in files if name[-1] != "/")
    # RECORD names every file with its hash and size, but for itself.
    (record,) = (name for name in ours.namelist() if name.endswith(".dist-info/RECORD"))
    rows = [row.rsplit(",", 2) for row in ours.read(record).decode().splitlines()]
    assert {name for name, _, _ in rows} == {n for n in ours.namelist() if n[-1] != "/"}
    for name, digest, size in rows:
        if name != record:
            data = ours.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert (digest, int(size)) == (f"sha256={found.decode()}", len(data))


def test_the_runtime_requires_no_torch(wheel, runtime_wheel):
    def metadata(path):
        archive = zipfile.ZipFile(path)
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))

    ours, theirs = metadata(runtime_wheel), metadata(wheel)
    assert (ours["Name"], theirs["Name"]) == ("fiber-vl-runtime", "fiber-vl")
    assert ours["Version"] == theirs["Version"]
    needed = [line.partition(">=")[0].strip() for line in ours.get_all("Requires-Dist")]
    assert needed == ["numpy", "onnxruntime", "pillow"]
    assert ours.get_all("Provides-Extra") is None
    for text in (ours.get_payload(), TWO_DISTRIBUTIONS):
        assert "pip uninstall -y fiber-vl fiber-vl-runtime" in text
    names = zipfile.ZipFile(runtime_wheel).namelist()
    assert [name for name in names if name.endswith(".dist-info/entry_points.txt")]


def test_both_distributions_at_once(wheel, runtime_wheel, tmp_path):
    for each in (wheel, runtime_wheel):
        zipfile.ZipFile(each).extractall(tmp_path)
        done = subprocess.run(
            [sys.executable, "-S", "-c", "import fiber"],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert (TWO_DISTRIBUTIONS in done.stderr) == (each == runtime_wheel)


def test_size(wheel):
    assert wheel.stat().st_size < 12e6


def test_its_model_answers(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "wheel")
    script = """
import fiber
from PIL import Image, ImageDraw

assert "wheel" in fiber.__file__
drawing = Image.new("RGB", (200, 200), "white")
pen = ImageDraw.Draw(drawing)
pen.ellipse((20, 30, 80, 90), fill="red")
pen.rectangle((110, 100, 180, 170), fill="blue")
print(fiber.load("scenes").ground(drawing, ["the square"]).boxes_xyxy[0].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "wheel")},
    )
    assert done.returncode == 0, done.stderr
    box = [float(edge) for edge in done.stdout.strip("[]\n").split(",")]
    assert max(abs(a - b) for a, b in zip(box, (110, 100, 180, 170), strict=True)) < 15


def test_tag(wheel):
    assert "-cp311-abi3-" in wheel.name
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"manylinux_2_\d+_(x86_64|aarch64)", done.stdout), done.stdout


def test_runs_alone(wheel, tmp_path):
    # Unpacked on a path of its own, without site-packages: no dependency is there.
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "fiber.cli", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    # Required packages are missing, and it says so instead of failing to start.
    assert done.returncode == 1, done.stderr
    assert "torch" in done.stdout


def test_sdist(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "maturin", "sdist", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (source,) = tmp_path.glob("*.tar.gz")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), source],
        capture_output=True,
        text=True,
        check=False,
        # What cargo has built for the other wheel serves here too.
        env={**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    assert "fiber/kernels/window_attention/torch_path.py" in names
    assert not [name for name in names if name.startswith("triton_kernels")]


def test_builds_without_a_c_compiler(tmp_path):
    """From nothing, with every tool that compiles C or C++ replaced by one that fails."""
    rustc = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True)
    host = re.search(r"^host: (.*)$", rustc.stdout, re.MULTILINE)[1]
    tools = ("CC", "CXX", "AR", "CMAKE", "NASM", "HOST_CC", "HOST_CXX", "TARGET_CC", "TARGET_CXX")
    environment = {
        **os.environ,
        **dict.fromkeys(tools, "false"),
        "CARGO_TARGET_DIR": str(tmp_path / "target"),
        # Rust's linker is the C compiler's driver; it links and compiles nothing.
        f"CARGO_TARGET_{host.upper().replace('-', '_')}_LINKER": "cc",
    }
    done = subprocess.run(
        [sys.executable, "-m", "maturin", "build", "--profile", "dev", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("fiber_vl-*.whl"))
    # What the variables would have been for.
    assert not [p for p in (tmp_path / "target").rglob("*.a") if p.name.startswith("lib")]
