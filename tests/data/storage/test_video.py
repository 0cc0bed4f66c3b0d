"""Frames of videos: by torchcodec where it is installed, and by a stand-in for it."""

import builtins
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fiber.data import video_frames
from tests.videos import MP4, Decoder, stand_in


@pytest.fixture
def clip(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    (tmp_path / "clip.mp4").write_bytes(MP4)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize(
    ("every", "numbers"), [(1, range(25)), (10, [0, 10, 20]), (24, [0, 24]), (25, [0])]
)
def test_every_nth_frame(every, numbers, clip):
    frames = list(video_frames(clip, every=every))
    assert [frame.number for frame in frames] == list(numbers)
    for frame in frames:
        assert frame.seconds == frame.number / 10
        assert frame.image.shape == (30, 40, 3) and frame.image.dtype == np.uint8
        assert (frame.image == frame.number).all()


def test_frames_are_decoded_as_the_iterator_advances(clip, monkeypatch):
    monkeypatch.setattr(Decoder, "broken", 2)
    frames = video_frames(clip)
    assert [next(frames).number, next(frames).number] == [0, 1]
    with pytest.raises(ValueError, match=r"clip\.mp4: frame 2 of 25 cannot be decoded: Invalid"):
        next(frames)


@pytest.mark.parametrize(
    ("every", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_steps(every, error, clip):
    with pytest.raises(error, match=f"every is {every}; expected"):
        video_frames(clip, every=every)


def test_what_is_no_video(tmp_path, monkeypatch):
    stand_in(monkeypatch, lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(FileNotFoundError, match="No such video"):
        video_frames(tmp_path / "none.mp4")
    with pytest.raises(IsADirectoryError, match="folder"):
        video_frames(tmp_path)
    with pytest.raises(ValueError, match="is a URL"):
        video_frames("https://example.com/clip.mp4")
    # The last two are lists of other files, which FFmpeg would read, too.
    for text in ("", "no video at all", "#EXTM3U\nhttp://10.0.0.1/a.ts", "ffconcat version 1.0"):
        (tmp_path / "text.mp4").write_text(text)
        with pytest.raises(ValueError, match=r"text\.mp4 is no video; expected one of MP4"):
            video_frames(tmp_path / "text.mp4")


def test_a_video_without_frames(clip, monkeypatch):
    monkeypatch.setattr(Decoder, "metadata", SimpleNamespace(num_frames=0, width=9, height=9))
    with pytest.raises(ValueError, match=r"clip\.mp4 has no frames"):
        video_frames(clip)


def test_large_frames(clip):
    assert next(video_frames(clip, max_pixels=40 * 30)).image.shape == (30, 40, 3)
    with pytest.raises(ValueError, match="40 x 30 pixels; expected at most 1,199"):
        video_frames(clip, max_pixels=40 * 30 - 1)


def test_without_torchcodec(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fiber-vl\[video\]'") as caught:
        video_frames(clip)
    assert caught.value.name == "torchcodec"


def test_without_ffmpeg(clip, monkeypatch):
    monkeypatch.delitem(sys.modules, "torchcodec.decoders")
    real = builtins.__import__

    def load(name, *rest):
        if name == "torchcodec.decoders":
            raise OSError("libavutil.so.57: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", load)
    with pytest.raises(ModuleNotFoundError, match=r"apt-get install ffmpeg.*libavutil\.so\.57"):
        video_frames(clip)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A white bar that moves by eight pixels in each of twelve frames, at ten frames a second."""
    encoders = pytest.importorskip("torchcodec.encoders", reason="torchcodec is not installed")
    frames = torch.zeros(12, 3, 64, 96, dtype=torch.uint8)
    for number, frame in enumerate(frames):
        frame[:, :, 8 * number : 8 * number + 8] = 255
    folder = tmp_path_factory.mktemp("moving")
    encoder = encoders.VideoEncoder(frames, frame_rate=10)
    for suffix in ("mp4", "mkv", "webm", "avi", "mov"):
        encoder.to_file(folder / f"bar.{suffix}")
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi", "mov"])
def test_torchcodec_decodes_the_frames(suffix, moving):
    frames = list(video_frames(moving / f"bar.{suffix}", every=5))
    assert [frame.number for frame in frames] == [0, 5, 10]
    start = frames[0].seconds
    assert [round(frame.seconds - start, 2) for frame in frames] == [0, 0.5, 1.0]
    for frame in frames:
        assert frame.image.shape == (64, 96, 3) and frame.image.dtype == np.uint8
        bars = frame.image[32, :, 0].reshape(12, 8).mean(1)
        assert bars.argmax() == frame.number and bars.max() > 200 and np.median(bars) < 50


def test_torchcodec_finds_what_is_wrong(moving, tmp_path):
    whole = (moving / "bar.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4 cannot be decoded: "):
        list(video_frames(tmp_path / "cut.mp4"))
    encoders = pytest.importorskip("torchcodec.encoders")
    encoders.AudioEncoder(torch.zeros(1, 16000), sample_rate=16000).to_file(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4 has no frames; expected a video, not only sound"):
        video_frames(tmp_path / "a.mp4")


def test_a_name_that_looks_like_a_protocol_is_a_file(moving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "concat:a.mp4").write_bytes((moving / "bar.mp4").read_bytes())
    assert len(list(video_frames("concat:a.mp4"))) == 12


def test_import_needs_neither_torch_nor_torchcodec():
    program = "import fiber.data, sys; fiber.data.video_frames; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
