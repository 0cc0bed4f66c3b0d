"""JPEG files of every kind, made by script, on which our decoder is compared with libjpeg-turbo's.

`python -m tests.jpeg_corpus` makes all; `tests/rust/jpeg/test_decoder.py` takes those of Pillow.
"""
