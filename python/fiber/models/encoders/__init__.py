"""Image and text encoders that model families share."""
