"""Every command that looks at pictures, and everything that can be wrong with what it is given."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fiber
from fiber.checkpoints.model_dir import save_model
from fiber.cli import main
from fiber.config_io import replace_fields
from fiber.data import load_image
from fiber.inference.boxes import PHRASE_THRESHOLD, SCORE_THRESHOLD
from fiber.inference.model import Model
from fiber.models.fiber.image_text import FiberImageText

from .output import error_line, lines


def test_help_tells_the_lowest_score(capsys):
    with pytest.raises(SystemExit):
        main(["detect", "--help"])
    said = f"or without one {SCORE_THRESHOLD} for detect and {PHRASE_THRESHOLD:g} for ground)"
    assert said in " ".join(capsys.readouterr().out.split())


class TestPictureCommands:
    def test_ground(self, desk, capsys):
        code = main(
            ["ground", "a.jpg", "--phrases", "a red circle; the blue square;", "--threshold", "0"]
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

    @pytest.mark.parametrize("command", ["match", "answer"])
    def test_a_folder_gives_a_result_per_image(self, desk, capsys, command):
        Path("both").mkdir()
        for name in ("1.jpg", "2.jpg"):
            Path("both", name).write_bytes(Path("a.jpg").read_bytes())
        assert main([command, "both", "what color is it?"]) == 0
        assert [result["image"] for result in lines(capsys)] == ["both/1.jpg", "both/2.jpg"]

    def test_ground_a_caption(self, desk, capsys):
        assert (
            main(
                ["ground", "a.jpg", "--caption", "a circle next to the square", "--threshold", "0"]
            )
            == 0
        )
        (result,) = lines(capsys)
        assert {item["label"] for item in result["detections"]} == {"a circle", "the square"}

    def test_ground_spans_of_a_caption(self, desk, capsys):
        asked = ["ground", "a.jpg", "--threshold", "0", "--caption", "a circle next to the square"]
        assert main([*asked, "--spans", "2:8,21:27; 17:27"]) == 0
        (result,) = lines(capsys)
        found = {item["label"]: item["index"] for item in result["detections"]}
        assert found == {"circle square": 0, "the square": 1}
        assert main([*asked, "--spans", "2:99"]) == 2
        assert "[2, 99)" in error_line(capsys)
        assert main(["ground", "a.jpg", "--phrases", "a", "--spans", "0:1"]) == 2
        assert "--spans requires --caption" in error_line(capsys)

    def test_detect_with_as_many_classes_as_fit(self, desk, capsys):
        asked = ["detect", "a.jpg", "--classes", "circle; star; ring", "--threshold", "0"]
        told = []
        for more in ([], ["--classes-per-prompt", "0"], ["--classes-per-prompt", "1"]):
            assert main([*asked, *more]) == 0
            told.append(capsys.readouterr().err.splitlines()[-1])
        assert told[0] == told[1] and "3 classes in 1 prompt," in told[0]
        assert "3 classes in 3 prompts," in told[2]

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

    def test_detect_says_what_it_took(self, desk, capsys):
        Path("classes.json").write_text(
            '["circle", {"name": "star", "prefix": "red "}, {"name": "ring", "suffix": " of tin"}]'
        )
        asked = ["--classes-file", "classes.json", "--threshold", "0", "--max-detections", "2000"]
        assert main(["detect", "a.jpg", "b.jpg", *asked, "--classes-per-prompt", "2"]) == 0
        output = capsys.readouterr()
        found = [json.loads(line)["detections"] for line in output.out.splitlines()]
        for some in found:
            assert {item["label"] for item in some} == {"circle", "star", "ring"}
        line = "fiber: 3 classes in 2 prompts, 2 images, 1 forward pass of the image encoder"
        assert output.err.splitlines()[-1] == line
        assert main(["detect", "a.jpg", "--classes", "circle"]) == 0
        line = "fiber: 1 class in 1 prompt, 1 image, 1 forward pass of the image encoder"
        assert capsys.readouterr().err.splitlines()[-1] == line

    def test_detect_with_bad_classes(self, desk, capsys):
        Path("classes.json").write_text('["circle", {"title": "star"}]')
        assert main(["detect", "a.jpg", "--classes-file", "classes.json"]) == 2
        assert "classes.json: class 1 has keys 'title'" in error_line(capsys)
        assert main(["detect", "a.jpg", "--classes", "circle; star; circle"]) == 2
        assert "duplicate class 'circle' (classes 0 and 2)" in error_line(capsys)

    def test_a_folder_stands_for_pictures_at_any_depth(self, desk, capsys):
        for name in ("nested/val/000/b.jpg", "nested/val/000/a.JPG", "nested/c.png/d.jpg"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy("a.jpg", name)
        Path("nested/val/words.txt").write_text("no picture")
        assert main(["detect", "nested", "--classes", "circle"]) == 0
        assert [r["image"] for r in lines(capsys)] == [
            "nested/c.png/d.jpg",
            "nested/val/000/a.JPG",
            "nested/val/000/b.jpg",
        ]

    def test_a_folder_without_pictures(self, desk, capsys):
        Path("empty/below").mkdir(parents=True)
        Path("empty/below/words.txt").write_text("no picture")
        assert main(["detect", "empty", "--classes", "circle"]) == 2
        assert "empty: no image files" in (line := error_line(capsys))
        assert line.endswith(".bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp")

    def test_pictures_of_one_name_are_saved_apart(self, desk, capsys):
        assert main(["caption", "a.jpg", "more/a.jpg", "--save", "out"]) == 0
        assert sorted(p.name for p in Path("out").iterdir()) == ["a-2.png", "a.png"]

    def test_an_image_is_not_overwritten_by_its_copy(self, desk, capsys):
        Path("b.png").write_bytes(content := Path("b.jpg").read_bytes())
        for folder in (".", "more/.."):
            assert main(["caption", "b.png", "--save", folder]) == 0
            assert Path("b.png").read_bytes() == content
            Path("b-2.png").unlink()
        # By other names: links into the folder and out of it.
        Path("more/c.png").symlink_to(Path("b.png").absolute())
        Path("d.png").symlink_to("more/a.jpg")
        asked = ["more/c.png", "b.jpg", "d.png", "more/a.jpg"]
        assert main(["caption", *asked, "--save", str(Path.cwd())]) == 0
        assert Path("b.png").read_bytes() == content and Path("d.png").is_symlink()
        # A copy of an earlier start is replaced, as any other file of the name.
        Path("a.png").write_text("old")
        assert main(["caption", "a.jpg", "--save", "."]) == 0
        assert sorted(path.name for path in Path().glob("*.png")) == [
            *("a.png", "b-2.png", "b.png", "c.png", "d-2.png", "d.png")
        ]
        assert load_image("a.png").ndim == 3

    def test_answer(self, desk, capsys):
        assert main(["answer", "a.jpg", "what color is it?", "--top-k", "2", "--save", "out"]) == 0
        (result,) = lines(capsys)
        assert result["question"] == "what color is it?"
        assert result["model"] == "runs/demo/coarse"
        scores = [answer["score"] for answer in result["answers"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        saved = Image.open("out/a.png")
        assert saved.width == 90
        assert saved.height > 70

    def test_caption(self, desk, capsys):
        assert main(["caption", "a.jpg", "b.jpg", "--num-beams", "2"]) == 0
        first, second = lines(capsys)
        assert isinstance(first["caption"], str)
        assert first["caption"] == second["caption"]

    def test_captions_are_drawn(self, desk, capsys):
        texts = []
        for more in ([], ["--seed", "0"], ["--seed", "7"]):
            assert main(["caption", "a.jpg", "--sample", *more]) == 0
            (found,) = lines(capsys)
            texts.append(found["caption"])
        assert texts[0] == texts[1] != texts[2]
        with pytest.raises(SystemExit) as stopped:
            main(["caption", "a.jpg", "--sample", "--num-beams", "5"])
        assert stopped.value.code == 2
        assert "--num-beams: not allowed with argument --sample" in capsys.readouterr().err

    def test_match(self, desk, capsys):
        assert main(["match", "a.jpg", "a red circle"]) == 0
        (result,) = lines(capsys)
        assert result["text"] == "a red circle"
        assert 0 <= result["score"] <= 1

    def test_reason(self, desk, capsys):
        asked = ["a.jpg", "more/a.jpg", "both images show a circle"]
        assert main(["reason", *asked]) == 0
        (result,) = lines(capsys)
        assert list(result) == ["left", "right", "model", "statement", "truth"]
        assert [result["left"], result["right"], result["statement"]] == asked
        assert result["model"] == "runs/demo/coarse"
        expected = fiber.load("runs/demo/coarse", device="cpu").reason(
            (asked[0], asked[1]), asked[2]
        )
        assert result["truth"] is expected

    def test_reason_about_a_left_and_a_right_image(self, desk, capsys, monkeypatch):
        Image.new("RGBA", (40, 100), (0, 0, 255, 128)).save("tall.png")

        def left_is_tall(model, pair, statement):
            return pair[0].shape[0] == 100

        monkeypatch.setattr(Model, "reason", left_is_tall)
        for pair, truth in ((["a.jpg", "tall.png"], False), (["tall.png", "a.jpg"], True)):
            assert main(["reason", *pair, "it is tall", "--save", "out"]) == 0
            (result,) = lines(capsys)
            assert result["truth"] is truth
        # Next to each other, with the text below.
        saved = Image.open("out/tall.png")
        assert saved.width == 40 + 8 + 90
        assert saved.height > 100
        assert saved.getpixel((20, 90)) == (0, 0, 255)
        assert saved.getpixel((44, 50)) == saved.getpixel((100, 90)) == (255, 255, 255)
        assert saved.getpixel((50, 3)) != (255, 255, 255)
        assert Path("out/a.png").exists()

        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(["reason", "a.jpg", "tall.png", "it is tall"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "a.jpg  (90 x 70 pixels)",
            "tall.png  (40 x 100 pixels)",
            "  false  it is tall",
        ]

    @pytest.mark.parametrize("flags", [[], ["--no-rerank"]], ids=["itm", "itc"])
    def test_search(self, desk, capsys, flags):
        assert (
            main(["search", "a red circle", "a.jpg", "b.jpg", "more", "--top-k", "2", *flags]) == 0
        )
        results = lines(capsys)
        assert [r["rank"] for r in results] == [1, 2]
        assert results[0]["score"] >= results[1]["score"]
        assert {r["image"] for r in results} < {"a.jpg", "b.jpg", "more/a.jpg"}

    @pytest.mark.parametrize("head", ["itc", "itm"])
    def test_search_with_the_head_there_is(self, desk, capsys, head):
        model = fiber.load("runs/demo/coarse", device="cpu")
        config = replace_fields(model.config, {"image_text.heads": head})
        network = FiberImageText(config)
        network.load_state_dict(model.network.state_dict(), strict=False)
        shutil.rmtree("runs/demo/coarse")
        save_model(network, Path("runs/one"), model.tokenizer)
        assert main(["search", "a red circle", "a.jpg", "more"]) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 2
        assert f"warning: search: the model has no head '{'itc' if head == 'itm' else 'itm'}'" in (
            printed.err
        )
        # Ranking by ITC alone takes another model if this one cannot.
        assert main(["search", "a red circle", "a.jpg", "--no-rerank"]) == 0
        packaged = "using the model in the package" in capsys.readouterr().err
        assert packaged == (head == "itm")

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


class TestWords:
    """Of a model that came without a tokenizer and answers, as published files do."""

    @pytest.fixture
    def bare(self, desk):
        words = desk / "words"
        for stage in ("coarse", "fine"):
            (words / stage).mkdir(parents=True)
            for name in ("tokenizer.json", "answers.json"):
                if (file := desk / "runs" / "demo" / stage / name).exists():
                    file.rename(words / stage / name)
        return desk

    @pytest.mark.parametrize(
        ("arguments", "stage"),
        [
            (["ground", "a.jpg", "--phrases", "dog"], "fine"),
            (["detect", "a.jpg", "--classes", "dog"], "fine"),
            (["answer", "a.jpg", "why?"], "coarse"),
            (["caption", "a.jpg"], "coarse"),
            (["match", "a.jpg", "dog"], "coarse"),
            (["search", "dog", "a.jpg"], "coarse"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else value,
    )
    def test_they_can_be_named(self, bare, capsys, arguments, stage):
        words = ["--tokenizer", f"words/{stage}"]
        words += ["--answers", "words/coarse/answers.json"] if stage == "coarse" else []
        assert main([*arguments, *words]) == 0
        assert len(lines(capsys)) == 1
        assert main(arguments) == 2
        message = error_line(capsys)
        missing = "--answers FILE" if arguments[0] == "answer" else "--tokenizer DIR"
        assert f"{missing}, or fiber.load(path, " in message
        assert f"`fiber convert MODEL OUT --to fiber {missing}`" in message

    def test_words_of_another_model(self, bare, capsys):
        answers = ["--answers", "words/coarse/answers.json"]
        assert main(["ground", "a.jpg", "--phrases", "dog", *answers]) == 2
        assert "a list of answers needs the head 'vqa'; this model has grounding" in error_line(
            capsys
        )
        assert main(["match", "a.jpg", "dog", "--tokenizer", "none"]) == 2
        assert "tokenizer none does not exist" in error_line(capsys)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ground", "none.jpg", "--phrases", "dog"], "none.jpg: no such image"),
            (["ground", "corrupt.jpg", "--phrases", "dog"], "corrupt.jpg"),
            (["answer", "words.jpg", "why?"], "words.jpg"),
            (["ground", "a.jpg"], "--phrases, --caption or both"),
            (["ground", "a.jpg", "--caption", " "], "empty"),
            (["ground", "a.jpg", "--caption", "a cat", "--phrases", "dog"], "'dog'"),
            (["ground", "a.jpg", "--caption", "of the"], "of the"),
            (["detect", "a.jpg", "--classes-file", "none.txt"], "none.txt: No such file"),
            (
                ["detect", "a.jpg", "--classes-file", "blank.txt"],
                "blank.txt is empty; expected one class",
            ),
            (["detect", "blank", "--classes", "dog"], "blank: no image files"),
            (["answer", "a.jpg", ""], "question 0 is empty"),
            (["match", "a.jpg", " "], "text 0 is empty"),
            (["match", "a.jpg", "<s></s><pad>"], "'<s></s><pad>' contains only special tokens"),
            (["match", "corrupt.jpg", "dog"], "corrupt.jpg: "),
            (["caption", "a.jpg", "corrupt.jpg"], "corrupt.jpg: "),
            (["caption", "a.jpg", "--seed", "3"], "--seed 3 requires --sample"),
            (["caption", "a.jpg", "--sample", "--seed", "-3"], "seed"),
            (["match", "a.jpg", "dog", "--model", "cut.ckpt"], "cut.ckpt is truncated"),
            (
                ["match", "a.jpg", "dog", "--model", "other.pth"],
                "other.pth: the file contains no published",
            ),
            (["search", "", "a.jpg"], "text 0 is empty"),
            (["reason", "a.jpg", "none.jpg", "dog"], "none.jpg: no such image"),
            (["reason", "dog", "a.jpg", "b.jpg"], "expected the order LEFT RIGHT STATEMENT"),
            (["reason", "a.jpg", "more", "dog"], "more is a folder; expected an image file"),
            (["reason", "a.jpg", "corrupt.jpg", "dog"], "corrupt.jpg: "),
            (["reason", "a.jpg", "b.jpg", " "], "statement 0 is empty"),
            (["reason", "a.jpg", "b.jpg", "a", "--model", "runs/demo/fine"], "head 'nlvr2'"),
            (["match", "a.jpg", "dog", "--model", "none"], "none"),
            (["match", "a.jpg", "dog", "--model", "a.jpg"], "a.jpg"),
            (["match", "a.jpg", "dog", "--device", "toaster"], "toaster"),
            (
                ["caption", "a.jpg", "--save", "b.jpg"],
                "--save b.jpg is a file",
            ),
        ],
    )
    def test_message(self, desk, capsys, arguments, message):
        Path("blank").mkdir()
        Path("blank.txt").write_text("\n \n")
        torch.save({"fc.weight": torch.zeros(9)}, "other.pth")
        Path("cut.ckpt").write_bytes(Path("other.pth").read_bytes()[:300])
        assert main(arguments) == 2
        assert message in error_line(capsys)

    def test_a_model_without_the_head(self, desk, capsys):
        assert main(["answer", "a.jpg", "why?", "--model", "runs/demo/fine"]) == 2
        message = error_line(capsys)
        assert "'vqa'" in message
        assert "grounding" in message
        assert "run `fiber train vqav2` (see also `fiber recipes`)" in message

    @pytest.mark.parametrize(
        ("arguments", "head"),
        [(["reason", "a.jpg", "b.jpg", "a dog"], "nlvr2"), (["entail", "a.jpg", "a dog"], "snli")],
    )
    def test_no_model_with_the_head(self, desk, capsys, arguments, head):
        shutil.rmtree("runs/demo/coarse")
        assert main(arguments) == 2
        message = error_line(capsys)
        assert "pass --model" in message
        assert f"'{head}'" in message

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ground", "--phrases", "dog"], "IMAGE"),
            (["reason", "a.jpg", "b.jpg"], "required: STATEMENT"),
            (["ground", "a.jpg", "--phrases", " ; "], "--phrases: expected one or more .* ' ; '"),
            (["ground", "a.jpg", "--phrases", ""], "--phrases: expected one or more .* ''"),
            (["ground", "a.jpg", "--phrases", "a; ;b"], "--phrases: .*without empty .* 'a; ;b'"),
            (["ground", "a.jpg", "--phrases", "a;;"], "--phrases: .*without empty .* 'a;;'"),
            (["detect", "a.jpg", "--classes", ";"], "--classes: expected one or more .* ';'"),
            (["ground", "a.jpg", "--spans", "2-8"], "--spans: expected START:END.* '2-8'"),
            (["ground", "a.jpg", "--spans", "2:8,"], "--spans: expected START:END.* '2:8,'"),
            (["ground", "a.jpg", "--spans", " ; "], "--spans: expected one or more .* ' ; '"),
            (
                ["answer", "a.jpg", "why?", "--top-k", "0"],
                "--top-k: expected a positive .*, got '0'",
            ),
            (["answer", "a.jpg", "why?", "--top-k", "some"], "expected a positive .*, got 'some'"),
            (["zzz", "a.jpg"], "unknown value 'zzz'; expected one of demo, train"),
            (["grund", "a.jpg"], "unknown value 'grund'; did you mean ground"),
            (["ground", "a.jpg", "--frases", "dog"], "--frases dog; did you mean --phrases"),
            (["ground", "a.jpg", "--zzz=1"], "--zzz=1; see fiber ground --help\\n"),
            (["demo", "--data", "scene"], "--data: unknown value 'scene'; did you mean scenes"),
        ],
    )
    def test_wrong_use(self, desk, capsys, arguments, message):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        printed = capsys.readouterr().err
        assert "usage: fiber" in printed
        assert re.search(message, printed.splitlines()[-1] + "\n")

    def test_broken_models(self, desk, capsys):
        weights = Path("runs/demo/fine/model.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        assert main(["ground", "a.jpg", "--phrases", "dog"]) == 2
        assert "model.safetensors" in error_line(capsys)
        weights.write_bytes(whole)
        Path("runs/demo/fine/config.json").write_text("{")
        arguments = ["ground", "a.jpg", "--phrases", "dog", "--model", "runs/demo/fine"]
        assert main(arguments) == 2
        assert "config.json" in error_line(capsys)
