"""What networks that write captions can do, as protocols; see `fiber.models.abilities`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from fiber.models.heads import HasConfig
from fiber.models.mask_abilities import ReadsImages

if TYPE_CHECKING:
    from torch import Tensor

    from fiber.data import Tokenizer


class Decodes(Protocol):
    """State of writing several texts for each image, token by token."""

    def select(self, sources: Tensor) -> None:
        """Select the texts to continue for each image, by (B, m) int64 indices."""
        ...


class WritesCaptions(HasConfig, Protocol):
    """Writes captions of images, token by token."""

    @property
    def mask_id(self) -> int:
        """Id of <mask>, which is never written."""
        ...

    @property
    def longest_caption(self) -> int:
        """Maximum number of tokens, including <s> and </s>."""
        ...

    def image_tokens(self, images: Tensor) -> Tensor:
        """Encode images for the decoder: (B, H, W, C)."""
        ...

    def next_token_logits(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute logits of each next token from the image and previous tokens: (B, L, V)."""
        ...

    def decode_text(self, image_tokens: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute features (B n, L, D) of n texts per image; position t reads tokens 0 to t."""
        ...

    def caption_logits(self, text: Tensor) -> Tensor:
        """Compute next-token logits from the output of `decode_text`: (..., L, V)."""
        ...

    def mlm_logits(self, text: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute next-token logits of chosen tokens only, see `ScoresPairs.mlm_logits`."""
        ...

    def start_decoding(self, image_tokens: Tensor) -> Decodes:
        """Start incremental decoding from the output of `image_tokens`."""
        ...

    def decode_next(self, decoding: Any, token_ids: Tensor) -> Tensor:
        """Process the next token of each text as `decode_text` does: (B, n) -> (B, n, D)."""
        ...


class StepsCaptions(WritesCaptions, Protocol):
    """Writes captions by a function of tensors, which keeps no state and can be exported.

    B images, n texts of each, T image tokens, P tokens so far of all texts of an image.
    """

    @property
    def past_sizes(self) -> tuple[int, int, int]:
        """Number of layers, heads h, and channels d of a head, of the decoder's self-attention."""
        ...

    def decoder_keys_values(self, image_tokens: Tensor) -> Tensor:
        """Compute keys and values of images: (B, H, W, C) -> (B, fused layers, 2, T, h, d)."""
        ...

    def decode_step(
        self,
        token_ids: Tensor,
        tokens_before: Tensor,
        own_tokens: Tensor,
        past: Tensor,
        image_keys_values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Process the next token of each text as `decode_next` does.

        Args:
            token_ids: (B, n) int64.
            tokens_before: () int64, number of earlier tokens of each text.
            own_tokens: (B, n, P) bool, True = the earlier token belongs to this text.
            past: (B, layers, 2, h, P, d) keys and values of the earlier tokens.
            image_keys_values: see `decoder_keys_values`.

        Returns:
            Logits of the next token (B, n, V), and keys and values of `token_ids`,
            (B, layers, 2, h, n, d).
        """
        ...


class WritesRegionCaptions(ReadsImages, Protocol):
    """Writes captions of images or of regions in them, greedily."""

    @property
    def caption_steps(self) -> int:
        """Number of tokens after the first."""
        ...

    def write_captions(
        self,
        memory: Any,
        *,
        start_id: int,
        end_id: int,
        steps: int,
        region: Tensor | None = None,
    ) -> Tensor:
        """Write captions.

        Args:
            memory: images.
            start_id: first token of every caption.
            end_id: token that ends a caption.
            steps: maximum number of tokens after the first.
            region: (B, H, W) bool, True = the caption is of what is there. None means everywhere.

        Returns:
            (B, n) int64 token ids without the first.

        Raises:
            ValueError: if a region is empty at the size at which it is read.
        """
        ...

    def caption_text(self, tokenizer: Tokenizer, token_ids: list[int], end_id: int) -> str:
        """Decode a caption."""
        ...
