"""Every reader of the package has a document, which it reads."""

import sys
from collections import Counter, defaultdict

import pytest

from tests.fuzz.generated import readers
from tests.fuzz.generated.cases import documents
from tests.fuzz.generated.readers import PACKAGE, READERS, Reason


def test_the_table_has_every_reader_and_no_other():
    assert set(readers.functions()) == set(READERS)


def test_readers_are_found_by_what_they_call(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "atomic_io.py").write_text("import json\n\ndef a(x):\n    return json.loads(x)\n")
    source = "class B:\n    def c(self, p):\n        def d():\n            return p.read_text()\n"
    (tmp_path / "data" / "e.py").write_text(f"{source}def f():\n    return open('x')\n")
    monkeypatch.setattr(readers, "PACKAGE", tmp_path)
    assert list(readers.functions()) == ["atomic_io.py:a", "data/e.py:B.c.d"]


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_documents_have_names_of_their_own_and_are_read_whole_by_the_readers_of_the_table(tmp_path):
    counts = Counter(document.name for document in documents())
    assert set(counts.values()) == {1}
    wanted = defaultdict(set)
    for reader, name in READERS.items():
        if not isinstance(name, Reason):
            wanted[name].add(reader)
    # PEFT is an extra.
    assert wanted.keys() - counts.keys() <= {"adapter_config.json"}
    for number, document in enumerate(documents()):
        folder = tmp_path / str(number)
        folder.mkdir()
        document.prepare(folder)
        for entries in (0, 3):
            document.write(document.tree(entries), folder)
            document.read(folder)
        document.write(document.tree(1), folder)
        called = _called(lambda document=document, folder=folder: document.read(folder))
        assert wanted[document.name] <= called, (document.name, wanted[document.name] - called)


def _called(call):
    """Return the functions of the package that a call calls, as keys of the table."""
    codes = set()
    sys.setprofile(lambda frame, event, _: codes.add(frame.f_code) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    root = f"{PACKAGE}/"
    return {
        f"{code.co_filename.removeprefix(root)}:{code.co_qualname.replace('.<locals>', '')}"
        for code in codes
        if code.co_filename.startswith(root)
    }
