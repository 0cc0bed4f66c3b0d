"""A run resumes on its own data only, and on what a run has written only."""

import errno
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from fiber.data.prompts.rules import PromptRules
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, Record
from fiber.data.storage.held_out import ChosenRecords
from fiber.training.checkpoint import folder as stored
from fiber.training.checkpoint.folder import checksums
from fiber.training.checkpoint.layout import CHECKSUMS
from fiber.training.data import fingerprint
from fiber.training.train import train
from tests.training.micro_runs import all_records, coarse_config, run
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

#: Files of a checkpoint of one process.
FILES = ("__0_0.distcp", ".metadata", "data.json")
CAPTIONS = {f"tasks__{task}__share": 0 for task in ("question", "reasoning", "caption")}
CONFIG = coarse_config(**CAPTIONS, train__steps=6, train__checkpoint_every=2)


@pytest.fixture
def folder(pictures, tmp_path):
    """A data folder with captions of the pictures."""
    shutil.copytree(pictures, tmp_path / "data")
    write_captions(tmp_path / "data")
    # With a split "val", nothing is held out.
    shutil.copy(tmp_path / "data" / "train.jsonl", tmp_path / "data" / "val.jsonl")
    return tmp_path / "data"


def write_captions(folder, prefix="", order=1):
    records = all_records(folder)["image_text"][::order]
    lines = [
        {"image": Path(record.images[0]).name, "text": prefix + record.text} for record in records
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_on(folder, output, **options):
    options = {"quiet": True, "device": "cpu", "threads": 1} | options
    return train(CONFIG, data=folder, output=output, **options)


def stop_and_resume(folder, output, monkeypatch, between=lambda: None, **options):
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_before(patch, 5)
        train_on(folder, output)
    between()
    return train_on(folder, output, resume=True, **options)


@pytest.mark.parametrize("change", [{"prefix": "now "}, {"order": -1}], ids=["texts", "order"])
def test_other_captions_of_the_same_number_are_refused(folder, tmp_path, monkeypatch, change):
    with pytest.raises(ValueError) as caught:
        stop_and_resume(
            folder, tmp_path / "r", monkeypatch, lambda: write_captions(folder, **change)
        )
    text = str(caught.value)
    for named in ("step-00000004", "task 'image_text'", str(folder), "12 records", "start a new"):
        assert named in text


def test_another_number_of_records_is_named(folder, tmp_path, monkeypatch):
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    with pytest.raises(ValueError, match=r"task 'image_text' had 12 records and now has 11"):
        stop_and_resume(
            folder,
            tmp_path / "r",
            monkeypatch,
            lambda: (folder / "train.jsonl").write_text("".join(lines[1:])),
        )


def test_too_many_threads_are_refused_before_a_folder_is_made(folder, tmp_path):
    with pytest.raises(ValueError, match=r"threads is 1000000; expected at most \d+"):
        train_on(folder, tmp_path / "r", threads=10**6)
    assert not (tmp_path / "r").exists()


def swap_tokens(file):
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [token for token, number in vocabulary.items() if number > 270][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


def test_a_changed_tokenizer_is_refused(folder, tmp_path, monkeypatch):
    change = partial(swap_tokens, tmp_path / "r" / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json .*/r has changed since .*step-00000004"):
        stop_and_resume(folder, tmp_path / "r", monkeypatch, change)


@pytest.mark.parametrize("change", [lambda known: known[:-1], lambda known: known[::-1]])
def test_changed_answers_are_refused_and_not_the_data(pictures, tmp_path, monkeypatch, change):
    """Fewer answers also change the size of the head and the questions that have an answer."""
    config = coarse_config(train__steps=6, train__checkpoint_every=2, validation__task="none")
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_before(patch, 3)
        run(config, pictures, tmp_path / "r")
    answers = tmp_path / "r" / "answers.json"
    answers.write_text(json.dumps(change(json.loads(answers.read_text()))))
    with pytest.raises(ValueError, match=r"answers\.json .*has changed since .*step-00000002"):
        run(config, pictures, tmp_path / "r", resume=True)


@pytest.mark.slow
def test_a_checkpoint_whose_checksums_are_gone_is_damaged(folder, tmp_path, monkeypatch):
    train_on(folder, tmp_path / "whole")
    sums = tmp_path / "r" / "checkpoints" / "step-00000004" / CHECKSUMS
    with pytest.warns(RuntimeWarning, match=r"SHA256SUMS does not exist; resuming after step 2"):
        stop_and_resume(folder, tmp_path / "r", monkeypatch, sums.unlink)
    assert weights_equal(tmp_path / "whole", tmp_path / "r")


@pytest.mark.slow
def test_a_data_folder_may_be_moved(folder, tmp_path, monkeypatch):
    train_on(folder, tmp_path / "whole")
    moved = folder.with_name("moved")
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_before(patch, 5)
        train_on(folder, tmp_path / "r")
    folder.rename(moved)
    train_on(moved, tmp_path / "r", resume=True)
    assert weights_equal(tmp_path / "whole", tmp_path / "r")


def rewrite(checkpoint, change):
    """Change data.json of a checkpoint, and its checksum."""
    path = checkpoint / "data.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    (checkpoint / CHECKSUMS).write_bytes(checksums(checkpoint))


FORGED = {
    "step": lambda values: values | {"step": -5},
    "step ": lambda values: values | {"step": 10**9},
    "images": lambda values: values | {"images": -1},
    "seconds": lambda values: values | {"seconds": float("nan")},
    "consumed.image_text": lambda values: values | {"consumed": {"image_text": -4}},
    "consumed": lambda values: values | {"consumed": {}},
    "best_step": lambda values: values | {"best_step": 5},
    "scores": lambda values: values | {"scores": "none"},
    "records": lambda values: {k: v for k, v in values.items() if k != "records"},
    "fingerprints": lambda values: {k: v for k, v in values.items() if k != "fingerprints"},
    "expected an object": lambda values: [values],
    "'later'": lambda values: values | {"later": 1},
}


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """A run of captions that was stopped after step 5, and the same run finished."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    whole = run(CONFIG, pictures, folder / "whole").folder
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        stop_before(patch, 5)
        run(CONFIG, pictures, folder / "r")
    return folder / "r", whole


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_position_is_an_error_that_names_file_and_field(pictures, tmp_path, stopped, name):
    shutil.copytree(stopped[0], tmp_path / "r")
    checkpoint = tmp_path / "r" / "checkpoints" / "step-00000004"
    rewrite(checkpoint, FORGED[name])
    with pytest.raises(ValueError) as caught:
        run(CONFIG, pictures, tmp_path / "r", resume=True)
    for part in (f"{checkpoint}/data.json", name.strip(), f"Delete {checkpoint} to resume"):
        assert part in str(caught.value)


def test_checkpoints_with_files_of_another_program_do_not_start_the_run_over(
    pictures, tmp_path, stopped
):
    """Such as those of a fiber before its first release."""
    shutil.copytree(stopped[0], tmp_path / "r")
    folders = sorted((tmp_path / "r" / "checkpoints").glob("step-*"))
    for folder in folders:
        for file in [*folder.glob("*.distcp"), folder / ".metadata"]:
            file.unlink()
        for name in ("model.safetensors", "training.pt"):
            (folder / name).write_bytes(b"weights")
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError) as caught:
        run(CONFIG, pictures, tmp_path / "r", resume=True)
    for named in (*(folder.name for folder in folders), "model.safetensors", "training.pt"):
        assert named in str(caught.value)
    assert len(folders) == 2 and all(folder.is_dir() for folder in folders)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_lacks_a_file_is_set_aside(pictures, tmp_path, stopped, name):
    shutil.copytree(stopped[0], tmp_path / "r")
    (tmp_path / "r" / "checkpoints" / "step-00000004" / name).unlink()
    with pytest.warns(RuntimeWarning, match=rf"step-00000004 .*{name} does not exist.*step 2 "):
        run(CONFIG, pictures, tmp_path / "r", resume=True)
    assert weights_equal(tmp_path / "r", stopped[1])
    assert numbers(tmp_path / "r") == numbers(stopped[1])


def test_a_checkpoint_that_the_disk_cannot_read_is_set_aside(
    pictures, tmp_path, stopped, monkeypatch
):
    shutil.copytree(stopped[0], tmp_path / "r")
    real = stored.sha256

    def failing(path):
        if path.parent.name == "step-00000004":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(stored, "sha256", failing)
    with pytest.warns(RuntimeWarning, match=r"cannot be read .*distcp.*after step 2 "):
        run(CONFIG, pictures, tmp_path / "r", resume=True)
    assert weights_equal(tmp_path / "r", stopped[1])


@pytest.mark.parametrize("place", [-1, 64 + 2 + len(FILES[0])], ids=["last", "first"])
def test_every_bit_of_the_checksums_counts(pictures, tmp_path, stopped, place):
    """str.splitlines also ends a line at a vertical tab, one bit from a newline."""
    shutil.copytree(stopped[0], tmp_path / "r")
    path = tmp_path / "r" / "checkpoints" / "step-00000004" / CHECKSUMS
    content = bytearray(path.read_bytes())
    assert content[place] == ord("\n")
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"SHA256SUMS does not list.*after step 2 "):
        run(CONFIG, pictures, tmp_path / "r", resume=True)


def test_metrics_that_are_no_text_are_named(pictures, tmp_path, stopped):
    shutil.copytree(stopped[0], tmp_path / "r")
    path = tmp_path / "r" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    times = (b'{"step": 2}\n', b'{"step": 2, "performance": {"wall_seconds": "2", "goodput": 1}}\n')
    texts = (b"\xff\xfe{\n", b"{\n", b"[1]\n", b'{"step": "2"}\n', b"[" * 100_000 + b"\n")
    for wrong in (*times, *texts):
        path.write_bytes(b"".join([lines[0], wrong, *lines[1:]]))
        with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 .*deleted"):
            run(CONFIG, pictures, tmp_path / "r", resume=True)
    path.write_bytes(b"".join(lines) + b"\xff\xfe{")
    run(CONFIG, pictures, tmp_path / "r", resume=True)
    assert numbers(tmp_path / "r") == numbers(stopped[1])


class Words:
    """A tokenizer of one token a word."""

    def encode(self, text, *, max_tokens):
        return list(range(len(text.split()))), []


def boxes(number, **changes):
    fields = {
        "key": f"r{number}",
        "images": (f"{number}.jpg",),
        "text": "",
        "boxes_xyxy": ((0.0, 0.0, 9.0, 9.0),),
        "box_labels": (0,),
        "labels": ("cup", "dog"),
    }
    return Record(**{**fields, **changes})


class Counting(list):
    """A set that counts what it reads."""

    counts_while_reading = True

    def __init__(self, records, **attributes):
        super().__init__(records)
        self.counts = {"clipped boxes": 1}
        vars(self).update(attributes)

    def __getitem__(self, index):
        self.counts["clipped boxes"] += 1
        return super().__getitem__(index)


def test_fingerprints_of_a_task_see_through_what_a_run_adds():
    records = [boxes(number) for number in range(4)]
    other = [*records[:3], boxes(3, labels=("cup", "cat"))]
    rules = PromptRules()
    sampled = [SampledPrompts(r, Words(), max_tokens=9, rules=rules) for r in (records, other)]
    assert fingerprint(sampled[0]) == fingerprint(records) != fingerprint(sampled[1])
    both = ConcatRecords([sampled[0], records])
    assert fingerprint(both) == fingerprint(ConcatRecords([records, sampled[0]]))
    assert fingerprint(both) != fingerprint(ConcatRecords([records, sampled[1]]))
    # A packed folder's own fingerprint, which stands for the images, counts within a choice.
    packs = [Counting(records, fingerprint=own) for own in ("one", "other")]
    chosen = [ChosenRecords(pack, [0, 2]) for pack in packs]
    assert fingerprint(chosen[0]) != fingerprint(chosen[1])
    assert fingerprint(chosen[0]) != fingerprint(ChosenRecords(packs[0], [0, 3]))
    assert fingerprint(chosen[0]) == fingerprint(ChosenRecords(packs[0], [0, 2]))
    assert packs[0].counts == {"clipped boxes": 1}
