"""A model with masks of boxes is exported without them."""

import pytest

from fiber.checkpoints.model_dir import load_model, save_model
from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.export.export import export_model, exported_config
from fiber.models.fiber.detector import FiberDetector


def test_graphs_have_the_config_without_masks():
    plain = preset("micro", stage="fine")
    masked = replace_fields(plain, {"detector.mask_width": 8})
    assert exported_config(masked) == plain
    assert exported_config(plain) is plain
    assert exported_config(masked).heads == ("grounding",)


def test_masks_cannot_be_exported(micro_models, tmp_path):
    plain = load_model(micro_models["fine"])
    network = FiberDetector(replace_fields(plain.config, {"detector.mask_width": 8}))
    save_model(network, tmp_path / "masks", plain.tokenizer)
    with pytest.raises(ValueError, match="'grounding_mask' cannot be exported"):
        export_model(tmp_path / "masks", tmp_path / "no", "torch", heads=["grounding_mask"])
