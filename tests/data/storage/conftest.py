"""What the tests of packs at URLs share."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fiber.data import Tokenizer
from fiber.data.storage import remote
from fiber.data.tools.pack import pack
from tests.data.faulty_server import served

NUM_IMAGES = 120
#: Small, so that there are many requests.
BLOCK_BYTES = 6_000


@pytest.fixture(scope="session")
def packed_noise(tmp_path_factory):
    """A packed folder of 120 images of noise with two captions each, in 40 shards of six blocks."""
    root, rng, lines = tmp_path_factory.mktemp("noise"), np.random.default_rng(0), []
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.bmp")
        texts = [f"noise {number}", f"gray {number}"]
        lines.append(json.dumps({"image": f"{number}.bmp", "texts": texts}) + "\n")
    (root / "train.jsonl").write_text("".join(lines))
    (root / "val.jsonl").write_text("".join(lines[:6]))
    Tokenizer.train(["noise gray"], 300).save(str(root / "tokenizer.json"))
    described = pack(root, root / "packed", shard_bytes=24_000, block_bytes=BLOCK_BYTES)
    assert sum(shard["split"] == "train" for shard in described["shards"]) == 40
    assert {len(shard["crc32s"]) for shard in described["shards"]} == {6}
    return root / "packed"


@pytest.fixture
def short_pauses(monkeypatch):
    """Tries that follow one another quickly."""
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def short_timeout(monkeypatch):
    """For requests that are never answered. On a busy machine others are repeated, too."""
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.6)


@pytest.fixture
def site(packed_noise, short_pauses):
    with served(packed_noise) as site:
        yield site


@pytest.fixture
def folder(packed_noise, tmp_path):
    """A copy of the pack that may be changed."""
    shutil.copytree(packed_noise, tmp_path / "folder")
    return tmp_path / "folder"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"
