"""Demo: data, coarse and fine training, evaluation and an HTML report."""
