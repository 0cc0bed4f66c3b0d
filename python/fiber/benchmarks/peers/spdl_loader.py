"""SPDL, with FFmpeg's decoder and scaler in threads."""

# pyright: reportMissingImports=false

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from .task import MEAN, RATIO, SCALE, SIZE, STD, Epoch, PeerTask


def open_peer(task: PeerTask) -> Epoch:
    """Open a pipeline that yields images in the order of the files."""
    torch.set_num_threads(1)
    mean = torch.tensor(MEAN).view(1, 1, 1, 3) * 255
    scale = 1 / (torch.tensor(STD).view(1, 1, 1, 3) * 255)

    def decode(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        return spdl.io.decode_packets(packets, filter_desc=_filters(task.work))

    def batch(frames: list[Any]) -> torch.Tensor:
        images = spdl.io.to_torch(spdl.io.convert_frames(frames))
        if task.output == "uint8":
            return images
        # (B, H, W, 3) -> (B, 3, H, W)
        return images.float().sub_(mean).mul_(scale).permute(0, 3, 1, 2).contiguous()

    def epoch(number: int) -> Iterator[torch.Tensor]:
        pipeline = (
            PipelineBuilder()
            .add_source(task.files)
            .pipe(decode, concurrency=task.threads, output_order="input")
            .aggregate(task.batch_size)
            .pipe(batch)
            .add_sink(2)
            .build(num_threads=task.threads)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    return epoch


def _filters(work: str) -> str:
    """Return the FFmpeg filter for "squash" or "crop".

    FFmpeg replaces `iw` and `ih` with the width and height of the input.
    """
    scale = f"scale={SIZE}:{SIZE}:flags=bicubic,format=pix_fmts=rgb24"
    if work == "squash":
        return scale
    part, ratio = random.uniform(*SCALE), random.uniform(*RATIO)
    across, down = min(1.0, (part * ratio) ** 0.5), min(1.0, (part / ratio) ** 0.5)
    left, top = random.uniform(0, 1 - across), random.uniform(0, 1 - down)
    crop = f"crop=iw*{across:.4f}:ih*{down:.4f}:iw*{left:.4f}:ih*{top:.4f}"
    return f"{crop},{scale}" + (",hflip" if random.random() < 0.5 else "")
