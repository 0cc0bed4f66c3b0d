"""Run a model by its graphs alone, on arrays of one size, as `fiber.runtime` does on images."""

from __future__ import annotations

from typing import Any

import numpy as np

from fiber.models.features import DetectorOutput
from fiber.models.fiber.beam_search import Captions, beam_search
from fiber.models.registry import read_config
from fiber.runtime.graphs import Graphs
from fiber.runtime.model import graph_network

Arrays = dict[str, np.ndarray]


class Chain:
    """Graphs of a model, one after the other."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self.network: Any = graph_network(graphs, read_config(graphs.metadata.model))

    def _fuse(
        self, images: np.ndarray, texts: Arrays, is_right: np.ndarray | None = None
    ) -> Arrays:
        prefix = self.network.image_prefix(images, is_right)
        text = self.network.text_prefix(texts["token_ids"], texts["text_mask"])
        return self.network.fuse(prefix, text, texts["text_mask"])

    def head(self, head: str, images: np.ndarray, texts: Arrays) -> np.ndarray:
        """Compute what `network(images, ids, mask, head)` does."""
        network = self.network
        if head == "nlvr2":
            sides = [
                network.pooled(
                    self._fuse(
                        np.ascontiguousarray(images[:, side]),
                        texts,
                        np.full(len(images), side == 1),
                    )
                )
                for side in (0, 1)
            ]
            return network.nlvr2_logits(*sides)
        if head == "itc":
            return network.embed_images(images) @ network.embed_texts(**texts).T
        fused = self._fuse(images, texts)
        if head == "mlm":
            return self.graphs.run("pair_mlm", fused)["mlm_logits"]
        pooled = network.pooled(fused)
        if head == "rank":
            return network.ranking_scores(pooled)
        return getattr(network, f"{head}_logits")(pooled)

    def boxes(self, images: np.ndarray, texts: Arrays) -> DetectorOutput:
        """Predict boxes."""
        return self.network.predict(self._fuse(images, texts))

    def captions(self, images: np.ndarray, num_beams: int, max_tokens: int) -> Captions:
        """Write captions."""
        tokens = self.network.image_tokens(images)
        return beam_search(self.network, tokens, num_beams=num_beams, max_tokens=max_tokens)
