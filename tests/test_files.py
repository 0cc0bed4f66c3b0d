import os
import socket

import pytest

from fiber.files import check_target


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
