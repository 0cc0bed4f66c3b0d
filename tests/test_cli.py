"""Every command on models of a few thousand weights, and everything that can go wrong."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import fiber
import fiber.demo
from fiber.cli import main, parser
from fiber.cli.models import choose_model, finished_models
from fiber.data import sources
from fiber.data.scenes import generate

TABLE = """
demo data train recipes eval
ground detect answer caption match search
doctor
"""
COMMANDS = TABLE.split()


@pytest.fixture
def desk(tmp_path, monkeypatch, micro_models, scene_picture):
    """A folder to work in: two finished models under runs/ and some pictures."""
    for stage in ("coarse", "fine"):
        shutil.copytree(micro_models[stage], tmp_path / "runs" / "demo" / stage)
    for name in ("a.jpg", "b.jpg", "more/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(scene_picture, tmp_path / name)
    (tmp_path / "corrupt.jpg").write_bytes(scene_picture.read_bytes()[:200])
    (tmp_path / "words.jpg").write_text("no picture at all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def error_line(capsys) -> str:
    """The one line that a user's mistake is answered with."""
    printed = capsys.readouterr()
    assert printed.out == ""
    # A word on which model is used may stand above.
    *before, last = printed.err.splitlines()
    assert all(line.startswith("fiber: using") for line in before), printed.err
    assert last.startswith("fiber: error: ")
    return last


class TestTable:
    def test_no_command(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            main([])
        assert stopped.value.code == 2
        assert "COMMAND" in capsys.readouterr().err

    def test_every_command_is_there(self):
        table = parser().format_help()
        for command in COMMANDS:
            assert f"\n    {command} " in table, command

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help(self, command, capsys):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"usage: fiber {command}" in capsys.readouterr().out

    def test_version(self, capsys):
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"fiber {fiber.__version__}\n"

    def test_recipes(self, capsys):
        assert main(["recipes"]) == 0
        out = capsys.readouterr().out
        assert "scenes_coarse " in out
        assert "scenes_fine " in out

    def test_help_needs_no_torch(self):
        code = "import sys; sys.modules['torch'] = None; from fiber.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0


class TestModelChoice:
    def test_nothing_there(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"'vqa'.*there is none at all.*--model"):
            choose_model(None, "vqa")

    def test_no_model_with_the_head(self, desk):
        shutil.rmtree("runs/demo/fine")
        with pytest.raises(FileNotFoundError, match=r"'grounding'.*runs/demo/coarse has itc, itm"):
            choose_model(None, "grounding")

    def test_the_newest_one_with_the_head(self, desk, capsys):
        shutil.copytree("runs/demo/fine", "runs/later")
        past = time.time() - 100
        os.utime("runs/demo/fine/model.safetensors", (past, past))
        assert choose_model(None, "grounding") == "runs/later"
        assert capsys.readouterr().err == "fiber: using the model runs/later\n"
        assert choose_model(None, "vqa") == "runs/demo/coarse"

    def test_a_named_one_is_taken_as_it_is(self, desk):
        assert choose_model("anything", "vqa") == "anything"

    def test_unfinished_runs_and_foreign_folders_do_not_count(self, desk):
        shutil.move("runs/demo/fine", "runs/demo/checkpoints")
        shutil.copytree("runs/demo/coarse", "runs/foreign")
        Path("runs/foreign/config.json").write_text('{"model_type": "bert"}')
        Path("runs/started").mkdir()
        shutil.copy("runs/demo/coarse/config.json", "runs/started")
        assert [str(folder) for _, folder, _ in finished_models(Path("runs"))] == [
            "runs/demo/coarse"
        ]


class TestPictureCommands:
    def test_ground(self, desk, capsys):
        code = main(
            ["ground", "a.jpg", "--phrases", "a red circle; the blue square", "--threshold", "0"]
        )
        assert code == 0
        (result,) = lines(capsys)
        assert len(result["detections"]) == 2
        assert list(result) == ["image", "width", "height", "model", "detections"]
        assert (result["image"], result["width"], result["height"]) == ("a.jpg", 90, 70)
        assert result["model"] == "runs/demo/fine"
        found = result["detections"]
        assert {item["label"] for item in found} == {"a red circle", "the blue square"}
        for item in found:
            assert list(item) == ["box_xyxy", "score", "label", "index"]
            x0, y0, x1, y1 = item["box_xyxy"]
            assert 0 <= x0 <= x1 <= 90
            assert 0 <= y0 <= y1 <= 70
            assert 0 <= item["score"] <= 1
            assert ["a red circle", "the blue square"][item["index"]] == item["label"]
        assert [i["score"] for i in found] == sorted((i["score"] for i in found), reverse=True)

    def test_ground_a_caption(self, desk, capsys):
        assert (
            main(
                ["ground", "a.jpg", "--caption", "a circle next to the square", "--threshold", "0"]
            )
            == 0
        )
        (result,) = lines(capsys)
        assert {item["label"] for item in result["detections"]} == {"a circle", "the square"}

    def test_detect_classes_of_a_file_in_a_folder_of_pictures(self, desk, capsys):
        Path("classes.txt").write_text("circle\n\ntraffic light, red\n")
        asked = ["--classes-file", "classes.txt", "--threshold", "0", "--max-detections", "3"]
        assert main(["detect", "more", "b.jpg", *asked, "--save", "out"]) == 0
        results = lines(capsys)
        assert [r["image"] for r in results] == ["more/a.jpg", "b.jpg"]
        assert all(len(r["detections"]) == 3 for r in results)
        assert {d["label"] for r in results for d in r["detections"]} <= {
            "circle",
            "traffic light, red",
        }
        assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "b.png"]

    def test_pictures_of_one_name_are_saved_apart(self, desk, capsys):
        assert main(["caption", "a.jpg", "more/a.jpg", "--save", "out"]) == 0
        assert sorted(p.name for p in Path("out").iterdir()) == ["a-2.png", "a.png"]

    def test_answer(self, desk, capsys):
        assert main(["answer", "a.jpg", "what color is it?", "--top-k", "2", "--save", "out"]) == 0
        (result,) = lines(capsys)
        assert result["question"] == "what color is it?"
        assert result["model"] == "runs/demo/coarse"
        scores = [answer["score"] for answer in result["answers"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        from PIL import Image

        saved = Image.open("out/a.png")
        assert saved.width == 90
        assert saved.height > 70

    def test_caption(self, desk, capsys):
        assert main(["caption", "a.jpg", "b.jpg", "--num-beams", "2"]) == 0
        first, second = lines(capsys)
        assert isinstance(first["caption"], str)
        assert first["caption"] == second["caption"]

    def test_match(self, desk, capsys):
        assert main(["match", "a.jpg", "a red circle"]) == 0
        (result,) = lines(capsys)
        assert result["text"] == "a red circle"
        assert 0 <= result["score"] <= 1

    @pytest.mark.parametrize("flags", [[], ["--no-rerank"]], ids=["itm", "itc"])
    def test_search(self, desk, capsys, flags):
        assert (
            main(["search", "a red circle", "a.jpg", "b.jpg", "more", "--top-k", "2", *flags]) == 0
        )
        results = lines(capsys)
        assert [r["rank"] for r in results] == [1, 2]
        assert results[0]["score"] >= results[1]["score"]
        assert {r["image"] for r in results} < {"a.jpg", "b.jpg", "more/a.jpg"}

    def test_a_table_on_a_terminal(self, desk, capsys, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(["answer", "a.jpg", "is it red?", "--top-k", "1"]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == "a.jpg  (90 x 70 pixels)"
        score, answer = second.split()
        assert 0 <= float(score) <= 1
        assert answer.isalnum()
        assert main(["ground", "a.jpg", "--phrases", "dog", "--threshold", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[1] == "  nothing found"
        assert main(["match", "a.jpg", "dog", "--json"]) == 0
        assert len(lines(capsys)) == 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ground", "none.jpg", "--phrases", "dog"], "none.jpg: no such picture"),
            (["ground", "corrupt.jpg", "--phrases", "dog"], "corrupt.jpg"),
            (["answer", "words.jpg", "why?"], "words.jpg"),
            (["ground", "a.jpg", "--phrases", " ; "], "--phrases is empty"),
            (["ground", "a.jpg", "--phrases", ""], "--phrases is empty"),
            (["ground", "a.jpg"], "give --phrases, --caption or both"),
            (["ground", "a.jpg", "--caption", " "], "empty"),
            (["ground", "a.jpg", "--caption", "a cat", "--phrases", "dog"], "'dog'"),
            (["ground", "a.jpg", "--caption", "of the"], "of the"),
            (["detect", "a.jpg", "--classes", ";"], "--classes is empty"),
            (["detect", "a.jpg", "--classes-file", "none.txt"], "none.txt: No such file"),
            (["detect", "a.jpg", "--classes-file", "blank.txt"], "blank.txt: expected one class"),
            (["detect", "blank", "--classes", "dog"], "blank: no .jpeg, .jpg"),
            (["answer", "a.jpg", ""], "question 0 is empty"),
            (["match", "a.jpg", " "], "text 0 is empty"),
            (["search", "", "a.jpg"], "text 0 is empty"),
            (["match", "a.jpg", "dog", "--model", "none"], "none"),
            (["match", "a.jpg", "dog", "--model", "a.jpg"], "a.jpg"),
            (["match", "a.jpg", "dog", "--device", "toaster"], "toaster"),
            (["ground", "a.jpg", "--phrases", "dog", "--threshold", "2"], "2.0"),
        ],
    )
    def test_message(self, desk, capsys, arguments, message):
        Path("blank").mkdir()
        Path("blank.txt").write_text("\n \n")
        assert main(arguments) == 2
        assert message in error_line(capsys)

    def test_a_model_without_the_head(self, desk, capsys):
        assert main(["answer", "a.jpg", "why?", "--model", "runs/demo/fine"]) == 2
        message = error_line(capsys)
        assert "'vqa'" in message
        assert "grounding" in message
        assert "fiber train scenes_coarse" in message

    @pytest.mark.parametrize(
        "arguments",
        [
            ["ground", "--phrases", "dog"],
            ["answer", "a.jpg", "why?", "--top-k", "0"],
            ["answer", "a.jpg", "why?", "--top-k", "some"],
            ["paint", "a.jpg"],
        ],
    )
    def test_wrong_use(self, desk, capsys, arguments):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "usage: fiber" in capsys.readouterr().err

    def test_broken_models(self, desk, capsys):
        weights = Path("runs/demo/fine/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:1000])
        assert main(["ground", "a.jpg", "--phrases", "dog"]) == 2
        assert "model.safetensors" in error_line(capsys)
        Path("runs/demo/fine/config.json").write_text("{")
        arguments = ["ground", "a.jpg", "--phrases", "dog", "--model", "runs/demo/fine"]
        assert main(arguments) == 2
        assert "config.json" in error_line(capsys)


def stop_with(error):
    """Make a stand-in for a function that fails."""

    def fail(*arguments, **settings):
        raise error

    return fail


class TestTrain:
    def test_everything_is_handed_on(self, desk, capsys, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "fiber.training.loop.train", lambda *given, **settings: seen.append((given, settings))
        )
        arguments = ["train", "scenes_fine", "--data", "d", "--init", "runs/demo/coarse"]
        arguments += ["--resume", "--set", "train.steps=5", "--set", "optim.lr = 1e-3"]
        assert main(arguments) == 0
        given, settings = seen[0]
        assert given == ("scenes_fine",)
        assert settings == {
            "data": "d",
            "output": Path("runs/scenes_fine"),
            "set": {"train.steps": "5", "optim.lr": "1e-3"},
            "init": "runs/demo/coarse",
            "resume": True,
            "device": None,
        }
        assert capsys.readouterr().out == "runs/scenes_fine\n"
        assert main([*arguments, "--output", "runs/mine"]) == 0
        assert seen[1][1]["output"] == Path("runs/mine")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["scenes_coarse", "--data", "none"], "none"),
            (["scenes_corse", "--data", "."], "did you mean scenes_coarse"),
            (["scenes_fine", "--data", ".", "--set", "train.step=3"], "train.steps"),
            (["scenes_fine", "--data", ".", "--set", "train.steps=many"], "many"),
            (["scenes_fine", "--data", ".", "--set", "train.steps"], "expected KEY=VALUE"),
            (["scenes_fine", "--data", ".", "--set", "=3"], "expected KEY=VALUE"),
            (["scenes_fine", "--data", ".", "--init", "none"], "none"),
            (["scenes_fine", "--data", "."], "refcoco_train.json"),
        ],
    )
    def test_bad_input(self, desk, capsys, arguments, message):
        assert main(["train", *arguments]) == 2
        assert message in error_line(capsys)
        assert not Path("runs/scenes_fine").exists()
        assert not Path("runs/scenes_coarse").exists()

    def test_ctrl_c(self, desk, capsys, monkeypatch):
        monkeypatch.setattr("fiber.training.loop.train", stop_with(KeyboardInterrupt()))
        assert main(["train", "scenes_fine", "--data", "."]) == 130
        assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; ")

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (OSError(errno.ENOSPC, "No space left on device", "a.pt"), 1, "a.pt: No space left"),
            (OSError(errno.ENOSPC, "a.pt could not be written"), 1, "a.pt could not be written"),
            (PermissionError(errno.EACCES, "Permission denied", "a.pt"), 2, "a.pt: Permission"),
            (FileExistsError("runs/x holds a run already"), 2, "runs/x holds a run already"),
            (FloatingPointError("alignment is nan"), 1, "alignment is nan"),
            (fiber.DecodeError("a.jpg:\nno picture"), 2, "a.jpg: no picture"),
            (ModuleNotFoundError("No module named 'x.y'", name="x.y"), 1, "needs x, which is not"),
        ],
    )
    def test_failures_are_one_line(self, desk, capsys, monkeypatch, error, code, message):
        monkeypatch.setattr("fiber.training.loop.train", stop_with(error))
        assert main(["train", "scenes_fine", "--data", "."]) == code
        assert message in error_line(capsys)

    def test_a_fault_of_ours_keeps_its_traceback(self, desk, monkeypatch):
        monkeypatch.setattr("fiber.training.loop.train", stop_with(RuntimeError("shapes")))
        with pytest.raises(RuntimeError, match="shapes"):
            main(["train", "scenes_fine", "--data", "."])


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


class TestData:
    @pytest.fixture
    def scenes(self, desk):
        """A data set of few pictures, made by what the command calls."""
        generate("runs/scenes", train=3, val=2, novel=0)
        return Path("runs/scenes")

    @pytest.mark.parametrize("kind", ["scenes", "stamps"])
    def test_everything_is_handed_on(self, desk, capsys, monkeypatch, kind):
        seen = []
        monkeypatch.setattr(
            f"fiber.data.{kind}.generate",
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

    def test_a_folder_that_holds_something_else(self, desk, capsys):
        assert main(["data", "scenes", "--output", "more"]) == 2
        assert "more" in error_line(capsys)
        assert [path.name for path in Path("more").iterdir()] == ["a.jpg"]

    def test_inspect(self, scenes, capsys):
        assert main(["data", "inspect", "runs/scenes"]) == 0
        out = capsys.readouterr().out
        count = len(sources.captions(scenes, "train"))
        assert f"  captions   {count} records" in out
        assert "  train      3 pictures, all 96 x 96 pixels, 0 broken" in out
        assert out.index("\ntrain\n") < out.index("\nval\n")

    def test_inspect_finds_faults(self, scenes, capsys):
        pictures = sorted((scenes / "images" / "train").rglob("*.jpg"))
        pictures[0].write_bytes(pictures[0].read_bytes()[:99])
        pictures[1].unlink()
        (scenes / "refcoco_train.json").write_text("{")
        assert main(["data", "inspect", "runs/scenes"]) == 1
        out = capsys.readouterr().out
        assert "  referring  unreadable" in out
        assert "2 broken" in out
        faults = [line for line in out.splitlines() if line.startswith("fault: ")]
        assert len(faults) == 3
        for name in (pictures[0].name, pictures[1].name, "refcoco_train.json"):
            assert any(name in fault for fault in faults)

    def test_inspect_of_no_data_folder(self, desk, capsys):
        assert main(["data", "inspect", "none"]) == 2
        assert "none: no such folder" in error_line(capsys)
        assert main(["data", "inspect", "more"]) == 2
        assert "no annotation file" in error_line(capsys)


class TestEval:
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

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["runs/demo/fine", "refcocoa", "--data", "."], "did you mean refcoco"),
            (["runs/demo/fine", "vqa", "--data", "."], "'vqa'; this model has grounding"),
            (["runs/demo/fine", "refcoco", "--data", "none"], "none does not exist"),
            (["runs/demo/fine", "refcoco", "--data", "."], "refcoco_val.json"),
            (["none", "refcoco", "--data", "."], "model none does not exist"),
        ],
    )
    def test_bad_input(self, desk, capsys, arguments, message):
        assert main(["eval", *arguments]) == 2
        assert message in error_line(capsys)


class TestProcess:
    """What only a process of its own shows."""

    def test_nobody_reads_the_output(self):
        process = subprocess.Popen(
            [sys.executable, "-m", "fiber.cli", "recipes"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()

    def test_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "fiber.cli", "answer", "none.jpg", "why?"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr == "fiber: error: none.jpg: no such picture\n"
