"""Geometry and operators on tensors, without parameters."""
