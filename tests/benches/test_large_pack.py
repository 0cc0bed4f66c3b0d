"""The quickly written pack of the bench is one that `fiber data pack` could have written."""

import tracemalloc

import pytest

from fiber.data.datasets.resolve import open_source
from fiber.data.tools.pack import pack
from fiber.data.tools.verify import verify_files


@pytest.fixture(scope="module")
def large_pack(bench):
    return bench


def test_a_pack_is_sound(large_pack, tmp_path):
    large_pack.write(tmp_path / "made", 95, images=19, shard_images=4)
    records = open_source("captions", tmp_path / "made", "train")
    assert (len(records), records.num_images) == (95, 19)
    assert len({record.text for record in records}) == len({record.key for record in records}) == 95
    assert [record.images.locations for record in records] == [(n // 5,) for n in range(95)]
    assert {len(record.images[0]) for record in records} == {len(records[0].images[0])}
    assert verify_files(tmp_path / "made") == (8, [])
    # Packed again, its images are one, since they are the same bytes.
    pack(tmp_path / "made", tmp_path / "again")
    again = open_source("captions", tmp_path / "again", "train")
    assert [(r.key, r.text, r.images[0]) for r in again] == [
        (r.key, r.text, r.images[0]) for r in records
    ]


def test_memory_does_not_grow_with_the_captions(large_pack, tmp_path):
    """Of opening a pack and reading a record."""
    peaks = []
    for count in (5_000, 50_000):
        large_pack.write(tmp_path / str(count), count, images=100, shard_images=5)
        # What the first use allocates is not counted.
        open_source("captions", tmp_path / "5000", "train")[0]
        tracemalloc.start()
        records = open_source("captions", tmp_path / str(count), "train")
        assert records[count - 1].key == f"captions_train/{count - 1}"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Less than a byte for a caption.
    assert peaks[1] - peaks[0] < 50_000 - 5_000, peaks


def test_more_images_than_captions_are_refused(large_pack, tmp_path):
    with pytest.raises(ValueError, match="images is 3; expected 1 to 2"):
        large_pack.write(tmp_path / "made", 2, images=3)
