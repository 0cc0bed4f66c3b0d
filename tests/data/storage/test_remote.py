"""Reads of files at URLs: repeated after faults, checked, and clear about what is wrong."""

import json
import re
import shutil
import zlib

import fsspec
import pytest

from fiber.data.storage import remote
from fiber.data.storage.remote import RemoteError, RemoteFolder, is_url
from tests.data.faulty_server import FAULTS, served
from tests.data.signed_packs import sign

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def site(tmp_path, short_pauses):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with served(tmp_path) as site:
        yield site


def read(site, start=100, end=900, **options):
    crc32 = zlib.crc32(CONTENT[start:end])
    return RemoteFolder(site.url, **options).read("a.bin", start, end, crc32, len(CONTENT))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("s3://bucket/a", True),
        ("hf://datasets/a/b", True),
        ("HTTPS://x/y", True),
        ("memory://a", True),
        ("", False),
        ("a/b", False),
        ("C:/a", False),
        ("x://", False),
        ("a b://c", False),
        (3, False),
    ],
)
def test_what_is_a_url(data, expected):
    assert is_url(data) is expected


def test_a_range_is_read(site):
    assert read(site) == CONTENT[100:900]
    assert read(site, 0, len(CONTENT)) == CONTENT
    assert site.requests == [("a.bin", 100, 900), ("a.bin", 0, len(CONTENT))]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_read_that_fails_is_repeated(site, fault):
    site.planned["a.bin"] = [fault] * 2
    assert read(site, timeout_seconds=2 if fault == "delay" else None) == CONTENT[100:900]
    assert site.faults[fault] == 2 and len(site.requests) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("drop", "Server"),
        ("error", "503"),
        ("cut", "Payload"),
        ("short", "400 bytes arrived"),
        ("lie", r"bytes with CRC-32 \d+ arrived"),
        ("delay", "Timeout"),
    ],
)
def test_a_read_that_always_fails_is_told(site, fault, reason, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    site.planned["a.bin"] = [fault] * 9
    with pytest.raises(RemoteError) as error:
        read(site, timeout_seconds=0.3 if fault == "delay" else None)
    crc32 = zlib.crc32(CONTENT[100:900])
    text = str(error.value)
    assert f"{site.url}/a.bin" in text and "attempt 3 of 3" in text
    assert f"expected bytes 100 to 900 of {len(CONTENT)} with CRC-32 {crc32}" in text
    assert re.search(reason, text), text
    # aiohttp itself repeats a request whose connection was closed without an answer.
    assert len(site.requests) == (6 if fault == "drop" else 3)


def test_pauses_grow(site, monkeypatch):
    slept = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_SECONDS", 5)
    site.planned["a.bin"] = ["error"] * 7
    assert read(site, pause_seconds=1) == CONTENT[100:900]
    longest = [1, 2, 4, 5, 5, 5, 5]
    assert len(slept) == 7
    assert all(most / 2 <= pause <= most for pause, most in zip(slept, longest, strict=True))


def test_a_missing_file_is_told_at_once(site):
    folder = RemoteFolder(site.url)
    with pytest.raises(RemoteError, match=rf"{site.url}/b\.bin does not exist.*pack\.json"):
        folder.read("b.bin", 0, 1, 0, 1)
    with pytest.raises(FileNotFoundError, match=rf"{site.url}/pack\.json does not exist"):
        folder.description()


def test_a_server_without_ranges_is_told_at_once(site):
    site.ignores_ranges = True
    with pytest.raises(RemoteError, match=r"attempt 1 of 8 .*whole files.*bytes 100 to 900"):
        read(site)
    assert read(site, 0, len(CONTENT)) == CONTENT


def test_a_server_that_is_away(site, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9/a/a\.bin .*attempt 2 of 2 .*Connect"):
        RemoteFolder("http://127.0.0.1:9/a").read("a.bin", 0, 1, 0, 1)


@pytest.mark.parametrize("url", ["nosuch://a/b", "s3x://a"])
def test_a_protocol_that_fsspec_does_not_know(url):
    with pytest.raises(ValueError, match=rf"{url} cannot be opened .*fiber-vl\[remote\]"):
        RemoteFolder(url).description()


def test_the_description_is_read_again_if_it_was_cut_or_changed(
    packed_noise, tmp_path, site, short_timeout
):
    shutil.copy(packed_noise / "pack.json", tmp_path / "pack.json")
    for fault in FAULTS:
        site.planned["pack.json"] = [fault]
        content, description = RemoteFolder(f"{site.url}/").description()
        assert content == (packed_noise / "pack.json").read_bytes()
        assert description["fingerprint"] == json.loads(content)["fingerprint"]
    assert sum(site.faults.values()) == len(FAULTS)
    # One that is not a description on the server either.
    (tmp_path / "pack.json").write_text("{}")
    with pytest.raises(RemoteError, match=r"pack\.json .*attempt 8 of 8 .*not describe"):
        RemoteFolder(site.url).description()
    sign(tmp_path, {**description, "block_bytes": 0})
    with pytest.raises(RemoteError, match="block_bytes is 0"):
        RemoteFolder(site.url).description()


def test_other_file_systems_of_fsspec(tmp_path):
    fsspec.filesystem("memory").pipe_file("/pack/a.bin", CONTENT)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    for url in ("memory://pack", f"file://{tmp_path}"):
        crc32 = zlib.crc32(CONTENT[5:77])
        assert RemoteFolder(url).read("a.bin", 5, 77, crc32, len(CONTENT)) == CONTENT[5:77]
        with pytest.raises(RemoteError, match=r"b\.bin does not exist"):
            RemoteFolder(url).read("b.bin", 0, 1, 0, 1)
