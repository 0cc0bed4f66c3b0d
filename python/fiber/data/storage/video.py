"""Frames of a video as images, decoded by torchcodec (extra `video`)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fiber.data.image_file import MAX_PIXELS, is_url
from fiber.messages import printable, shown

#: Extensions of videos among the images of a command; the format is detected from the content.
ENDINGS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".ogv", ".webm", ".wmv")

# The beginnings of containers. FFmpeg also reads lists of other files and URLs, such as playlists;
# torchcodec does not find frames by their number in MPEG's program and transport streams.
_CONTAINERS = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip)"  # MP4 and QuickTime
    rb"|\x1aE\xdf\xa3"  # Matroska and WebM
    rb"|RIFF.{4}AVI "
    rb"|OggS|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # Ogg, Flash and Windows Media
    re.DOTALL,
)
_BEGINNING = 200
#: Maximum number of characters of a path, and of the reason of an error of torchcodec.
_MAX_NAME, _MAX_REASON = 1000, 200


class VideoFrame(NamedTuple):
    """A frame of a video."""

    #: Number of the frame in the video, from 0.
    number: int
    #: Time at which it is shown.
    seconds: float
    #: (H, W, 3) uint8 RGB array.
    image: np.ndarray


def video_frames(
    path: str | os.PathLike[str], *, every: int = 1, max_pixels: int = MAX_PIXELS
) -> Iterator[VideoFrame]:
    """Iterate over frames of a video file: the first one, and then each `every`-th.

    Frames are decoded one at a time, as the iterator advances, and rotated as the file says.

    Raises:
        ModuleNotFoundError: if torchcodec is not installed, or does not find FFmpeg.
        FileNotFoundError: if the file does not exist.
        ValueError: if it is a URL, no video, has no frames, a damaged one, or one of more than
            `max_pixels` pixels, or if `every` is less than 1.
        TypeError: if `every` is no integer.
    """
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every is {shown(every)}; expected an integer")
    if every < 1:
        raise ValueError(f"every is {every}; expected 1 or more")
    if is_url(path):
        raise ValueError(f"video {shown(os.fspath(path))} is a URL; download it first")
    # Here rather than at the first frame, so that what is wrong is said when it is opened.
    return _decode(os.fspath(path), _open(Path(path), max_pixels), every)


def _open(path: Path, max_pixels: int) -> Any:
    """Open a decoder of the frames of a video file."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "No such video; check the path", os.fspath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder, not a video", os.fspath(path))
    name = printable(os.fspath(path), _MAX_NAME)
    with path.open("rb") as file:
        if not _CONTAINERS.match(file.read(_BEGINNING)):
            raise ValueError(
                f"{name} is no video; expected one of MP4, QuickTime, Matroska, WebM, AVI, Ogg,"
                " Flash or Windows Media, to which `ffmpeg -i IN OUT.mp4` converts others"
            )
    try:
        # FFmpeg takes the beginning of other paths for a protocol.
        decoder = _decoder_class()(str(path.absolute()), dimension_order="NHWC")
    except (ValueError, RuntimeError) as error:
        # What torchcodec raises for a file without a stream of frames.
        if "no specified stream" in str(error):
            raise ValueError(f"{name} has no frames; expected a video, not only sound") from None
        raise ValueError(f"{name} cannot be decoded: {_reason(error)}") from error
    about = decoder.metadata
    if not about.num_frames:
        raise ValueError(f"{name} has no frames; copy or download it again")
    if (about.width or 0) * (about.height or 0) > max_pixels:
        raise ValueError(
            f"{name} has frames of {about.width} x {about.height} pixels; expected at most"
            f" {max_pixels:,} pixels; pass a smaller video, or raise the limit"
        )
    return decoder


def _decoder_class() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportPrivateImportUsage]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "videos need the package torchcodec: pip install 'fiber-vl[video]'", name="torchcodec"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModuleNotFoundError(
            "torchcodec cannot be loaded; it needs the libraries of FFmpeg, as installed by"
            f" `apt-get install ffmpeg`, and a torch of its own version: {_reason(error)}",
            name="torchcodec",
        ) from error
    return VideoDecoder


def _decode(name: str, decoder: Any, every: int) -> Iterator[VideoFrame]:
    for number in range(0, decoder.metadata.num_frames, every):
        try:
            frame = decoder.get_frame_at(number)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"{printable(name, _MAX_NAME)}: frame {number} of {decoder.metadata.num_frames}"
                f" cannot be decoded: {_reason(error)}"
            ) from error
        yield VideoFrame(number, float(frame.pts_seconds), frame.data.numpy())


def _reason(error: BaseException) -> str:
    # After the place in torchcodec's own source.
    text = re.sub(r"^.*?\.cpp:\d+, ", "", " ".join(str(error).split()))
    return printable(text, _MAX_REASON) or type(error).__name__
