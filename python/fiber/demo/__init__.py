"""Demo: data generation, fine-stage and coarse-stage training, evaluation and an HTML report."""
