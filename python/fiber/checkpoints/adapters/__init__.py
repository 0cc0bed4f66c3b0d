"""LoRA adapters on disk: write them, and load a model from an adapter and its base."""
