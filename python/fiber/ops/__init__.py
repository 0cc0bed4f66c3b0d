"""Parameter-free box, anchor and convolution ops."""
