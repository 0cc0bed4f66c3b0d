"""What the methods of a model do, one picture and one text at a time."""

import numpy as np
import torch

import fiber
from fiber.models.registry import inference_transform


def tensors(model, picture, text):
    """Make the model's input by hand: one picture, one text."""
    pixels, _, size = fiber._core.apply_transform(picture, inference_transform(model.config))
    ids, offsets = model.tokenizer.encode(text, max_tokens=model.config.max_tokens)
    ids = torch.tensor([ids])
    images = torch.from_numpy(np.asarray(pixels))[None]
    return images, ids, torch.ones_like(ids, dtype=torch.bool), size, offsets


def pooled(model, picture, text):
    images, ids, mask, *_ = tensors(model, picture, text)
    with torch.no_grad():
        return model.network.pooled(model.network.backbone.encode_pair(images, ids, mask))
