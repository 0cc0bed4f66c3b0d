"""What several tests need: small models, a scenes dataset, an image; made once for a whole run."""

import dataclasses
import gc
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from pytest import ExitCode

# No test asks the Hugging Face Hub; huggingface_hub reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# A process that a shell starts in the background ignores Ctrl-C, and hands that down to the
# processes of its tests; those that send one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Texts that the little tokenizer of the models is trained on.
TEXTS = [
    "a small red circle to the left of a big blue square",
    "is there a green star above the yellow triangle?",
    "what color is the wooden ring? red. blue. green. yellow",
]
ANSWERS = ("yes", "no", "red", "blue", "green", "yellow", "1", "2", "3", "circle", "square", "star")
#: Exit code of pytest after a warning that no test expects.
UNEXPECTED_WARNINGS = 7


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--allow-warnings",
        action="store_true",
        help="do not fail the run for warnings that no test expects",
    )


class NoWarnings:
    """Fails a run in which a test gives a warning that it does not expect.

    A filter that raises would change what commands do, which print warnings.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, nodeid: str
    ) -> None:
        kind = warning_message.category.__name__
        self.found.append(f"{nodeid}: {kind}: {warning_message.message}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # Not the code of failed cases, which `.ci/pytest` runs again.
        if self.found and session.exitstatus in (ExitCode.OK, ExitCode.TESTS_FAILED):
            session.exitstatus = UNEXPECTED_WARNINGS

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("warnings that no test expects", red=True)
            terminalreporter.line("\n".join(self.found))


class Unstable:
    """Lists the cases that pass when they are run again, alone; see `.ci/pytest`."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.found.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name in self.found:
            terminalreporter.line(f"unstable: {name}")


def pytest_configure(config: pytest.Config) -> None:
    # Where several processes run tests, the one that starts them sees every warning.
    if not config.getoption("--allow-warnings") and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(NoWarnings())
    if "FIBER_SECOND_RUN" in os.environ:
        config.pluginmanager.register(Unstable())


def pytest_collection_finish() -> None:
    # Thousands of tests and the modules that they import stay to the end; each full collection of
    # garbage would look at all of them.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> MakeOnce:
    """A function that makes a folder for all processes of a run; nobody may change what is in it.

    `made_once(name, make)` calls `make(folder)` unless another test or process did, and returns the
    folder.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make_folder(name: str, make: Callable[[Path], object]) -> Path:
        folder, finished = root / name, root / f"{name}.finished"
        with FileLock(root / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return make_folder


@pytest.fixture(scope="session")
def micro_models(made_once) -> dict[str, Path]:
    """Folders of finished, untrained models: "coarse" with every head, and "fine"."""
    folder = made_once("micro_models", save_micro_models)
    return {stage: folder / stage for stage in ("coarse", "fine")}


def save_micro_models(folder: Path) -> None:
    import torch

    from fiber.checkpoints.model_dir import save_model
    from fiber.config import preset
    from fiber.data import Tokenizer
    from fiber.models.registry import build_model

    # A pair of letters must occur often enough to become a token.
    tokenizer = Tokenizer.train(TEXTS * 10, 320)
    config = preset("micro").with_vocabulary(tokenizer.vocab_size)
    heads = dataclasses.replace(config.image_text, num_answers=len(ANSWERS))
    config = dataclasses.replace(config, image_text=heads)
    torch.manual_seed(0)
    save_model(build_model(config), folder / "coarse", tokenizer, ANSWERS)
    save_model(build_model(config.fine()), folder / "fine", tokenizer)


@pytest.fixture(scope="session")
def small_scenes(made_once) -> Path:
    """A scenes dataset of 30 training images and 12 of each held-out split."""
    from fiber.synthetic.scenes import generate

    folder = made_once(
        "small_scenes", lambda made: generate(made / "data", train=30, val=12, novel=12)
    )
    return folder / "data"


@pytest.fixture(scope="session")
def scene_picture(tmp_path_factory) -> Path:
    """A JPEG of 90 x 70 pixels with a red circle and a blue square."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (90, 70), (200, 190, 170))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 12, 34, 36), (220, 40, 40))
    draw.rectangle((48, 24, 82, 58), (40, 60, 210))
    path = tmp_path_factory.mktemp("picture") / "scene.jpg"
    picture.save(path, quality=95)
    return path
