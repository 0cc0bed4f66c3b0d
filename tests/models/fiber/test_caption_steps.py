"""Steps of decoding whose state is tensors, as exported graphs have it."""

import pytest
import torch

from tests.models.fiber.test_captioner import IMAGES, caption_model, pictures

pytestmark = pytest.mark.oldest


def test_a_step_of_tensors_equals_decoding_with_a_state():
    """Two texts for each image; the first earlier token belongs to no text."""
    model = caption_model()
    tokens = pictures(model)
    batch = len(IMAGES)
    ids = torch.randint(3, model.config.roberta.vocab_size - 1, (batch, 2, 5))
    state, newest = model.start_decoding(tokens), torch.eye(2, dtype=torch.bool)
    images = model.decoder_keys_values(tokens)
    layers, heads, depth = model.past_sizes
    past = torch.randn(batch, layers, 2, heads, 1, depth, dtype=tokens.dtype)
    own = torch.zeros(batch, 2, 1, dtype=torch.bool)
    with torch.no_grad():
        for step in range(5):
            expected = model.caption_logits(model.decode_next(state, ids[..., step]))
            found, added = model.decode_step(ids[..., step], torch.tensor(step), own, past, images)
            torch.testing.assert_close(found, expected)
            past = torch.cat((past, added), 4)
            own = torch.cat((own, newest.expand(batch, -1, -1)), 2)
            # Both texts of the first image go on from its second one.
            sources = torch.tensor([[1, 1] if image == 0 else [0, 1] for image in range(batch)])
            state.select(sources)
            own = own.gather(1, sources[..., None].expand_as(own))
