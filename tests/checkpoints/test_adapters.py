"""Adapter folders: what is written is read with its base, and every fault is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import fiber
from fiber.checkpoints.adapters.files import (
    ABOUT,
    CONFIG,
    WEIGHTS,
    About,
    is_adapter,
    weights_sha256,
    write_adapter,
)
from fiber.checkpoints.adapters.load import base_name
from fiber.checkpoints.convert import convert
from fiber.checkpoints.load import read_init, read_model
from fiber.checkpoints.model_dir import load_model, save_model
from fiber.checkpoints.stages import packaged_model
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.models.lora import (
    PREFIX,
    add_adapters,
    config_of_state,
    find_targets,
    lora_config,
    merged_state,
)

pytestmark = pytest.mark.oldest

TARGETS = ["backbone.fusion.*.query", "backbone.fusion.*.output"]


def write(folder, base, config=None, trained=("vqa_head.output",)):
    """Write an adapter of a base with random values; return what its model's state dict is."""
    stored = load_model(base)
    network = stored.network
    targets = find_targets(network, TARGETS)
    add_adapters(network, lora_config(targets, r=2, alpha=4.0, trained=trained))
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    about = About(
        base=base_name(base),
        base_sha256=weights_sha256(load_model(base).network.state_dict()),
        model=config or stored.config,
    )
    state = network.state_dict()
    vocabulary = Vocabulary(stored.tokenizer, stored.answers, stored.classes)
    write_adapter(folder, config_of_state(state, r=2, alpha=4.0), state, about, vocabulary)
    return merged_state(stored.config, state, r=2, alpha=4.0)


@pytest.fixture(scope="module")
def base(micro_models):
    return micro_models["coarse"]


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    write(folder, base)
    return folder


@pytest.fixture
def copied(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copied")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change(path, **fields):
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(values))


def test_an_adapter_is_loaded_with_its_base(base, tmp_path):
    expected = write(tmp_path / "a", base)
    assert is_adapter(tmp_path / "a") and not is_adapter(base)
    model = fiber.load(tmp_path / "a")
    assert equal(model.network.state_dict(), expected)
    assert model.answers == load_model(base).answers
    assert model.tokenizer.to_json() == load_model(base).tokenizer.to_json()
    # As initial weights, too.
    assert equal(read_init(tmp_path / "a").network.state_dict(), expected)
    assert not equal(expected, load_model(base).network.state_dict())


def test_peft_reads_the_folder(base, adapter):
    import peft

    wrapped = peft.PeftModel.from_pretrained(load_model(base).network, str(adapter))
    merged = wrapped.merge_and_unload().state_dict()
    assert equal(merged, fiber.load(adapter).network.state_dict())
    values = json.loads((adapter / CONFIG).read_text())
    assert values["target_modules"] == sorted(values["target_modules"])
    assert values["base_model_name_or_path"] is None


def test_a_model_in_the_package_is_named_without_its_path():
    assert base_name(packaged_model("scenes") / "coarse") == "scenes/coarse"


def test_a_base_that_was_moved_is_passed(base, copied, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    change(copied / ABOUT, base=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"gone does not exist.*base="):
        fiber.load(copied)
    assert equal(
        fiber.load(copied, base=moved).network.state_dict(),
        read_model(copied, base=base).network.state_dict(),
    )


def test_an_adapter_of_another_base_is_refused(base, adapter, tmp_path):
    stored = load_model(base)
    with torch.no_grad():
        # One value of one layer that the adapter does not concern.
        stored.network.get_submodule("itm_head").bias[0] += 1e-3
    other = tmp_path / "other"
    save_model(stored.network, other, stored.tokenizer, stored.answers)
    with pytest.raises(ValueError, match=r"another base: .*other has the fingerprint \w{12}"):
        fiber.load(adapter, base=other)


def test_a_fingerprint_does_not_depend_on_the_file(base, tmp_path):
    network = load_model(base).network
    state = network.state_dict()
    assert weights_sha256(dict(reversed(state.items()))) == weights_sha256(state)
    halves = {name: tensor.bfloat16() for name, tensor in state.items()}
    as_floats = {name: tensor.float() for name, tensor in halves.items()}
    assert weights_sha256(halves) == weights_sha256(as_floats) != weights_sha256(state)
    assert weights_sha256({}) != weights_sha256({"a": torch.zeros(0)})


def test_a_stage_that_differs_from_the_base_is_refused(micro_models, base, copied):
    config = load_model(micro_models["fine"]).config
    from fiber.config_io import to_dict

    change(copied / ABOUT, model=to_dict(config))
    with pytest.raises(ValueError, match=r"fine FIBER.*coarse FIBER"):
        fiber.load(copied)


def test_a_model_with_a_head_that_neither_has(micro_models, base, copied):
    values = json.loads((copied / ABOUT).read_text())
    values["model"]["image_text"]["num_answers"] = 5
    (copied / ABOUT).write_text(json.dumps(values))
    (copied / "answers.json").write_text(json.dumps(["a", "b", "c", "d", "e"]))
    with pytest.raises(ValueError, match=r"does not fit its base.*size mismatch.*vqa_head\.output"):
        fiber.load(copied)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        fiber.load(copied)


def test_a_pickle_is_not_read(copied):
    (copied / WEIGHTS).rename(copied / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin is a pickle"):
        fiber.load(copied)


def test_a_truncated_file_is_named(copied):
    content = (copied / WEIGHTS).read_bytes()
    for end in (0, 5, len(content) // 2, len(content) - 1):
        (copied / WEIGHTS).write_bytes(content[:end])
        with pytest.raises(ValueError, match=WEIGHTS):
            fiber.load(copied)


def test_tensors_that_do_not_fit_are_named(copied):
    tensors = load_file(copied / WEIGHTS)
    first = next(name for name in tensors if ".lora_B." in name)
    head = f"{PREFIX}vqa_head.output.weight"
    for changed, match in (
        ({first: None}, rf"missing {first}"),
        ({head: None}, head.removeprefix(PREFIX)),
        ({first: tensors[first][:-1]}, r"does not fit its base.*size mismatch"),
        ({first: tensors[first].int()}, rf"{first} has dtype torch\.int32"),
        ({first: tensors[first] * torch.nan}, WEIGHTS),
        ({f"{PREFIX}backbone.nothing.lora_A.weight": torch.ones(2, 3)}, "unexpected .*nothing"),
        ({"nothing": torch.ones(2)}, rf"start with {PREFIX}, got nothing"),
    ):
        values = {name: each for name, each in (tensors | changed).items() if each is not None}
        save_file(values, copied / WEIGHTS)
        with pytest.raises(ValueError, match=match):
            fiber.load(copied)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"target_modules": ["nothing", "no.more"]}, r"target_modules: .*called no\.more, nothing"),
        ({"peft_type": "LOHA"}, r"peft_type: expected 'LORA', got 'LOHA'"),
        ({"peft_type": None}, r"peft_type: expected 'LORA', got None"),
        ({"r": 0}, r"r: expected 1 to 65536, got 0"),
        ({"r": 10**9}, r"r: expected 1 to 65536, got 1000000000"),
        ({"r": True}, r"r: expected int, got True"),
        ({"r": 3}, r"size mismatch"),
        ({"lora_alpha": "16"}, r"lora_alpha: expected int or float, got '16'"),
        ({"target_modules": []}, r"target_modules: .*none"),
        ({"target_modules": [3]}, r"target_modules: expected a list of str, got 3"),
        ({"target_modules": "("}, r"target_modules: '\(' is no regular expression: missing"),
        ({"target_modules": "(([a-z]+)+)+!"}, r"target_modules: .* repeats a group"),
        ({"exclude_modules": "(?:a|b)*c"}, r"exclude_modules: .* repeats a group"),
        ({"modules_to_save": ["\x1b[2J"]}, r"modules_to_save: '\\x1b\[2J' is no regular expr"),
        ({"rank_pattern": {".*a.*b.*c.*d": 2}}, r"rank_pattern: .* has 4 repetitions, expected"),
        ({"alpha_pattern": {"x" * 3000: 2}}, r"alpha_pattern: .* has 3000 characters"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa' changes the base"),
        ({"megatron_config": {"a": 1}}, r"megatron_config: .*not supported"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication: .*not supported"),
        ({"nothing_known": 3}, r"unknown field 'nothing_known'"),
        ({"rank_pattern": {"a": -1}}, r"rank_pattern: expected 1 to 65536, got -1"),
    ],
)
def test_an_invalid_field_is_named(copied, fields, match):
    change(copied / CONFIG, **fields)
    with pytest.raises(ValueError, match=match):
        fiber.load(copied)


def test_fields_of_newer_versions_that_say_nothing_are_read(adapter, copied):
    change(copied / CONFIG, new_option=None, peft_version="9.0", task_type="FEATURE_EXTRACTION")
    assert equal(fiber.load(copied).network.state_dict(), fiber.load(adapter).network.state_dict())


@pytest.mark.parametrize("name", [CONFIG, ABOUT])
def test_damaged_json_is_named(copied, name):
    for text in ("", "[]", "{", "\0"):
        (copied / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            fiber.load(copied)


@pytest.mark.parametrize("fields", [{"base": 3}, {"base": ""}, {"base_sha256": None}, {"model": 1}])
def test_invalid_fields_of_our_file_are_named(copied, fields):
    change(copied / ABOUT, **fields)
    with pytest.raises(ValueError, match=rf"{ABOUT}: {next(iter(fields))}"):
        fiber.load(copied)


def test_a_base_must_be_named_and_a_model(base, adapter, copied, tmp_path):
    (copied / ABOUT).unlink()
    with pytest.raises(ValueError, match=r"does not name its base.*base="):
        fiber.load(copied)
    with pytest.raises(ValueError, match=r"is an adapter, too"):
        fiber.load(copied, base=adapter)
    with pytest.raises(ValueError, match=r"base=.* is for an adapter"):
        fiber.load(base, base=base)
    with pytest.raises(ValueError, match=r"base=.* is for an adapter"):
        fiber.load("scenes", base=base)
    # As transformers' models are named.
    change(copied / CONFIG, base_model_name_or_path=str(base))
    with pytest.warns(RuntimeWarning, match="no fingerprint"):
        found = fiber.load(copied)
    assert equal(found.network.state_dict(), fiber.load(adapter).network.state_dict())


def test_convert_merges_an_adapter_if_asked(base, adapter, tmp_path):
    with pytest.raises(ValueError, match=r"is a LoRA adapter; --merge"):
        convert(adapter, tmp_path / "out")
    with pytest.raises(ValueError, match=r"--merge .*needs a LoRA adapter.*coarse"):
        convert(base, tmp_path / "out", merge=True)
    with pytest.raises(ValueError, match=r"--base .*needs --merge"):
        convert(base, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()
    report = convert(adapter, tmp_path / "out", merge=True)
    assert "merged into its base" in report
    merged = fiber.load(tmp_path / "out")
    assert equal(merged.network.state_dict(), fiber.load(adapter).network.state_dict())
    assert merged.answers == fiber.load(adapter).answers
    # Also for the published code.
    convert(adapter, tmp_path / "out.safetensors", "published", merge=True, base=base)
    published = read_model(tmp_path / "out.safetensors").network.state_dict()
    assert equal(published, merged.network.state_dict())


def test_an_adapter_on_another_image_size(adapter, base):
    model = fiber.load(adapter, image_size=96)
    assert model.config.image_size == 96
    assert fiber.load(base).config.image_size != 96
