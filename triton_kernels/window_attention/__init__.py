"""Attention inside (shifted) windows of a map, as in Swin."""

from .op import window_attention

__all__ = ["window_attention"]
