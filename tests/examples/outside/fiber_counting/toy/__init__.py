"""The family "toy": a small convolutional network that counts objects."""
