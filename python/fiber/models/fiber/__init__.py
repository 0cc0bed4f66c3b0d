"""FIBER models: fused backbone, image-text heads, detector and published checkpoint formats."""
