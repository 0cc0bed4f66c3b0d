from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fiber.benchmarks.corpus import PLANS, make_corpus, own_corpus

SMALL = replace(PLANS["coco640"], shapes=((64, 48), (48, 64)))


def contents(corpus):
    return [path.read_bytes() for path in corpus.files]


class TestMade:
    def test_same_photographs_give_the_same_bytes(self, photographs, tmp_path):
        first = make_corpus(SMALL, 7, photographs, tmp_path / "a")
        second = make_corpus(SMALL, 7, photographs, tmp_path / "b", threads=3)
        assert contents(first) == contents(second)
        assert len(set(contents(first))) == 7

    def test_a_shorter_corpus_is_a_prefix(self, photographs, tmp_path):
        short = make_corpus(SMALL, 2, photographs, tmp_path / "a")
        kept = [path.stat().st_mtime_ns for path in short.files]
        long = make_corpus(SMALL, 5, photographs, tmp_path / "a")
        assert contents(long)[:2] == contents(short)
        assert [path.stat().st_mtime_ns for path in long.files[:2]] == kept
        fresh = make_corpus(SMALL, 5, photographs, tmp_path / "b")
        assert contents(fresh) == contents(long)
        assert contents(long.first(2)) == contents(short)

    def test_other_photographs_have_another_directory(self, photographs, tmp_path):
        whole = make_corpus(SMALL, 1, photographs, tmp_path)
        part = make_corpus(SMALL, 1, photographs[1:], tmp_path)
        assert whole.files[0].parent != part.files[0].parent

    def test_corpora_of_a_seed_differ_in_subsampling_only(self, photographs, tmp_path):
        full = replace(PLANS["coco444"], shapes=SMALL.shapes)
        halved = make_corpus(SMALL, 6, photographs, tmp_path)
        kept = make_corpus(full, 6, photographs, tmp_path)
        assert PLANS["coco444"].shapes == PLANS["coco640"].shapes
        for one, other in zip(halved.files, kept.files, strict=True):
            with Image.open(one) as a, Image.open(other) as b:
                assert (a.layer[0][1:3], b.layer[0][1:3]) == ((2, 2), (1, 1))
                levels = np.asarray(a.convert("L"), int) - np.asarray(b.convert("L"), int)
            assert np.abs(levels).mean() < 4

    def test_description(self, photographs, tmp_path):
        corpus = make_corpus(SMALL, 3, photographs, tmp_path)
        assert all(height * width == 64 * 48 for height, width in corpus.sizes)
        sizes = [path.stat().st_size for path in corpus.files]
        mean = f"3 images, mean {sum(sizes) / 3000:.0f} KB, 0.00 megapixels"
        assert mean in str(corpus) and "of 3 photographs" in str(corpus)

    @pytest.mark.parametrize("name", ["det1333", "big12"])
    def test_photographs_that_are_too_small(self, name, photographs, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"none of 3 photographs .* {name}.*--photos"):
            make_corpus(PLANS[name], 1, photographs, tmp_path)


class TestOwn:
    def test_files_are_used_as_they_are(self, tiny_images):
        corpus = own_corpus(tiny_images, 5)
        assert [path.name for path in corpus.files] == [f"{i}.jpg" for i in range(5)]
        assert "first of 8 files" in str(corpus)

    def test_missing_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="missing: no such folder"):
            own_corpus(tmp_path / "missing", 5)

    def test_directory_without_jpeg_files(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(FileNotFoundError, match=r"no \.jpg or \.jpeg files"):
            own_corpus(tmp_path, 5)

    def test_a_png_file_named_jpg(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match=r"a\.jpg is a PNG file; expected JPEG"):
            own_corpus(tmp_path, 5)

    def test_a_file_that_is_not_an_image(self, tmp_path):
        (tmp_path / "b.jpg").write_text("words")
        with pytest.raises(ValueError, match=r"b\.jpg: .* expected an image"):
            own_corpus(tmp_path, 5)
