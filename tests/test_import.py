"""What `import fiber` costs and says; each case in an interpreter of its own."""

import subprocess
import sys

HEAVY = (
    *("torch", "torchvision", "numpy", "PIL", "safetensors", "matplotlib", "tqdm"),
    "faster_coco_eval",
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )


def fake_core(profile: str) -> str:
    """Give code that puts a stand-in for the extension in place, of the given build profile."""
    return (
        "import sys, types\n"
        "core = types.ModuleType('fiber._core')\n"
        "core.DecodeError = type('DecodeError', (ValueError,), {})\n"
        f"core.__version__, core.build_profile = '0', {profile!r}\n"
        "sys.modules['fiber._core'] = core\n"
    )


def test_import_loads_nothing_heavy(capsys):
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "import fiber\n"
        "print((time.perf_counter() - start) * 1000)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    milliseconds, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    with capsys.disabled():
        print(f" [import fiber: {float(milliseconds):.1f} ms]", end="")


def test_the_command_line_and_doctor_load_nothing_heavy():
    code = (
        "import sys, fiber.cli, fiber.doctor\n"
        "fiber.cli.parser()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_first_answer_loads_no_compiler():
    # torch's compiler, SymPy and torchvision take as long to import as torch itself.
    code = (
        "import sys, fiber, torch.utils.checkpoint\n"  # imports SymPy in torch 2.6
        "before = {*sys.modules}\n"
        "from PIL import Image\n"
        "image = Image.new('RGB', (64, 64), 'red')\n"
        "phrases = ['a red square', 'a circle']\n"
        "assert fiber.load('scenes').ground(image, phrases, score_threshold=0)\n"
        "print({'torch._dynamo', 'torchvision', 'sympy'} & ({*sys.modules} - before))"
    )
    done = run(code)
    assert done.stdout.strip() == "set()", done.stderr


def test_every_public_name_is_there():
    code = (
        "import fiber\n"
        "for name in dir(fiber):\n"
        "    assert getattr(fiber, name) is not None, name\n"
        "try:\n"
        "    fiber.nothing_of_that_name\n"
        "except AttributeError as error:\n"
        "    print(error)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip()
    assert printed.startswith("module 'fiber' has no attribute 'nothing_of_that_name'; expected")
    assert {"evaluate", "load", "train"} <= set(printed.split("; ")[1].split(", "))


def test_a_debug_build_warns():
    done = run(fake_core("debug") + "import fiber")
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning: fiber._core is a debug build" in done.stderr
    assert "maturin develop --release" in done.stderr


def test_a_release_build_says_nothing():
    done = run(fake_core("release") + "import fiber")
    assert (done.returncode, done.stderr) == (0, "")


def test_loading_a_model_imports_no_training():
    unwanted = ("fiber.training", "fiber.losses", "fiber.recipes")
    code = (
        "import sys, fiber\n"
        "fiber.load, fiber.evaluate\n"
        f"print([name for name in sys.modules if name.startswith({unwanted})])"
    )
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr
