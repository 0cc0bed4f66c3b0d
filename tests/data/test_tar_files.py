"""Members of tar files: found once, read from anywhere, broken files named."""

import contextlib
import json
import os
import random
import re
import signal
import tarfile
import threading
from pathlib import Path

import pytest

from fiber.data import pooled_files, tar_files
from fiber.data.tar_files import TarFile
from tests import tar_fuzz

from .shards import write_tar

CONTENT = [("a.txt", b"one"), ("b/a.txt", b""), ("b/c.bin", bytes(range(256)) * 9)]


def open_descriptors():
    """Paths of the files that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        # The one that lists the others is closed again.
        with contextlib.suppress(OSError):
            found.add(str(link.readlink()))
    return found


def contents(file):
    return [(m.name, file.read(m.start, m.size)) for m in file.members]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_format(tmp_path, form):
    names = [("x" * 90 + "/" + "y" * 80 + ".jpg", b"long")]
    if form != tarfile.USTAR_FORMAT:
        names += [("z" * 300 + "/é.txt", "é".encode())]
    path = write_tar(tmp_path / "a.tar", CONTENT + names, form)
    assert contents(TarFile(path)) == CONTENT + names
    assert TarFile(path).notes == []


def test_an_empty_archive_and_an_empty_file(tmp_path):
    assert TarFile(write_tar(tmp_path / "a.tar", [])).members == []
    (tmp_path / "b.tar").touch()
    with pytest.raises(ValueError, match=r"b\.tar.*empty.*file"):
        TarFile(tmp_path / "b.tar")
    with pytest.raises(FileNotFoundError, match=r"c\.tar.*exist"):
        TarFile(tmp_path / "c.tar")


def test_folders_links_and_devices_are_no_members(tmp_path):
    entries = []
    for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo(f"entry{kind.decode()}")
        info.type, info.linkname = kind, "a.txt"
        entries.append(info)
    file = TarFile(write_tar(tmp_path / "a.tar", [*CONTENT, *entries]))
    assert contents(file) == CONTENT
    assert file.counts == {"links": 2, "members that are no files": 1}


def test_the_index_is_used_while_it_fits(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    TarFile(path)
    index = tmp_path / "a.tar.index"
    assert [member[0] for member in json.loads(index.read_text())["members"]] == [
        name for name, _ in CONTENT
    ]
    scans = []
    run = tar_files._Scan.run
    monkeypatch.setattr(tar_files._Scan, "run", lambda scan: scans.append(1) or run(scan))
    assert contents(TarFile(path)) == CONTENT and scans == []
    # Another file under the same name is gone through again, and so is one with a broken index.
    other = [("c.txt", b"two")]
    write_tar(path, other)
    assert contents(TarFile(path)) == other and len(scans) == 1
    good = json.loads(index.read_text())
    for members in ([["c.txt", 512, 10**9]], [["c.txt", -1, 3]], [["c.txt"]], 5):
        index.write_text(json.dumps(good | {"members": members}))
        assert contents(TarFile(path)) == other
    index.write_text("{")
    assert contents(TarFile(path)) == other and len(scans) == 6


def test_without_a_place_for_the_index(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", CONTENT)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_files.Path, "write_text", refuse)
    assert contents(TarFile(path)) == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../a.txt", "/etc/passwd", "b/../../a.txt", "b/.."])
def test_names_that_lead_out_of_the_folder(tmp_path, name):
    path = write_tar(tmp_path / "a.tar", [("ok.txt", b"x"), (name, b"x")])
    with pytest.raises(ValueError) as error:
        TarFile(path)
    assert f"a.tar has the member {name!r}, whose name leads out of the folder" in str(error.value)
    assert not (tmp_path / "a.tar.index").exists()


def test_what_is_cut_off_is_named(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", CONTENT).read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(whole[: 512 * 4 + 700])
    with pytest.raises(ValueError, match=r"a\.tar.*member 'b/c\.bin'.*2304"):
        TarFile(path)
    path.write_bytes(whole[: 512 * 2 + 100])
    with pytest.raises(ValueError, match=r"cut.*100 bytes"):
        TarFile(path)
    # At the border of a member nothing tells but the missing end.
    path.write_bytes(whole[: 512 * 2])
    file = TarFile(path)
    assert [m.name for m in file.members] == ["a.txt"]
    assert "a.tar has no mark at its end; if it was cut off there" in file.notes[0]
    assert TarFile(path).notes == file.notes


def test_what_is_no_tar_file_is_named(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(3000))
    with pytest.raises(ValueError, match=r"a\.tar.*file \(wrong checksum\).*byte 0"):
        TarFile(path)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    path.write_bytes(path.read_bytes() + bytes(600))
    with pytest.raises(ValueError, match="it is compressed, unpack it"):
        TarFile(path)
    whole = write_tar(path, CONTENT).read_bytes()
    path.write_bytes(whole[:1030] + b"\xff" + whole[1031:])
    with pytest.raises(ValueError, match=r"header \(wrong checksum\).*byte 1024"):
        TarFile(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="goes on behind its end: joined files need"):
        TarFile(path)


def test_a_file_that_changes_while_it_is_used(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    file = TarFile(path)
    pooled_files.forget_open_files()
    write_tar(path, CONTENT * 9)
    with pytest.raises(ValueError, match=r"a\.tar.*changed"):
        file.read(512, 3)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        file.read(512, 3)


def test_a_file_that_is_cut_while_it_is_open(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    file = TarFile(path)
    member = file.members[2]
    file.read(member.start, member.size)
    os.truncate(path, member.start + 100)
    with pytest.raises(ValueError, match=r"a\.tar.*changed"):
        file.read(member.start, member.size)


def test_a_file_of_which_only_the_time_changed(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    file = TarFile(path)
    os.utime(path, ns=(0, 1_500_000_000))
    with pytest.raises(ValueError, match=r"a\.tar.*changed") as error:
        file.read(512, 3)
    then = f"{file.changed / 1e9:.6f}"
    assert str(error.value).endswith(
        f": written at {then} s then, at 1.500000 s now, and {file.bytes} bytes as before;"
        " open the data again"
    )


def test_a_file_that_is_put_back_is_read_again(tmp_path):
    """One of the same size and time, as a copy has, in the place of one that was cut."""
    path = write_tar(tmp_path / "a.tar", CONTENT)
    found, content = path.stat(), path.read_bytes()
    file = TarFile(path)
    member = file.members[2]
    expected = file.read(member.start, member.size)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="has changed since it was opened"):
        file.read(member.start, member.size)
    # What has changed is not kept open.
    assert str(path) not in open_descriptors()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    for again in (TarFile(path), file):
        assert again.read(member.start, member.size) == expected


def test_threads_share_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pooled_files, "OPEN_FILES", 3)
    pooled_files.forget_open_files()
    files = [
        TarFile(
            write_tar(tmp_path / f"{n}.tar", [(f"{i}.bin", bytes([n, i]) * 900) for i in range(9)])
        )
        for n in range(8)
    ]
    wrong, most = [], []

    def read(seed):
        draw = random.Random(seed)
        for _ in range(300):
            n, i = draw.randrange(8), draw.randrange(9)
            member = files[n].members[i]
            if files[n].read(member.start, member.size) != bytes([n, i]) * 900:
                wrong.append((n, i))
        most.append(sum(str(tmp_path) in name for name in open_descriptors()))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    # Those of the pool, and one that each thread may be reading from.
    assert max(most) <= 3 + 4
    assert sum(str(tmp_path) in name for name in open_descriptors()) <= 3


def test_a_fork_reads_too(tmp_path):
    file = TarFile(write_tar(tmp_path / "a.tar", CONTENT))
    expected = contents(file)
    with pooled_files._POOL.lock:
        child = os.fork()
        if child == 0:
            # A lock that nobody opens would hold it for ever.
            signal.alarm(30)
            os._exit(0 if contents(file) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_broken_bytes_are_errors_and_nothing_else(tmp_path):
    """Bits are turned and ends cut off at random: members inside the file, or a ValueError."""
    draw, path = random.Random(0), tmp_path / "a.tar"
    wholes = tar_fuzz.wholes(path)
    refused = sum(tar_fuzz.is_refused(draw, wholes, path) for _ in range(1500))
    assert 100 < refused < 1500


def test_the_command_tells_what_it_reached(capsys):
    tar_fuzz.main(["0.3"])
    executions, reached = re.fullmatch(
        r"(\d+) files, \d+ refused; (\d+) of \d+ lines of tar_files\.py reached\n",
        capsys.readouterr().out,
    ).groups()
    assert int(executions) > 0
    assert int(reached) > 0
