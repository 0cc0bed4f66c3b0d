"""With an entry in the list of families, files are recognized, loaded and written back."""

import pytest
import torch

from fiber.checkpoints.export import write_published
from fiber.checkpoints.load import read_model
from fiber.data import Tokenizer
from fiber.models.families import CONFIGS, FAMILIES
from fiber.models.registry import architecture_of, inference_transform, recognize
from fiber.models.xdecoder.keys import DECODER
from fiber.models.xdecoder.preprocess import check_tokenizer
from tests.models.xdecoder.test_network import TINY
from tests.models.xdecoder.test_published import key_list, small_shapes, written


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "xdecoder", "fiber.models.xdecoder.architectures:ARCHITECTURES")
    monkeypatch.setitem(CONFIGS, "xdecoder", "fiber.models.xdecoder.config:XDecoderConfig")


@pytest.fixture(scope="module", params=["focalt", "focall"])
def file(request, tmp_path_factory):
    """A released file in small: a bare dict of tensors."""
    torch.manual_seed(0)
    state = {key: torch.randn(shape) for key, shape in small_shapes(request.param).items()}
    path = tmp_path_factory.mktemp("file") / f"xdecoder_{request.param}_last.pt"
    torch.save(state, path)
    return path, state


@pytest.mark.parametrize("name", ["focalt", "focall"])
def test_released_names_are_recognized(name):
    assert recognize(key_list(name)).title == "X-Decoder"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_loaded_and_written_back(file, tmp_path, suffix):
    path, state = file
    model = read_model(path).network
    found = written(model)
    for name in state.keys() - {"criterion.empty_weight", f"{DECODER}self_attn_mask"}:
        assert torch.equal(found[name], state[name]), name
    write_published(model, tmp_path / f"again{suffix}")
    again = read_model(tmp_path / f"again{suffix}").network
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert architecture_of(model.config).family == "xdecoder"
    assert inference_transform(model.config) is not None


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{DECODER}query_embed.weight", None, r"missing .*query_embed\.weight"),
        ("backbone.unheard", (2,), r"unknown backbone\.unheard"),
        (f"{DECODER}decoder_norm.bias", (31,), r"decoder_norm\.bias has shape \(31,\)"),
        (f"{DECODER}pn_indicator.weight", (2, 32), r"\.pt: .*SEEM"),
        ("vqa_classifier.0.weight", (3, 3), r"\.pt: .*VQA file"),
        ("backbone.convs.0.proj.weight", (3,), r"\.pt: .*DaViT"),
    ],
)
def test_faults_name_the_file(file, tmp_path, name, shape, message):
    _, state = file
    changed = {key: value for key, value in state.items() if key != name}
    if shape:
        changed[name] = torch.zeros(shape)
    torch.save(changed, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=f"(?s)changed.*{message}"):
        read_model(tmp_path / "changed.pt")


def test_tokenizers():
    tokenizer = Tokenizer.train(["a red square", "a blue circle"] * 5, 270)
    check_tokenizer(tokenizer, TINY.with_vocabulary(270))
    with pytest.raises(ValueError, match="expected at most 40, those of the text encoder"):
        check_tokenizer(tokenizer, TINY)
