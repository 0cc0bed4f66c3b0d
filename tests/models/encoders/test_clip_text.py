"""CLIP's text encoder."""

import pytest
import torch

from fiber.models.encoders.clip_text import ClipTextEncoder, last_tokens
from fiber.models.encoders.clip_text_config import ClipTextConfig

pytestmark = pytest.mark.oldest

TINY = ClipTextConfig(vocab_size=50, width=24, num_blocks=2, num_heads=3, max_positions=9)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ClipTextEncoder(TINY).eval()


@torch.no_grad()
def test_equals_transformers(encoder):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=9,
        layer_norm_eps=1e-12,
    )
    theirs = transformers.CLIPTextModel(config).eval()
    state = theirs.state_dict()
    prefix = next(name for name in state if name.endswith("token_embedding.weight"))
    prefix = prefix.removesuffix("embeddings.token_embedding.weight")
    mapped = {
        "word_embedding.weight": state[f"{prefix}embeddings.token_embedding.weight"],
        "position_embedding": state[f"{prefix}embeddings.position_embedding.weight"],
    }
    norms = {"last_norm": f"{prefix}final_layer_norm"}
    for number in range(2):
        ours, layer = f"blocks.{number}", f"{prefix}encoder.layers.{number}"
        norms |= {
            f"{ours}.attention_norm": f"{layer}.layer_norm1",
            f"{ours}.mlp_norm": f"{layer}.layer_norm2",
            f"{ours}.output": f"{layer}.self_attn.out_proj",
            f"{ours}.mlp.0": f"{layer}.mlp.fc1",
            f"{ours}.mlp.2": f"{layer}.mlp.fc2",
        }
        for part in ("weight", "bias"):
            own = [state[f"{layer}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            mapped[f"{ours}.qkv.{part}"] = torch.cat(own)
    for ours, name in norms.items():
        mapped |= {f"{ours}.{part}": state[f"{name}.{part}"] for part in ("weight", "bias")}
    encoder = ClipTextEncoder(TINY).eval()
    encoder.load_state_dict(mapped)
    ids = torch.randint(0, 50, (3, 7))
    torch.testing.assert_close(encoder(ids), theirs(ids).last_hidden_state, rtol=0, atol=2e-6)


@torch.no_grad()
def test_token_by_token_equals_the_whole_text(encoder):
    ids = torch.randint(0, 50, (2, 9))
    decoding = encoder.start_decoding()
    steps = torch.cat([decoding.append(column) for column in ids.T], 1)
    torch.testing.assert_close(steps, encoder(ids), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="the texts have 9 tokens"):
        decoding.append(ids[:, 0])


@torch.no_grad()
def test_padding_changes_nothing(encoder):
    ids, mask = torch.randint(0, 50, (2, 8)), torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    alone = encoder(ids[1:, :5])[:, -1]
    torch.testing.assert_close(last_tokens(encoder(ids), mask)[1:], alone, rtol=0, atol=2e-6)


def test_texts_that_are_too_long(encoder):
    with pytest.raises(ValueError, match="at most 9 tokens a text, got 10"):
        encoder(torch.zeros(1, 10, dtype=torch.int64))
