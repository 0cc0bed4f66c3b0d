"""What `save` keeps and what `push_to_hub` sends, to a stand-in for the Hub."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import fiber
from fiber.atomic_io import read_json
from fiber.checkpoints.mapped_file import read_safetensors
from fiber.checkpoints.stages import packaged_model
from fiber.cli.models import load_quietly
from tests.hub.stub import NEW, serve

pytestmark = pytest.mark.oldest

METRICS = {
    "tasks": {
        "vqa": {
            "val": {
                "records": 40,
                "model": {"accuracy": 0.75, "color/accuracy": 0.9},
                "chance": {"accuracy": 0.25},
            }
        }
    }
}


@pytest.fixture
def packaged():
    return load_quietly("scenes", device="cpu")


@pytest.fixture
def hub(monkeypatch):
    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield served
    huggingface_hub.close_session()


def test_a_model_is_saved_with_all_that_it_has(packaged, tmp_path):
    """Card, numbers, training config, and the dtype of the weights."""
    packaged.save(tmp_path / "m")
    stored, saved = packaged_model("scenes"), tmp_path / "m"
    for name in ("README.md", "metrics.json"):
        assert (saved / name).read_bytes() == (stored / name).read_bytes()
    for stage in ("coarse", "fine"):
        before, after = (
            read_safetensors(each / stage / "model.safetensors").tensors for each in (stored, saved)
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(before[name].dtype == after[name].dtype for name in before)
        training = [read_json(each / stage / "config.json")["training"] for each in (stored, saved)]
        assert training[0] == training[1] and training[0]["train"]["steps"]
    again = fiber.load(saved, device="cpu")
    assert again.stages["fine"].origin.dtype == torch.bfloat16
    with pytest.raises(FileExistsError, match="already contains README"):
        packaged.save(saved)


def test_weights_that_changed_are_saved_in_float32(packaged, tmp_path):
    model = packaged.stages["fine"]
    with torch.no_grad():
        name, weight = next(iter(model.network.named_parameters()))
        weight.view(-1)[0] = 1 / 3
    with pytest.warns(UserWarning, match=r"torch\.float32: they have changed .*bfloat16 cannot"):
        model.save(tmp_path / "m")
    tensors = read_safetensors(tmp_path / "m" / "model.safetensors").tensors
    assert tensors[name].view(-1)[0] == torch.tensor(1 / 3)
    assert all(each.dtype == torch.float32 for each in tensors.values())


def test_push_a_model_with_a_card(packaged, hub):
    url = packaged.push_to_hub("user/name", license="mit", private=True, token="hf_writes")
    assert url == f"{hub.url}/user/name/commit/{NEW}"
    assert (
        "private" in (hub.created.get("visibility"), *hub.created)
        and hub.commit["revision"] == "main"
    )
    stored = packaged_model("scenes")
    names = {path.relative_to(stored).as_posix() for path in stored.rglob("*.*")}
    assert set(hub.pushed) == names
    for name in ("fine/model.safetensors", "metrics.json", "coarse/tokenizer.json"):
        assert hub.pushed[name] == (stored / name).read_bytes()
    metadata, own = hub.pushed["README.md"].decode().split("---\n", 2)[1:]
    assert own.strip() == (stored / "README.md").read_text().strip()
    assert {"license: mit", "library_name: fiber-vl"} <= set(metadata.splitlines())
    assert "pipeline_tag: zero-shot-object-detection" in metadata


def test_push_a_model_without_a_card(micro_models, hub, tmp_path):
    """The card has the numbers that were measured; paths of this machine stay here."""
    folder = tmp_path / "run"
    shutil.copytree(micro_models["coarse"], folder)
    config = read_json(folder / "config.json") | {
        "data_path": "/home/somebody/secret/photos",
        "init": "/home/somebody/runs/start",
        "data": {"split": "train", "batch_size": 8},
        "train": {"steps": 70},
        "tasks": {},
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = fiber.load(folder, device="cpu")
    model.push_to_hub("user/name", metrics=METRICS, revision="try", token="hf_writes")
    assert hub.commit["revision"] == "try"
    assert "/api/models/user/name/branch/try" in [path for path, _ in hub.calls]
    assert not any(b"somebody" in data for data in hub.pushed.values())
    training = json.loads(hub.pushed["config.json"])["training"]
    assert training["data_path"] == "photos" and training["init"] == "start"
    assert json.loads(hub.pushed["metrics.json"]) == METRICS
    card = hub.pushed["README.md"].decode()
    assert "| vqa | val | accuracy | 0.75 | 0.25 | not measured | 40 |" in card
    assert "color/accuracy" not in card
    assert "data photos, split train, steps 70, records a step 8, starts from start" in card
    assert 'fiber.load("hf://user/name")' in card and "model.answer(" in card
    assert "Not stated: ask the owner" in card and "license:" not in card
    (tmp_path / "pushed").mkdir()
    for name, data in hub.pushed.items():
        (tmp_path / "pushed" / name).write_bytes(data)
    again = fiber.load(tmp_path / "pushed", device="cpu")
    assert again.heads == model.heads and again.origin.kept.metrics == METRICS


def test_what_cannot_be_pushed(micro_models, packaged, hub):
    model = fiber.load(micro_models["coarse"], device="cpu")
    with pytest.raises(OSError, match=r"hf://user/name: the upload failed .*403.*hf auth login"):
        model.push_to_hub("user/name", token="hf_reads")
    for repo in ("name", "user/name@main", "user/name/fine", 3):
        with pytest.raises(ValueError, match="repo: expected user/name, got"):
            model.push_to_hub(repo)
    with pytest.raises(ValueError, match=r"license: expected an identifier.*got 'all rights'"):
        model.push_to_hub("user/name", license="all rights")
    for metrics in ({"accuracy": 0.5}, {"tasks": {"vqa": {"val": 0.5}}}, {"tasks": {"vqa": 0.5}}):
        with pytest.raises(ValueError, match=r"metrics: expected .* got"):
            model.push_to_hub("user/name", metrics=metrics)
    with pytest.raises(ValueError, match="metrics: the model has a card of its own"):
        packaged.push_to_hub("user/name", metrics=METRICS)
    assert not hub.pushed


def test_without_the_library(micro_models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"hf://user/name is a model on the Hub.*fiber-vl\[hub\]"):
        fiber.load("hf://user/name")
    model = fiber.load(micro_models["coarse"], device="cpu")
    with pytest.raises(ImportError, match=r"fiber-vl\[hub\]"):
        model.push_to_hub("user/name")
