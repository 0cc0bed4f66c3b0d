"""Storage: tar archives, pooled file descriptors, packed data sets."""
