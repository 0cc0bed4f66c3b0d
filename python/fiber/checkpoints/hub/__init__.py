"""Models on the Hugging Face Hub: names, download and upload, cards."""
