import errno
import json
import re
from pathlib import Path

import pytest

from fiber.atomic_io import write_json
from fiber.checkpoints.model_dir import save_model
from fiber.checkpoints.provenance import TrainedOn
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.config import preset
from fiber.config_io import replace_fields, to_dict
from fiber.data import Tokenizer
from fiber.models.registry import build_model
from fiber.training.run_dir import RunFolder, read_run_config
from tests.test_atomic_io import little_room
from tests.training.micro_runs import coarse_config, fine_config
from tests.training.test_checkpoint import write


@pytest.fixture
def words(pictures):
    return Vocabulary(Tokenizer.from_file(str(pictures / "tokenizer.json")), ("yes", "no"))


def test_new_folder_is_free_and_holds_nothing(tmp_path):
    folder = RunFolder(path=tmp_path / "r")
    folder.check(fine_config(), resume=False)
    folder.check(fine_config(), resume=True)
    assert folder.stored_config() is None
    assert folder.vocabulary() is None
    assert not folder.is_finished


def test_opened_folder_knows_its_run(tmp_path, words):
    folder, config = RunFolder(path=tmp_path / "r"), fine_config(train__seed=5)
    folder.open(config, words, "start", "/data")
    assert folder.stored_config() == config
    assert folder.stored_init() == "start"
    stored = json.loads(folder.config_file.read_text())
    assert TrainedOn.read(stored) == TrainedOn("/data", "train")
    stored = folder.vocabulary()
    assert stored is not None and stored.answers == ("yes", "no")
    assert stored.tokenizer.encode("a red square") == words.tokenizer.encode("a red square")
    folder.check(config, resume=True)
    with pytest.raises(FileExistsError, match=r"already contains a run.*no checkpoint: delete"):
        folder.check(config, resume=False)
    with pytest.raises(ValueError, match=r"train\.seed: 5.*6"):
        folder.check(replace_fields(config, {"train.seed": 6}), resume=True)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"detector": {"strides": [8] * 10**5}}, "detector.strides: expected (8, 16, 32, 64, 128)"),
        ({"detector": {"channels": 30}}, "detector.norm_groups: expected a divisor of"),
        ({"detector": {"mask_width": 8, "channels": 4}}, "detector.channels: expected a multiple"),
        ({"roberta": {"vocab_size": 1}}, "roberta.vocab_size: expected 2 to"),
    ],
)
def test_values_of_a_config_are_refused_by_file_and_field(tmp_path, words, model, expected):
    folder = RunFolder(path=tmp_path / "r")
    folder.open(fine_config(), words)
    values = json.loads(folder.config_file.read_text())
    for section, changed in model.items():
        values["model"][section] |= changed
    write_json(folder.config_file, values | {"fiber_version": "99.0"})
    for read in (folder.stored_config, lambda: read_run_config(folder.config_file)):
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            read()
        assert str(folder.config_file) in str(caught.value)
        assert "written by fiber '99.0'" in str(caught.value) and len(str(caught.value)) < 1000


def test_model_that_was_saved_alone_is_no_run(tmp_path):
    save_model(build_model(preset("micro")), tmp_path)
    with pytest.raises(ValueError, match="contains a model, not a run"):
        RunFolder(path=tmp_path).check(fine_config(), resume=True)


def test_file_is_no_folder(tmp_path):
    (tmp_path / "r").write_text("something")
    with pytest.raises(FileExistsError, match="exists but is not a run"):
        RunFolder(path=tmp_path / "r").check(fine_config(), resume=False)


def test_reopened_folder_drops_what_will_be_trained_again(tmp_path, words):
    folder, config = RunFolder(path=tmp_path / "r"), fine_config()
    folder.open(config, words)
    model = build_model(config.model)
    for step in range(1, 6):
        folder.add_metrics({"step": step, "performance": {"wall_seconds": 1.0, "goodput": 1.0}})
        if step == 3:
            write(folder.checkpoints, 3, model)
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 6, "los')
    (folder.checkpoints / ".part-step-00000006").mkdir()
    (folder.path / ".part-model.safetensors").write_text("half")
    folder.open(config, words)
    lines = folder.metrics_file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert list(folder.path.rglob(".part-*")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_named(tmp_path):
    folder = RunFolder(path=tmp_path)
    folder.metrics_file.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.jsonl.*written.*space") as e:
        folder.add_metrics({"step": 1})
    assert e.value.errno == errno.ENOSPC


def test_a_disk_that_is_full_at_the_start_is_named(tmp_path):
    folder = RunFolder(path=tmp_path / "run")
    with (
        little_room(0),
        pytest.raises(OSError, match=r"run/\S+ could not be written") as error,
        folder.locked(),
    ):
        pytest.fail("the folder is locked")
    assert error.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def changed(config, where, value):
    """The stored values of a config with one changed, by dotted name."""
    values = to_dict(config)
    *parents, last = where.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("3", "got 3"),
        ("null", "got None"),
        ('["tasks"]', "'tasks'"),
        ('"tasks"', "'tasks'"),
        ("[" * 100_000, "JSON"),
        (("model.family", []), r"family.*\[\]"),
        (("model.family", {}), r"family.*\{\}"),
        (("tasks", ""), "tasks"),
        (("tasks.question", {"a" * 10**6: 1}), "1,000,0"),
        (("optim.lr", -1), "lr"),
        (("optim.lr", "x\x1b[2J"), r"x\\x1b\[2J"),
        (("train.steps", 10**400), "steps"),
        (("train.steps", True), "steps"),
    ],
)
def test_a_config_that_is_none_is_refused_by_name(tmp_path, text, named):
    text = text if isinstance(text, str) else changed(coarse_config(), *text)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{named}") as caught:
        RunFolder(tmp_path).stored_config()
    assert len(str(caught.value)) < 1500
    if text.startswith("{"):
        return
    with pytest.raises(ValueError, match=r"config\.json"):
        RunFolder(tmp_path).stored_init()


@pytest.mark.parametrize("init", [[1], "a\0", "a" * 5000, "\x1b[2J" * 25_000, "\u202ea"])
def test_initial_weights_that_are_no_path_are_refused(tmp_path, init):
    (tmp_path / "config.json").write_text(json.dumps({"init": init}))
    with pytest.raises(ValueError, match=r"config\.json: init: expected a path") as error:
        RunFolder(tmp_path).stored_init()
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_initial_weights_in_a_folder_of_any_name_are_found_again(tmp_path):
    own = tmp_path / "\u200emine"
    own.mkdir()
    for init in (str(own), "/gone/model"):
        (tmp_path / "config.json").write_text(json.dumps({"init": init}))
        assert RunFolder(tmp_path).stored_init() == init
