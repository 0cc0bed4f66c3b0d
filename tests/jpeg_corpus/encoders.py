"""Encoders by name. Each takes a picture (H, W, 3), uint8, and its own options."""

import importlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image

Encode = Callable[..., bytes]


def by_pillow(picture: np.ndarray, *, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def by_simplejpeg(picture: np.ndarray, *, gray: bool = False, **options) -> bytes:
    simplejpeg = importlib.import_module("simplejpeg")
    if gray:
        return simplejpeg.encode_jpeg(picture[..., 1:2].copy(), colorspace="GRAY", **options)
    return simplejpeg.encode_jpeg(picture, **options)


def by_opencv(picture: np.ndarray, **options: int) -> bytes:
    cv2 = importlib.import_module("cv2")
    flags = [part for name, value in options.items() for part in (getattr(cv2, name), value)]
    done, data = cv2.imencode(".jpg", picture[..., ::-1], flags)
    if not done:
        raise RuntimeError(f"OpenCV did not encode with {options}")
    return data.tobytes()


def by_imagecodecs(picture: np.ndarray, *, inks: bool = False, **options) -> bytes:
    imagecodecs = importlib.import_module("imagecodecs")
    if inks:
        picture = np.asarray(Image.fromarray(picture).convert("CMYK"))
        options["colorspace"] = "CMYK"
    if options.get("bitspersample") == 12:
        picture = picture.astype(np.uint16) << 4
    return imagecodecs.jpeg8_encode(picture, **options)


def by_jpeglib(
    picture: np.ndarray, *, version: str, quality: int = 85, progressive: bool = False
) -> bytes:
    """Of Independent JPEG Group's versions and mozjpeg."""
    jpeglib = importlib.import_module("jpeglib")
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file, jpeglib.version(version):
        image = jpeglib.from_spatial(picture)
        image.write_spatial(
            file.name, qt=quality, flags=["+PROGRESSIVE_MODE"] if progressive else []
        )
        return file.read()


def portable_pixmap(picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    return b"P6 %d %d 255\n" % (width, height) + picture.tobytes()


def by_command(picture: np.ndarray, *command: str) -> bytes:
    ran = subprocess.run(command, input=portable_pixmap(picture), capture_output=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ran.stderr.decode()}")
    return ran.stdout


def by_cjpeg(picture: np.ndarray, *arguments: str) -> bytes:
    return by_command(picture, "cjpeg", *arguments)


def by_imagemagick(picture: np.ndarray, *arguments: str) -> bytes:
    return by_command(picture, "convert", "ppm:-", *arguments, "jpg:-")


MODULES = {
    "Pillow": (by_pillow, "PIL"),
    "simplejpeg": (by_simplejpeg, "simplejpeg"),
    "OpenCV": (by_opencv, "cv2"),
    "imagecodecs": (by_imagecodecs, "imagecodecs"),
    "jpeglib": (by_jpeglib, "jpeglib"),
}
COMMANDS = {"cjpeg": (by_cjpeg, "cjpeg"), "ImageMagick": (by_imagemagick, "convert")}


def available() -> tuple[dict[str, Encode], list[str]]:
    """Encoders that are here by name, and the names of those that are not."""
    found, absent = {}, []
    for name, (encode, module) in MODULES.items():
        try:
            importlib.import_module(module)
            found[name] = encode
        except ImportError:
            absent.append(name)
    for name, (encode, command) in COMMANDS.items():
        if shutil.which(command) and works(encode):
            found[name] = encode
        else:
            absent.append(name)
    return found, absent


def works(encode: Encode) -> bool:
    """Whether a command encodes a JPEG: another program may have its name."""
    try:
        return encode(np.zeros((8, 8, 3), np.uint8)).startswith(b"\xff\xd8")
    except (OSError, RuntimeError):
        return False
