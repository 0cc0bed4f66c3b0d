"""Sound inputs that fuzzing starts from: tiny models, a pack and records."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import struct
import zipfile
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from fiber.checkpoints.published import published_state
from fiber.config import (
    DetectorConfig,
    FiberConfig,
    FusionConfig,
    ImageTextConfig,
    RobertaConfig,
    SwinConfig,
)
from fiber.config_io import to_dict
from fiber.data import Record
from fiber.data.tools.pack import pack
from fiber.models.fiber.infer_config import stored_config
from fiber.models.registry import build_model

#: Separates the files of an input that stands for several.
SEPARATOR = b"\0"

#: A model of 100 kB, of which a network is built in 20 ms.
TINY = FiberConfig(
    image_size=32,
    max_tokens=40,
    swin=SwinConfig(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=1),
    roberta=RobertaConfig(
        vocab_size=8, width=4, num_layers=1, num_heads=1, ffn_width=4, max_positions=44
    ),
    fusion=FusionConfig(num_fused_layers=1),
    image_text=ImageTextConfig(heads=("itc", "itm", "vqa"), num_answers=2),
    detector=DetectorConfig(channels=4, num_blocks=1, norm_groups=2, num_unused_classes=2),
)
CONFIGS = {"coarse": TINY, "fine": dataclasses.replace(TINY.fine(), channel_order="bgr")}
#: Size of storage 0 in containers; the tensors of either model fit.
STORAGE_BYTES = 1 << 17
#: Key of the published state dict by stage.
_PUBLISHED_KEY = {"coarse": "state_dict", "fine": "model"}


@cache
def published(stage: str) -> dict[str, Tensor]:
    """Tensors of the tiny model by published key, without the anchors, whose values are checked."""
    torch.manual_seed(0)
    state = published_state(build_model(CONFIGS[stage]))
    return {name: tensor for name, tensor in state.items() if "cell_anchors" not in name}


def settings(stage: str) -> dict[str, object]:
    """Settings that a published file stores: the published ones, or fiber's own config."""
    if stage == "coarse":
        return {"config": {"image_size": 32, "max_text_len": 40, "num_heads": 1}}
    return {"config": stored_config(CONFIGS[stage])}


@cache
def published_pickle(stage: str) -> bytes:
    """Pickle of a published file whose tensors follow one another in storage 0."""
    storage, first, state = torch.zeros(STORAGE_BYTES // 4), 0, {}
    for name, tensor in published(stage).items():
        state[name] = storage[first : first + tensor.numel()].view(tensor.shape)
        first += tensor.numel()
    content = {_PUBLISHED_KEY[stage]: state, "hyper_parameters": settings(stage)}
    file = io.BytesIO()
    torch.save(content, file)
    return zipfile.ZipFile(file).read("archive/data.pkl")


@cache
def small_pickles() -> dict[str, bytes]:
    """Pickles of every protocol with containers, numbers, texts and tensors."""
    value = {"a": [1, 2.5, None, True, "ä", b"b", 2**70], 3: (1, (2,)), "state_dict": {}}
    found = {f"protocol {protocol}": pickle.dumps(value, protocol) for protocol in range(6)}
    return found | {"tensors": zipfile.ZipFile(io.BytesIO(small_file())).read("archive/data.pkl")}


def small_file(*, legacy: bool = False) -> bytes:
    """A file of torch.save with two tensors."""
    file = io.BytesIO()
    content = {"state_dict": {"w": torch.ones(2, 3), "v": torch.nn.Parameter(torch.ones(4))}}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@cache
def header(stage: str, *, own_keys: bool) -> bytes:
    """Header of a safetensors file of the tiny model, by fiber's keys or the published ones."""
    model = build_model(CONFIGS[stage])
    state = model.state_dict() if own_keys else published(stage)
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    stored = safetensors.torch.save(state, {"hyper_parameters": json.dumps(settings(stage))})
    (length,) = struct.unpack("<Q", stored[:8])
    return stored[8 : 8 + length].strip()


@cache
def model_dirs() -> tuple[bytes, ...]:
    """config.json, safetensors header, answers.json and classes.json of the tiny models."""
    found = []
    for stage, config in CONFIGS.items():
        values = {"model": to_dict(config), "data": {"split": "train"}, "data_path": "/data"}
        parts = (values, json.loads(header(stage, own_keys=True)), ["yes", "no"], ["cup"])
        found.append(SEPARATOR.join(json.dumps(part).encode() for part in parts))
    return tuple(found)


def image() -> bytes:
    """A PNG of 24 x 32 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 40)).save(file, "png")
    return file.getvalue()


def records(count: int = 5) -> list[Record]:
    """Records with captions."""
    return [Record(key=f"r{i}", images=(image(),), text=f"cup {i}") for i in range(count)]


def write_pack(folder: Path) -> None:
    """Write a packed folder of five images with boxes."""
    source = folder / "source"
    source.mkdir(parents=True)
    lines = []
    for number in range(5):
        (source / f"{number}.png").write_bytes(image())
        boxes = {"boxes_xyxy": [[1, 2, 20, 20]] * (number % 3), "labels": ["cup"] * (number % 3)}
        lines.append(json.dumps({"image": f"{number}.png"} | boxes) + "\n")
    (source / "train.jsonl").write_text("".join(lines))
    # Without it, a part of the records would be held out.
    (source / "val.jsonl").write_text(lines[0])
    pack(source, folder / "packed", splits=["train"])
