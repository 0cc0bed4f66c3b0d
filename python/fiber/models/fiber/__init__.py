"""FIBER: backbone with fusion in it, image-text heads, detector, published key names and sizes."""
