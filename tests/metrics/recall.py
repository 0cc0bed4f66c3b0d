"""Reference of the retrieval metrics: recall from the scores of all pairs."""

import numpy as np

from fiber.metrics.retrieval import recall_of_ranks, wrong_before


def recall_at_k(scores, text_image_index, ks=(1, 5, 10)):
    """Recall at k in both directions from (images, texts) scores and each text's image."""
    scores, owners = np.asarray(scores), np.asarray(text_image_index, dtype=np.int64)
    own = owners == np.arange(len(scores))[:, None]
    return recall_of_ranks(wrong_before(scores, own)[own.any(1)], wrong_before(scores.T, own.T), ks)
