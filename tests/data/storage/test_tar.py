"""Tar archives: scanned once, read at any offset, invalid ones refused."""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import tarfile
import threading
from pathlib import Path

import pytest

from fiber.data.storage import file_pool
from fiber.data.storage import tar as tar_module
from fiber.data.storage.tar import TarFile
from tests.data.shards import write_tar
from tests.fuzz import tar_files

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
    with pytest.raises(ValueError, match=r"b\.tar is empty; expected a tar archive"):
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
    assert file.counts == {"links": 2, "members that are not regular files": 1}


def test_the_index_is_used_while_it_fits(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    TarFile(path)
    index = tmp_path / "a.tar.index"
    assert [member[0] for member in json.loads(index.read_text())["members"]] == [
        name for name, _ in CONTENT
    ]
    scans = []
    scan = TarFile._scan
    monkeypatch.setattr(TarFile, "_scan", lambda file: scans.append(1) or scan(file))
    assert contents(TarFile(path)) == CONTENT and scans == []
    # Another file under the same name is gone through again, and so is one with a broken index.
    other = [("c.txt", b"two")]
    write_tar(path, other)
    assert contents(TarFile(path)) == other and len(scans) == 1
    good = json.loads(index.read_text())
    (member,) = good["members"]
    # Entries that share bytes could make a small archive as long as they are many.
    shared = [member, ["d.txt", *member[1:]]]
    partly = [["c.txt", 512, 1024], ["d.txt", 1024, 1]]
    backwards = [["c.txt", 1024, 1], ["d.txt", 512, 1]]
    wrong = ([["c.txt", 512, 10**9]], [["c.txt", -1, 3]], [["c.txt"]], 5)
    for members in (*wrong, shared, partly, backwards):
        index.write_text(json.dumps(good | {"members": members}))
        assert contents(TarFile(path)) == other
    index.write_text("{")
    assert contents(TarFile(path)) == other and len(scans) == 9


def test_without_a_place_for_the_index(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", CONTENT)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_module.Path, "write_text", refuse)
    assert contents(TarFile(path)) == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../a.txt", "/etc/passwd", "b/../../a.txt", "b/.."])
def test_names_that_lead_out_of_the_folder(tmp_path, name):
    path = write_tar(tmp_path / "a.tar", [("ok.txt", b"x"), (name, b"x")])
    with pytest.raises(ValueError) as error:
        TarFile(path)
    assert str(path) in str(error.value)
    assert f"unsafe member name {name!r}" in str(error.value)
    assert not (tmp_path / "a.tar.index").exists()


def is_invalid(path, *parts):
    """Check that an archive is refused, parts of the message, and that no index is written."""
    path.with_name(f"{path.name}.index").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=re.escape(f"{path} is not a valid tar archive: ")
    ) as error:
        TarFile(path)
    for part in parts:
        assert part in str(error.value)
    assert not path.with_name(f"{path.name}.index").exists()


def header(data, at, changes):
    """Overwrite bytes of the header at an offset and repair its checksum."""
    data = bytearray(data)
    for place, content in changes.items():
        data[at + place : at + place + len(content)] = content
    tar_files.repair(data, at // 512)
    return bytes(data)


def pax(data, kind=b"x"):
    """One extended header with its data; the members come after it."""
    info = tarfile.TarInfo("extended")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def record(key, value):
    """A pax record with its length."""
    length = len(f" {key}={value}\n".encode())
    digits = next(digits for digits in range(1, 9) if len(str(length + digits)) == digits)
    return f"{length + digits} {key}={value}\n".encode()


def test_truncated_archives(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", CONTENT).read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(whole[: 512 * 4 + 700])
    is_invalid(path, "member 'b/c.bin' has 2304 bytes, but only 700 are left", "at byte 1536")
    path.write_bytes(whole[: 512 * 2 + 100])
    is_invalid(path, "truncated header, at byte 1024")
    path.write_bytes(whole[:100])
    is_invalid(path, "truncated header, at byte 0")
    # Inside the padding of the last member, and inside the end-of-archive marker.
    path.write_bytes(whole[: 512 + 3])
    is_invalid(path, "unexpected end of data")
    path.write_bytes(whole[: 512 * 9 + 100])
    is_invalid(path, "truncated header, at byte 4608")
    # At the border of two members only the end-of-archive marker is missing.
    path.write_bytes(whole[: 512 * 2])
    file = TarFile(path)
    assert [m.name for m in file.members] == ["a.txt"]
    assert "a.tar has no end-of-archive marker; if the file was truncated" in file.notes[0]
    assert TarFile(path).notes == file.notes


def test_files_that_are_not_tar_archives(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(3000))
    is_invalid(path, "bad checksum", "at byte 0")
    for mode in ("w:gz", "w:bz2", "w:xz"):
        with tarfile.open(path, mode) as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
        path.write_bytes(path.read_bytes() + bytes(600))
        is_invalid(path, "decompress the file")
    whole = write_tar(path, CONTENT).read_bytes()
    path.write_bytes(whole[:1030] + b"\xff" + whole[1031:])
    is_invalid(path, "bad checksum", "at byte 1024")
    path.write_bytes(whole + whole)
    is_invalid(path, "data after the end-of-archive marker")


def test_sizes_that_are_no_sizes(tmp_path):
    path = tmp_path / "a.tar"
    whole = write_tar(path, CONTENT).read_bytes()
    for size in (b"9" * 11, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777"):
        path.write_bytes(header(whole, 1024, {124: size}))
        is_invalid(path, "at byte 1024")
    # The content of a link or folder would be read as headers.
    for kind in (b"1", b"2", b"5", b"6"):
        path.write_bytes(header(whole, 0, {156: kind}))
        is_invalid(path, "'a.txt'", "has 3 bytes; expected 0")


def test_checksums_of_signed_bytes(tmp_path):
    """Sums that ancient tar programs wrote, which `tarfile` takes too."""
    path = tmp_path / "a.tar"
    data = bytearray(write_tar(path, [("é.txt", b"x")]).read_bytes())
    total = sum(data[:512]) - sum(data[148:156]) + 8 * 32 - 2 * 256
    data[148:156] = b"%06o\0 " % total
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["é.txt"]
    is_invalid(path, "bad checksum", "at byte 0")


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "a.tar"
    whole = write_tar(path, CONTENT).read_bytes()
    path.write_bytes(header(whole, 1024, {0: b"\xe9"}))
    is_invalid(path, "b'\\xe9/a.txt' is not UTF-8")
    # Nor may the name of an extended header be anything else, though no member gets it.
    path.write_bytes(header(pax(record("path", "b.txt")) + whole, 0, {0: b"\xe9"}))
    is_invalid(path, "b'\\xe9xtended' is not UTF-8")
    # The end of a name that is cut inside a character does not matter if a long name replaces it.
    name = "x" * 99 + "é.txt"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert contents(TarFile(write_tar(path, [(name, b"x")], form))) == [(name, b"x")]
    for data in (b"\xe9.txt", b"a\0b.txt", b"\0"):
        path.write_bytes(pax(data + b"\0", tarfile.GNUTYPE_LONGNAME) + whole)
        is_invalid(path)


def test_times_of_gnu_tar_are_no_part_of_the_name(tmp_path):
    """Incremental archives have them where POSIX has a prefix of the name."""
    path = tmp_path / "a.tar"
    whole = write_tar(path, CONTENT, tarfile.GNU_FORMAT).read_bytes()
    path.write_bytes(header(whole, 0, {345: b"14512345670\00014512345670"}))
    with tarfile.open(path) as tar:
        assert tar.getnames()[0] != "a.txt"
    assert contents(TarFile(path)) == CONTENT


@pytest.mark.parametrize(
    "data",
    [
        record("path", "b.txt") + b"junk",
        record("path", "b.txt") + b"\0" + record("path", "c.txt"),
        b"9 path=b.txt\n",
        b"99 path=b.txt\n",
        b"+14 path=b.txt\n",
        b"0 path=b.txt\n",
        b"13 path b.txt\n",
        b"14 path=b.txt  ",
        record("path", "../b.txt"),
        record("path", "b\0.txt"),
        record("path", ""),
        record("size", "abc"),
        record("size", "-1"),
        record("size", "9" * 5000),
        record("size", "99999"),
        record("path", "é").replace("é".encode(), b"\xff\xff"),
        record("comment", "é").replace("é".encode(), b"\xff\xff"),
        record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"),
        record("GNU.sparse.map", "0,x"),
        record("comment", "x" * (1 << 20)),
    ],
    ids=range(20),
)
def test_pax_records_that_are_invalid(data, tmp_path):
    path = tmp_path / "a.tar"
    whole = write_tar(path, CONTENT).read_bytes()
    path.write_bytes(pax(data) + whole)
    is_invalid(path)
    # Before the last member too, where `tarfile` gives up without an error.
    path.write_bytes(whole[:1024] + pax(data) + whole[1024:])
    is_invalid(path)


def test_pax_headers(tmp_path):
    path = tmp_path / "a.tar"
    whole = write_tar(path, CONTENT).read_bytes()
    extended = pax(record("mtime", "1.5") + record("path", "dir/é.txt") + record("size", "2"))
    path.write_bytes(pax(record("comment", "x"), b"g") + extended + whole)
    assert contents(TarFile(path)) == [("dir/é.txt", b"on"), *CONTENT[1:]]
    for key in ("path", "size"):
        path.write_bytes(pax(record(key, "1"), b"g") + whole)
        is_invalid(path, repr(key), "global header")
    # Without the member that they describe.
    path.write_bytes(whole[:1024] + extended)
    is_invalid(path)
    path.write_bytes(whole[:1024] + extended + bytes(1024))
    is_invalid(path)
    # Data in the padding, which `tarfile` parses.
    data = record("comment", "x")
    path.write_bytes(pax(data)[: 512 + len(data)] + record("path", "b").ljust(512, b"\0") + whole)
    is_invalid(path)
    path.write_bytes(pax(data) * 2000 + whole)
    is_invalid(path)
    # Two names for one member.
    name = pax(b"b.txt\0", tarfile.GNUTYPE_LONGNAME)
    for first, second in itertools.product((name, extended), repeat=2):
        path.write_bytes(first + second + whole)
        is_invalid(path, "two extended headers for member")


def test_sparse_members_are_counted(tmp_path):
    path = tmp_path / "a.tar"
    whole = write_tar(path, CONTENT, tarfile.GNU_FORMAT).read_bytes()
    sparse = {156: b"S", 386: b"%011o\0%011o\0" % (0, 3), 483: b"%011o\0" % 9000}
    path.write_bytes(header(whole, 0, sparse))
    file = TarFile(path)
    assert contents(file) == CONTENT[1:]
    assert file.counts == {"members that are not regular files": 1}
    # As pax records.
    path.write_bytes(pax(record("GNU.sparse.map", "0,3,9000,0")) + whole)
    file = TarFile(path)
    assert contents(file) == CONTENT[1:]
    assert file.counts == {"members that are not regular files": 1}
    # A map that continues in blocks of its own.
    path.write_bytes(header(whole, 0, sparse | {482: b"\1"}))
    assert contents(TarFile(path)) == CONTENT[1:]


def test_an_index_is_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    found = path.stat()
    index = {
        "version": 1,
        "bytes": found.st_size,
        "changed_ns": found.st_mtime_ns,
        "counts": {"members that are no files": 2},
        "notes": ["a.tar has no mark at its end"],
        "members": [["b/c.bin", 2048, 2304]],
    }
    (tmp_path / "a.tar.index").write_text(json.dumps(index))
    file = TarFile(path)
    assert contents(file) == CONTENT[2:]
    assert (file.counts, file.notes) == (index["counts"], index["notes"])
    # One of another version is replaced.
    (tmp_path / "a.tar.index").write_text(json.dumps(index | {"version": 0}))
    assert contents(TarFile(path)) == CONTENT
    assert json.loads((tmp_path / "a.tar.index").read_text())["version"] == 1


def test_a_file_that_changes_while_it_is_used(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    file = TarFile(path)
    file_pool._POOL.files.clear()
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
        f": its modification time was {then} s and now is 1.500000 s (it still has {file.bytes}"
        " bytes); open the data again"
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
    monkeypatch.setattr(file_pool, "OPEN_FILES", 3)
    file_pool._POOL.files.clear()
    content = [[(f"{i}.bin", bytes([n, i]) * 900) for i in range(9)] for n in range(8)]
    files = [TarFile(write_tar(tmp_path / f"{n}.tar", own)) for n, own in enumerate(content)]
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
    with file_pool._POOL.lock:
        child = os.fork()
        if child == 0:
            # A lock that nobody opens would hold it for ever.
            signal.alarm(30)
            os._exit(0 if contents(file) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_broken_bytes_are_errors_and_nothing_else(tmp_path):
    """Bits are turned and ends cut off at random: members inside the file, or a ValueError."""
    draw, path = random.Random(0), tmp_path / "a.tar"
    wholes, refused = tar_files.wholes(path), 0
    for _ in range(1500):
        path.write_bytes(tar_files.broken(draw, wholes))
        refused += tar_files.is_refused(path)
    assert 100 < refused < 1500
