"""Exported graphs against the network."""
