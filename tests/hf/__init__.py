"""Libraries of Hugging Face with models of this package."""
