"""Vectors of classes that images are segmented by, computed once for a vocabulary."""

from __future__ import annotations

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fiber.atomic_io import JSON_ERRORS, check_target, write_file
from fiber.inference.inputs import ArrayInputs
from fiber.inference.text_feature_cache import weights_fingerprint
from fiber.messages import shown
from fiber.models.mask_abilities import SegmentsMasks
from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Maximum number of texts that are encoded at once.
_TEXTS_AT_ONCE = 256
#: Maximum number of vocabularies whose vectors a model keeps.
_MAX_KEPT = 16
#: Name of the tensor in a file, and of the metadata.
_TENSOR, _CLASSES, _CHECKSUM = "class_vectors", "classes", "text_weights"


@dataclass(frozen=True)
class ClassVectors:
    """Vectors of classes, for `Model.segment`. `Model.class_vectors` computes them.

    Raises:
        ValueError: if the number of vectors is not that of the classes and the background.
    """

    #: Names of the K classes.
    classes: tuple[str, ...]
    #: (K + 1, D) float32; the last is that of the background.
    vectors: np.ndarray
    #: Checksum of the weights of the model's text encoder.
    checksum: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.classes) + 1:
            raise ValueError(
                f"ClassVectors: vectors have shape {self.vectors.shape}, expected"
                f" ({len(self.classes) + 1}, D): {len(self.classes)} classes and the background"
            )

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        return f"ClassVectors({len(self)} classes, {self.vectors.shape[1]} channels)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vectors to a .safetensors file, with the names of the classes.

        Raises:
            ValueError: if the suffix is another one.
            OSError: if the file cannot be written; an existing file is unchanged.
        """
        from safetensors.numpy import save

        path = _checked(path)
        check_target(path)
        metadata = {_CLASSES: json.dumps(self.classes), _CHECKSUM: self.checksum}
        content = save({_TENSOR: np.ascontiguousarray(self.vectors, np.float32)}, metadata)
        write_file(path, lambda part: part.write_bytes(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassVectors:
        """Read the vectors that `save` wrote.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it is damaged, or has something else.
        """
        from fiber.checkpoints.mapped_file import read_safetensors

        path = _checked(path)
        if not path.exists():
            raise FileNotFoundError(f"class vectors {path} do not exist")
        tensors, metadata, _ = read_safetensors(path)
        try:
            classes = json.loads(metadata.get(_CLASSES, "null"))
        except JSON_ERRORS as error:
            raise ValueError(f"{path}: {_CLASSES} in the metadata is not JSON: {error}") from error
        if (
            tensors.keys() != {_TENSOR}
            or not isinstance(classes, list)
            or not all(isinstance(name, str) for name in classes)
            or _CHECKSUM not in metadata
        ):
            raise ValueError(
                f"{path} has no class vectors: expected the tensor {_TENSOR!r}, and {_CLASSES!r}"
                f" and {_CHECKSUM!r} in the metadata, got tensors {shown(sorted(tensors)[:4])}"
            )
        vectors = tensors[_TENSOR].float().numpy().copy()
        if not np.isfinite(vectors).all():
            raise ValueError(f"{path}: {_TENSOR} has values that are NaN or infinite")
        try:
            return cls(tuple(classes), vectors, metadata[_CHECKSUM])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: class vectors are in files that end in .safetensors")
    return path


class ClassVectorCache:
    """Class vectors of the last vocabularies. It is cleared when weights of texts change.

    See `fiber.inference.text_feature_cache.TextPrefixes` for text encoders with hooks.
    """

    def __init__(self, network: SegmentsMasks, inputs: ArrayInputs) -> None:
        self._network, self._inputs = network, inputs
        self._kept: OrderedDict[tuple[str, ...], ClassVectors] = OrderedDict()
        self._weights: object = None
        self._checksum = ""

    def of(self, names: Sequence[str]) -> ClassVectors:
        """Return the vectors of classes, computing them unless they are kept.

        Raises:
            ValueError: if there are no names, a name is empty or there twice, or has too many
                tokens; or if the model has no tokenizer.
        """
        self._update()
        key = tuple(names)
        if key not in self._kept:
            vectors = encode_classes(self._network, self._inputs, key)
            self._kept[key] = ClassVectors(key, vectors, self._checksum)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def check(self, vectors: ClassVectors) -> None:
        """Raise ValueError if vectors are those of another model."""
        self._update()
        if vectors.checksum != self._checksum:
            raise ValueError(
                f"the class vectors are of a model whose text encoder has the checksum"
                f" {shown(vectors.checksum)}; this one has {self._checksum!r}: compute them with"
                " model.class_vectors(classes)"
            )

    def _update(self) -> None:
        if (checksum := getattr(self._network, "text_checksum", None)) is not None:
            # Weights of exported graphs do not change.
            self._checksum = checksum
            return
        network: nn.Module = self._network  # type: ignore[assignment]
        weights = weights_fingerprint(list(self._network.text_weights()), network.modules())
        if weights != self._weights:
            self._kept.clear()
            self._weights = weights
            self._checksum = text_checksum(self._network)


def text_checksum(network: SegmentsMasks) -> str:
    """Return a checksum of the weights that vectors of texts depend on."""
    found = 0
    for tensor in network.text_weights():
        found = zlib.crc32(tensor.detach().float().cpu().contiguous().numpy().tobytes(), found)
    return f"{found:08x}"


def encode_classes(network: SegmentsMasks, inputs: ArrayInputs, names: Sequence[str]) -> np.ndarray:
    """Compute the vectors of K classes and the background: (K + 1, D) float32.

    Raises:
        ValueError: see `ClassVectorCache.of`.
    """
    prompts = network.class_prompts(names)
    for name, own in zip((*names, "of no object"), prompts, strict=True):
        for text in own:
            inputs.check_length(text, f"class {shown(name)}: the text")
    batch = inputs.texts([text for own in prompts for text in own])
    lengths = batch.text_mask.sum(1)
    f = functions_of(lengths)
    # Texts of one length have no padding.
    order = f.argsort(lengths)
    found: list[Tensor] = []
    for start in range(0, len(order), _TEXTS_AT_ONCE):
        rows = order[start : start + _TEXTS_AT_ONCE]
        longest = int(lengths[rows].max())
        ids, mask = batch.token_ids[rows, :longest], batch.text_mask[rows, :longest]
        found.append(f.float32(network.prompt_vectors(ids, mask)))
    vectors = f.concat(found)[f.argsort(order)]
    by_class = vectors.reshape(len(prompts), -1, vectors.shape[-1])
    return f.as_numpy(network.class_vectors(by_class))
