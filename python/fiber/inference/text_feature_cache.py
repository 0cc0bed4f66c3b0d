"""LRU cache of encoded prompts: text features from before the fused layers, and token maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fiber.data.prompts.classes import Prompt
from fiber.inference.inputs import ArrayInputs
from fiber.models.abilities import FindsBoxes
from fiber.ops.arrays import functions_of
from fiber.postprocess.find import TokenMap

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Maximum number of cached tokens (100 MB for the base model).
MAX_KEPT_TOKENS = 32_768


class TextPrefixBatch(NamedTuple):
    """Prompts as inputs to the fused layers."""

    #: (B, L, D) output of the backbone's `text_prefix`.
    prefix: Tensor
    #: (B, L) bool, True = real token.
    text_mask: Tensor
    #: Token indices of each label, for each prompt.
    token_maps: list[TokenMap]


class TextPrefixes:
    """LRU cache of encoded prompts. It is cleared when the text encoder's weights change.

    A text encoder with hooks or with modules of other packages, such as adapters, may compute
    something else without a change of its weights: nothing is kept then from batch to batch.

    `keep_all` means that no prompt is dropped, for those that are asked about every image. Nothing
    may change the text encoder meanwhile.
    """

    def __init__(self, network: FindsBoxes, inputs: ArrayInputs, *, keep_all: bool = False) -> None:
        self._backbone, self._inputs, self._keep_all = network.backbone, inputs, keep_all
        # By text and spans: a text with other labels has another token map.
        self._kept: OrderedDict[tuple[str, Any], tuple[Tensor, TokenMap]] = OrderedDict()
        self._tokens = 0
        self._weights = self._fingerprint()

    def batch(self, prompts: Sequence[Prompt]) -> TextPrefixBatch:
        """Return features padded to the longest prompt. For errors, see `Inputs.texts`."""
        if not self._keep_all and (weights := self._fingerprint()) != self._weights:
            self._kept.clear()
            self._tokens, self._weights = 0, weights
        asked = {(prompt.text, prompt.spans): prompt for prompt in prompts}
        if new := [prompt for key, prompt in asked.items() if key not in self._kept]:
            self._add(new)
        for key in asked:
            self._kept.move_to_end(key)
        found = [self._kept[prompt.text, prompt.spans] for prompt in prompts]
        f = functions_of(found[0][0])
        prefix = f.pad_rows([row for row, _ in found])
        lengths = np.array([len(row) for row, _ in found])
        mask = f.moved(np.arange(prefix.shape[1]) < lengths[:, None], prefix)
        while self._tokens > MAX_KEPT_TOKENS and not self._keep_all:
            _, (row, _) = self._kept.popitem(last=False)
            self._tokens -= len(row)
        return TextPrefixBatch(prefix, mask, [token_map for _, token_map in found])

    def _add(self, prompts: Sequence[Prompt]) -> None:
        # Truncation was already reported when the prompts were built.
        batch = self._inputs.texts([prompt.text for prompt in prompts], warn_truncated=False)
        prefix = self._backbone.text_prefix(batch.token_ids, batch.text_mask)
        for prompt, row, offsets in zip(prompts, prefix, batch.offsets, strict=True):
            token_map = prompt.token_map(offsets)
            kept = functions_of(row).copy(row[: len(offsets)])
            self._kept[prompt.text, prompt.spans] = kept, token_map
            self._tokens += len(offsets)

    def _fingerprint(self) -> object:
        """Return what names the weights of the text encoder: no two are equal if it is not plain.

        It is the version counter, device and dtype.
        """
        if self._backbone.text is None:
            # Weights of exported graphs do not change.
            return None
        text = self._backbone.text
        return weights_fingerprint(list(text.parameters()), text.modules())


def weights_fingerprint(weights: Sequence[Tensor], modules: Iterable[nn.Module]) -> object:
    """Return what names weights: version counter, device and dtype.

    No two are equal if a module may compute something else without a change of its weights.
    """
    if not all(map(_is_plain, modules)):
        return object()
    # Inference tensors have no version counter.
    version = sum(each._version for each in weights if not each.is_inference())
    return version, weights[0].device, weights[0].dtype


def _is_plain(module: nn.Module) -> bool:
    """Return True if what a module computes depends on its tensors only."""
    from fiber.ops.linear import is_hooked

    return type(module).__module__.startswith(("torch.nn.", "fiber.")) and not is_hooked(module)
