"""Batches of a packed folder, and what is in a cache, for the tests of packs at URLs."""

import torch

from fiber.data import DataLoader, ImageTransform, Tokenizer, open_source


def loader(data, **options):
    settings = {"transform": ImageTransform.random_resized_crop(16), "batch_size": 8}
    settings |= {"shuffle": True, "order": "shards", "seed": 5, "threads": 1, "max_tokens": 8}
    tokenizer = Tokenizer.from_file(data / "tokenizer.json")
    records = open_source("captions", data, "train")
    return DataLoader(records, "image_text", tokenizer=tokenizer, **{**settings, **options})


def batches(data, **options):
    return [
        (batch.keys, batch.samples, batch.images, batch.token_ids)
        for batch in loader(data, **options)
    ]


def same(one, other):
    assert len(one) == len(other) > 0
    for (*names, images, ids), (*others, other_images, other_ids) in zip(one, other, strict=True):
        assert names == others
        assert torch.equal(images, other_images) and torch.equal(ids, other_ids)
    return True


def shards_in(cache):
    return sorted(path.name for path in cache.rglob("*.tar") if not path.name.startswith("."))


def bytes_in(cache):
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
