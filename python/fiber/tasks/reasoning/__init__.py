"""Statements about two images (NLVR2)."""
