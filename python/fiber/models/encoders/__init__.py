"""Image and text encoders shared by model families."""
