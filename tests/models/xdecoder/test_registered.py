"""Files of the family are recognized, loaded, converted and written back, or refused by name."""

import dataclasses

import pytest
import torch

import fiber
from fiber.checkpoints.export import write_encoders, write_published
from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.load import EncoderStates, read_init, read_model
from fiber.checkpoints.torch_file import SETTINGS
from fiber.cli import main
from fiber.config_io import to_dict
from fiber.data import Tokenizer
from fiber.models.heads import MissingHeadError
from fiber.models.lora import find_targets
from fiber.models.registry import (
    architecture_of,
    build_model,
    inference_transform,
    read_config,
    recognize,
)
from fiber.models.xdecoder.keys import CLASS_WEIGHTS, DECODER, LANGUAGE, SELF_MASK, is_unicl
from fiber.models.xdecoder.preprocess import check_tokenizer
from tests.models.xdecoder.small_model import small_model
from tests.models.xdecoder.test_network import TINY
from tests.models.xdecoder.test_published import key_list, small_shapes, written


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


#: Tensors that tell the files of other models, the name of each model, and what is refused.
OTHERS = [
    (f"{DECODER}pn_indicator.weight", (2, 32), "SEEM"),
    ("vqa_classifier.0.weight", (3, 3), "VQA file"),
    ("backbone.convs.0.proj.weight", (3,), "DaViT"),
]


@pytest.mark.parametrize(("name", "shape", "model"), OTHERS)
def test_commands_refuse_other_files_by_name(
    file, tmp_path, capsys, monkeypatch, name, shape, model
):
    monkeypatch.chdir(tmp_path)
    torch.save(file[1] | {name: torch.zeros(shape)}, "other.pt")
    (tmp_path / "image.jpg").touch()
    for command in (
        ["convert", "other.pt", "out"],
        ["segment", "image.jpg", "--classes", "dog", "--model", "other.pt"],
    ):
        assert main(command) == 2
        line = capsys.readouterr().err
        assert line.startswith("fiber: error: other.pt: ") and model in line and name in line
    with pytest.raises(ValueError, match=rf"other\.pt: .*{model}"):
        fiber.load("other.pt")
    assert not (tmp_path / "out").exists()


def test_convert_both_ways(file, tmp_path, capsys):
    path, state = file
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    report = capsys.readouterr().out
    assert "X-Decoder with mask, caption, retrieval" in report
    assert "no tokenizer" in report and "missing from the file: 0 tensors" in report
    model = fiber.load(tmp_path / "folder", device="cpu")
    assert model.heads == ("mask", "caption", "retrieval")
    assert read_config(to_dict(model.config)) == model.config
    assert (
        main(["convert", str(tmp_path / "folder"), str(tmp_path / "back.pt"), "--to", "published"])
        == 0
    )
    # Like released files: tensors alone, as the config follows from them.
    again = torch.load(tmp_path / "back.pt", weights_only=True)
    assert set(again) == {*state, SELF_MASK, CLASS_WEIGHTS}
    for name in state.keys() - {SELF_MASK, CLASS_WEIGHTS}:
        assert torch.equal(again[name], state[name]), name


def test_what_tensors_do_not_tell_is_stored_as_a_tensor(tmp_path):
    config = dataclasses.replace(
        TINY,
        image_size=96,
        heads=("mask", "retrieval"),
        decoder=dataclasses.replace(TINY.decoder, num_queries=5),
    )
    model = build_model(config)
    state = write_published(model, tmp_path / "own.pt")
    stored = torch.load(tmp_path / "own.pt", weights_only=True)
    assert stored.keys() - state.keys() == {SETTINGS}
    assert all(isinstance(each, torch.Tensor) for each in stored.values())
    found = read_model(tmp_path / "own.pt").network
    assert found.config == config
    for broken, message in (
        (torch.zeros(3), r"own\.pt: hyper_parameters has shape \(3,\) .*uint8"),
        (
            torch.tensor([123, 33], dtype=torch.uint8),
            r"own\.pt: hyper_parameters is not valid JSON",
        ),
    ):
        torch.save(stored | {SETTINGS: broken}, tmp_path / "own.pt")
        with pytest.raises(ValueError, match=message):
            read_model(tmp_path / "own.pt")


def test_files_that_the_published_code_cannot_run_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"query_feat.* 7 rows, expected at least 9"):
        write_published(build_model(TINY), tmp_path / "few.pt")


@pytest.mark.parametrize("optional", [True, False])
def test_a_unicl_file_starts_training(tmp_path, optional):
    config = TINY
    model = build_model(config)
    write_encoders(model, tmp_path / "encoders")
    (path,) = (tmp_path / "encoders").iterdir()
    start = read_init(path)
    assert isinstance(start, EncoderStates)
    (state,) = start.states.values()
    assert is_unicl(state) and f"{LANGUAGE}lang_proj" in state and "backbone_proj" in state
    half = {name: tensor.half() for name, tensor in state.items()}
    if not optional:
        for name in ("lang_proj", "logit_scale"):
            del half[f"{LANGUAGE}{name}"]
        del half["backbone_proj"]
    torch.save(half, tmp_path / "unicl.pt")
    torch.manual_seed(1)
    new = build_model(config)
    report = initialize(new, read_init(tmp_path / "unicl.pt"))
    assert len(report.taken) == len(half) and not report.dropped
    assert ("text_projection" in report.created) != optional
    weights = new.state_dict()
    for name in report.taken:
        assert torch.equal(weights[name], model.state_dict()[name].half().float()), name
    with pytest.raises(ValueError, match=r"unicl\.pt: .*UniCL encoder without heads; .*--init"):
        fiber.load(tmp_path / "unicl.pt")
    # Of a damaged file, the tensors are named.
    del half[f"{LANGUAGE}lang_encoder.ln_final.bias"]
    torch.save(half | {"backbone.unheard": torch.zeros(2)}, tmp_path / "unicl.pt")
    with pytest.raises(
        ValueError, match=r"(?s)missing .*ln_final\.bias.*unknown backbone\.unheard"
    ):
        initialize(new, read_init(tmp_path / "unicl.pt"))


def test_a_head_that_the_model_lacks_is_named(file):
    model = fiber.load(file[0], device="cpu")
    with pytest.raises(MissingHeadError, match=r"'vqa'.*mask, caption, retrieval.*FIBER and METER"):
        model.answer([], "why?")
    with pytest.raises(MissingHeadError, match=r"'grounding'.*phrases="):
        model.ground([], "dog")


def test_lora_adapts_every_part():
    names = find_targets(build_model(TINY))
    for start in ("backbone.image", "backbone.text", "pixel_decoder", "decoder"):
        assert any(name.startswith(start) for name in names), start
    assert "backbone.text.blocks.0.qkv" in names and "decoder.layers.0.mlp.0" in names


def test_doctor_lists_the_family(capsys):
    main(["doctor"])
    assert "meter, fiber, xdecoder" in capsys.readouterr().out


def test_the_card_says_how_the_model_is_asked():
    card = small_model()._card("you/masks", None, None)
    assert "pipeline_tag: image-segmentation" in card
    for call in ("model.segment(", "model.caption(", "model.search("):
        assert call in card
