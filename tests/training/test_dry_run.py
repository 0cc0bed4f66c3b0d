"""Configurations that are printed and passed back, and runs of one step without a folder."""

import json

import pytest
import torch

from fiber.config_io import to_dict
from fiber.data import Record
from fiber.training.config.run import RunConfig
from fiber.training.dry_run import dry_run, fitted_config
from fiber.training.train import train

from .micro_runs import all_records, coarse_config, fine_config, run


def given(config: RunConfig, pictures):
    records = all_records(pictures)
    data = {name: records[name] for name in config.tasks.active()}
    return {"data": data, "tokenizer": str(pictures / "tokenizer.json")}


QUIET = {"quiet": True, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run(fine_config(train__steps=2, train__checkpoint_every=0), pictures, folder)


def test_a_dry_run_is_the_first_step_of_the_run(finished, pictures, tmp_path):
    config = fine_config(train__steps=2, train__checkpoint_every=0)
    before = torch.get_rng_state()
    done = dry_run(config, output=tmp_path / "run", **given(config, pictures), **QUIET)
    assert list(tmp_path.iterdir()) == [] and torch.equal(torch.get_rng_state(), before)
    first = finished.metrics[0]
    assert done.steps == 1 and done.losses == first["losses"]
    assert done.gradient_norm == first["gradient_norm"]
    assert done.config == finished.config and done.peak_bytes > 1 << 20


def test_every_task_has_a_step(pictures, capsys):
    config = coarse_config()
    done = dry_run(config, **given(config, pictures), device="cpu", threads=1)
    assert {"itc", "itm", "mlm", "vqa", "nlvr2", "caption"} <= set(done.losses)
    assert 4 <= done.steps <= config.train.steps
    assert set(done.chance) <= set(done.losses) and done.chance["itm"] > 0
    assert "image_text 12" in capsys.readouterr().err


def test_the_steps_of_a_short_run_suffice(pictures):
    config = coarse_config(train__steps=2)
    assert dry_run(config, **given(config, pictures), **QUIET).steps == 2


def test_what_is_wrong_is_found(finished, pictures, tmp_path):
    config = fine_config()
    with pytest.raises(FileExistsError, match="already contains a run"):
        dry_run(config, output=finished.folder, **given(config, pictures), **QUIET)
    with pytest.raises(ValueError, match=r"expected the run's tasks: 'grounding'"):
        dry_run(config, data={"caption": []}, **QUIET)
    (tmp_path / "none.png").write_bytes(b"no picture")
    text = "a red square"
    bad = Record(
        key="bad",
        images=(str(tmp_path / "none.png"),),
        text=text,
        boxes_xyxy=((0.0, 0.0, 9.0, 9.0),),
        char_spans=(((0, len(text)),),),
    )
    tokenizer = str(pictures / "tokenizer.json")
    with pytest.raises(ValueError, match=r"none\.png"):
        dry_run(config, data={"grounding": [bad] * 4}, tokenizer=tokenizer, **QUIET)


def test_a_printed_configuration_is_that_of_the_run_and_can_be_passed_back(
    finished, pictures, tmp_path
):
    config = fine_config(train__steps=2, train__checkpoint_every=0)
    fitted = fitted_config(config, **given(config, pictures))
    assert fitted == finished.config != config
    stored = json.loads((finished.folder / "config.json").read_text())
    printed = json.loads(json.dumps(to_dict(fitted), indent=2))
    assert printed.items() <= stored.items()
    (tmp_path / "own.json").write_text(json.dumps(printed))
    # And so can the file of a run, which says where it comes from, too.
    for file in (tmp_path / "own.json", finished.folder / "config.json"):
        assert fitted_config(str(file), **given(config, pictures)) == fitted
    own = str(tmp_path / "own.json")
    again = train(own, output=tmp_path / "run", **given(config, pictures), **QUIET)
    assert [entry["losses"] for entry in again.metrics] == [
        entry["losses"] for entry in finished.metrics
    ]
    changed = fitted_config(own, set={"train.steps": 7}, **given(config, pictures))
    assert (changed.train.steps, changed.model) == (7, fitted.model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"own\.json"),
        ("[1]", "is no configuration of a run; expected what `fiber train RECIPE"),
        ('{"model": {"family": "fiber"}}', "is no configuration of a run"),
        (
            '{"tasks": {"grounding": {"share": 1}}, "trian": {}}',
            "'trian': did you mean train",
        ),
        ('{"tasks": {"grounding": {"share": 1}}, "train": {"steps": "2"}}', "train.steps: .*int"),
    ],
)
def test_files_that_are_no_configuration(content, message, tmp_path):
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        fitted_config(str(tmp_path / "own.json"), data="none")
    with pytest.raises(FileNotFoundError, match=r"No such configuration.*none\.json"):
        fitted_config(str(tmp_path / "none.json"), data="none")
