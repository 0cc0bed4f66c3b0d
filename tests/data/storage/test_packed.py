"""What is packed comes out as it went in, record by record, whichever the source."""

import dataclasses
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import tarfile
import zlib

import pytest

from fiber.data import DataLoader, ImageTransform, Record, Tokenizer
from fiber.data.datasets.resolve import has_splits, open_source
from fiber.data.masks.codec import read_map
from fiber.data.masks.mask import IdMap
from fiber.data.record import TrueObjects
from fiber.data.skip_report import classes_of, skip_counts
from fiber.data.storage.packed import open_pack
from fiber.data.storage.record_entry import from_entry, to_entry
from fiber.data.tools import pack as packing
from fiber.data.tools.discover import parts_of
from fiber.data.tools.pack import pack
from fiber.synthetic import stamps
from tests.data.shards import picture, write_tar
from tests.data.signed_packs import sign
from tests.synthetic.cutouts import write_pictures

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="session")
def packed_scenes(scenes_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "scenes"
    pack(scenes_folder, folder, shard_bytes=40_000)
    return folder


def content(stored):
    return stored if isinstance(stored, bytes) else open(stored, "rb").read()  # noqa: PTH123


def same(before, after, root):
    """Whether two records differ in where their pictures lie alone."""
    assert [content(image) for image in before.images] == list(after.images)
    moved = before.image_id.removeprefix(f"{root}/")
    expected = dataclasses.replace(before, images=("x",), image_id=moved)
    if isinstance(masks := before.masks, IdMap):
        # The entry has the content of the map.
        expected = dataclasses.replace(expected, masks=masks._replace(image=read_map(masks)))
    assert dataclasses.replace(after, images=("x",)) == expected
    return True


@pytest.mark.parametrize("split", ["train", "val", "novel"])
@pytest.mark.parametrize(
    "source",
    ["captions", "phrases", "referring", "questions", "detection", "reasoning", "swapped"],
)
def test_scenes_come_out_as_they_went_in(source, split, scenes_folder, packed_scenes):
    for options in ({}, {"objects": True}) if source == "detection" else ({},):
        before = open_source(source, scenes_folder, split, **options)
        after = open_source(source, packed_scenes, split, **options)
        assert len(before) == len(after) > 0
        pairs = zip(before, after, strict=True)
        assert all(same(one, other, scenes_folder) for one, other in pairs)
        assert skip_counts(before) == skip_counts(after) and classes_of(before) == classes_of(after)
    assert after[1:3] == [after[1], after[2]] and after[-1] == after[len(after) - 1]
    with pytest.raises(IndexError):
        after[len(after)]


@pytest.mark.slow
def test_stamps_come_out_as_they_went_in(tmp_path):
    made_of = write_pictures(tmp_path)
    before = stamps.generate(tmp_path / "made", train=6, val=4, novel=4, image_size=96, **made_of)
    pack(before, tmp_path / "packed")
    parts = parts_of(before)
    assert {part.source for part in parts} >= {"captions", "detection", "phrases", "referring"}
    for part in parts:
        after = open_source(part.source, tmp_path / "packed", part.split)
        pairs = zip(part.open(), after, strict=True)
        assert all(same(one, other, before) for one, other in pairs)


FULL = Record(
    key="a/1",
    images=("x",),
    text="é red. mug",
    image_id="pic",
    image_size=(30, 40),
    boxes_xyxy=((0.1, 0.2, 3.3, 1e-7 + 4), (0, 0, 1, 1)),
    char_spans=(((0, 1), (2, 5)), ()),
    box_labels=(0, 1),
    labels=("é", "mug"),
    label_spans=(((0, 1),), ((7, 10),)),
    label_ids=(7, 9),
    label_groups=("r", "f"),
    objects=TrueObjects(
        boxes_xyxy=((0, 0, 1, 1),),
        labels=(1,),
        areas=(0.5,),
        crowd=(True,),
        absent=frozenset({1, 0}),
        incomplete=frozenset({0}),
    ),
    answers={"yes": 0.3, "no": 1.0},
    human_answers=("yes", "no", "no"),
    truth=False,
    group="g",
)
RECORDS = {
    "all": FULL,
    "least": Record(key="a", images=("x",), text=""),
    "no spans": dataclasses.replace(FULL, char_spans=()),
    "spans of labels": dataclasses.replace(FULL, char_spans=FULL.label_spans),
    "no labels": Record(key="a", images=("x",), text="mug", boxes_xyxy=((0, 0, 1, 1),)),
    "no answers": dataclasses.replace(FULL, answers={}, truth=True, objects=None),
    "nothing absent": dataclasses.replace(FULL, objects=TrueObjects(absent=frozenset())),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_an_entry_holds_every_field(record):
    stored = json.loads(json.dumps(to_entry(record)))
    assert from_entry(stored, ("x",)) == record


def test_shards_are_those_of_webdataset(packed_scenes):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    shards = sorted(str(path) for path in packed_scenes.glob("train-*.tar"))
    assert len(shards) > 2
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 30
    assert all(set(s) >= {"jpg", "txt", "json", "__key__"} for s in samples)
    told = [json.loads(sample["json"]) for sample in samples]
    records = open_source("captions", packed_scenes, "train")
    assert [text for fields in told for text in fields["captions"]] == [r.text for r in records]
    assert [s["txt"].decode() for s in samples] == [fields["captions"][0] for fields in told]
    assert {s["jpg"] for s in samples} == {r.images[0] for r in records}


def test_shards_alone_hold_captions_questions_and_boxes(packed_scenes):
    """Without the index, as shards of anyone's."""
    shard = packed_scenes / "val-000000.tar"
    numbers = slice(0, None)
    for source in ("captions", "questions", "detection"):
        bare = open_source(source, shard, "val")
        full = open_source(source, packed_scenes, "val")
        assert 0 < len(bare) <= len(full)
        for one, other in zip(bare, full[numbers], strict=False):
            assert one.images[0] == other.images[0] and one.boxes_xyxy == other.boxes_xyxy
            assert one.answers == other.answers
            assert source == "detection" or one.text == other.text


def test_a_shard_ends_where_it_would_be_too_large(packed_scenes):
    described = json.loads((packed_scenes / "pack.json").read_text())
    shards = [shard for shard in described["shards"] if shard["split"] == "train"]
    for shard in shards:
        path = packed_scenes / shard["file"]
        assert path.stat().st_size == shard["bytes"]
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert len(names) == 3 * shard["pictures"]
        # The end of a tar file is rounded up to 10,240 bytes.
        assert shard["bytes"] <= 40_000 + 10_240 or shard["pictures"] == 1
    assert sum(shard["pictures"] for shard in shards) == 30


def test_the_same_data_give_the_same_bytes(scenes_folder, packed_scenes, tmp_path):
    again = tmp_path / "again"
    pack(scenes_folder, again, shard_bytes=40_000)
    files = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert files and all(
        (again / f).read_bytes() == (packed_scenes / f).read_bytes() for f in files
    )
    first = open_source("captions", packed_scenes, "train")
    assert first.fingerprint == open_source("questions", again, "val").fingerprint
    # One more picture, and it is another set.
    other = tmp_path / "other"
    shutil.copytree(scenes_folder, other)
    entry = sorted((other / "images/train").rglob("*.jpg"))[0]
    entry.write_bytes(entry.read_bytes() + b"\0")
    pack(other, tmp_path / "third", shard_bytes=40_000)
    assert open_source("captions", tmp_path / "third", "train").fingerprint != first.fingerprint


def test_splits_and_sources_of_a_pack(scenes_folder, packed_scenes, tmp_path):
    both = open_source("captions", packed_scenes, "train+val")
    assert len(both) == len(open_source("captions", scenes_folder, "train+val"))
    assert has_splits("captions", packed_scenes, "train")
    assert len(open_source("refcoco", packed_scenes, "val")) > 0
    assert [part[:2] for part in parts_of(packed_scenes)] == [
        part[:2] for part in parts_of(scenes_folder)
    ]
    with pytest.raises(FileNotFoundError, match=r"captions.*split 'test'"):
        open_source("captions", packed_scenes, "test")
    pack(scenes_folder, tmp_path / "val", splits=["val"])
    assert {part.split for part in parts_of(tmp_path / "val")} == {"val"}
    with pytest.raises(ValueError, match="has no split 'dev'; available splits: 'train', "):
        pack(scenes_folder, tmp_path / "dev", splits=["dev"])
    assert (packed_scenes / "tokenizer.json").is_file()


def test_few_pictures_and_whole_expressions(scenes_folder, packed_scenes):
    for shots in (1, 3):
        before = open_source("detection", scenes_folder, "train", shots=shots)
        after = open_source("detection", packed_scenes, "train", shots=shots)
        assert [r.key for r in before] == [r.key for r in after]
    options = {"whole_expression": True}
    before = open_source("referring", scenes_folder, "val", **options)
    after = open_source("referring", packed_scenes, "val", **options)
    assert all(same(a, b, scenes_folder) for a, b in zip(before, after, strict=True))


def test_a_pack_of_a_pack_is_the_same(packed_scenes, tmp_path):
    pack(packed_scenes, tmp_path / "again", shard_bytes=40_000)
    for part in parts_of(packed_scenes):
        again = open_source(part.source, tmp_path / "again", part.split)
        assert all(same(a, b, packed_scenes) for a, b in zip(part.open(), again, strict=True))


def test_pictures_in_bytes_are_packed_once(tmp_path):
    members = []
    for name, shade in (("a", 1), ("b", 2), ("c", 1)):
        members += [(f"{name}.png", picture(shade)), (f"{name}.json", b'{"captions": ["x", "y"]}')]
    source = write_tar(tmp_path / "t.tar", members)
    described = pack(source, tmp_path / "packed")
    assert [shard["pictures"] for shard in described["shards"]] == [2]
    after = open_source("captions", tmp_path / "packed", "train")
    before = open_source("captions", source, "train")
    assert all(same(a, b, tmp_path) for a, b in zip(before, after, strict=True))


def test_batches_of_a_pack_are_those_of_its_source(scenes_folder, packed_scenes):
    def batches(folder, threads):
        loader = DataLoader(
            open_source("detection", folder, "train"),
            "grounding",
            tokenizer=Tokenizer.from_file(folder / "tokenizer.json"),
            transform=ImageTransform.shorter_side([32], 64, flip_probability=0.5),
            batch_size=8,
            max_tokens=64,
            shuffle=True,
            seed=5,
            threads=threads,
        )
        return [(b.keys, b.images.sum().item(), b.boxes_xyxy.tolist()) for b in loader.epoch(1)]

    assert batches(scenes_folder, 1) == batches(packed_scenes, 3)


@pytest.mark.parametrize("name", ["shard_bytes", "block_bytes"])
def test_wrong_sizes_are_refused(name, scenes_folder, tmp_path):
    for value in (0, -5, 2**31) if name == "block_bytes" else (0, -5):
        with pytest.raises(ValueError, match=rf"{name}.*{value}"):
            pack(scenes_folder, tmp_path / "packed", **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_checksums_of_blocks(scenes_folder, tmp_path):
    described = pack(scenes_folder, tmp_path / "packed", splits=["val"], block_bytes=999)
    for kind in ("shards", "indexes", "parts", "files"):
        assert described[kind]
        for entry in described[kind]:
            content = (tmp_path / "packed" / entry["file"]).read_bytes()
            blocks = [content[at : at + 999] for at in range(0, len(content), 999)]
            assert entry["bytes"] == len(content)
            assert entry["crc32s"] == [zlib.crc32(block) for block in blocks]
    assert open_source("captions", tmp_path / "packed", "val")[0].images[0]


@pytest.mark.parametrize(
    "change",
    [
        {"block_bytes": 0},
        {"block_bytes": 2**40},
        {"block_bytes": None},
        {"indexes": None},
        {"files": {}},
        {"version": 1},
        {"version": 3},
        {"version": True},
        {"version": [1]},
    ],
    ids=str,
)
def test_descriptions_that_are_refused(change, packed_scenes, tmp_path):
    shutil.copytree(packed_scenes, tmp_path / "packed")
    description = json.loads((packed_scenes / "pack.json").read_text())
    sign(tmp_path / "packed", {**description, **change})
    with pytest.raises(ValueError, match=r"pack\.json does not describe a packed folder"):
        open_source("captions", tmp_path / "packed", "train")


@pytest.mark.parametrize("kind", ["shards", "indexes", "parts", "files"])
@pytest.mark.parametrize(
    "change", [{"bytes": -1}, {"crc32s": []}, {"crc32s": ["1"]}, {"bytes": None}], ids=str
)
def test_wrong_entries_of_files_are_refused(kind, change, packed_scenes, tmp_path):
    shutil.copytree(packed_scenes, tmp_path / "packed")
    description = json.loads((packed_scenes / "pack.json").read_text())
    description[kind][0] |= change
    sign(tmp_path / "packed", description)
    with pytest.raises(ValueError, match=rf"{kind}\[0\]"):
        open_source("captions", tmp_path / "packed", "train")


def test_random_access(packed_scenes):
    records = open_source("captions", packed_scenes, "train")
    order = list(range(len(records)))
    random.Random(0).shuffle(order)
    assert [records[i].key for i in order] == [list(records)[i].key for i in order]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_not_written_over(kind, scenes_folder, tmp_path):
    target = tmp_path / "packed"
    if kind == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(FileExistsError, match="packed already exists"):
        pack(scenes_folder, target)
    kept = target / "mine.txt" if kind == "folder" else target
    assert kept.read_text() == "mine"


def copy_of(scenes_folder, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    return folder, sorted((folder / "images/train").rglob("*.jpg"))


def test_a_missing_picture(scenes_folder, tmp_path):
    folder, pictures = copy_of(scenes_folder, tmp_path)
    pictures[3].unlink()
    with pytest.raises(FileNotFoundError) as error:
        pack(folder, tmp_path / "packed")
    assert "record 'captions_train/" in str(error.value) and str(pictures[3]) in str(error.value)
    assert not (tmp_path / "packed").exists() and len(list(tmp_path.iterdir())) == 1
    described = pack(folder, tmp_path / "packed", on_error="skip")
    missed = "records whose pictures are missing"
    before = sum(r.images[0] != str(pictures[3]) for r in open_source("captions", folder, "train"))
    after = open_source("captions", tmp_path / "packed", "train")
    assert len(after) == before
    assert skip_counts(after)[missed] == len(open_source("captions", folder, "train")) - before > 0
    assert described["shards"][0]["pictures"] == 29


def test_a_full_disk_leaves_nothing(scenes_folder, tmp_path, monkeypatch):
    written = []

    class Full(io.FileIO):
        def write(self, data):
            written.append(len(data))
            if sum(written) > 30_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    opened = packing.Path.open

    def open_file(path, mode="r", **options):
        return Full(path, mode) if mode == "wb" else opened(path, mode, **options)

    monkeypatch.setattr(packing.Path, "open", open_file)
    with pytest.raises(OSError) as error:
        pack(scenes_folder, tmp_path / "packed")
    assert error.value.errno == errno.ENOSPC and sum(written) > 30_000
    assert f"{tmp_path}/packed/" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_file_sizes_in_a_process_of_its_own(scenes_folder, tmp_path):
    """The system's own refusal, in the middle of a shard."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
            pack(scenes_folder, tmp_path / "packed")
        except OSError as problem:
            named = "packed/train-000000.tar" in str(problem)
            code = 3 if named and problem.errno == errno.EFBIG else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_stop_leaves_nothing(scenes_folder, tmp_path):
    def stop(done, total):
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(scenes_folder, tmp_path / "packed", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_pack_that_was_changed_is_named(packed_scenes, tmp_path):
    folder = tmp_path / "packed"

    def broken(name, change):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(packed_scenes, folder)
        change(folder / name)
        return open_pack(folder, "captions", "train")

    with pytest.raises(ValueError, match=r"train-captions\.jsonl.*\d+.*pack\.json"):
        broken("index/train-captions.jsonl", lambda p: p.write_bytes(p.read_bytes()[:-900]))
    with pytest.raises(ValueError, match=r"train-images\.bin .*bytes; expected \d+"):
        broken("index/train-images.bin", lambda p: p.write_text("[["))
    with pytest.raises(ValueError, match=r"pack\.json.*folder"):
        broken("pack.json", lambda p: p.write_text("{}"))
    with pytest.raises(ValueError, match=r"train-000001\.tar.*\d+.*pack\.json.*\d+"):
        broken("train-000001.tar", lambda p: p.write_bytes(p.read_bytes()[:-512]))
    with pytest.raises(FileNotFoundError, match=r"train-000001\.tar.*exist"):
        broken("train-000001.tar", lambda p: p.unlink())
