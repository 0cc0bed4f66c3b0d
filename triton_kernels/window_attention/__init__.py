"""Attention within (shifted) windows of a feature map, as in Swin."""

from .op import window_attention

__all__ = ["window_attention"]
