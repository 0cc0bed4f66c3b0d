"""`--keep`: old data beside new, evaluated before and after, in runs that go on to the bit."""

import json
import shutil

import pytest

import fiber
from fiber.cli import main
from fiber.data.record import MixedRecords
from fiber.synthetic.scenes import generate
from fiber.training.data import fingerprint, open_data
from fiber.training.dry_run import dry_run, fitted_config
from fiber.training.run_dir import RunFolder
from fiber.training.tracking.kept import KEPT, read_kept
from fiber.training.train import train
from tests.training.micro_runs import coarse_config, fine_config
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

QUIET = {"quiet": True, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def new(made_once):
    """Boxes of scenes, whose classes have other names."""

    def make(folder):
        generate(folder / "data", train=12, val=4, novel=4)
        for file in (folder / "data").glob("instances_*.json"):
            content = json.loads(file.read_text())
            for number, category in enumerate(content["categories"]):
                category["name"] = f"thing {number}"
            file.write_text(json.dumps(content))

    return made_once("renamed_scenes", make) / "data"


def config(**changes):
    own = {
        "model__max_tokens": 40,
        "tasks__grounding__sources": ("detection",),
        "validation__task": "coco",
        "train__steps": 4,
        "train__checkpoint_every": 2,
    }
    return fine_config(**own | changes)


@pytest.fixture(scope="module")
def start(micro_models):
    return micro_models["fine"]


@pytest.fixture(scope="module")
def finished(new, small_scenes, start, tmp_path_factory):
    output = tmp_path_factory.mktemp("kept") / "run"
    return train(config(), data=new, keep=small_scenes, init=start, output=output, **QUIET)


def stored(folder):
    return json.loads((folder / KEPT).read_text())


def test_old_data_is_evaluated_before_and_after(finished, small_scenes, start):
    found = stored(finished.folder)
    assert found == finished.kept
    assert (found["data"], found["task"], found["split"]) == (str(small_scenes), "coco", "val")
    assert (found["records"], found["share"]) == (12, 0.25)
    for when, model in (("before", start), ("after", finished.folder)):
        expected = fiber.evaluate(fiber.load(model), "coco", data=small_scenes, threads=1)
        assert found[when] == {name: expected[name] for name in found[when]}
        assert "ap" in found[when]


def test_it_is_printed(new, small_scenes, start, tmp_path, capsys):
    options = {"data": new, "keep": small_scenes, "init": start, "device": "cpu", "threads": 1}
    done = train(config(train__steps=1, data__keep_share=0.0), output=tmp_path / "run", **options)
    line = [line for line in capsys.readouterr().err.splitlines() if "kept: coco on val" in line]
    before, after = done.kept["before"]["ap"], done.kept["after"]["ap"]
    assert f"ap {before:.4f} before, {after:.4f} after ({after - before:+.4f})" in line[0]


def test_a_share_of_the_records_is_old(new, small_scenes, start, finished):
    known = fiber.load(start)
    data = open_data(config(), new, tokenizer=known.tokenizer, keep=small_scenes)
    mixed = data.records["grounding"]
    assert isinstance(mixed, MixedRecords)
    assert (len(mixed.new), len(mixed.old), mixed.times) == (12, 30, 7)
    classes = [set(mixed.in_epoch(0, i).text.split(". ")) for i in range(len(mixed))]
    old = [each for each in classes if not any(name.startswith("thing") for name in each)]
    assert len(old) == len(mixed.indices) == 28
    # New classes first; both are those of the model.
    assert data.vocabulary.classes[0] == "thing 0" and "circle" in data.vocabulary.classes
    assert json.loads((finished.folder / "classes.json").read_text()) == [*data.vocabulary.classes]


def test_an_epoch_is_a_pass_over_the_new_records(new, small_scenes, start):
    epochs = config(train__epochs=2.0, train__steps=1000)
    with_old = fitted_config(epochs, data=new, keep=small_scenes, init=start)
    without = fitted_config(epochs, data=new, init=start)
    # 12 new records and 4 old ones, in batches of 4.
    assert (without.train.steps, with_old.train.steps) == (6, 8)


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_is_bit_identical(
    new, small_scenes, start, finished, tmp_path, monkeypatch, step
):
    options = {"data": new, "keep": small_scenes, "init": start, "output": tmp_path / "run"}
    stop_before(monkeypatch, step)
    with pytest.raises(StopError):
        train(config(), **options, **QUIET)
    assert "after" not in stored(tmp_path / "run")
    resumed = train(config(), **options, **QUIET, resume=True)
    assert numbers(resumed.folder) == numbers(finished.folder)
    assert weights_equal(resumed.folder, finished.folder)
    assert resumed.kept == finished.kept == stored(tmp_path / "run")


def test_a_finished_run_is_evaluated_if_it_was_stopped_before(
    new, small_scenes, start, finished, tmp_path
):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    whole = stored(folder)
    (folder / KEPT).write_text(json.dumps({k: v for k, v in whole.items() if k != "after"}))
    options = {"data": new, "keep": small_scenes, "init": start, "output": folder}
    assert train(config(), **options, **QUIET, resume=True).kept == whole == stored(folder)


def test_measuring_alone_trains_as_without(new, small_scenes, start, tmp_path):
    options = {"data": new, "init": start, **QUIET}
    without = train(config(train__steps=2), output=tmp_path / "without", **options)
    share = config(train__steps=2, data__keep_share=0.0)
    measured = train(share, output=tmp_path / "measured", keep=small_scenes, **options)
    assert numbers(without.folder) == numbers(measured.folder)
    assert weights_equal(without.folder, measured.folder)
    assert without.kept is None and not (without.folder / KEPT).exists()
    assert measured.kept["share"] == 0 and measured.kept["after"].keys() >= {"ap"}


def test_the_share_is_stored_only_if_it_is_another(finished):
    assert "keep_share" not in json.loads((finished.folder / "config.json").read_text())["data"]


def test_other_records_have_another_fingerprint(new, small_scenes, start):
    tokenizer = fiber.load(start).tokenizer

    def mark(**changes):
        options = {"tokenizer": tokenizer, "keep": small_scenes}
        return fingerprint(open_data(config(**changes), new, **options).records["grounding"])

    assert len({mark(), mark(data__keep_share=0.5), mark(train__seed=1)}) == 3
    assert mark() == mark()


def test_questions_with_answers_of_both(small_scenes, micro_models, tmp_path):
    shares = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")}
    lines = [
        {"image": str(path), "question": "is it new?", "answer": "brand new"}
        for path in sorted((small_scenes / "images").rglob("*.*"))[:6]
    ]
    file = tmp_path / "new.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    options = {"data": file, "init": micro_models["coarse"], "output": tmp_path / "run", **QUIET}
    quick = coarse_config(**shares, train__steps=1, model__max_tokens=40)
    done = train(quick, keep=small_scenes, **options)
    answers = json.loads((done.folder / "answers.json").read_text())
    assert "brand new" in answers and "red" in answers
    # Without validation, the evaluation is that of the task.
    assert done.kept["task"] == "vqa" and done.kept["records"] > 12


def rejected(message, error=ValueError, run=None, **options):
    with pytest.raises(error, match=message):
        train(run or config(), **options, **QUIET)
    return True


def test_bad_input_is_named(new, small_scenes, start, micro_models, tmp_path):
    own = {"data": new, "keep": small_scenes, "init": start, "output": tmp_path / "run"}
    assert rejected("--keep.*random weights; pass the model .*--init", **own | {"init": None})
    assert rejected("--keep.*no such|--keep.*none", FileNotFoundError, **own | {"keep": "none"})
    assert rejected("--keep.*expected a data folder.*got int 3", TypeError, **own | {"keep": 3})
    coarse = own | {"init": micro_models["coarse"]}
    assert rejected("--keep.*needs the head 'grounding', but .*coarse", **coarse)
    (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "text": "a dog"}')
    captions = own | {"keep": tmp_path / "captions.jsonl"}
    assert rejected("--keep.*captions", **captions)
    split = config(data__split="train+val", validation__task=None)
    assert rejected("--keep.*'val' of the old data, which is trained on", run=split, **own)
    share = config(data__keep_share=0.5)
    assert rejected(
        "data.keep_share=0.5 is for runs with old data", run=share, **own | {"keep": None}
    )
    with pytest.raises(ValueError, match=r"data.keep_share must be in \[0, 1\), got 1"):
        config(data__keep_share=1.0)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_old_data(new, small_scenes, start, finished, tmp_path):
    own = {"data": new, "init": start, "resume": True}
    folder = shutil.copytree(finished.folder, tmp_path / "with")
    assert rejected(r"started with old data; pass it again \(--keep ", **own, output=folder)
    assert rejected("other old data: records was 12 and is 4", **own, output=folder, keep=new)
    (folder / KEPT).write_text("[]")
    assert rejected("expected a JSON object", **own, output=folder, keep=small_scenes)
    (folder / KEPT).unlink()
    assert rejected("started without old data", **own, output=folder, keep=small_scenes)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data": 3}, "data is 3"),
        ({"task": None}, "task is None"),
        ({"records": "12"}, "records is '12'"),
        ({"share": []}, r"share is \[\]"),
        ({"before": [0.5]}, r"before is \[0\.5\]; expected numbers by metric"),
        ({"after": {"ap": "high"}}, "after is .*'high'.*; expected numbers by metric"),
        ({"after": {"ap": 10**400}}, "after is .*; expected numbers by metric"),
    ],
)
def test_damaged_numbers_are_named(tmp_path, change, problem):
    whole = {"data": "old", "task": "coco", "split": "val", "records": 12, "share": 0.25}
    whole |= {"fingerprint": "0" * 64, "before": {"ap": 0.5, "novel": float("nan")}}
    folder = RunFolder(tmp_path)
    (tmp_path / KEPT).write_text(json.dumps(whole))
    assert read_kept(folder)["before"]["ap"] == 0.5
    (tmp_path / KEPT).write_text(json.dumps(whole | change))
    with pytest.raises(ValueError, match=rf"kept\.json: {problem}"):
        read_kept(folder)


def test_a_dry_run_and_the_command(new, small_scenes, start, tmp_path, monkeypatch, capsys):
    own = {"data": new, "keep": small_scenes, "init": start}
    done = dry_run(config(), **own, output=tmp_path / "run", **QUIET)
    assert done.steps == 1 and not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError, match="--keep"):
        dry_run(config(), **own | {"keep": tmp_path / "none"}, **QUIET)
    seen = {}
    monkeypatch.setattr("fiber.training.train.train", lambda recipe, **given: seen.update(given))
    command = ["train", "small_detection", "--data", str(new), "--keep", str(small_scenes)]
    assert main([*command, "--init", str(start), "--output", str(tmp_path / "run")]) == 0
    assert str(seen["keep"]) == str(small_scenes)
