"""Two thousand classes on pictures that are one pixel high, or wide, with the small model."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.checkpoints.model_dir import save_model
from fiber.cli import main
from fiber.config import preset
from fiber.data import Tokenizer
from fiber.data.prompts.classes import class_prompts
from fiber.models.registry import build_model

NAMES = ["".join(letters) for letters in itertools.product("abcdefghijklm", repeat=3)][:2000]


@pytest.mark.slow
def test_two_thousand_classes_on_a_line(tmp_path, capsys, monkeypatch):
    # Every name is seen with a space before it as often as it needs to become a token.
    tokenizer = Tokenizer.train([". ".join(NAMES)] * 5, 4000)
    config = preset("small", stage="fine").with_vocabulary(tokenizer.vocab_size)
    torch.manual_seed(0)
    save_model(build_model(config), tmp_path / "model", tokenizer)
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    for name, shape in (("low.png", (1, 4000, 3)), ("thin.png", (4000, 1, 3))):
        Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(name)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    asked = ["--classes-file", "names.txt", "--threshold", "0", "--max-detections", "4000"]
    assert main(["detect", "low.png", "thin.png", "--model", "model", *asked]) == 0
    output = capsys.readouterr()
    took = re.search(
        r"fiber: 2000 classes in (\d+) prompts, 2 images, 2 forward passes of the image encoder\n",
        output.err,
    )
    # Of names of one token and their points fifteen fit into 32, beside <s> and </s>.
    prompts = len(class_prompts(NAMES, tokenizer, config.max_tokens))
    assert took is not None and int(took[1]) == prompts >= 2000 / 15
    for line, (width, height) in zip(output.out.splitlines(), [(4000, 1), (1, 4000)], strict=True):
        result = json.loads(line)
        assert (result["width"], result["height"]) == (width, height)
        found = result["detections"]
        assert len(found) == 4000
        for item in found:
            x0, y0, x1, y1 = item["box_xyxy"]
            assert 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height
            assert NAMES[item["index"]] == item["label"]
        # Names of every part of the list, not of its first prompt alone.
        assert len({item["index"] // 100 for item in found}) == 20
