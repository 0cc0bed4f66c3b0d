"""Images are prepared as recorded: each encoder has its own statistics."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from fiber import _core
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.preprocess import meter_transform
from fiber.training.config.transforms import TransformConfig
from fiber.training.task_loaders import training_transform
from tests.golden import METER
from tests.parity.meter_case import MeterCase

#: Names of the recorded transforms.
NAMES = {"clip": "clip", "swin": "imagenet"}


def config(encoder) -> MeterConfig:
    found = MeterCase(METER / f"{encoder}_micro.json").meter_config("vqa")
    if encoder == "clip":
        return found.with_image_size(48)
    # 48 is no multiple of Swin's 32 pixels.
    swin = dataclasses.replace(found.swin, patch_size=2, window_size=3)
    return dataclasses.replace(found, swin=swin, image_size=48)


@pytest.mark.parametrize("encoder", NAMES)
@pytest.mark.parametrize("image", ["wide", "tall"])
@pytest.mark.parametrize("use", ["inference", "training"])
def test_images_are_those_recorded(encoder, image, use):
    recorded, model = load_file(METER / "extras.safetensors"), config(encoder)
    if use == "inference":
        transform = meter_transform(model)
    else:
        transform = training_transform(model, TransformConfig(kind="center_crop"))
    picture = np.ascontiguousarray(recorded[f"picture.{image}"])
    values, _, size = _core.apply_transform(picture, transform)
    assert size == (48, 48)
    ours = np.asarray(values).view(np.float32).reshape(3, *size)
    # Bytes are equal; their normalization rounds in another order.
    np.testing.assert_allclose(ours, recorded[f"{NAMES[encoder]}.{image}"], rtol=0, atol=1e-6)
