"""Demo: data generation, coarse-stage and fine-stage training, evaluation and an HTML report."""
