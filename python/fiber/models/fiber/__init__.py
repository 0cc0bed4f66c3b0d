"""FIBER: fused backbone, image-text heads, detector, published keys and inferred configs."""
