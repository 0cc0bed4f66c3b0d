"""Pickles of hostile files: nothing is called, and time and memory stay small."""

import builtins
import io
import pickle
import sys
import types
import zipfile

import pytest
import torch

from fiber.checkpoints.torch_file import read_checkpoint
from fiber.inert_pickle import Inert, read_pickle
from tests.hostile_cases import CONTAINERS, PICKLES, probing_pickles, zipped
from tests.processes import run_python


def noted(*arguments):
    raise AssertionError(f"called with {arguments}")


@pytest.mark.parametrize(
    "stream",
    [
        b"c%b\nnoted\n(I1\ntR.",
        b"(c%b\nnoted\nI1\no.",
        b"(I1\ni%b\nnoted\n.",
        b"\x80\x02c%b\nnoted\n)\x81.",
        b"\x80\x04c%b\nnoted\n)}\x92.",
        b"c%b\nnoted\n(dS'a'\nI1\nsb.",
    ],
    ids=["REDUCE", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "BUILD"],
)
def test_no_pickle_opcode_calls_the_named_function(stream):
    stream %= __name__.encode()
    found = read_pickle(io.BytesIO(stream)).content
    assert isinstance(found, Inert)
    assert found.name == f"{__name__}.noted"
    assert not callable(found)


def test_build_does_not_change_known_functions():
    """BUILD could otherwise set the defaults of a function that pickles may refer to."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    stream = b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'__defaults__'\n(I1\ntstb."
    read_pickle(io.BytesIO(stream))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_pickled_names_are_not_imported(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", noted)
    found = read_pickle(io.BytesIO(b"cthis_module.is_not\nthere\n.")).content
    assert found.name == "this_module.is_not.there"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("bomb", PICKLES.values(), ids=PICKLES)
def test_small_pickles_need_little_time_and_memory(tmp_path, bomb, container):
    path, script = tmp_path / "bomb.ckpt", tmp_path / "read.py"
    path.write_bytes(container(bomb))
    script.write_text(READ_WITHIN_LIMITS)
    run = run_python([script, path])
    assert run.stdout.startswith("ValueError"), run.stdout + run.stderr


@pytest.mark.parametrize("where", ["memo", "keys"])
def test_integers_that_probe_the_same_slots_need_little_time(tmp_path, where):
    pickled = probing_pickles()[f"{where} that probe{'s' if where == 'memo' else ''}"]
    test_small_pickles_need_little_time_and_memory(tmp_path, pickled, zipped)


READ_WITHIN_LIMITS = """
import resource, sys
from pathlib import Path
from fiber.checkpoints.torch_file import read_checkpoint

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = int(used.ru_utime + used.ru_stime)
resource.setrlimit(resource.RLIMIT_CPU, (cpu + 6, cpu + 6))
try:
    read_checkpoint(Path(sys.argv[1]))
except ValueError as error:
    print("ValueError", str(error)[:300])
"""


def test_long_keys_are_not_compared():
    """Two equal long strings are other objects, so that a dict compares them in whole each time."""
    long = "w" * 5000
    stream = pickle.dumps([{"".join([long]): 1}, {("".join([long]),): 2}, {"w" * 200: 3}])
    first, second, third = read_pickle(io.BytesIO(stream), max_words=3).content
    assert [type(key) for key in (*first, *second)] == [Inert, Inert]
    assert third == {"w" * 200: 3}


def test_compressed_archive_is_rejected(tmp_path):
    path = tmp_path / "deflated.ckpt"
    path.write_bytes(zipped(b"\x80\x02" + b"\0" * 10_000_000 + b".", zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"deflated.ckpt.*'data.pkl' is compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_pickle_protocol_is_read(protocol):
    value = {
        "text": "ä" * 300,
        "bytes": b"ab",
        3: (1, (2.5, None), True),
        "list": [1, -2, 2**70, "x"] * 2,
        "nested": {"a": {"b": [[], {}, ()]}},
        2**65: "a key of many bits",
    }
    read = read_pickle(io.BytesIO(pickle.dumps(value, protocol))).content
    *keys, last = read
    assert isinstance(last, Inert)
    # Protocols 0 to 2 write bytes as a call.
    del keys[1], read["bytes"], value["bytes"]
    assert {key: read[key] for key in keys} == {key: value[key] for key in keys}
    assert read[last] == value[2**65]


SACRED = "sacred.config.custom_containers"


@pytest.fixture(params=["items follow", "items are the argument"])
def sacred(request):
    """Modules with classes named as sacred's, which only the writer of a pickle has.

    The read-only ones of newer versions pickle a plain copy of themselves as an argument.
    """

    class DogmaticDict(dict):
        def __init__(self):
            super().__init__()
            # Pickled as the object's state.
            self.modified, self.typechanges = {"lr"}, {"lr": (int, float)}

    class DogmaticList(list):
        pass

    class ReadOnlyContainer:
        if request.param == "items are the argument":

            def __reduce__(self):
                plain = dict(self) if isinstance(self, dict) else list(self)
                return type(self), (plain,)

    class ReadOnlyDict(ReadOnlyContainer, dict):
        pass

    class ReadOnlyList(ReadOnlyContainer, list):
        pass

    module = types.ModuleType(SACRED)
    for kind in (DogmaticDict, DogmaticList, ReadOnlyDict, ReadOnlyList):
        kind.__module__, kind.__qualname__ = SACRED, kind.__name__
        setattr(module, kind.__name__, kind)
    names = {"sacred": None, "sacred.config": None, SACRED: module}
    return {name: module or types.ModuleType(name) for name, module in names.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_items_of_sacreds_containers_are_read_without_it(
    sacred, protocol, monkeypatch, tmp_path
):
    kinds = sacred[SACRED]
    config = kinds.ReadOnlyDict(max_text_len=50, loss_names=kinds.ReadOnlyDict(vqa=1, itm=0))
    dict.update(config, datasets=kinds.ReadOnlyList(["vqa", "coco"]), lr=5e-6, empty=None)
    dict.update(config, none=kinds.ReadOnlyList(), nothing=kinds.ReadOnlyDict())
    fixed = kinds.DogmaticDict()
    dict.update(fixed, a=1, b=kinds.DogmaticList([1, kinds.ReadOnlyDict(c=2)]))
    dict.update(config, fixed=fixed, again=fixed)
    path = tmp_path / "lightning.ckpt"
    with monkeypatch.context() as writing:
        for name, module in sacred.items():
            writing.setitem(sys.modules, name, module)
        content = {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": {"config": config}}
        torch.save(content, path, pickle_protocol=protocol)
    assert not any(name.startswith("sacred") for name in sys.modules)
    monkeypatch.setattr(builtins, "__import__", noted)
    found = read_checkpoint(path).config
    monkeypatch.undo()
    plain = {"a": 1, "b": [1, {"c": 2}]}
    assert found == {
        "max_text_len": 50,
        "loss_names": {"vqa": 1, "itm": 0},
        "datasets": ["vqa", "coco"],
        "lr": 5e-6,
        "empty": None,
        "none": [],
        "nothing": {},
        "fixed": plain,
        "again": plain,
    }


@pytest.mark.parametrize("argument", [b"]K\1a", b"K\5", b"N"])
def test_a_container_of_sacred_with_another_argument_is_inert(argument):
    stream = b"\x80\x02c" + SACRED.encode() + b"\nReadOnlyDict\n" + argument + b"\x85R."
    assert read_pickle(io.BytesIO(stream)).content.name == f"{SACRED}.ReadOnlyDict"


def test_archive_member_larger_than_the_file(tmp_path):
    path = tmp_path / "sizes.ckpt"
    content = bytearray(zipped(b"\x80\x02}."))
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = (2**31 - 1).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sizes.ckpt.*data.pkl.*2147483647 bytes"):
        read_checkpoint(path)
