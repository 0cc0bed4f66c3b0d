"""Run a model by its graphs alone, in numpy, as a runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiber.runtime.graphs import Graphs

Arrays = dict[str, np.ndarray]


class Chain:
    """Graphs of a model, one after the other."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs

    def _run(self, name: str, values: Arrays) -> None:
        inputs = self.graphs.metadata.graphs[name].inputs
        values |= self.graphs.run(name, {each.name: values[each.name] for each in inputs})

    def _prefixes(self, images: np.ndarray, texts: Arrays, *, right: bool = False) -> Arrays:
        values = {"images": images, "is_right": np.full(len(images), right), **texts}
        self._run("image_prefix", values)
        self._run("text_prefix", values)
        return values

    def head(self, head: str, images: np.ndarray, texts: Arrays) -> np.ndarray:
        """Compute what `network(images, ids, mask, head)` does."""
        if head == "nlvr2":
            sides = {}
            for side, name in enumerate(("left", "right")):
                values = self._prefixes(
                    np.ascontiguousarray(images[:, side]), texts, right=bool(side)
                )
                self._run("pair", values)
                sides[f"pooled_{name}"] = values["pooled"]
            return self.graphs.run("head_nlvr2", sides)["nlvr2_logits"]
        values = self._prefixes(images, texts)
        if head == "itc":
            self._run("embed_images", values)
            self._run("embed_texts", values)
            return values["image_vectors"] @ values["text_vectors"].T
        if head == "mlm":
            self._run("pair_mlm", values)
            return values["mlm_logits"]
        self._run("pair", values)
        self._run(f"head_{head}", values)
        return values[f"{head}_logits"]

    def boxes(self, images: np.ndarray, texts: Arrays) -> Arrays:
        """Compute the three predictions of a detector."""
        values = self._prefixes(images, texts)
        self._run("pair", values)
        return values

    def decoder(self, images: np.ndarray) -> Decoder:
        """Start writing captions."""
        values = {"images": images, "is_right": np.zeros(len(images), dtype=bool)}
        self._run("image_prefix", values)
        self._run("caption_image", values)
        return Decoder(self.graphs, values["image_keys_values"])


class Decoder:
    """`CaptionDecoder` that runs the graph of a step. An earlier token of no text comes first."""

    device = torch.device("cpu")

    def __init__(self, graphs: Graphs, image_keys_values: np.ndarray) -> None:
        self._graphs, self._images = graphs, image_keys_values
        self.num_images = len(image_keys_values)
        shape: Any = {each.name: each for each in graphs.metadata.graphs["caption_step"].inputs}
        _, layers, both, heads, _, depth = shape["past"].shape
        self._past = np.zeros((self.num_images, layers, both, heads, 1, depth), np.float32)
        self._own = np.zeros((self.num_images, 1, 1), bool)
        self._before = 0

    def log_probs(self, token_ids: Tensor) -> Tensor:
        count = token_ids.shape[1]
        found = self._graphs.run(
            "caption_step",
            {
                "caption_ids": token_ids.numpy(),
                "tokens_before": np.array(self._before),
                "own_tokens": self._own,
                "past": self._past,
                "image_keys_values": self._images,
            },
        )
        self._before += 1
        self._past = np.concatenate((self._past, found["newest"]), 4)
        newest = np.broadcast_to(np.eye(count, dtype=bool), (self.num_images, count, count))
        self._own = np.concatenate((self._own, newest), 2)
        logits = torch.from_numpy(found["caption_logits"])
        forbidden = self._graphs.metadata.caption
        assert forbidden is not None
        logits[..., forbidden["mask_id"]] = -10000.0
        return logits.log_softmax(-1)

    def select(self, sources: Tensor) -> None:
        self._own = np.take_along_axis(self._own, sources.numpy()[..., None], 1)
