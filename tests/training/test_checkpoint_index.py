"""Indexes and tensors of checkpoints: read as data, and refused unless they fit each other."""

import dataclasses
import enum
import pathlib
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from fiber.training.checkpoint.files import read_tensors, stored_tensors, write_tensors
from fiber.training.checkpoint.layout import INDEX
from tests.hostile_cases import zipped

TENSORS = {
    "model/a": torch.arange(12.0).reshape(3, 4),
    "model/b": torch.tensor(3),
    "optimizer/a/step": torch.zeros(0, 4, dtype=torch.bfloat16),
}
#: Classes that an index names, or whose attributes a loaded pickle could set.
CLASSES = [
    *(each for each in vars(dcp).values() if isinstance(each, type)),
    *(_StorageInfo, torch.Size, OrderedDict, pathlib.Path, pathlib.PosixPath, pathlib.PurePath),
]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint's tensors, next to a file outside of it."""
    (tmp_path / "outside.distcp").write_bytes(b"secret")
    write_tensors(TENSORS, tmp_path / "step")
    return tmp_path / "step"


def change(folder, edit):
    """Edit the index as an object, and write it again."""
    path = folder / INDEX
    index = pickle.loads(path.read_bytes())
    edit(index)
    path.write_bytes(pickle.dumps(index))


def attributes():
    """Attributes of the classes, without those that Python itself adds when they are used."""
    return [
        {name: value for name, value in vars(each).items() if name != "__abstractmethods__"}
        for each in CLASSES
    ]


def read(folder):
    targets = {name: torch.full_like(tensor, 7) for name, tensor in TENSORS.items()}
    read_tensors(folder, targets)
    return targets


def test_tensors_come_back(folder):
    assert {name: (tuple(e.shape), e.dtype) for name, e in stored_tensors(folder).items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()
    }
    for name, tensor in read(folder).items():
        assert torch.equal(tensor, TENSORS[name])


def set_attribute(cls, name, value):
    """Opcodes that set an attribute of a class, if they are loaded: BUILD with slots."""
    text = b"X" + struct.pack("<I", len(name)) + name
    return b"\x80\x02c" + cls + b"\n(N}" + text + value + b"stb0"


DEEP = b"N" + b"2\x86" * 60
HOSTILE = {
    "a function": (pickle.dumps(print), "Metadata"),
    "a list": (pickle.dumps([1]), "Metadata"),
    "empty": (b"", "ends before STOP"),
    "cut": (b"\x80", "damaged"),
    "opens a file": (b"\x80\x02c__builtin__\nopen\n(X\x06\0\0\0openedX\x01\0\0\0wtR.", "open"),
    "path's method": (set_attribute(b"pathlib\nPosixPath", b"exists", b"ctorch\nSize\n"), ""),
    "size's method": (set_attribute(b"torch\nSize", b"numel", b"cpathlib\nPosixPath\n"), ""),
    "a memo of 2^27": (b"\x80\2Nr\xff\xff\xff\x07.", "memo"),
    "a memo of 2^31 - 1": (b"\x80\2Nr\xff\xff\xff\x7f.", "memo"),
    "a key of 2^60 leaves": (b"\x80\2}" + DEEP + b"Ns.", "Metadata"),
    "a size of 2^60 leaves": (b"\x80\2ctorch\nSize\n" + DEEP + b"\x85R.", "Metadata"),
}


@pytest.mark.parametrize(("content", "named"), HOSTILE.values(), ids=HOSTILE)
def test_an_index_that_is_none_is_refused(folder, monkeypatch, content, named):
    monkeypatch.chdir(folder)
    whole, before = (folder / INDEX).read_bytes(), attributes()
    # Opcodes that leave nothing on the stack come before a sound index.
    sound = not content.endswith(b".") and content.endswith(b"0")
    (folder / INDEX).write_bytes(content + whole[2:] if sound else content)
    if not sound:
        with pytest.raises(ValueError, match=rf"\.metadata.*{named}"):
            stored_tensors(folder)
    else:
        assert stored_tensors(folder).keys() == TENSORS.keys()
    assert attributes() == before
    assert not (folder / "opened").exists()


def first_place(index):
    return next(iter(index.storage_data))


def with_place(**changes):
    def edit(index):
        key = first_place(index)
        index.storage_data[key] = dataclasses.replace(index.storage_data[key], **changes)

    return edit


def with_tensor(**changes):
    def edit(index):
        for name, value in changes.items():
            setattr(index.state_dict_metadata["model/a"], name, value)

    return edit


def with_chunks(*chunks):
    return with_tensor(
        chunks=[dcp.ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size in chunks]
    )


def nested(levels):
    value = (1,)
    for _ in range(levels):
        value = (value, value)
    return value


def as_entry(index):
    index.state_dict_metadata["model/a"] = dcp.BytesStorageMetadata()


def without_place(index):
    del index.storage_data[first_place(index)]


def in_a_column(index):
    key = first_place(index)
    moved = dataclasses.replace(key, offset=torch.Size([0, 1]))
    index.storage_data[moved] = index.storage_data.pop(key)


def renamed(name):
    def edit(index):
        index.state_dict_metadata[name] = index.state_dict_metadata.pop("model/a")

    return edit


def everywhere(index):
    """All places are the bytes of the largest one."""
    largest = max(index.storage_data.values(), key=lambda place: place.length)
    for key in index.storage_data:
        index.storage_data[key] = largest


class Layout(enum.Enum):
    """Something that is no dtype."""

    STRIDED = 0


def without_dtype(index):
    index.state_dict_metadata["model/a"].properties.dtype = Layout.STRIDED


WRONG = {
    "a file outside": (with_place(relative_path="../outside.distcp"), "outside of the folder"),
    "a file below": (with_place(relative_path="a/b.distcp"), "outside of the folder"),
    "an absolute file": (with_place(relative_path="/etc/0.distcp"), "outside of the folder"),
    "a drive": (with_place(relative_path="c:\\0.distcp"), "outside of the folder"),
    "a zero byte": (with_place(relative_path="a\0.distcp"), "outside of the folder"),
    "another file": (with_place(relative_path="passwd"), "'passwd'"),
    "no file": (with_place(relative_path=nested(60)), "<tuple of 2>"),
    "a long file": (with_place(relative_path="a" * 10**6 + ".distcp"), "1,000,007 characters"),
    "an offset below 0": (with_place(offset=-1), "-1"),
    "an offset beyond the end": (with_place(offset=2**40), "beyond its"),
    "a length of 2^70": (with_place(length=2**70), str(2**70)),
    "a length of another type": (with_place(length=1.0), "1.0"),
    "the same bytes twice": (everywhere, "beyond its"),
    "no place": (without_place, "has no place"),
    "a place in a column": (in_a_column, "expected 0 in all dimensions but the first"),
    "an entry of another kind": (as_entry, "BytesStorageMetadata"),
    "a tensor without parts": (with_chunks(), "0 of 3 rows"),
    "rows that are missing": (with_chunks(((1, 0), (2, 4))), "does not follow"),
    "rows at the end that are missing": (with_chunks(((0, 0), (2, 4))), "2 of 3 rows"),
    "columns that are missing": (with_chunks(((0, 0), (3, 2))), "does not follow"),
    "rows that overlap": (with_chunks(((0, 0), (2, 4)), ((1, 0), (2, 4))), "does not follow"),
    "a part of other dimensions": (with_chunks(((0,), (3,))), "does not follow"),
    "a part elsewhere": (with_chunks(((0, 0), (0, 4)), ((0, 0), (3, 4))), "without a place"),
    "a size of 2^60": (with_tensor(size=torch.Size([2**30, 2**30])), "2\\*\\*48"),
    "a size that is larger": (with_tensor(size=torch.Size([10**6, 4])), "rows"),
    "a size that is a list": (with_tensor(size=[3, 4]), "expected a size"),
    "a dtype that is none": (without_dtype, "dtype"),
    "a name with control characters": (renamed("model/\x1b[2J"), r"model/\\x1b\[2J"),
    "a long name": (renamed("a" * 10**6), "1,000,000 characters"),
    "a name that is a number": (renamed(3), "called 3"),
    "a name that is a tuple": (renamed(nested(20)), "called"),
}


@pytest.mark.parametrize(("edit", "named"), WRONG.values(), ids=WRONG)
def test_an_index_fits_its_files(folder, edit, named):
    change(folder, edit)
    with pytest.raises(ValueError, match=rf"\.metadata.*{named}") as caught:
        stored_tensors(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(
    "transform_descriptors" not in {field.name for field in dataclasses.fields(_StorageInfo)},
    reason="PyTorch can transform what it stores since 2.7",
)
def test_a_transform_is_refused(folder):
    change(folder, with_place(transform_descriptors=["zlib"]))
    with pytest.raises(ValueError, match=r"\.metadata.*compressed"):
        stored_tensors(folder)


def test_a_file_that_is_missing_is_named(folder):
    change(folder, with_place(relative_path="other.distcp"))
    with pytest.raises(FileNotFoundError, match=r"other\.distcp"):
        stored_tensors(folder)


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def replaced(folder, content):
    """Put another torch.save archive in the place of the first tensor."""
    path = folder / "other"
    torch.save(content, path)
    (folder / "other.distcp").write_bytes(path.read_bytes())
    change(
        folder,
        with_place(relative_path="other.distcp", offset=0, length=path.stat().st_size),
    )
    path.unlink()


def test_a_tensor_is_read_without_its_pickle(folder, tmp_path):
    replaced(folder, Calls(tmp_path / "opened"))
    with pytest.raises(ValueError, match=r"other\.distcp tries to run code.*open"):
        read(folder)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (torch.zeros(2, 4), r"\(2, 4\)"),
        (torch.zeros(12), r"\(12,\)"),
        ("text" * 200, "got str"),
    ],
    ids=["fewer rows", "one dimension", "a text"],
)
def test_a_tensor_that_is_another_is_refused(folder, content, named):
    replaced(folder, content)
    with pytest.raises(ValueError, match=named):
        read(folder)


def test_a_tensor_with_a_key_of_2_to_the_60_leaves_is_refused(folder):
    data = zipped(b"\x80\2}" + DEEP + b"Ns.")
    (folder / "other.distcp").write_bytes(data)
    change(folder, with_place(relative_path="other.distcp", offset=0, length=len(data)))
    with pytest.raises(ValueError, match="got dict"):
        read(folder)


def test_an_index_of_many_tensors_that_share_their_parts_is_refused(folder):
    def edit(index):
        entry = index.state_dict_metadata["model/a"]
        entry.chunks = entry.chunks * 1000
        for number in range(1000):
            index.state_dict_metadata[f"model/{number}"] = entry

    change(folder, edit)
    with pytest.raises(ValueError, match="without a place"):
        stored_tensors(folder)
