"""Towers, fusion, heads and the models of both stages; raw outputs, no losses."""
