"""Questions about images (VQA)."""
