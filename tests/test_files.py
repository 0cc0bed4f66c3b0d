import errno
import os
import resource
import socket
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from fiber.demo.report import Report, write_html
from fiber.evaluation.context import Measured
from fiber.evaluation.evaluate import write_predictions
from fiber.files import check_target, read_json, write_json, write_whole
from fiber.postprocess.files import save_picture


def test_a_new_name_or_a_file_may_be_written(tmp_path):
    check_target(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("{}")
    check_target(tmp_path / "old.json")
    (tmp_path / "link").symlink_to("old.json")
    check_target(tmp_path / "link")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder; expected the name of a"):
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
        with pytest.raises(FileExistsError, match=r"stands in /proc/\d+/fd"):
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
    save_picture(lambda: Image.fromarray(noise), path)


def write_answers(path):
    answers = [{"question_id": number, "answer": "yes"} for number in range(1000)]
    write_predictions(path, Measured(metrics={}, predictions=answers))


def write_report(path):
    report = Report(
        title="t" * 5000,
        verdict="It passed.",
        problems=[],
        rows=[],
        throughput=[],
        figures=[],
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
    ],
    ids=("picture", "predictions", "report", "json"),
)
def test_full_disk_is_named_and_leaves_the_old_file(tmp_path, write, name):
    (tmp_path / name).write_text("old")
    with little_room(1000), pytest.raises(OSError, match=f"{name} could not be written") as caught:
        write(tmp_path / name)
    assert caught.value.errno == errno.EFBIG
    assert "free some space" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_stopped_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])

    def half(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.json", half)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == [1]


def test_what_an_error_hides_is_said(tmp_path):
    """As torch.save does, which raises an error of its own for the system's."""

    def hidden(_part):
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError:
            raise RuntimeError("writing failed")  # noqa: B904

    with pytest.raises(OSError, match=r"a\.pt could not be written \(Disk quota exceeded\); free"):
        write_whole(tmp_path / "a.pt", hidden)


def test_an_error_without_a_number_keeps_its_words(tmp_path):
    def pillows(_part):
        raise OSError("cannot write mode F as PNG")

    with pytest.raises(OSError, match=r"^\S+a\.png could not be written \(cannot write mode F as"):
        write_whole(tmp_path / "a.png", pillows)


def test_other_errors_stay_what_they_are(tmp_path):
    def broken(_part):
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        write_whole(tmp_path / "a", broken)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        (tmp_path / "a.json").write_text("{")
        read_json(tmp_path / "a.json")
