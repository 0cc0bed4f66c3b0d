"""Models on a stand-in for the Hub, and in a cache without a network."""

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoints.test_adapters import write as write_adapter
from tests.hub.stub import NEW, OLD, add_to_cache, serve
from tests.processes import run_python

pytestmark = pytest.mark.oldest

#: A process that loads models, and prints of each where it is from, or its error.
LOAD = """
import json, sys
import fiber
for name in json.loads(sys.argv[1]):
    try:
        model = fiber.load(name, device="cpu")
        models = getattr(model, "stages", {"": model})
        origins = [str(each.origin) for each in models.values()]
        print(json.dumps([origins, sorted(model.heads)]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def hub():
    with serve() as served:
        yield served


@pytest.fixture
def load(tmp_path):
    """A function that loads models in a process of its own, whose Hub is a stand-in or away."""
    script = tmp_path / "load.py"
    script.write_text(LOAD)

    def run(names, url="http://127.0.0.1:9", **variables):
        environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        # Pauses between tries of huggingface_hub.
        environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
        done = run_python([script, json.dumps(names)], folder=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture
def both(tmp_path, micro_models) -> Path:
    """A repository with a model per stage."""
    for stage, folder in micro_models.items():
        shutil.copytree(folder, tmp_path / "both" / stage)
    return tmp_path / "both"


def test_load_and_pin(hub, load, both, micro_models, tmp_path):
    repo = tmp_path / "repo"
    shutil.copytree(micro_models["fine"], repo)
    for name in ("modeling.py", "training_args.bin"):
        (repo / name).write_bytes(b"no data")
    hub.add("user/one", repo, NEW, "main")
    hub.add("user/one", micro_models["coarse"], OLD, "v1")
    hub.add("user/both", both, NEW, "main")
    newest, tag, short, staged, stage = load(
        ["hf://user/one", "hf://user/one@v1", "user/one", "hf://user/both", "user/both@main/fine"],
        hub.url,
    )
    assert newest == [[f"hf://user/one@{NEW}"], ["grounding"]]
    assert tag[0] == [f"hf://user/one@{OLD}"] and "vqa" in tag[1]
    assert short == newest
    assert staged[0] == [f"hf://user/both@{NEW}/{name}" for name in ("coarse", "fine")]
    assert stage == [[f"hf://user/both@{NEW}/fine"], ["grounding"]]
    # Only the files of a model, and none of them twice.
    assert not any(name.endswith((".py", ".bin")) for name in hub.asked)
    assert hub.asked["user/both/fine/model.safetensors"] == 1
    assert hub.asked["user/one/model.safetensors"] == 2
    # Without the Hub, what is in the cache is loaded.
    again, pinned = load(["hf://user/one", f"hf://user/one@{OLD}"], HF_HUB_OFFLINE="1")
    assert again == newest and pinned == tag
    assert load(["hf://user/one"]) == [newest]


def test_an_adapter(hub, load, micro_models, tmp_path):
    """Its base is found by the name that it has, here a folder."""
    write_adapter(tmp_path / "adapter", micro_models["coarse"])
    hub.add("user/adapter", tmp_path / "adapter", NEW, "main")
    [(origins, heads)] = load(["hf://user/adapter"], hub.url)
    assert origins == [f"hf://user/adapter@{NEW}"] and "vqa" in heads


def test_a_cache_that_another_program_made(load, both, micro_models, tmp_path):
    add_to_cache(tmp_path / "home", "user/fine", micro_models["fine"])
    add_to_cache(tmp_path / "home", "user/both", both)
    fine, staged, absent, revision = load(
        ["hf://user/fine", "user/both", "hf://user/absent", "hf://user/fine@v2"],
        HF_HUB_OFFLINE="1",
    )
    assert fine == [[f"hf://user/fine@{NEW}"], ["grounding"]]
    assert len(staged[0]) == 2
    cache = tmp_path / "home" / "hub"
    for name, (kind, text) in {"absent": absent, "fine@v2": revision}.items():
        assert kind == "FileNotFoundError"
        assert text.startswith(f"hf://user/{name}: the cache {cache} does not have it")
        assert "HF_HUB_OFFLINE" in text


def test_what_cannot_be_loaded(hub, load, micro_models, tmp_path):
    pickles, other = tmp_path / "pickles", tmp_path / "other"
    for folder in (pickles, other):
        folder.mkdir()
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (pickles / "evil.py").write_text("raise SystemExit")
    (other / "config.json").write_text('{"model_type": "clip"}')
    (other / "model.safetensors").write_bytes(bytes(100))
    for name, folder in {"pickles": pickles, "other": other}.items():
        hub.add(f"user/{name}", folder, NEW, "main")
    hub.add("user/fine", micro_models["fine"], NEW, "main")
    names = ["pickles", "other", "absent", "fine@v9", "fine/coarse"]
    errors = load([f"hf://user/{name}" for name in names], hub.url)
    kinds, texts = zip(*errors, strict=True)
    assert kinds == (
        "ValueError",
        "ValueError",
        "FileNotFoundError",
        "FileNotFoundError",
        "ValueError",
    )
    assert texts[0].startswith(
        f"hf://user/pickles@{NEW} has no model of this package; expected conf"
    )
    assert texts[0].endswith("pickles are not downloaded: pytorch_model.bin")
    assert "is a transformers model of type 'clip'" in texts[1]
    # Its weights may be many gigabytes.
    assert {name for name in hub.asked if "other" in name} == {"user/other/config.json"}
    assert texts[2].startswith("hf://user/absent: the Hub has no such model, or it is private")
    assert texts[3].startswith("hf://user/fine@v9: the model has no revision 'v9'")
    assert f"hf://user/fine@{NEW}/coarse has no model of this package" in texts[4]
    [(kind, text)] = load(["hf://user/away"])
    assert kind == "FileNotFoundError" and "http://127.0.0.1:9 cannot be reached" in text


def test_an_interrupted_download_goes_on(hub, load, micro_models):
    hub.add("user/fine", micro_models["fine"], NEW, "main")
    hub.breaks["model.safetensors"] = 99
    [(kind, text)] = load(["hf://user/fine"], hub.url)
    assert kind == "OSError" and text.startswith(f"hf://user/fine@{NEW}: the download failed")
    assert text.endswith("run the same again: it goes on where it stopped")
    hub.breaks.clear()
    hub.asked.clear()
    [(origins, _)] = load(["hf://user/fine"], hub.url)
    assert origins == [f"hf://user/fine@{NEW}"]
    # What came is kept; of a file, whole chunks of 10 MB, of which this one has none.
    assert hub.asked == {"user/fine/model.safetensors": 1}
