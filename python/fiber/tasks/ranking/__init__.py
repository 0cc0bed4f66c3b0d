"""Retrieval by a ranking head, as of METER."""
