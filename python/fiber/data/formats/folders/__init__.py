"""Formats of detection data that are folders of images with a file of boxes for each."""
