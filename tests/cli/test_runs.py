"""The commands that make data, train and measure: what they hand on, and what may fail."""

import errno
import inspect
import json
import sys
import types
from pathlib import Path

import pytest

import fiber
import fiber.demo
from fiber.cli import main
from fiber.data import RemoteError, open_source, pack, sources
from fiber.evaluation.context import EvalContext
from fiber.synthetic import scenes, stamps
from fiber.synthetic.scenes import generate
from fiber.tasks import all_evaluations

from .output import error_line


def stop_with(error):
    """Make a stand-in for a function that fails."""

    def fail(*arguments, **settings):
        raise error

    return fail


@pytest.fixture(scope="module")
def page_data(made_once):
    """A small dataset of scenes."""
    made = made_once("page_scenes", lambda made: generate(made / "data", train=8, val=4, novel=4))
    return made / "data"


class TestTrain:
    def test_help_says_what_it_does(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        assert "Train a model with a recipe" in capsys.readouterr().out

    def test_everything_is_handed_on(self, desk, capsys, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "fiber.training.train.train",
            lambda *given, **settings: seen.append((given, settings)),
        )
        arguments = ["train", "scenes_fine", "--data", "d", "--init", "runs/demo/coarse"]
        arguments += ["--resume", "--set", "train.steps=5", "--set", "optim.lr = 1e-3"]
        arguments += ["--validation", "v.jsonl"]
        assert main(arguments) == 0
        given, settings = seen[0]
        assert given == ("scenes_fine",)
        assert settings == {
            "data": "d",
            "output": Path("runs/scenes_fine"),
            "validation": "v.jsonl",
            "keep": None,
            "set": {"train.steps": "5", "optim.lr": "1e-3"},
            "init": "runs/demo/coarse",
            "tokenizer": None,
            "answers": None,
            "resume": True,
            "device": None,
            "threads": 0,
            "callbacks": [],
        }
        assert capsys.readouterr().out == "runs/scenes_fine\n"
        more = ["--output", "runs/mine", "--answers", "list.json", "--workers", "3"]
        assert main([*arguments, *more]) == 0
        assert seen[1][1]["threads"] == 3
        assert seen[1][1]["output"] == Path("runs/mine")
        assert seen[1][1]["answers"] == "list.json"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["scenes_coarse", "--data", "none"], "none"),
            (["scenes_corse", "--data", "."], "did you mean scenes_coarse"),
            (["scenes_coarse", "--data", ".", "--cache", "c"], "--cache"),
            (["scenes_coarse", "--data", "nosuch://a"], "nosuch://a"),
            (["scenes_coarse", "--data", "memory://none"], "memory://none/pack.json"),
            (["scenes_fine", "--data", ".", "--set", "train.step=3"], "train.steps"),
            (["scenes_fine", "--data", ".", "--set", "train.steps=many"], "many"),
            (["scenes_fine", "--data", ".", "--set", "train.steps"], "expected KEY=VALUE"),
            (["scenes_fine", "--data", ".", "--set", "=3"], "expected KEY=VALUE"),
            (["scenes_fine", "--data", ".", "--init", "none"], "none"),
            (["scenes_fine", "--data", ".", "--answers", "none.json"], "none.json: No such file"),
            (
                ["scenes_coarse", "--data", ".", "--answers", "twice.json"],
                "duplicate answer 'no'",
            ),
            (["scenes_fine", "--data", "."], "refcoco_train.json"),
        ],
    )
    def test_bad_input(self, desk, capsys, arguments, message):
        Path("twice.json").write_text('["no", "yes", "no"]')
        assert main(["train", *arguments]) == 2
        assert message in error_line(capsys)
        assert not Path("runs/scenes_fine").exists()
        assert not Path("runs/scenes_coarse").exists()

    def test_data_at_urls_is_cached(self, desk, monkeypatch, small_scenes):
        seen = []
        monkeypatch.setattr("fiber.training.train.train", lambda *_, **given: seen.append(given))
        pack(small_scenes, desk / "packed", splits=["val"])
        arguments = ["--data", f"file://{desk}/packed", "--validation", "v", "--cache", "c"]
        assert main(["train", "scenes_fine", *arguments, "--cache-gb", "2"]) == 0
        assert seen[0]["data"].parent == desk / "c" and seen[0]["validation"] == "v"
        assert len(open_source("captions", seen[0]["data"], "val")) > 0
        note = json.loads(next((desk / "c").glob("*.remote.json")).read_text())
        assert note == {"url": f"file://{desk}/packed", "limit_bytes": 2 * 10**9}

    def test_ctrl_c(self, desk, capsys, monkeypatch):
        monkeypatch.setattr("fiber.training.train.train", stop_with(KeyboardInterrupt()))
        assert main(["train", "scenes_fine", "--data", "."]) == 130
        assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; ")

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (
                OSError(errno.ENOSPC, "No space left on device", "a.pt"),
                1,
                "a.pt: No space left on device; ",
            ),
            (OSError(errno.ENOSPC, "a.pt could not be written"), 1, "a.pt could not be written"),
            (RemoteError("s3://b/a.tar cannot be read"), 1, "s3://b/a.tar cannot be read"),
            (PermissionError(errno.EACCES, "Permission denied", "a.pt"), 2, "a.pt: Permission"),
            (FileExistsError("runs/x holds a run already"), 2, "runs/x holds a run already"),
            (FloatingPointError("alignment is nan"), 1, "alignment is nan"),
            (MemoryError("9.00 GiB of memory is free"), 1, "9.00 GiB of memory is free"),
            (MemoryError(), 1, "out of memory"),
            (fiber.DecodeError("a.jpg:\nno picture"), 2, "a.jpg: no picture"),
            (ModuleNotFoundError("No module named 'x.y'", name="x.y"), 2, "x is not installed"),
        ],
    )
    def test_failures_are_one_line(self, desk, capsys, monkeypatch, error, code, message):
        monkeypatch.setattr("fiber.training.train.train", stop_with(error))
        assert main(["train", "scenes_fine", "--data", "."]) == code
        assert message in error_line(capsys)

    def test_a_fault_of_ours_keeps_its_traceback(self, desk, monkeypatch):
        monkeypatch.setattr("fiber.training.train.train", stop_with(RuntimeError("shapes")))
        with pytest.raises(RuntimeError, match="shapes"):
            main(["train", "scenes_fine", "--data", "."])

    @pytest.mark.parametrize("option", ["--print-config", "--dry-run"])
    def test_nothing_is_written(self, option, page_data, desk, capsys):
        before = sorted(Path().rglob("*"))
        arguments = ["train", "scenes_fine", "--data", str(page_data), "--set", "data.batch_size=2"]
        assert main([*arguments, "--set", "model.max_tokens=30", option]) == 0
        printed = capsys.readouterr()
        if option == "--print-config":
            config = json.loads(printed.out)
            assert config["data"]["batch_size"] == 2 and config["model"]["max_tokens"] == 30
        else:
            assert printed.out == "" and "box loss " in printed.err
            assert "1 step of 1,700 passed" in printed.err
            assert "nothing was written to runs/scenes_fine" in printed.err
        assert sorted(Path().rglob("*")) == before

    @pytest.mark.parametrize("option", ["--print-config", "--dry-run"])
    @pytest.mark.parametrize("other", [["--resume"], ["--processes", "2"], ["--track", "wandb"]])
    def test_options_of_runs_are_refused_without_one(self, option, other, desk, capsys):
        assert main(["train", "scenes_fine", "--data", "d", option, *other]) == 2
        assert f"{option} writes no run" in (line := error_line(capsys)) and other[0] in line


class TestDemo:
    def test_everything_is_handed_on(self, desk, monkeypatch):
        # A stand-in: the whole of FIBER is not for a quick test.
        seen = []
        run = types.ModuleType("fiber.demo.run")
        run.__dict__["main"] = lambda **settings: seen.append(settings) or 1
        monkeypatch.setitem(sys.modules, "fiber.demo.run", run)
        monkeypatch.setattr(fiber.demo, "run", run, raising=False)
        assert main(["demo", "--fast", "--seed", "3", "--output", "runs/x"]) == 1
        assert seen[0]["fast"] is True
        assert seen[0]["seed"] == 3
        assert seen[0]["output"] == Path("runs/x")
        assert seen[0]["permute_images"] is False
        assert main(["demo", "--permute-pictures"]) == 1
        assert seen[1]["permute_images"] is True


class TestData:
    @pytest.mark.parametrize("kind", ["scenes", "stamps"])
    def test_everything_is_handed_on(self, desk, capsys, monkeypatch, kind):
        seen = []
        monkeypatch.setattr(
            f"fiber.synthetic.{kind}.generate",
            lambda output, **settings: seen.append((output, settings)) or output,
        )
        arguments = ["data", kind, "--output", "made", "--images", "7", "--seed", "3"]
        more = ["--backgrounds", "photos", "--stamps", "cut"] if kind == "stamps" else []
        assert main([*arguments, "--tokenizer", "words", *more]) == 0
        output, settings = seen[0]
        assert output == Path("made")
        del settings["progress"]
        assert settings.pop("workers") >= 1
        if kind == "stamps":
            assert settings.pop("backgrounds") == Path("photos")
            assert settings.pop("stamps") == Path("cut")
        assert settings == {"train": 7, "seed": 3, "tokenizer": Path("words")}
        assert main(arguments) == 0
        assert "tokenizer" not in seen[1][1]
        assert capsys.readouterr().out == "made\nmade\n"

    @pytest.mark.parametrize("kind", ["scenes", "stamps"])
    @pytest.mark.parametrize("number", ["0", "-3", "many"])
    def test_a_training_split_needs_pictures(self, desk, capsys, kind, number):
        with pytest.raises(SystemExit) as stopped:
            main(["data", kind, "--output", "made", "--images", number])
        assert stopped.value.code == 2
        message = f"argument --images: expected a positive integer, got {number!r}"
        assert message in capsys.readouterr().err
        assert not Path("made").exists()

    @pytest.mark.parametrize(("kind", "module"), [("scenes", scenes), ("stamps", stamps)])
    def test_help_tells_the_numbers_of_pictures(self, capsys, kind, module):
        with pytest.raises(SystemExit):
            main(["data", kind, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        defaults = inspect.signature(module.generate).parameters
        assert f"training images (default: {defaults['train'].default})" in shown
        assert f"(default: {defaults['seed'].default})" in shown
        assert f"always has {defaults['val'].default} images in val" in shown
        assert f"and {defaults['novel'].default} images in novel" in shown

    def test_answers_of_the_published_head(self, desk, capsys):
        for year, answers in (("train2014", ["A dog"] * 9), ("val2014", ["yes"] * 9)):
            entries = [{"question_id": 1, "multiple_choice_answer": answer} for answer in answers]
            Path(f"v2_mscoco_{year}_annotations.json").write_text(
                json.dumps({"annotations": entries})
            )
        assert main(["data", "answers", ".", "--output", "out/answers.json"]) == 0
        shown = capsys.readouterr()
        assert shown.out == "out/answers.json\n"
        assert "2 answers, from 18 questions" in shown.err
        assert "this is not the published list" in shown.err
        assert json.loads(Path("out/answers.json").read_text()) == ["dog", "yes"]
        assert main(["data", "answers", "more", "--output", "none.json"]) == 2
        assert "more has no VQAv2 annotations" in error_line(capsys)
        assert not Path("none.json").exists()

    def test_a_folder_that_holds_something_else(self, desk, capsys):
        assert main(["data", "scenes", "--output", "more"]) == 2
        assert "more" in error_line(capsys)
        assert [path.name for path in Path("more").iterdir()] == ["a.jpg"]


class TestEval:
    def test_help_names_every_task(self, capsys):
        with pytest.raises(SystemExit):
            main(["eval", "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "Evaluate a model on a split of a dataset" in shown
        assert f"one of {', '.join(all_evaluations())}" in shown

    def test_metrics_and_predictions(self, desk, capsys, monkeypatch):
        generate("runs/scenes", train=0, val=4, novel=0)
        arguments = ["eval", "runs/demo/fine", "refcoco", "--data", "runs/scenes"]
        # The little tokenizer of the models cuts the longer texts.
        assert main([*arguments, "--output", "out/found.json"]) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert all(value >= 0 for value in metrics.values())
        predictions = json.loads(Path("out/found.json").read_text())
        assert len(predictions) == len(sources.referring("runs/scenes", "val"))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(arguments) == 0
        shown = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in shown] == list(metrics)

    def test_batch_threads_and_size(self, desk, capsys, monkeypatch):
        generate("runs/scenes", train=0, val=4, novel=0)
        seen, run_batches = [], EvalContext.run_batches
        monkeypatch.setattr(
            EvalContext,
            "run_batches",
            lambda self, *given: (
                seen.append((self.batch_size, self.threads)) or run_batches(self, *given)
            ),
        )
        arguments = ["eval", "runs/demo/coarse", "vqa", "--data", "runs/scenes"]
        assert main(arguments) == 0
        expected = json.loads(capsys.readouterr().out)
        assert main([*arguments, "--batch-size", "3", "--threads", "1"]) == 0
        assert json.loads(capsys.readouterr().out) == expected
        assert main([*arguments, "--image-size", "128"]) == 0
        capsys.readouterr()
        assert seen == [(64, 0), (3, 1), (64, 0)]
        assert main([*arguments, "--image-size", "99"]) == 2
        assert "image_size 99: expected a multiple of" in error_line(capsys)
        with pytest.raises(SystemExit):
            main([*arguments, "--batch-size", "0"])
        assert "argument --batch-size: expected a positive integer" in capsys.readouterr().err

    def test_words_can_be_named(self, desk, capsys):
        generate("runs/scenes", train=0, val=4, novel=0)
        arguments = ["eval", "runs/demo/coarse", "vqa", "--data", "runs/scenes"]
        assert main(arguments) == 0
        expected = capsys.readouterr().out
        Path("words").mkdir()
        for name in ("tokenizer.json", "answers.json"):
            Path("runs/demo/coarse", name).rename(Path("words", name))
        named = ["--tokenizer", "words", "--answers", "words/answers.json"]
        assert main([*arguments, *named]) == 0
        assert capsys.readouterr().out == expected
        assert main([*arguments, *named[:2]]) == 2
        assert "--answers FILE, or fiber.load" in error_line(capsys)
        assert main([*arguments, *named[2:]]) == 2
        assert "--tokenizer DIR, or fiber.load" in error_line(capsys)

    def test_ctrl_c_leaves_no_predictions(self, desk, capsys, monkeypatch):
        generate("runs/scenes", train=0, val=4, novel=0)
        monkeypatch.setattr(
            "fiber.tasks.grounding.evaluate._ground", stop_with(KeyboardInterrupt())
        )
        arguments = ["eval", "runs/demo/fine", "refcoco", "--data", "runs/scenes"]
        Path("out").mkdir()
        assert main([*arguments, "--output", "out/found.json"]) == 130
        assert "stopped; " in capsys.readouterr().err
        assert not list(Path("out").iterdir())

    def test_questions_without_answers_say_why_nothing_is_measured(self, desk, capsys):
        Path("asked.jsonl").write_text('{"image": "a.jpg", "question": "where?"}\n')
        arguments = ["eval", "runs/demo/coarse", "vqa", "--data", "asked.jsonl", "--split", "test"]
        assert main([*arguments, "--output", "said.json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == {}
        assert "1 of 1 questions have no answers, so metrics cannot be computed" in err
        assert len(json.loads(Path("said.json").read_text())) == 1

    def test_how_many_candidates_are_ordered_again(self, desk, capsys):
        generate("runs/scenes", train=0, val=4, novel=0)
        arguments = ["eval", "runs/demo/coarse", "retrieval", "--data", "runs/scenes", "--rerank"]
        found = {}
        for number in ("0", "2", "all"):
            assert main([*arguments, number]) == 0
            found[number] = json.loads(capsys.readouterr().out)
        assert len(found["2"]) == len(found["all"]) == 2 * len(found["0"])
        with pytest.raises(SystemExit):
            main([*arguments, "some"])
        assert "expected a non-negative integer or 'all', got 'some'" in capsys.readouterr().err
        assert main(["eval", "runs/demo/coarse", "vqa", "--data", ".", "--rerank", "3"]) == 2
        assert "--rerank requires task 'retrieval', got 'vqa'" in error_line(capsys)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["runs/demo/fine", "refcocoa", "--data", "."], "did you mean refcoco"),
            (["runs/demo/fine", "vqa", "--data", "."], "'vqa'; this model has grounding"),
            (["runs/demo/fine", "refcoco", "--data", "none"], "none does not exist"),
            (["runs/demo/fine", "refcoco", "--data", "."], "refcoco_val.json"),
            (
                ["runs/demo/fine", "refcoco", "--data", "splits", "--split", "vall"],
                "splits has no referring for split 'vall'; available splits: train, val",
            ),
            (["none", "refcoco", "--data", "."], "model none does not exist"),
        ],
    )
    def test_bad_input(self, desk, capsys, arguments, message):
        Path("splits").mkdir()
        for split in ("train", "val"):
            Path(f"splits/refcoco_{split}.json").write_text("{}")
        assert main(["eval", *arguments]) == 2
        assert message in error_line(capsys)
