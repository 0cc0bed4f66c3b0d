"""`background`: transparent pictures over a colour, in a loader, a collator and one by one."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.data import Collator, ImageTransform, Tokenizer, load_image
from tests.data.loader_records import TEXT, make, record

COLOR = (12, 200, 77)
KINDS = ("png", "webp", "tiff", "gif", "jpeg")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def encode(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)
    image, stream = Image.fromarray(pixels), io.BytesIO()
    options = {"lossless": True, "exact": True} if kind == "webp" else {}
    (image.convert("RGB") if kind == "jpeg" else image).save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(data: bytes, color: tuple[int, int, int] | None) -> np.ndarray:
    stored = Image.open(io.BytesIO(data))
    if color is None:
        return np.asarray(stored.convert("RGB"))
    stored = stored.convert("RGBA")
    below = Image.new("RGB", stored.size, color)
    below.paste(stored, mask=stored.getchannel("A"))
    return np.asarray(below)


@pytest.mark.parametrize("color", [None, COLOR, list(COLOR), tuple(np.array(COLOR))], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_transparent_pictures_lie_over_it(tokenizer, tmp_path, kind, color):
    data = encode(kind)
    expected = by_pillow(data, None if color is None else COLOR)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for picture in (data, path):
        assert np.array_equal(load_image(picture, background=color), expected)
    planes = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    options = {"transform": ImageTransform.squash(20), "image_dtype": "uint8", "background": color}
    for stored in (data, str(path)):
        records = [record(0, images=(stored,))]
        (batch,) = make(tokenizer, records, **options)
        assert torch.equal(batch.images[0], planes)
        collator = Collator("image_text", tokenizer=tokenizer, max_tokens=8, **options)
        for each in (collator, pickle.loads(pickle.dumps(collator))):
            assert torch.equal(each(records, epoch=0).images[0], planes)


def test_the_colour_shows_in_all_but_jpeg():
    seen = [by_pillow(encode(kind), COLOR) for kind in KINDS]
    dropped = [by_pillow(encode(kind), None) for kind in KINDS]
    same = [np.array_equal(a, b) for a, b in zip(seen, dropped, strict=True)]
    assert same == [kind == "jpeg" for kind in KINDS]


def test_other_backgrounds_are_named():
    for wrong in ("red", 255, (1, 2), (0, 0, 256)):
        with pytest.raises(TypeError, match=r"^background is .*; expected None"):
            load_image(encode("png"), background=wrong)
