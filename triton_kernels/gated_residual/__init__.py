"""Gated linear projection, added to a residual stream."""

from .op import gated_residual

__all__ = ["gated_residual"]
