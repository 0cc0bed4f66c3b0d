"""Attention from image tokens to text tokens, and from text tokens to image tokens."""

from .op import image_to_text_attention, text_to_image_attention

__all__ = ["image_to_text_attention", "text_to_image_attention"]
