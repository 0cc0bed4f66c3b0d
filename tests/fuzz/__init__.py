"""Fuzz targets of every reader of files, their corpus, and the command that runs them."""
