"""Images by path, as bytes, as open files and as PIL images: the same pixels, or a refusal."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiber import DecodeError
from fiber.data import load_image
from fiber.inference.inputs import as_list

SIZE = (7, 5)
#: Modes of PIL images and the names of the numpy types of their pixels.
SIXTEEN_BITS = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
OTHERS = (
    "1",
    "L",
    "P",
    "LA",
    "PA",
    "La",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
)
#: Modes that Pillow writes neither as PNG nor as TIFF.
NEVER_WRITTEN = ("I;16N", "La", "RGBa", "HSV")
#: Modes that only newer versions of Pillow write.
SELDOM_WRITTEN = ("I;16L",)
NO_RANGE = {"I": np.int32, "F": np.float32}
#: Modes of which a file of some format is not decoded, while the PIL image is.
ONLY_AS_PIL = {("YCbCr", "TIFF"), ("LAB", "TIFF"), ("PA", "TIFF")}


def make_image(mode: str) -> Image.Image:
    draw = np.random.default_rng(0)
    if mode in SIXTEEN_BITS:
        values = draw.integers(0, 65536, SIZE[::-1]).astype(SIXTEEN_BITS[mode])
        return Image.frombytes(mode, SIZE, values.tobytes())
    if mode in NO_RANGE:
        return Image.fromarray(draw.integers(0, 65536, SIZE[::-1]).astype(NO_RANGE[mode]))
    color = Image.fromarray(draw.integers(0, 256, (*SIZE[::-1], 3), np.uint8))
    if mode == "LAB":
        return Image.frombytes("LAB", SIZE, color.tobytes())
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}
    return color.convert(through.get(mode, "RGB")).convert(mode)


def written(image: Image.Image, kind: str) -> bytes | None:
    """Return the image as a file; None if Pillow cannot write this mode."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Pillow 11 warns of writing mode I as PNG.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            image.save(file, kind)
        except OSError:
            return None
    return file.getvalue()


def test_every_mode_is_tested():
    assert set(Image.MODES) <= {*SIXTEEN_BITS, *OTHERS, *NO_RANGE}


@pytest.mark.parametrize("mode", [*SIXTEEN_BITS, *OTHERS])
def test_a_pil_image_has_the_pixels_of_its_file(mode):
    image, kinds = make_image(mode), []
    for kind in ("PNG", "TIFF"):
        data = written(image, kind)
        if data is None:
            continue
        kinds.append(kind)
        if (mode, kind) in ONLY_AS_PIL:
            with pytest.raises(DecodeError, match="unsupported"):
                load_image(data)
            continue
        by_file = load_image(data)
        np.testing.assert_array_equal(load_image(image), by_file)
        np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data))), by_file)
    assert mode in SELDOM_WRITTEN or bool(kinds) == (mode not in NEVER_WRITTEN)


@pytest.mark.parametrize("mode", NEVER_WRITTEN)
def test_modes_that_are_never_in_a_file(mode):
    image = make_image(mode)
    if mode == "La":
        with pytest.raises(ValueError, match=r"mode 'La'.*Pillow does not convert to RGB"):
            load_image(image)
        return
    same = image.convert("RGBA" if mode == "RGBa" else "RGB")
    if mode in SIXTEEN_BITS:
        same = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    np.testing.assert_array_equal(load_image(image), load_image(same))


@pytest.mark.parametrize("mode", SIXTEEN_BITS)
def test_the_upper_eight_of_sixteen_bits_are_kept(mode):
    values = np.array([[0, 255, 256, 0x1234, 0x80FF, 65535]], SIXTEEN_BITS[mode])
    image = Image.frombytes(mode, (6, 1), values.tobytes())
    for keep_alpha in (False, True):
        pixels = load_image(image, keep_alpha=keep_alpha)
        assert pixels.shape == (1, 6, 3)
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 0x12, 0x80, 255]


def test_a_transparent_value_of_sixteen_bits():
    image = make_image("I;16")
    image.putpixel((3, 2), 4660)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=4660)
    opened = Image.open(file)
    by_file = load_image(file.getvalue(), keep_alpha=True)
    assert by_file.shape[2] == 4
    assert by_file[2, 3].tolist() == [0x12, 0x12, 0x12, 0]
    np.testing.assert_array_equal(load_image(opened, keep_alpha=True), by_file)
    np.testing.assert_array_equal(load_image(opened), by_file[..., :3])


@pytest.mark.parametrize("mode", NO_RANGE)
def test_values_without_a_range_are_refused(mode):
    image = make_image(mode)
    with pytest.raises(ValueError, match=rf"mode '{mode}'.*0 to 255.*Image\.fromarray"):
        load_image(image)
    data = written(image, "TIFF")
    assert data is not None
    with pytest.raises(DecodeError, match="sample format"):
        load_image(data)
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        load_image(Image.open(io.BytesIO(data)))


def test_what_a_refusal_advises():
    values = np.arange(35, dtype=np.int32).reshape(5, 7) * 1872
    words = load_image(Image.fromarray(values).convert("I;16"))
    assert (words[..., 0] == values >> 8).all()
    scaled = (values / values.max() * 255).astype("uint8")
    assert (load_image(Image.fromarray(scaled))[..., 0] == scaled).all()


def test_sixteen_bits_as_older_versions_of_pillow_open_them():
    image = make_image("I")
    image.format = "PNG"
    assert (load_image(image)[..., 0] == np.asarray(image) >> 8).all()


def test_bytes_and_open_files(tmp_path):
    image = make_image("RGB")
    data = written(image, "PNG")
    assert data is not None
    (tmp_path / "a.png").write_bytes(data)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    # At its end after writing; it is read from its start, as often as it is given.
    assert stream.tell() == len(data)
    with (tmp_path / "a.png").open("rb") as file:
        for given in (data, bytearray(data), memoryview(data), stream, stream, file, file):
            np.testing.assert_array_equal(load_image(given), np.asarray(image))
            assert as_list(given) == ([given], True)
        assert as_list([stream, file]) == ([stream, file], False)


def test_a_stream_that_cannot_seek():
    class Pipe:
        def __init__(self, data):
            self.data = data

        def read(self):
            return self.data

    image = make_image("L")
    assert (load_image(Pipe(written(image, "PNG")))[..., 0] == np.asarray(image)).all()


def test_a_file_in_text_mode(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with (tmp_path / "a.png").open() as file, pytest.raises(TypeError, match='"rb"'):
        load_image(file)


@pytest.mark.parametrize(
    "url", ["https://example.com/cat.jpg", "s3://bucket/cat.jpg", "hf://datasets/a/b/c.jpg"]
)
def test_urls_are_not_fetched(url, tmp_path):
    for given in (url, Path(url)):
        with pytest.raises(
            ValueError, match=r"image '\w+:.*c(at)?\.jpg' is a URL.*download it first"
        ):
            load_image(given)
    # A name with a colon is none.
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "a:b" / "cat.jpg")


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(
        file, kind
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b"", "download it again"),
        (b"\n<HTML><title>Not found", "HTML page"),
        (b'<?xml version="1.0"?>\n<svg width="2">', "SVG"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "it is a video; pass its frames"),
        (b"\x1aE\xdf\xa3\xa3B\x86\x81", "it is a video"),
        (b"\0\0\0\x1cftypheic", "convert it first"),
        (b"a, b, c", "pass another file"),
        *((encoded(kind)[:-200], "download it again") for kind in ("JPEG", "PNG", "WEBP")),
        (encoded("PNG").replace(b"IDAT", b"IDAX"), "damaged"),
        (encoded("PNG"), "smaller image"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[:4]!r} {len(value)}",
)
def test_what_to_do_with_a_broken_image(tmp_path, data, advice):
    path = tmp_path / "a.img"
    path.write_bytes(data)
    limits = {"max_pixels": 100} if advice == "smaller image" else {}
    for given in (data, path, str(path), io.BytesIO(data)):
        with pytest.raises(DecodeError, match=advice) as raised:
            load_image(given, **limits)
        assert raised.value.status in ("corrupt", "unsupported")
        assert ("a.img" in str(raised.value)) == isinstance(given, (str, Path))


def test_what_to_do_with_a_missing_image(tmp_path):
    def advice(name: str) -> str:
        with pytest.raises(FileNotFoundError) as raised:
            load_image(tmp_path / name)
        assert raised.value.filename == str(tmp_path / name)
        return raised.value.strerror or ""

    assert "there is no folder" in advice("none/a.jpg")
    assert "there are no images" in advice("a.jpg")
    (tmp_path / "notes.txt").write_text("")
    assert "there are no images" in advice("note.jpg")
    for name in ("kitchen.JPG", "street.png", "IMG_0001.jpg", "IMG_0002.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert advice("kitchen.jpg").endswith(f"did you mean {tmp_path / 'kitchen.JPG'}?")
    assert advice("img_0001.png").startswith("No such file or directory; did you mean ")
    assert "IMG_0001.jpg, IMG_0002.jpg, kitchen.JPG and 1 more" in advice("w.jpg")
    (tmp_path / "\x1b[2J.jpg").write_bytes(b"")
    assert "\\x1b" in advice("w.jpg") and "\x1b" not in advice("w.jpg")
    assert len(advice("w" * 250)) < 400 + 2 * len(str(tmp_path))
