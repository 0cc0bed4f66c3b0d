"""Which names are of a model on the Hub, and which are paths of this machine."""

from pathlib import Path

import pytest

import fiber
from fiber.checkpoints import stages
from fiber.checkpoints.hub.names import HubModel, hub_name, parse_hub_name, short_hub_name

pytestmark = pytest.mark.oldest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://user/name", HubModel("user/name")),
        ("hf://user/name@v1.0", HubModel("user/name", "v1.0")),
        ("hf://user/name@refs/pr/1", HubModel("user/name", "refs/pr/1")),
        (f"hf://user/na.me_2@{COMMIT}/fine", HubModel("user/na.me_2", COMMIT, "fine")),
        ("hf://user/name/coarse", HubModel("user/name", None, "coarse")),
        (Path("hf://user/name@v1"), HubModel("user/name", "v1")),
        ("user/name", None),
        ("https://huggingface.co/user/name", None),
    ],
)
def test_names_with_a_scheme(name, expected):
    assert parse_hub_name(name) == expected
    if expected is not None:
        assert parse_hub_name(str(expected)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "hf://",
        "hf://name",
        "hf://user/",
        "hf://-u/n",
        "hf://user/name@",
        "hf://a/b/c",
        "hf://a b/c",
    ],
)
def test_wrong_names(name):
    with pytest.raises(ValueError, match="is not the name of a model on the Hub; expected hf://"):
        fiber.load(name)


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "./user/name",
        "../user/name",
        "~/name",
        "/user/name",
        "user/name/more",
        "user/model.ckpt",
        "user/model.safetensors",
        # Misspelled paths of this machine.
        "runs/demo",
        "run/demo",
        "Runs/demo",
        "scenes/corse",
        "scene/coarse",
        "models/absent",
        "model/absent",
    ],
)
def test_a_path_is_no_name(name, tmp_path, monkeypatch):
    """A typo in the name of a run must never load a stranger's model."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "download", lambda *_: pytest.fail("asked the Hub"))
    assert stages.model_path(name) == Path(name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fiber.load(name)


def test_short_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_hub_name("user/name") == HubModel("user/name")
    assert short_hub_name("user/name@v1/fine") == HubModel("user/name", "v1", "fine")
    (tmp_path / "user").mkdir()
    assert short_hub_name("user/name") is None


def test_the_name_of_a_snapshot():
    folder = Path(f"/home/me/.cache/huggingface/hub/models--user--na-me/snapshots/{COMMIT}")
    assert hub_name(folder) == HubModel("user/na-me", COMMIT)
    assert hub_name(folder / "fine") == HubModel("user/na-me", COMMIT, "fine")
    assert hub_name(folder.parent) is None
    assert hub_name("runs/demo/fine") is None
