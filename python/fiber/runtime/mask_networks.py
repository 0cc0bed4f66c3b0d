"""Exported graphs that find masks in place of a network; see `fiber.runtime.networks`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fiber.models.masks.class_texts import ClassTexts
from fiber.models.model_config import ModelConfig
from fiber.runtime.graphs import Graphs
from fiber.runtime.metadata import FILE
from fiber.runtime.networks import ArrayNetwork, Arrays, Needed, need_graphs

#: Tensors that graphs with masks read of images.
_PIXEL_MAPS = ("map_1", "map_2", "map_3", "mask_features")


def _masks(heads: Collection[str]) -> Needed:
    """List the graphs of heads that find masks, and of their search."""
    has_search = "retrieval" in heads
    needed: Needed = {
        "pixel_maps": (*_PIXEL_MAPS, *(("image_means",) if has_search else ())),
        "texts": ("text_tokens", "text_vectors"),
    }
    if "mask" in heads:
        needed["class_masks"] = ("class_logits", "mask_logits")
        needed["phrase_masks"] = ("phrase_scores", "phrase_mask_logits")
    if has_search:
        needed["embed_images"] = ("image_vectors",)
    return needed


class GraphSegmenter(ArrayNetwork):
    """Graphs that find masks of classes and phrases: the abilities `SegmentsMasks` and `Embeds`.

    What graphs read of an image is the output of the graph `pixel_maps`, by name.
    """

    def __init__(self, graphs: Graphs, config: ModelConfig) -> None:
        super().__init__(graphs, config)
        path, about = graphs.folder / FILE, graphs.metadata
        need_graphs(graphs, _masks(about.heads))
        if about.masks is None:
            if "mask" in about.heads:
                raise ValueError(f"{path}: masks: expected an object, got None")
            return
        self._texts = ClassTexts(
            templates=about.masks.templates,
            background=about.masks.background,
            removed=about.masks.removed,
        )
        #: See `fiber.inference.masks.class_vectors`.
        self.text_checksum = about.masks.text_checksum

    @property
    def embedding_width(self) -> int:
        """Number of channels of an embedding."""
        return self._size("embed_images", "image_vectors", -1)

    def read_image(self, images: np.ndarray) -> Arrays:
        """Compute what the others read of images: (B, 3, H, W)."""
        return self._run("pixel_maps", {"images": images})

    def class_prompts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of each class and, last, of the background; see `ClassTexts`."""
        return self._texts.prompts(names)

    def prompt_vectors(self, token_ids: np.ndarray, text_mask: np.ndarray) -> np.ndarray:
        """Encode texts of classes: (B, L) -> (B, D)."""
        return self._encode(token_ids, text_mask)["text_vectors"]

    def class_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Average the vectors of each class: (K + 1, T, D) -> (K + 1, D) unit vectors."""
        return _unit(_unit(vectors).mean(1))

    def text_weights(self) -> Iterator[np.ndarray]:
        """Return nothing: weights of graphs do not change."""
        return iter(())

    def class_masks(
        self, memory: Arrays, class_vectors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute masks and their classes; see `SegmentsMasks`."""
        given = {**_pixel_maps(memory), "class_vectors": class_vectors}
        found = self._run("class_masks", given)
        return found["class_logits"], found["mask_logits"]

    def find_phrases(
        self, memory: Arrays, token_ids: np.ndarray, text_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the best mask for each phrase; see `SegmentsMasks`."""
        texts, maps = self._encode(token_ids, text_mask), _pixel_maps(memory)
        tokens = texts["text_tokens"][text_mask]
        batch = len(maps["mask_features"])
        given = {
            **maps,
            "phrase_tokens": np.broadcast_to(tokens, (batch, *tokens.shape)),
            "text_vectors": texts["text_vectors"],
        }
        found = self._run("phrase_masks", given)
        return found["phrase_scores"], found["phrase_mask_logits"]

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Embed images: (B, E) unit vectors."""
        return self._run("embed_images", self.read_image(images))["image_vectors"]

    def embed_texts(self, token_ids: np.ndarray, text_mask: np.ndarray) -> np.ndarray:
        """Embed texts: (B, E) unit vectors, the vector of each text twice."""
        unit = _unit(self._encode(token_ids, text_mask)["text_vectors"])
        return np.concatenate((unit, unit), -1) * np.float32(np.sqrt(0.5))

    def _encode(self, token_ids: np.ndarray, text_mask: np.ndarray) -> Arrays:
        return self._run("texts", {"token_ids": token_ids, "text_mask": text_mask})


def _pixel_maps(memory: Arrays) -> Arrays:
    return {name: memory[name] for name in _PIXEL_MAPS}


def _unit(vectors: np.ndarray) -> np.ndarray:
    # Graphs have no text whose vector is 0.
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
