"""X-Decoder models: masks, captions and search from class names and phrases.

Source: X-Decoder (Zou, Dou et al. 2023).
"""
