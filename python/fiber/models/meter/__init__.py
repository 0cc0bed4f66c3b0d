"""METER models: separate encoders, fusion on top of them, image-text heads and published files.

Source: METER (Dou et al. 2022).
"""
