"""Packed folders that are opened by their URLs."""

import json

import fsspec
import pytest

from fiber.checkpoints.provenance import absolute
from fiber.data import open_source, remote_pack
from fiber.data.storage.remote import RemoteError
from fiber.data.storage.remote_pack import default_cache, url_of
from fiber.data.tools.discover import parts_of
from tests.data.faulty_server import served
from tests.data.remote_batches import batches, same, shards_in
from tests.data.signed_packs import sign


def test_a_memory_file_system(packed_noise, cache):
    system = fsspec.filesystem("memory")
    system.put(str(packed_noise), "/noise", recursive=True)
    data = remote_pack("memory://noise", cache)
    assert same(batches(data), batches(packed_noise))
    assert url_of(data) == absolute(data) == absolute("memory://noise/") == "memory://noise"
    assert url_of(packed_noise) is None


def test_opening_downloads_the_index_only(packed_noise, cache, site):
    data = remote_pack(site.url, cache)
    names = {name for name, *_ in site.requests}
    assert names == {
        str(path.relative_to(packed_noise))
        for path in packed_noise.rglob("*")
        if path.is_file() and path.suffix != ".tar"
    }
    asked = len(site.requests)
    records = open_source("captions", data, "train")
    assert parts_of(data)[0].source == "captions"
    assert [record.text for record in records][:2] == ["noise 0", "gray 0"]
    assert len(site.requests) == asked and shards_in(cache) == []
    assert records[7].images[0] == open_source("captions", packed_noise, "train")[7].images[0]
    assert shards_in(cache) == ["train-000001.tar"]
    # Opened again, only the description is read.
    assert remote_pack(f"{site.url}/", cache) == data
    assert len(site.requests) == asked + 6 + 1


def test_data_is_opened_by_its_url(packed_noise, cache, site, monkeypatch):
    monkeypatch.setenv("FIBER_CACHE", str(cache))
    records = open_source("captions", site.url, "train")
    expected = open_source("captions", packed_noise, "train")
    assert [r.images[0] for r in records[:3]] == [r.images[0] for r in expected[:3]]
    assert shards_in(cache) == ["train-000000.tar"]
    monkeypatch.delenv("FIBER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "xdg"))
    assert default_cache() == cache / "xdg" / "fiber" / "packs"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("some/folder",), r"url is 'some/folder'; expected a URL"),
        (("memory://a", None, 0), "cache_gb is 0"),
        (("memory://a", None, -1), "cache_gb is -1"),
    ],
)
def test_wrong_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        remote_pack(*given)


def test_a_cache_that_is_a_file(tmp_path, site):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RemoteError, match=rf"{tmp_path}/file/.* cannot be stored"):
        remote_pack(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_changed_note_of_the_cache(packed_noise, cache, site):
    data = remote_pack(site.url, cache)
    note = data.with_name(f"{data.name}.remote.json")
    for wrong in ("[", "[]", '{"url": "a/b", "limit_bytes": 1}', '{"url": "s3://a"}'):
        note.write_text(wrong)
        with pytest.raises(ValueError, match=r"\.remote\.json .*delete it"):
            open_source("captions", data, "train")
    assert open_source("captions", remote_pack(site.url, cache), "train")[0].images[0]


def test_a_pack_that_was_written_anew_has_a_folder_of_its_own(folder, cache, short_pauses):
    with served(folder) as site:
        first = remote_pack(site.url, cache)
        description = json.loads((folder / "pack.json").read_text())
        sign(folder, {**description, "made": "again"})
        second = remote_pack(site.url, cache)
        assert first != second and first.parent == second.parent == cache
        for data in (first, second):
            assert open_source("captions", data, "train")[0].images[0]


def test_files_outside_of_the_folder_are_not_written(folder, cache, short_pauses):
    description = json.loads((folder / "pack.json").read_text())
    for name in ("../outside.bin", "/tmp/outside.bin"):
        wrong = json.loads(json.dumps(description))
        wrong["indexes"][0]["file"] = name
        sign(folder, wrong)
        with served(folder) as site, pytest.raises(ValueError, match="outside of"):
            remote_pack(site.url, cache)
    assert not list(cache.rglob("*outside*"))
