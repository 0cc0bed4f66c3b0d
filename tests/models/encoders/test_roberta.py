"""The text encoder: comparison with transformers' RoBERTa, masks, positions, dropout."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fiber.config import RobertaConfig
from fiber.models.encoders.roberta import RobertaEncoder, TextLayer, causal_attention_mask
from tests.models.encoders.test_swin import randomise

pytestmark = pytest.mark.oldest

CONFIG = RobertaConfig(
    vocab_size=60,
    width=24,
    num_layers=2,
    num_heads=3,
    ffn_width=48,
    max_positions=20,
    dropout=0.0,
)


def texts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids padded to the longest, and their mask."""
    torch.manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, CONFIG.vocab_size, mask.shape)
    return ids.masked_fill(~mask, 1), mask


@pytest.mark.parametrize("lengths", [(1,), (7, 2), (18, 18, 3)], ids=str)
def test_matches_transformers(lengths):
    transformers = pytest.importorskip("transformers")
    tower = RobertaEncoder(CONFIG).eval()
    randomise(tower)
    theirs = transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.width,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            intermediate_size=CONFIG.ffn_width,
            max_position_embeddings=CONFIG.max_positions,
            type_vocab_size=1,
            layer_norm_eps=CONFIG.layer_norm_eps,
        ),
        add_pooling_layer=False,
    ).eval()
    state = {}
    for name, value in tower.state_dict().items():
        if "attention.qkv" in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[
                    hugging_face_name(name).replace("attention.qkv", f"attention.self.{part}")
                ] = piece
        else:
            state[hugging_face_name(name)] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if "position_ids" not in name]
    ids, mask = texts(*lengths)
    with torch.no_grad():
        ours = tower(ids, mask)
        expected = theirs(ids, attention_mask=mask.long()).last_hidden_state
    assert (ours - expected)[mask].abs().max() < 1e-5


def hugging_face_name(name: str) -> str:
    for ours, theirs in (
        ("embeddings.word", "embeddings.word_embeddings"),
        ("embeddings.position", "embeddings.position_embeddings"),
        ("embeddings.token_type", "embeddings.token_type_embeddings"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        ("layers.", "encoder.layer."),
        ("attention.output", "attention.output.dense"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("mlp.0", "intermediate.dense"),
        ("mlp.2", "output.dense"),
        ("output_norm", "output.LayerNorm"),
    ):
        name = name.replace(ours, theirs)
    return name


def test_padding_does_not_change_the_output():
    tower = RobertaEncoder(CONFIG).eval()
    randomise(tower)
    ids, mask = texts(5)
    longer = torch.nn.functional.pad(ids, (0, 6), value=1)
    longer_mask = torch.nn.functional.pad(mask, (0, 6), value=False)
    assert torch.allclose(tower(ids, mask), tower(longer, longer_mask)[:, :5], atol=1e-6)


def test_causal_mask_reads_no_later_token():
    tower = RobertaEncoder(CONFIG).eval()
    randomise(tower)
    ids, mask = texts(6, 4)
    embedded = tower.embeddings(ids).detach().requires_grad_()
    out = tower.layers[0](embedded, causal_attention_mask(mask))
    (gradient,) = torch.autograd.grad(out[0, 2].sum(), embedded)
    read = gradient.abs().sum(-1) > 0
    assert read[0].tolist() == [True, True, True, False, False, False]
    assert not read[1].any()


def test_output_norm_is_optional():
    layer = TextLayer(CONFIG)
    hidden, mask = torch.randn(1, 3, 24), torch.ones(1, 1, 1, 3, dtype=torch.bool)
    raw = layer(hidden, mask, normalize_output=False)
    assert torch.allclose(layer.output_norm(raw), layer(hidden, mask))
    assert not torch.allclose(raw, layer(hidden, mask))


def test_dropout_only_in_training():
    tower = RobertaEncoder(dataclasses.replace(CONFIG, dropout=0.3))
    ids, mask = texts(5, 5)
    assert not torch.equal(tower.train()(ids, mask), tower(ids, mask))
    assert torch.equal(tower.eval()(ids, mask), tower(ids, mask))


def test_initialization():
    tower = RobertaEncoder(CONFIG)
    assert tower.embeddings.word.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (tower.embeddings.word.weight[1] == 0).all()
    assert (tower.embeddings.position.weight[1] == 0).all()
    assert tower.layers[0].mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
