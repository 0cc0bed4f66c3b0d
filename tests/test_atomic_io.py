import errno
import json
import os
import resource
import socket
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from fiber.atomic_io import (
    DISK_FULL,
    check_target,
    explain_write_errors,
    new_directory,
    read_json,
    write_file,
    write_json,
    write_text,
)
from fiber.bad_input import is_bad_input
from fiber.checkpoints.export import write_encoders, write_published
from fiber.checkpoints.model_dir import save_model
from fiber.data import Tokenizer
from fiber.demo.report import DemoReport, write_html
from fiber.evaluation.context import EvalResult
from fiber.evaluation.tasks import write_predictions
from fiber.models.registry import build_model
from fiber.postprocess.files import save_image
from tests.fuzz.seeds import TINY


def test_a_new_name_or_a_file_may_be_written(tmp_path):
    check_target(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("{}")
    check_target(tmp_path / "old.json")
    (tmp_path / "link").symlink_to("old.json")
    check_target(tmp_path / "link")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder; expected"):
        check_target(tmp_path)


def test_a_pipe_is_named_through_a_link_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match=f"{name} is a named pipe; expected a new name"):
            check_target(tmp_path / name)


def test_a_socket_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as each:
        each.bind("socket")
        with pytest.raises(FileExistsError, match="socket is a socket"):
            check_target(tmp_path / "socket")


def test_an_open_file_of_the_process_is_no_target(tmp_path):
    with (tmp_path / "out.txt").open("w") as file:
        (tmp_path / "fd").symlink_to("/proc/self/fd")
        with pytest.raises(FileExistsError, match=r"/proc/\d+/fd"):
            check_target(tmp_path / "fd" / str(file.fileno()))


@contextmanager
def little_room(largest):
    """Let no file of this process grow beyond `largest` bytes, as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_picture(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_image(lambda: Image.fromarray(noise), path)


def write_answers(path):
    answers = [{"question_id": number, "answer": "yes"} for number in range(1000)]
    write_predictions(path, EvalResult(metrics={}, predictions=answers))


def write_report(path):
    report = DemoReport(
        title="t" * 5000,
        verdict="It passed.",
        problems=[],
        rows=[],
        throughput=[],
        commands=[],
        machine={},
    )
    write_html(report, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_picture, "annotated.png"),
        (write_answers, "predictions.json"),
        (write_report, "report.html"),
        (lambda path: write_json(path, ["word"] * 1000), "answers.json"),
        (lambda path: write_published(build_model(TINY), path), "model.pt"),
        (lambda path: write_published(build_model(TINY), path), "model.safetensors"),
        (lambda path: Tokenizer.train(["a mug"], 300).save(path), "tokenizer.json"),
    ],
    ids=("picture", "predictions", "report", "json", "torch", "safetensors", "tokenizer"),
)
def test_full_disk_is_named_and_leaves_the_old_file(tmp_path, write, name):
    (tmp_path / name).write_text("old")
    with little_room(1000), pytest.raises(OSError, match=f"{name} could not be written") as caught:
        write(tmp_path / name)
    assert caught.value.errno == errno.EFBIG
    assert "ulimit -f" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda path: save_model(build_model(TINY), path, answers=("yes", "no")), "model"),
        (lambda path: write_encoders(build_model(TINY), path), "swin"),
        (lambda path: write_published(build_model(TINY), path / "model.pt"), "model.pt"),
        (lambda path: write_answers(path / "answers.json"), "answers.json"),
    ],
    ids=("fiber", "towers", "published", "predictions"),
)
def test_a_full_disk_leaves_no_new_folder(tmp_path, write, name):
    with little_room(1000), pytest.raises(OSError, match=f"{name}.* could not be written") as error:
        write(tmp_path / "new" / "folder")
    assert not is_bad_input(error.value) and "ulimit -f" in str(error.value)
    assert not list(tmp_path.iterdir())
    # A folder that was there remains, with what was in it.
    (tmp_path / "new" / "folder").mkdir(parents=True)
    (tmp_path / "new" / "folder" / "notes.txt").write_text("mine")
    with little_room(1000), pytest.raises(OSError, match=name):
        write(tmp_path / "new" / "folder")
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "folder", "notes.txt"]


def test_the_last_of_several_encoders_that_does_not_fit_leaves_none(tmp_path, monkeypatch):
    real = safetensors.torch.save

    def until_full(tensors, metadata):
        if any((tmp_path / "new").glob("*.safetensors")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(tensors, metadata)

    monkeypatch.setattr(safetensors.torch, "save", until_full)
    with pytest.raises(OSError, match="free some space"):
        write_encoders(build_model(TINY), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_stopped_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])

    def half(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.json", half)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == [1]


def test_what_an_error_hides_is_said(tmp_path):
    """As torch.save does, which raises an error of its own for the system's."""

    def hidden(_part):
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError:
            raise RuntimeError("writing failed")  # noqa: B904

    with pytest.raises(
        OSError, match=r"a\.pt could not be written \(Disk quota exceeded\); .* MB are free"
    ):
        write_file(tmp_path / "a.pt", hidden)


def test_an_error_without_a_number_keeps_its_words(tmp_path):
    def pillows(_part):
        raise OSError("cannot write mode F as PNG")

    with pytest.raises(OSError, match=r"^\S+a\.png could not be written \(cannot write mode F as"):
        write_file(tmp_path / "a.png", pillows)


def test_directory_appears_complete_or_not_at_all(tmp_path):
    final = tmp_path / "new" / "data"
    with new_directory(final) as part:
        (part / "a").write_text("a")
        assert not final.exists()
    assert [path.name for path in final.parent.iterdir()] == ["data"]
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "other") as part:
        (part / "a").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_directory_replaces_an_empty_one_only(tmp_path):
    final = tmp_path / "data"
    final.mkdir()
    # Left by a killed process.
    (tmp_path / ".part-data" / "old").mkdir(parents=True)
    with new_directory(final) as part:
        (part / "a").write_text("a")
    with pytest.raises(OSError) as error, new_directory(final) as part:
        (part / "b").write_text("b")
    assert error.value.errno == errno.ENOTEMPTY
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "a"]


def test_only_chosen_errors_name_what_is_written(tmp_path):
    def fail(number, *name):
        with explain_write_errors(tmp_path / "data", DISK_FULL):
            raise OSError(number, os.strerror(number), *name)

    with pytest.raises(FileNotFoundError) as error:
        fail(errno.ENOENT, "input.jpg")
    assert error.value.filename == "input.jpg"
    for given, named in (((), "data"), (("data/0.tar",), "data/0.tar"), ((".part-a",), "data")):
        with pytest.raises(OSError, match=f"{named} could not be written") as error:
            fail(errno.ENOSPC, *given)
        assert error.value.errno == errno.ENOSPC
    # Of one block in another, the outer one names the file; the advice is given once.
    with (
        pytest.raises(
            OSError, match=r"outer could not be written \(No space left[^)]*\); "
        ) as error,
        explain_write_errors(tmp_path / "outer"),
    ):
        fail(errno.ENOSPC)
    assert str(error.value).count("free some space") == 1


def test_shared_files_have_a_temporary_name_for_each_process(tmp_path):
    names = []
    for shared in (False, True):
        write_file(
            tmp_path / "a",
            lambda part: (names.append(part.name), part.write_text("a")),
            shared=shared,
        )
    assert names[0] == ".part-a" and str(os.getpid()) in names[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_errors_stay_what_they_are(tmp_path):
    def broken(_part):
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        write_file(tmp_path / "a", broken)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        (tmp_path / "a.json").write_text("{")
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ('{"a": 1,}', "remove the comma before '}'"),
        ('{"a": [1, 2 , \n ]}', "remove the comma before ']'"),
        ('{"a": 1', "at the end"),
        ('{"a": "b', "closing quote"),
        ("{'a': 1}", "double quotes"),
        ('{"a": None}', "None as null"),
        ('{"a": 1} {"a": 2}', ".jsonl"),
        ('{"a": 1 // one\n}', "delimiter"),
        ('{\n// one\n"a": 1}', "remove the comment"),
        ('{"a": "b\nc"}', r"as \n"),
        (r'{"a": "C:\data"}', r"as \\"),
        ("\ufeff{}", "byte order mark"),
        ("[" * 10**5, "nested too deeply"),
        ("1" * 5000, "digits"),
    ],
)
def test_how_to_mend_json(tmp_path, text, advice):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON: ") as raised:
        read_json(tmp_path / "a.json")
    assert advice in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[" + "1," * 65 + "1]", 66),
        ("[" + "{}," * 33 + "{}]", 68),
        ('{"a": [' + r'"\\",' * 65 + "1]}", 67),
        ("[" * 100 + '"[', 100),
    ],
)
def test_json_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, monkeypatch, text, count):
    path = tmp_path / "a.json"
    path.write_text(text)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(ValueError, match=rf"a\.json has {count} commas.*; expected at most 64"):
        read_json(path, 1024)


@pytest.mark.parametrize(
    "value",
    [
        [],
        [1] * 64,
        ["[{,,,"] * 50,
        ['"[,', "\\", "\\\\", "é,"] * 10,
        {"a,": {"[": '\\"]' + "," * 99}},
    ],
    ids=range(5),
)
def test_commas_and_brackets_in_strings_are_not_counted(tmp_path, value):
    write_text(tmp_path / "a.json", json.dumps(value))
    assert read_json(tmp_path / "a.json", 1024) == value


@pytest.mark.parametrize("start", ["", '"', "\\"])
def test_counting_values_takes_linear_time(tmp_path, start):
    """The end of a string that has none could be sought from each of its quotes."""
    path = tmp_path / "a.json"
    path.write_text("[" * 70_000 + start + '"' + '\\"' * 450_000 + "\\")
    with pytest.raises(ValueError, match=r"a\.json has 70,000 commas"):
        read_json(path, 1 << 20)
