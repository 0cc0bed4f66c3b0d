"""Packed folders whose files have changed: when opened, when read, and when verified."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from fiber.cli import main
from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.datasets.resolve import open_source
from fiber.data.skip_report import skip_lines
from fiber.data.storage import packed as packs
from fiber.data.storage.pack_description import read_description
from fiber.data.storage.pack_index import ENTRY
from fiber.data.storage.packed import PackedRecords, open_pack
from fiber.data.tools.inspect import inspect
from fiber.data.tools.pack import pack
from fiber.data.tools.verify import verify_files
from tests.data.signed_packs import replace_lines

NUM_IMAGES = 40


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder of images of noise in shards of 4, and one question, packed."""
    root = tmp_path_factory.mktemp("noise")
    rng, lines = np.random.default_rng(0), []
    for number in range(NUM_IMAGES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, "BMP")
        (root / f"{number}.bmp").write_bytes(file.getvalue())
        lines.append(json.dumps({"image": f"{number}.bmp", "text": f"noise {number}"}) + "\n")
    (root / "train.jsonl").write_text("".join(lines))
    (root / "val.jsonl").write_text("".join(lines[:6]))
    Tokenizer.train(["noise"], 300).save(str(root / "tokenizer.json"))
    pack(root, root / "packed", shard_bytes=27_000)
    return root / "packed"


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A copy of it, of which opening checks the first image of each shard and the last one."""
    monkeypatch.setattr(packs, "SAMPLED", 2)
    shutil.copytree(original, tmp_path / "packed")
    return tmp_path / "packed"


def place_of(folder, number):
    """The shard, first byte and size of an image."""
    entry = np.fromfile(folder / "index/train-images.bin", dtype=ENTRY)[number]
    start, size, shard, _ = map(int, entry)
    return folder / f"train-{shard:06d}.tar", start, size


def flip(path, place, bit=1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def exchange(folder, first, second):
    shards = [folder / f"train-{number:06d}.tar" for number in (first, second)]
    contents = [shard.read_bytes() for shard in shards]
    assert len(contents[0]) == len(contents[1]) and contents[0] != contents[1]
    for shard, content in zip(shards, reversed(contents), strict=True):
        shard.write_bytes(content)


def test_an_unchanged_folder_opens_and_verifies(folder):
    records = open_pack(folder, "captions", "train")
    assert len(records) == NUM_IMAGES and skip_lines(records) == []
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "pack.json"]
    assert verify_files(folder) == (len(files), [])
    assert 0 < verify_files(folder, ["val"])[0] < len(files)
    assert inspect(folder, verify=True).to_dict()["files_verified"] == len(files)
    assert inspect(folder).to_dict()["files_verified"] is None


@pytest.mark.parametrize("number", [0, 4, NUM_IMAGES - 1])
@pytest.mark.parametrize("place", [-512, -400, 0, 2000])
def test_a_flipped_bit_of_a_checked_image_or_its_header_is_told_on_open(folder, number, place):
    shard, start, _ = place_of(folder, number)
    flip(shard, start + place)
    with pytest.raises(ValueError, match=rf"{shard.name}: .*changed since the folder was packed"):
        open_pack(folder, "captions", "train")
    assert len(open_pack(folder, "captions", "val")) == 6


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_any_other_image_is_told_when_it_is_read(folder, bit, scenes_folder):
    shard, start, size = place_of(folder, 6)
    flip(shard, start + size // 2, bit)
    records = open_pack(folder, "captions", "train")
    assert len([bytes(record.images[0]) for record in records[:6]]) == 6
    with pytest.raises(ValueError, match=rf"{shard.name}: image 6, {size} bytes .*changed"):
        records[6].images[0]
    loader = DataLoader(
        records,
        "image_text",
        tokenizer=Tokenizer.from_file(scenes_folder / "tokenizer.json"),
        transform=ImageTransform.squash(32),
        batch_size=NUM_IMAGES,
        max_tokens=9,
        on_error="skip",
    )
    with pytest.warns(RuntimeWarning, match=shard.name):
        assert sum(map(len, loader)) == NUM_IMAGES - 1
    assert [each.status for each in loader.skipped] == ["corrupt"]


def test_a_flipped_bit_is_told_by_verify_wherever_it_is(folder):
    rng = np.random.default_rng(1)
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name == "pack.json":
            continue
        place = int(rng.integers(path.stat().st_size))
        flip(path, place)
        assert [path.name in problem for problem in verify_files(folder)[1]] == [True]
        flip(path, place)
    # The end of a tar file is padding.
    flip(folder / "train-000003.tar", -1)
    [problem] = verify_files(folder)[1]
    assert "train-000003.tar" in problem and "SHA-256" in problem
    report = inspect(folder, verify=True)
    assert report.faults == [problem]
    (folder / "val-000000.tar").unlink()
    assert "val-000000.tar" in verify_files(folder)[1][1]
    assert verify_files(folder, ["train"])[1] == [problem]


def test_pack_json_is_verified_by_its_fingerprint(folder):
    content = (folder / "pack.json").read_bytes()
    for old, new in (
        (b'"records": 40', b'"records": 39'),
        (b'"fingerprint": "', b'"fingerprint": "0'),
    ):
        assert old in content
        (folder / "pack.json").write_bytes(content.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"pack\.json .*hash.*changed"):
            open_pack(folder, "captions", "train")
    (folder / "pack.json").write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match=r"pack\.json does not describe a packed folder"):
        open_pack(folder, "captions", "train")


def test_exchanged_shards_of_equal_size_are_told_on_open(folder):
    exchange(folder, 2, 5)
    with pytest.raises(ValueError, match=r"train-000002\.tar: the tar header.*image 8 .*changed"):
        open_pack(folder, "captions", "train")
    assert len(verify_files(folder)[1]) == 2


@pytest.mark.parametrize("number", [0, NUM_IMAGES - 1])
@pytest.mark.parametrize("name", ["captions.jsonl", "captions.bin", "images.bin"])
def test_a_changed_index_of_a_checked_entry_is_told_on_open(folder, name, number):
    path = folder / "index" / f"train-{name}"
    place = number * path.stat().st_size // NUM_IMAGES + 1
    flip(path, place)
    with pytest.raises(ValueError, match=r"train-"):
        open_pack(folder, "captions", "train")


@pytest.mark.parametrize("name", ["captions.bin", "images.bin"])
def test_every_bit_of_an_index_is_checked_when_it_is_read(folder, name):
    """Where a record or an image is, its number and its checksum."""
    path, number = folder / "index" / f"train-{name}", 6
    # A record starts where the one before ends.
    after = 8 if name == "captions.bin" else 7
    for place in range(number * ENTRY.itemsize, (number + 1) * ENTRY.itemsize):
        for bit in range(8):
            flip(path, place, bit)
            records = open_pack(folder, "captions", "train")
            assert records[5].images[0] and records[after].images[0]
            with pytest.raises(ValueError, match=r"packed/.*(changed|bytes|first image)"):
                records[number].images[0]
            flip(path, place, bit)
    assert open_pack(folder, "captions", "train")[number].images[0]


def test_a_changed_text_is_told_when_it_is_read(folder):
    path = folder / "index/train-captions.jsonl"
    path.write_bytes(path.read_bytes().replace(b"noise 7", b"noise 8"))
    records = open_pack(folder, "captions", "train")
    assert [r.text for r in records[:7]] == [f"noise {n}" for n in range(7)]
    with pytest.raises(ValueError, match=r"train-captions\.jsonl: line 8 has changed"):
        records[7]


def test_no_file_outside_of_the_folder_is_read(folder):
    for name in ("../outside.jsonl", "/etc/hostname"):
        part = read_description(folder)["parts"][0]
        with pytest.raises(ValueError, match="outside of"):
            PackedRecords(folder, {**part, "file": name})


def test_other_images_have_another_fingerprint(original, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(original.parent, source, ignore=shutil.ignore_patterns("packed"))
    flip(source / "7.bmp", 2000)
    pack(source, tmp_path / "packed", shard_bytes=27_000)
    found = [open_source("captions", name, "train") for name in (original, tmp_path / "packed")]
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0][7].text == found[1][7].text


def test_the_command(folder, capsys):
    assert main(["data", "inspect", str(folder), "--verify"]) == 0
    assert "checksums: 19 files, 0 have changed" in capsys.readouterr().out
    flip(folder / "train-000003.tar", -1)
    assert main(["data", "inspect", str(folder)]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", str(folder), "--verify"]) == 1
    printed = capsys.readouterr().out
    assert "1 have changed" in printed and "fault: " in printed and "train-000003.tar" in printed
    assert main(["data", "inspect", str(folder.parent / "packed" / "train-000000.tar"), "--verify"])
    assert "is not a packed folder" in capsys.readouterr().err


def test_headers_are_those_of_tarfile(folder):
    """What the check on open relies on."""
    with tarfile.open(folder / "train-000001.tar") as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".bmp")]
    assert [member.name for member in members] == [f"{n:09d}.bmp" for n in range(4, 8)]
    assert [(m.offset_data, m.size) for m in members] == [
        place_of(folder, number)[1:] for number in range(4, 8)
    ]


def test_records_of_a_forged_index_are_errors(folder):
    """Whoever makes checksums that are right can still not make a record that is wrong."""
    path = folder / "index/train-captions.jsonl"
    lines = path.read_text().splitlines()
    wrong = [json.dumps(json.loads(lines[0]) | {"images": images}) for images in ([99], ["1"], 3)]
    wrong += ["[]", "{}", '{"images": [0], "color": 1}']
    replace_lines(folder, "train-captions", [*wrong, *lines[len(wrong) :]])
    records = open_pack(folder, "captions", "train")
    for number in range(len(wrong)):
        with pytest.raises(ValueError, match=r"train-captions\.jsonl"):
            records[number].images[0]
    assert len(records[len(wrong)].images[0]) == 3654
