"""Packs at URLs: batches as from local files whatever the network does, in a bounded cache."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
import zlib

import pytest
import torch

from fiber.data import open_source, remote_pack
from fiber.data.storage import remote, shard_cache
from fiber.data.storage.remote import RemoteError
from fiber.data.storage.shard_cache import CachedShard
from fiber.data.tools.verify import verify_files
from tests.data.faulty_server import FAULTS, served
from tests.data.remote_batches import batches, bytes_in, loader, same, shards_in
from tests.data.signed_packs import sign

GB = 1e9


@pytest.mark.slow
@pytest.mark.parametrize("order", ["uniform", "shards"])
def test_batches_are_those_of_local_files_whatever_the_server_does(
    order, packed_noise, cache, short_pauses, short_timeout
):
    """5 % of the requests are dropped, refused, cut, short, wrong or late."""
    expected = batches(packed_noise, order=order)
    total = 0
    for seed in range(3):
        with served(packed_noise, rate=0.05, seed=seed) as site:
            data = remote_pack(site.url, cache / str(seed))
            assert same(batches(data, order=order), expected)
            assert sum(site.faults.values()) > 0
            total += sum(site.faults.values())
            asked = len(site.requests)
            # All of it is in the cache now.
            assert same(batches(data, order=order), expected)
            assert len(site.requests) == asked > 240
            # With the shards of the split that was not read.
            assert verify_files(data) == verify_files(packed_noise)
    assert total >= 15


def test_every_kind_of_fault_at_once(packed_noise, cache, site, short_timeout):
    names = [f"train-{number:06d}.tar" for number in range(40)]
    site.planned = {name: list(FAULTS) for name in names[:3]}
    site.planned |= {name: [random.Random(name).choice(FAULTS)] for name in names[3:]}
    assert same(batches(remote_pack(site.url, cache)), batches(packed_noise))
    assert sum(site.faults.values()) == 3 * len(FAULTS) + 37


def test_a_download_that_was_cut_goes_on_where_it_stopped(packed_noise, cache, site, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    records = open_source("captions", remote_pack(site.url, cache), "train")
    site.planned["train-000000.tar"] = [None, None, "cut"]
    site.requests.clear()
    with pytest.raises(RemoteError, match=r"train-000000\.tar .*attempt 1 of 1"):
        records[0].images[0]
    [part] = cache.rglob(".part-*.tar")
    assert part.stat().st_size == 2 * 6000 and shards_in(cache) == []
    # A block that the disk changed is downloaded again.
    content = bytearray(part.read_bytes())
    content[7000] ^= 1
    part.write_bytes(bytes(content) + b"more than a block " * 200)
    site.requests.clear()
    assert records[0].images[0] == open_source("captions", packed_noise, "train")[0].images[0]
    assert [start for _, start, _ in site.requests] == [6000, 12000, 18000, 24000, 30000]
    name = "train-000000.tar"
    assert (part.parent / name).read_bytes() == (packed_noise / name).read_bytes()
    assert not list(cache.rglob(".part-*"))


def test_a_shard_of_the_cache_that_changed_is_downloaded_again(packed_noise, cache, site):
    records = open_source("captions", remote_pack(site.url, cache), "train")
    expected = records[0].images[0]
    [path] = cache.rglob("train-000000.tar")
    content = bytearray(path.read_bytes())
    for wrong in (bytes(content[:900]), bytes(len(content)), b""):
        path.write_bytes(wrong)
        assert records[0].images[0] == expected
        assert path.read_bytes() == content


def test_the_least_recently_read_shards_are_deleted(packed_noise, cache, site, monkeypatch):
    monkeypatch.setattr(shard_cache, "TOUCH_SECONDS", 0)
    data = remote_pack(site.url, cache)
    size = (packed_noise / "train-000000.tar").stat().st_size
    room = bytes_in(cache) + 3 * size + 500
    records = open_source("captions", remote_pack(site.url, cache, room / GB), "train")

    def read(*shards):
        for shard in shards:
            # A clock of file times may be as coarse as ten milliseconds.
            time.sleep(0.02)
            assert records[6 * shard].images[0]
            assert bytes_in(cache) <= room
        return [int(name[6:12]) for name in shards_in(data)]

    assert read(0, 1, 2) == [0, 1, 2]
    assert read(0, 3) == [0, 2, 3]
    assert read(2, 7) == [2, 3, 7]
    asked = len(site.requests)
    assert read(7, 3, 2) == [2, 3, 7] and len(site.requests) == asked
    # Files of the user are neither deleted nor counted.
    for mine in (cache / "mine.tar", cache / "more" / "mine.tar"):
        mine.parent.mkdir(exist_ok=True)
        mine.write_bytes(bytes(5 * size))
        os.utime(mine, (0, 0))
    room += 10 * size
    assert read(1) == [1, 2, 3] and read(7) == [1, 2, 7] and read(3, 2) == [2, 3, 7]
    assert (cache / "mine.tar").exists() and (cache / "more" / "mine.tar").exists()
    # An unfinished file of a process that was killed is deleted, too.
    part = data / f".part-{size}-train-000009.tar"
    part.write_bytes(b"x")
    os.utime(part, (0, 0))
    assert read(4) == [2, 3, 4]
    assert not part.exists()


def test_an_epoch_stays_within_a_small_cache(packed_noise, cache, site):
    # Two groups: the current one, and the next one that is read ahead.
    shards = 2 * 10
    data = remote_pack(site.url, cache)
    assert {len(g) for g in loader(data)._sampler._order(0).groups} == {10}
    size = max(path.stat().st_size for path in packed_noise.glob("train-*.tar"))
    room = bytes_in(cache) + shards * size + 500
    data = remote_pack(site.url, cache, room / GB)
    most, expected = 0, batches(packed_noise)
    for index, batch in enumerate(loader(data)):
        most = max(most, bytes_in(cache))
        assert torch.equal(batch.images, expected[index][2])
    assert most <= room
    with pytest.raises(ValueError, match=r"order 'uniform' needs .*--cache-gb.*data\.order=shards"):
        loader(data, order="uniform")
    # Every shard was downloaded once, those of the next epoch's first group perhaps once more.
    again = {f"train-{shard:06d}.tar" for shard in loader(data)._sampler._order(1).groups[0]}
    asked = [name for name in site.requests if name[0].endswith(".tar") and name[0] not in again]
    assert len(asked) == len(set(asked)) == 6 * 30
    less = remote_pack(site.url, cache, (room - size) / GB)
    with pytest.raises(
        ValueError, match=r"order 'shards' needs 20 shards .*bytes more \(--cache-gb\)"
    ):
        loader(less)
    # One after the other needs room for one.
    assert same(
        batches(less, shuffle=False, order="uniform"),
        batches(packed_noise, shuffle=False, order="uniform"),
    )


def test_a_cache_that_is_too_small_for_a_file(cache, site):
    with pytest.raises(RemoteError, match=r"index/.*does not fit.*limited to 2000 bytes.*cache-gb"):
        remote_pack(site.url, cache, 2000 / GB)
    room = bytes_in(cache)
    data = remote_pack(site.url, cache, 1)
    records = open_source(
        "captions", remote_pack(site.url, cache, (bytes_in(cache) + 99) / GB), "train"
    )
    with pytest.raises(RemoteError, match=r"train-000000\.tar of 30720 bytes does not fit"):
        records[0].images[0]
    assert shards_in(data) == [] and room > 0


@pytest.mark.parametrize("on_error", ["raise", "skip", "resample"])
def test_a_shard_that_cannot_be_reached_stops_the_loader(on_error, cache, site, monkeypatch):
    """Its records are not skipped as broken ones would be."""
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    data = remote_pack(site.url, cache)
    site.planned["train-000003.tar"] = ["error"] * 999
    with pytest.raises(RemoteError, match=r"train-000003\.tar .*attempt 2 of 2 .*503"):
        list(loader(data, on_error=on_error))


def test_a_file_that_is_not_the_one_of_the_pack(folder, cache, short_pauses, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    shard = folder / "train-000002.tar"
    content = bytearray(shard.read_bytes())
    content[6001] ^= 1
    shard.write_bytes(content)
    with served(folder) as site:
        records = open_source("captions", remote_pack(site.url, cache), "train")
        with pytest.raises(
            RemoteError,
            match=rf"{site.url}/train-000002\.tar .*attempt 3 of 3 .*CRC-32 \d+ arrived; expected"
            r" bytes 6000 to 12000 of 30720 with CRC-32 \d+",
        ):
            records[12].images[0]
        assert records[0].images[0] and shards_in(cache) == ["train-000000.tar"]


def test_a_wrong_checksum_of_a_whole_file(folder, cache, short_pauses):
    description = json.loads((folder / "pack.json").read_text())
    wrong = description["shards"][0]
    right, wrong["sha256"] = wrong["sha256"], "0" * 64
    sign(folder, description)
    with served(folder) as site:
        records = open_source("captions", remote_pack(site.url, cache), "train")
        with pytest.raises(
            RemoteError, match=rf"{site.url}/train-000000\.tar .*{right}; expected {'0' * 64}"
        ):
            records[0].images[0]
        assert shards_in(cache) == []


def test_a_full_disk_of_the_cache(cache, site, monkeypatch):
    data = remote_pack(site.url, cache)
    write = os.pwrite

    def full(descriptor, content, start):
        if start >= 12_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content, start)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RemoteError) as error:
        list(loader(data, on_error="skip"))
    text = str(error.value)
    assert "No space left on device" in text and "--cache-gb" in text and f"{data}/train-" in text
    monkeypatch.setattr(shard_cache, "_DOWNLOADS", shard_cache._Downloads())
    deadline = time.monotonic() + 600
    while list(cache.rglob(".part-*.tar")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(cache.rglob(".part-*.tar")) and shards_in(cache) == []


def test_a_limit_of_file_sizes_in_a_process_of_its_own(packed_noise, cache, short_pauses):
    """The system's own refusal, in the middle of a shard."""
    data = remote_pack(f"file://{packed_noise}", cache)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            open_source("captions", data, "train")[0].images[0]
        except RemoteError as problem:
            code = 3 if f"{data}/train-000000.tar" in str(problem) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert not list(cache.rglob("*.tar"))


def read_all(url, cache, start, out):
    """What a rank does: open the pack and read a part of it."""
    data = remote_pack(url, cache)
    records = open_source("captions", data, "train")
    order = [(start + 7 * index) % len(records) for index in range(len(records))]
    images = {index: records[index].images[0] for index in order}
    out.put(sorted((index, zlib.crc32(image)) for index, image in images.items()))


def test_processes_of_a_node_download_every_file_once(packed_noise, cache, site):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    ranks = [
        context.Process(target=read_all, args=(site.url, cache, 61 * rank, out))
        for rank in range(3)
    ]
    for rank in ranks:
        rank.start()
    found = [out.get(timeout=600) for _ in ranks]
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert found[0] == found[1] == found[2] and len(found[0]) == 240
    asked = [request for request in site.requests if request[0] != "pack.json"]
    assert len(asked) == len(set(asked))


def test_a_process_that_is_killed_does_not_keep_others_waiting(packed_noise, cache, site):
    data = remote_pack(site.url, cache)
    site.planned["train-000000.tar"] = [None, "delay", None, None]
    child = os.fork()
    if child == 0:
        shard_cache._DOWNLOADS.reset()
        os._exit(0 if open_source("captions", data, "train")[0].images[0] else 1)
    deadline = time.monotonic() + 600
    while not site.faults["delay"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(cache.rglob(".part-*.tar"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    records = open_source("captions", data, "train")
    assert records[0].images[0] == open_source("captions", packed_noise, "train")[0].images[0]
    assert shards_in(cache) == ["train-000000.tar"] and not list(cache.rglob(".part-*"))


def test_threads_that_read_the_same_shard_download_it_once(cache, site):
    records = open_source("captions", remote_pack(site.url, cache), "train")
    site.requests.clear()
    found = []
    threads = [
        threading.Thread(target=lambda index=index: found.append(records[index].images[0]))
        for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(site.requests) == 6


def test_shards_are_read_ahead(cache, site):
    """Those of the first group and of the next one, before they are needed."""
    data = remote_pack(site.url, cache)
    stream = loader(data).stream()
    next(stream)
    deadline = time.monotonic() + 600
    while len(shards_in(data)) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    groups = loader(data)._sampler._order(0).groups
    expected = {f"train-{shard:06d}.tar" for group in groups[:2] for shard in group}
    assert set(shards_in(data)) == expected
    stream.close()


def test_a_shard_has_what_others_have(packed_noise, cache, site):
    records = open_source("captions", remote_pack(site.url, cache), "train")
    [shard] = {id(s): s for s in records.shard_map().shards[:1]}.values()
    assert isinstance(shard, CachedShard)
    content = (packed_noise / "train-000000.tar").read_bytes()
    assert shard.bytes == len(content) and shard.read(0, len(content)) == content
    assert shard.read(5, 0) == b""
    for start, size in ((-1, 2), (0, -1), (len(content), 1)):
        with pytest.raises(ValueError, match=rf"has {len(content)} bytes; expected {size} bytes"):
            shard.read(start, size)
