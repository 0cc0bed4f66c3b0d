"""Storage: tar archives, pooled file descriptors, packed datasets."""
