"""Packs, tar indexes and other files of a cache with values that were not written by us."""

import hashlib
import json
import os
import shutil
import tarfile
import zlib

import numpy as np
import pytest

from fiber.data import DataLoader, ImageTransform, Record, Tokenizer
from fiber.data.datasets.resolve import existing_data, open_source
from fiber.data.storage import pack_description, packed
from fiber.data.storage.pack_index import ENTRY
from fiber.data.storage.remote_pack import url_of
from fiber.data.storage.shard_order import ShardGroups
from fiber.data.storage.tar import TarFile
from fiber.data.tools.pack import pack
from tests.data.hostile_values import VALUES, is_refused, mutants
from tests.data.shards import picture, write_tar
from tests.data.signed_packs import replace_lines, sign

#: Those that a reader of packs could take for something else.
FEW = tuple(v for v in VALUES if v not in ('""', '"(x)"', "1.5", "[{}]", "9" * 5000))


def write_source(folder):
    """Write an image with boxes in COCO format, of which some are for metrics only."""
    folder.mkdir()
    (folder / "images").mkdir()
    (folder / "images/1.png").write_bytes(picture(1))
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 20, 15], "area": 9}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}],
        "annotations": [box, {**box, "id": 2, "iscrowd": 1}],
        "categories": [{"id": 3, "name": "mug"}],
    }
    (folder / "instances_train.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    write_source(folder / "source")
    pack(folder / "source", folder / "packed")
    return folder / "packed"


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "packed")


def read(folder):
    """Read a pack as the loader does, with and without the objects for metrics."""
    pack_description._read_description.cache_clear()
    assert sum(open_source("detection", folder, "train").counts.values()) >= 0
    records = open_source("detection", folder, "train", objects=True)
    assert all(isinstance(image, bytes) for record in records for image in record.images)
    ShardGroups(records.shard_map())
    assert all(isinstance(note, str) and len(note) < 3000 for note in records.notes)
    packed._choose_shots(records, 1)
    return records


def signed(text):
    """The text of a description with its own fingerprint, if it can have one."""
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            found["fingerprint"] = pack_description.fingerprint_of_content(found)
            return json.dumps(found)
    except (ValueError, RecursionError):
        pass
    return text


def test_a_file_that_is_listed_twice_is_refused(folder):
    """Each entry of it would be read: the tar header of the first image of every shard."""
    description = json.loads((folder / "pack.json").read_text())
    description["shards"].append(description["shards"][0] | {"file": "./train-000000.tar"})
    sign(folder, description)
    with pytest.raises(ValueError, match=r"pack\.json.*shards\[1\].*train-000000.*shards\[0\]"):
        read(folder)


def test_every_value_of_a_description_is_read_or_refused_by_name(folder):
    path = folder / "pack.json"
    content = json.loads(path.read_text())
    assert not is_refused(lambda: read(folder), folder, "pack.json")
    refused = []
    for text in mutants(content, FEW):
        path.write_text(signed(text))
        # A file that is named otherwise is missing, or is another one.
        refused.append(is_refused(lambda: read(folder), folder, str(folder)))
    assert len(refused) / 2 < sum(refused) < len(refused)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_every_value_of_a_record_is_read_or_refused_by_name(folder, whole):
    path = folder / "index/train-detection.jsonl"
    (line,) = map(json.loads, path.read_text().splitlines())
    content = json.loads((folder / "pack.json").read_text())
    line |= content["parts"][0]["shared"][0] if whole else {}
    (line.pop("shared") if whole else None)
    refused = []
    for text in (json.dumps(line), *mutants(line, FEW)):
        replace_lines(folder, "train-detection", [text])
        refused.append(is_refused(lambda: read(folder), folder, path.name))
    assert not refused[0] and len(refused) / 2 < sum(refused) < len(refused)


@pytest.mark.parametrize("field", ["number", "start", "bytes", "crc32"])
@pytest.mark.parametrize("name", ["train-images.bin", "train-detection.bin"])
def test_large_numbers_of_an_index_take_no_memory(folder, name, field):
    path, content = folder / "index" / name, json.loads((folder / "pack.json").read_text())
    index = np.fromfile(path, dtype=ENTRY)
    index[field] = np.iinfo(ENTRY[field]).max
    index.tofile(path)
    entry = next(each for each in content["indexes"] if each["file"].endswith(name))
    data = path.read_bytes()
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "crc32s": [zlib.crc32(data)]}
    sign(folder, content)
    assert is_refused(lambda: read(folder), folder, str(folder))


def test_a_shard_of_an_image_beyond_the_shards_takes_no_memory(folder):
    """Of an image that is not checked when the pack is opened."""
    records = read(folder)
    index = folder / "index/train-images.bin"
    entry = np.fromfile(index, dtype=ENTRY)
    entry["number"] = 2**32 - 1
    stat = index.stat()
    entry.tofile(index)
    os.utime(index, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=r"packed.*shard 4294967295; expected 0 to 0"):
        ShardGroups(records.shard_map())


def test_a_description_that_is_too_large(folder, monkeypatch):
    monkeypatch.setattr(pack_description, "MAX_DESCRIPTION_BYTES", 100)
    with pytest.raises(ValueError, match=r"pack\.json has \d+ bytes; expected at most 100"):
        read(folder)


# ---- tar indexes


def test_every_value_of_a_tar_index_is_used_or_ignored(tmp_path):
    """An index with wrong values is as good as none: the archive is scanned."""
    content = [("b/a.txt", b"one"), ("c.txt", b"two")]
    path, index = write_tar(tmp_path / "a.tar", content), tmp_path / "a.tar.index"
    expected = TarFile(path)
    sound = json.loads(index.read_text()) | {"counts": {"links": 1}, "notes": ["a note"]}
    used = []
    for text in (json.dumps(sound), *mutants(sound)):
        index.write_text(text)
        file = TarFile(path)
        used.append((file.counts, file.notes) != ({}, []))
        for member in file.members:
            assert file.read(member.start, member.size) is not None
            assert ".." not in member.name.split("/") and not member.name.startswith("/")
            assert 0 < len(member.name) <= 1000 and "\0" not in member.name
            assert member.name.encode() and member.start % 512 == 0
        assert all(type(count) is int and kind.isprintable() for kind, count in file.counts.items())
        assert all(note.isprintable() for note in file.notes)
        if not used[-1]:
            assert file.members == expected.members
            assert json.loads(index.read_text())["counts"] == {}
    assert used[0] and 0 < sum(used) < len(used) / 4


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../b", "", ".", "a//b", "a/", "a\0b", "\ud800", "a" * 1001]
)
def test_names_that_a_scan_refuses_are_not_taken_from_an_index(tmp_path, name):
    path, index = write_tar(tmp_path / "a.tar", [("c.txt", b"two")]), tmp_path / "a.tar.index"
    expected = TarFile(path).members
    sound = json.loads(index.read_text())
    for names in ([name], ["a", name]):
        members = [[each, 512, 3] for each in names]
        index.write_text(json.dumps(sound | {"members": members}))
        assert TarFile(path).members == expected


def test_an_index_that_is_longer_than_its_archive_is_not_read(tmp_path):
    path, index = write_tar(tmp_path / "a.tar", [("c.txt", b"two")]), tmp_path / "a.tar.index"
    expected = TarFile(path).members
    sound = json.loads(index.read_text()) | {"members": [["b.txt", 512, 3]]}
    index.write_text(json.dumps(sound))
    assert TarFile(path).members != expected
    index.write_text(json.dumps(sound) + " " * (path.stat().st_size + (1 << 16)))
    assert TarFile(path).members == expected


def test_pax_headers_take_linear_time(tmp_path):
    """Digits, of which `tarfile` would look at all that follow each, and many global records."""
    path = tmp_path / "a.tar"
    whole = write_tar(path, [("c.txt", b"two")]).read_bytes()

    def header(data, kind):
        info = tarfile.TarInfo("extended")
        info.type, info.size = kind, len(data)
        return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)

    record = b"3000 comment=" + b"1" * (3000 - 14) + b"\n"
    for data, kind, said in (
        (record, b"x", "digits in a row"),
        (b"".join(b"9 k%03d=v\n" % n for n in range(200)), b"g", "200 global pax records"),
        (b"70000 comment=" + b"a" * (70000 - 15) + b"\n", b"g", "at most 65536"),
    ):
        path.write_bytes(header(data, kind) + whole)
        if kind == b"g" and len(data) < 65536:
            path.write_bytes(header(data, kind) * 2 + whole)
        with pytest.raises(ValueError, match=rf"a\.tar is not a valid tar archive: .*{said}"):
            TarFile(path)


# ---- other files


def test_every_value_of_the_note_of_a_remote_pack_is_read_or_refused_by_name(tmp_path):
    note, sound = tmp_path / "pack.remote.json", {"url": "memory://x", "limit_bytes": 9}
    refused = []
    for text in (json.dumps(sound), *mutants(sound)):
        note.write_text(text)
        refused.append(is_refused(lambda: [url_of(tmp_path / "pack")][:0], tmp_path, note.name))
    assert not refused[0] and len(refused) / 2 < sum(refused)
    for value in VALUES:
        note.write_text('{"url": "memory://x", "limit_bytes": ' + value + "}")
        assert is_refused(lambda: [url_of(tmp_path / "pack")][:0], tmp_path, note.name)


@pytest.mark.filterwarnings("ignore:.*was made by version:UserWarning")
def test_every_value_of_a_generated_folder_is_read_or_refused_by_name(tmp_path):
    path = tmp_path / "dataset.json"
    sound = {"parameters": {"generator": "scenes", "version": 4}}
    refused = []
    for text in (json.dumps(sound), *mutants(sound)):
        path.write_text(text)
        refused.append(is_refused(lambda: [existing_data(tmp_path)][:0], tmp_path, path.name))
    # What does not say how it was generated was not.
    assert not refused[0] and 0 < sum(refused) < len(refused) / 4


def test_every_value_of_a_loader_state_is_taken_or_refused_by_name():
    loader = DataLoader(
        [Record(key=str(n), images=(picture(n),), text="a cup") for n in range(3)],
        "image_text",
        tokenizer=Tokenizer.train(["a cup"] * 9, 270),
        transform=ImageTransform.squash(4),
        batch_size=2,
        max_tokens=8,
        threads=1,
    )
    sound = {**loader.state_dict(), "sample": 2}
    taken = []
    for text in (json.dumps(sound), *mutants(sound)):
        try:
            state = json.loads(text)
        except (ValueError, RecursionError):
            continue
        try:
            loader.load_state_dict(state)
        except (ValueError, TypeError) as error:
            assert isinstance(state, dict) == isinstance(error, ValueError)
            said = str(error)
            assert any(name in said for name in ("state", "epoch")) and len(said) < 500
            assert said.isprintable()
            taken.append(False)
        else:
            taken.append(True)
            assert loader.state_dict()["sample"] == state["sample"] in (0, 2)
    assert taken[0] and 0 < sum(taken) < len(taken) / 8
