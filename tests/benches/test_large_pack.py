"""The quickly written pack of the bench is one that `fiber data pack` could have written."""

import pytest

from fiber.data.datasets.resolve import open_source
from fiber.data.tools.pack import pack
from fiber.data.tools.verify import verify_files


@pytest.fixture(scope="module")
def large_pack(bench):
    return bench


@pytest.mark.parametrize("version", [1, 2])
def test_a_pack_is_sound(large_pack, tmp_path, version):
    large_pack.write(tmp_path / "made", 95, images=19, shard_images=4, version=version)
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


def test_more_images_than_captions_are_refused(large_pack, tmp_path):
    with pytest.raises(ValueError, match="images is 3; expected 1 to 2"):
        large_pack.write(tmp_path / "made", 2, images=3)
