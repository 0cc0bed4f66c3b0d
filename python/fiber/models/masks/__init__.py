"""Modules of mask predictions that families share."""
