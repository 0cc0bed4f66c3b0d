"""Every example that a reader may copy is executed: docstrings, README, docs.

A ```python block is run as it stands, in a folder that holds what the page talks about (two
finished models of a few thousand weights, pictures, a small dataset). The blocks of one page share
their names, in order. The lines `fiber ...` of ```sh blocks are run in order too, with the little
data and the few steps of `SHORTER`. A block under `<!-- skip: reason -->` is not run.
"""

import doctest
import importlib
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

import fiber
from fiber import recipes
from fiber.checkpoints.model_dir import save_model
from fiber.cli import parser
from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.models.fiber.detector import FiberDetector
from fiber.synthetic import scenes, stamps
from fiber.training.config.run import load_recipe
from fiber.training.run_dir import RunFolder
from tests.hub import stub as hub
from tests.models.xdecoder.small_model import small_model, write_small_xdecoder_file
from tests.processes import run_python
from tests.published_keys import METER_FILES, write_small_meter_file

ROOT = Path(__file__).parents[1]
MIGRATION = sorted((ROOT / "docs" / "migration").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *MIGRATION]
SOURCES = sorted(Path(fiber.__file__).parent.rglob("*.py"))
WITH_EXAMPLES = [path for path in SOURCES if ">>>" in path.read_text()]

# What is added to a command so that it ends soon; a later option wins. The demo, which is long at
# its shortest, is read by the parser only: the tests of its own run it. A bench names what it would
# measure.
SHORTER = {
    "data scenes": ["--images", "12"],
    "data stamps": ["--images", "12"],
    "bench": ["--list"],
    "train": ["--set", "train.steps=2", "--set", "data.batch_size=2"],
}

# A page for testing the search for blocks itself.
PAGE = """# Title
```python
a = 1
```
<!-- skip: needs a GPU -->

```python
b
```
```sh
ls
```
"""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    skip: str


def blocks_of(markdown: str) -> list[Block]:
    """Find the fenced blocks, and the comment that may stand above each."""
    found = []
    skip, language, start = "", None, 0
    body: list[str] = []
    for number, line in enumerate(markdown.splitlines(), start=1):
        if language is None and line.startswith("```"):
            language, start, body = line[3:].strip(), number + 1, []
        elif language is not None and line.startswith("```"):
            found.append(Block(language, "\n".join(body) + "\n", start, skip))
            language, skip = None, ""
        elif language is not None:
            body.append(line)
        elif comment := re.fullmatch(r"<!--\s*skip:\s*(.+?)\s*-->", line.strip()):
            skip = comment.group(1)
        elif line.strip():
            skip = ""
    assert language is None, f"the block that starts at line {start} is not closed"
    return found


def test_blocks_of_nothing():
    assert blocks_of("") == []


def test_blocks_of_a_page():
    assert blocks_of(PAGE) == [
        Block("python", "a = 1\n", 3, ""),
        Block("python", "b\n", 8, "needs a GPU"),
        Block("sh", "ls\n", 11, ""),
    ]


def test_an_open_block_is_an_error():
    with pytest.raises(AssertionError, match="line 2 is not closed"):
        blocks_of("```python\na = 1")


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_docstring_examples(path):
    name = ".".join(path.relative_to(Path(fiber.__file__).parents[1]).with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} fail"


@pytest.fixture(scope="session")
def page_scenes(made_once):
    """The dataset of the pages."""
    return made_once(
        "page_scenes", lambda made: scenes.generate(made / "data", train=8, val=4, novel=4)
    )


@pytest.fixture
def reader_folder(tmp_path, micro_models, page_scenes, scene_picture):
    """A folder in which the names that the pages use exist."""
    for stage in ("coarse", "fine"):
        shutil.copytree(micro_models[stage], tmp_path / "runs" / "demo" / stage)
    # "own": what a script of the examples makes, or a user has.
    for name in ("scenes", "own"):
        shutil.copytree(page_scenes / "data", tmp_path / "runs" / name)
    for name in ("photo", "a", "b", "left", "right"):
        shutil.copy(scene_picture, tmp_path / f"{name}.jpg")
    with Image.open(scene_picture) as drawing:
        drawing.save(tmp_path / "drawing.png")
    return tmp_path


@pytest.fixture(scope="session")
def photograph_files(made_once):
    """What docs/photographs.md names: released files in small, a tokenizer, answers, Flickr30k."""
    return made_once("photograph_files", write_photograph_files)


def write_photograph_files(folder):
    tokenizer = Tokenizer.train(["what is the dog doing? two dogs play in the snow"] * 9, 290)
    (folder / "roberta-base").mkdir()
    tokenizer.save(folder / "roberta-base" / "tokenizer.json")
    (folder / "answers.json").write_text(json.dumps([f"answer {number}" for number in range(40)]))
    for task in ("vqa", "nlvr2", "snli", "flickr"):
        name = f"meter_clip16_288_roberta_{task}.ckpt"
        write_small_meter_file(name, folder / name, tokenizer.vocab_size)
    (folder / "flickr30k" / "flickr30k-images").mkdir(parents=True)
    images = []
    for number, color in enumerate(("red", "blue")):
        name = f"{number}.jpg"
        Image.new("RGB", (60, 40), color).save(folder / "flickr30k" / "flickr30k-images" / name)
        shutil.copy(folder / "flickr30k" / "flickr30k-images" / name, folder / name)
        texts = [{"raw": "a dog", "sentid": number}]
        images.append({"filename": name, "imgid": number, "split": "test", "sentences": texts})
    annotations = {"dataset": "flickr30k", "images": images}
    (folder / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps(annotations))


@pytest.fixture(scope="session")
def segmentation_files(made_once):
    """What docs/segmentation.md names: released files in small, and a tokenizer."""
    return made_once("segmentation_files", write_segmentation_files)


def write_segmentation_files(folder):
    (folder / "clip").mkdir()
    for name in ("xdecoder_focalt_last.pt", "xdecoder_focalt_last_novg.pt"):
        write_small_xdecoder_file(folder / name, folder / "clip" / "tokenizer.json")
    tokenizer = Tokenizer.train(["a red circle and the square"] * 9, 290)
    fields = {"detector.mask_width": 8, "roberta.vocab_size": tokenizer.vocab_size}
    config = replace_fields(preset("micro", stage="fine"), fields)
    save_model(FiberDetector(config), folder / "masks", tokenizer)
    small_model().save(folder / "segmenter")


@pytest.fixture
def page_folder(request, page, reader_folder):
    """`reader_folder`, with what the page alone needs."""
    if page.name == "photographs.md":
        for path in request.getfixturevalue("photograph_files").iterdir():
            (reader_folder / path.name).symlink_to(path)
        for name in ("one", "two", "three"):
            shutil.copy(reader_folder / "photo.jpg", reader_folder / f"{name}.jpg")
    if page.name == "transformers.md":
        made = request.getfixturevalue("segmentation_files")
        for name in ("masks", "segmenter"):
            (reader_folder / "runs" / name).symlink_to(made / name)
    if page.name == "segmentation.md":
        for path in request.getfixturevalue("segmentation_files").iterdir():
            (reader_folder / path.name).symlink_to(path)
        (reader_folder / "masks").rename(reader_folder / "runs" / "masks")
        with Image.open(reader_folder / "photo.jpg") as photo:
            mask = Image.new("1", photo.size)
        mask.paste(1, (0, 0, mask.width // 2 + 10, mask.height))
        mask.save(reader_folder / "mask.png")
    return reader_folder


@pytest.fixture
def page_environment(page, tmp_path, micro_models):
    """Variables of the processes of a page: docs/hub.md has a stand-in for the Hub."""
    if page.name != "hub.md":
        yield {}
        return
    with hub.serve() as server:
        server.add("you/shapes", micro_models["fine"], hub.NEW, "main")
        yield {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_writes",
        }


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(page, page_folder, page_environment):
    blocks = [b for b in blocks_of(page.read_text()) if b.language == "python" and not b.skip]
    if not blocks:
        pytest.skip(f"{page.name} has no Python block to run")
    # Empty lines keep the line numbers of the page in a traceback.
    lines = [""] * sum(1 for _ in page.read_text().splitlines())
    for block in blocks:
        for offset, line in enumerate(block.text.splitlines()):
            lines[block.line - 1 + offset] = line
    # The name of a page may be that of a package that it imports.
    script = page_folder / f"page_{page.stem.replace('-', '_')}.py"
    script.write_text("\n".join(lines))
    done = run_python([script.name], folder=page_folder, environment=page_environment)
    assert done.returncode == 0, done.stderr


def test_the_table_of_released_files():
    rows = re.findall(
        r"\| `(checkpoint2?)` \| `(\S+\.ckpt)` \| ([\d,]+) \|",
        (ROOT / "docs" / "photographs.md").read_text(),
    )
    assert {name: int(size.replace(",", "")) for _, name, size in rows} == {
        name: about["state_dict_bytes"] for name, about in METER_FILES.items()
    }


def commands_of(markdown: str) -> list[list[str]]:
    """List what stands after `fiber` in the shell lines of a page."""
    lines = [
        line
        for block in blocks_of(markdown)
        if block.language == "sh" and not block.skip
        # A backslash at its end continues a line.
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and Path(line[0]).name == "fiber"]


def test_commands_of_a_page():
    page = r"""```sh
fiber ground a.jpg --phrases "a star; a ring" \
    --save x   # boxes
make demo
.venv/bin/fiber demo
```
```python
fiber
```
"""
    expected = ["ground", "a.jpg", "--phrases", "a star; a ring", "--save", "x"]
    assert commands_of(page) == [expected, ["demo"]]
    assert commands_of("") == []


@pytest.mark.parametrize("page", MIGRATION, ids=lambda page: page.name)
def test_commands_in_tables_are_parsed(page):
    """They are not run, since they name files of others."""
    found = re.findall(r"`(fiber [^`]+)`", page.read_text())
    assert found
    for line in found:
        command = shlex.split(line)[1:]
        parser().parse_args(command)
        if command[0] == "train":
            assert command[1] in recipes.names()
            load_recipe(command[1])


def nav_of(entries) -> list[str]:
    """List the pages of `nav` in mkdocs.yml."""
    found = []
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += nav_of(target) if isinstance(target, list) else [target]
    return found


def test_every_page_is_in_the_site():
    """`make docs` checks all links; this one needs no mkdocs."""
    listed = nav_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    folder = ROOT / "docs"
    pages = [path for kind in ("md", "ipynb") for path in folder.rglob(f"*.{kind}")]
    assert not {path.relative_to(folder).as_posix() for path in pages} - set(listed)


def test_notebooks_are_stored_without_results():
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code and all(cell["outputs"] == [] for cell in code), path.name
        assert all(cell["execution_count"] is None for cell in code), path.name


def test_the_tests_of_promises_exist():
    found = re.findall(
        r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/differences.md").read_text()
    )
    assert len(found) > 20
    for path, name in found:
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"^\s*def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def shorter(command: list[str]) -> list[str]:
    """What is added to a command, by its first word or by its first two."""
    return SHORTER.get(command[0], SHORTER.get(" ".join(command[:2]), []))


def shorten_defaults():
    """What no option of a command shortens: 500 images of each held-out split, drawn curves."""
    for module in (scenes, stamps):
        module.generate.__kwdefaults__.update(val=8, novel=8)
    RunFolder.draw = lambda folder, priors: None


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_lines(page, page_folder, page_environment):
    commands = commands_of(page.read_text())
    if not commands:
        pytest.skip(f"{page.name} has no line with `fiber`")
    # The page makes its own.
    shutil.rmtree(page_folder / "runs" / "scenes")
    (page_folder / "runs" / "masks").unlink(missing_ok=True)
    for line in commands:
        # Of `fiber ... > FILE`, the file.
        command, target = (line[:-2], line[-1]) if line[-2:-1] == [">"] else (line, None)
        parser().parse_args(command)
        if command[0] == "demo":
            continue
        done = run_python(
            ["-m", "fiber.cli", *command, *shorter(command)],
            folder=page_folder,
            environment=page_environment,
            prepare=shorten_defaults,
        )
        assert done.returncode == 0, f"fiber {shlex.join(command)}: {done.stderr}"
        if target is not None:
            (page_folder / target).write_text(done.stdout)
