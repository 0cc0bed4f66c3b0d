"""Box geometry, anchors and convolution ops without parameters."""
