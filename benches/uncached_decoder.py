"""Caption decoder without a cache, as published: the peer of `bench_caption.py`.

Each step runs the whole text again, for every beam with a copy of its image's tokens. Tests compare
the package's decoder with it.
"""

import torch
from torch import Tensor

from fiber.models.fiber.beam_search import next_token_log_probs, start_ids
from fiber.models.fiber.image_text import FiberImageText


class UncachedDecoder:
    """The model with the methods of `fiber.models.fiber.beam_search.CaptionDecoder`."""

    def __init__(self, model: FiberImageText, image_tokens: Tensor) -> None:
        self.start = start_ids(image_tokens)
        self._model, self._image_tokens = model, image_tokens
        self._ids = torch.zeros(
            len(image_tokens), 1, 0, dtype=torch.int64, device=image_tokens.device
        )

    def log_probs(self, token_ids: Tensor) -> Tensor:
        """Add a token to each text, and read all of it again: (B, n) -> (B, n, V)."""
        self._ids = torch.cat((self._ids, token_ids[..., None]), 2)
        ids = self._ids.flatten(0, 1)
        images = self._image_tokens.repeat_interleave(token_ids.shape[1], 0)
        hidden = self._model.decode_text(images, ids, torch.ones_like(ids, dtype=torch.bool))
        logits = self._model.caption_logits(hidden[:, -1])
        return next_token_log_probs(self._model, logits).view(*token_ids.shape, -1)

    def select(self, sources: Tensor) -> None:
        """Go on with other texts: (B, m) numbers of an image's texts."""
        self._ids = self._ids.gather(1, sources[..., None].expand(-1, -1, self._ids.shape[2]))
