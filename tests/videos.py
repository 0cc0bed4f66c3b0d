"""Videos of tests, and a stand-in for torchcodec, which is of an extra and needs FFmpeg."""

import sys
from types import ModuleType, SimpleNamespace

import torch

#: Beginning of an MP4 file.
MP4 = b"\0\0\0\x18ftypisom"


class Decoder:
    """What `fiber.data.video_frames` uses of `VideoDecoder`; frames are of one gray each."""

    metadata = SimpleNamespace(num_frames=25, width=40, height=30)
    broken = 10**9

    def __init__(self, source, *, dimension_order):
        assert dimension_order == "NHWC" and source.startswith("/")

    def get_frame_at(self, number):
        if number >= self.broken:
            raise RuntimeError("decode, /a/b.cpp:7, Invalid data found when processing input")
        data = torch.full((self.metadata.height, self.metadata.width, 3), number, dtype=torch.uint8)
        return SimpleNamespace(data=data, pts_seconds=number / 10)


def stand_in(monkeypatch, decoder=Decoder):
    """Put a module with a decoder in the place of torchcodec."""
    package = ModuleType("torchcodec")
    package.decoders = ModuleType("torchcodec.decoders")
    package.decoders.VideoDecoder = decoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", package.decoders)
