"""BERT's encoder equals transformers' own, from every kind of its files."""

import dataclasses

import pytest
import safetensors.torch
import torch

from fiber.checkpoints.encoders import encoder_states, load_encoder
from fiber.checkpoints.load import EncoderStates, read_init
from fiber.config import ClipConfig, RobertaConfig
from fiber.models.encoders.bert import BertEncoder
from fiber.models.encoders.bert_config import BertConfig
from fiber.models.meter.config import CrossConfig, MeterConfig
from fiber.models.meter.image_text import MeterImageText

pytestmark = pytest.mark.oldest

CONFIG = BertConfig(
    vocab_size=90,
    width=48,
    num_layers=3,
    num_heads=3,
    ffn_width=80,
    max_positions=20,
    dropout=0.0,
)
METER = MeterConfig(
    image_size=32,
    max_tokens=20,
    clip=ClipConfig(patch_size=16, width=32, num_blocks=1, num_heads=2),
    text_encoder="bert",
    bert=CONFIG,
    cross=CrossConfig(width=24, num_layers=1, num_heads=2, ffn_width=48),
)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.width,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            intermediate_size=CONFIG.ffn_width,
            max_position_embeddings=CONFIG.max_positions,
        )
    )
    for name, parameter in model.named_parameters():
        start = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean=start, std=0.15)
    return model.eval()


def gamma_and_beta(state):
    """Rename norms as in the files of bert-base-uncased."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in state.items():
        old = next((old for old in names if name.endswith(old)), None)
        renamed[name.replace(old, names[old]) if old else name] = tensor
    return renamed


#: Changes of the state dict of `BertForPreTraining`.
FILES = {
    "BertForPreTraining": dict,
    "BertModel": lambda state: {
        name.removeprefix("bert."): tensor
        for name, tensor in state.items()
        if name.startswith("bert.")
    },
    "bert-base-uncased": gamma_and_beta,
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_features_are_those_of_transformers(theirs, tmp_path, kind, suffix):
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state, path = FILES[kind](state), tmp_path / f"model{suffix}"
    if suffix == ".bin":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    start = read_init(path)
    assert isinstance(start, EncoderStates)
    ours = MeterImageText(METER).eval()
    keys, ignored = load_encoder(ours, start.states[path])
    own = [name for name in ours.state_dict() if name.startswith("backbone.text.")]
    assert list(keys) == own
    unused = ("pooler.", "bert.pooler.", "cls.", "embeddings.position_ids")
    assert set(ignored) == {name for name in state if name.startswith(unused)}
    ids = torch.randint(4, 90, (3, 12))
    ids[1, 7:] = ids[2, 2:] = 0
    mask = torch.arange(12) < torch.tensor([[12], [7], [2]])
    with torch.no_grad():
        given = {"input_ids": ids, "attention_mask": mask.long()}
        expected = theirs.bert(**given).last_hidden_state
        exact = theirs.double().bert(**given).last_hidden_state
        theirs.float()
        found = ours.backbone.encode_text(ids, mask)
    # Both round differently; ours may be off twice as far as theirs, or a few roundings.
    error, their_error = (
        (each - exact)[mask].abs().max().item() for each in (found.double(), expected.double())
    )
    assert error <= 2 * their_error + 4 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_a_written_file_is_read_back():
    start, target = MeterImageText(METER), MeterImageText(METER)
    states = encoder_states(start)
    assert list(states) == ["clip", "bert"]
    keys, ignored = load_encoder(target, states["bert"])
    assert ignored == {}
    for name in keys:
        assert torch.equal(target.state_dict()[name], start.state_dict()[name])


def test_bert_and_roberta_are_told_apart():
    roberta = RobertaConfig(**{**dataclasses.asdict(CONFIG), "max_positions": 22})
    other = dataclasses.replace(METER, text_encoder="roberta", roberta=roberta)
    models = {kind: MeterImageText(config) for kind, config in (("BERT", METER), ("Ro", other))}
    files = {kind: list(encoder_states(model).values())[1] for kind, model in models.items()}
    with pytest.raises(ValueError, match="contains a BERT encoder, which the model has not"):
        load_encoder(models["Ro"], files["BERT"])
    with pytest.raises(ValueError, match="contains a RoBERTa encoder, which the model has not"):
        load_encoder(models["BERT"], files["Ro"])


def test_positions_count_from_0_whatever_the_tokens_are():
    encoder = BertEncoder(CONFIG).eval()
    ids = torch.tensor([[5, 0, 7, 0]])
    expected = (
        encoder.embeddings.word(ids)
        + encoder.embeddings.position(torch.arange(4))
        + encoder.embeddings.token_type(torch.zeros(4, dtype=torch.int64))
    )
    torch.testing.assert_close(encoder.embeddings(ids), encoder.embeddings.norm(expected))


def test_sizes():
    assert BertConfig() == BertConfig(
        vocab_size=30522, width=768, num_layers=12, num_heads=12, ffn_width=3072
    )
    assert (BertConfig().max_tokens, BertConfig().layer_norm_eps) == (512, 1e-12)
    with pytest.raises(ValueError, match=r"bert\.num_heads must divide width, got 5 and 48"):
        dataclasses.replace(CONFIG, num_heads=5)
    with pytest.raises(ValueError, match="max_tokens must be at most 20"):
        dataclasses.replace(METER, max_tokens=21)
    assert METER.with_vocabulary(7).bert.vocab_size == METER.with_vocabulary(7).vocab_size == 7
