"""What the page says, from numbers made by hand."""

import dataclasses
import json

import pytest

from fiber.demo import page
from fiber.demo.abilities import EXPRESSIONS, PAIRS, QUESTIONS, summarize
from fiber.demo.examples import Example, PredictedBox, Scored, Twice
from fiber.demo.floors import MetricRow
from fiber.demo.page import make_headlines, make_kind_tables, own_commands
from fiber.demo.report import Claim

from .micro_demo import MICRO
from .test_abilities import ability

NAMES = page.SPLIT_NAMES["scenes"]
RIGHT = PredictedBox(text="a red star", box_xyxy=(0, 0, 9, 9), truths_xyxy=[(0, 0, 9, 9)])
WRONG = PredictedBox(text="a ring", box_xyxy=(0, 0, 9, 9), truths_xyxy=[(20, 20, 30, 30)])


class TestSummary:
    def test_nothing_was_learned(self):
        heading = "It has learned nothing that is clearly above guessing"
        asked = {"novel": "new combinations", "has_evidence": False}
        assert summarize([], **asked) == [("not", heading, [])]
        # What is partly learned, or on val alone, is more than nothing.
        novel = ability(split="novel", model=0.5)
        for found in ([ability(model=0.7)], [ability(), novel]):
            assert heading not in [line for _, line, _ in summarize(found, **asked)]

    def test_each_verdict_has_its_list(self):
        found = [
            ability(task=PAIRS, group="matching", name="match"),
            ability(group="size", name="size", model=0.7),
            ability(group="size", name="size", model=0.69, split="novel"),
            ability(task=EXPRESSIONS, group="relation", name="relation", model=0.5),
            ability(group="color", name="color"),
            ability(group="color", name="color", model=0.5, split="novel"),
            ability(task=PAIRS, group="retrieval", name="rank", model=0.5),
        ]
        asked = {"novel": "new combinations", "untrained": ["retrieval"], "has_evidence": False}
        assert summarize(found, **asked) == [
            ("learned", "It has learned to", ["match (90%; guess 50%)"]),
            (
                "partly",
                "It has partly learned to",
                ["answer questions about size (70%, 69%; guess 50%, 50%)"],
            ),
            (
                "partly",
                "It has learned, or partly learned, but not for new combinations, to",
                ["answer questions about color (90%, 50%; guess 50%, 50%)"],
            ),
            (
                "not",
                "It has not learned to",
                ["find the object that a phrase names by its relation (50%; guess 50%)"],
            ),
            ("not", "It was not trained to", ["rank (50%; guess 50%)"]),
        ]
        # What was learned without being trained for is listed as learned.
        [(_, heading, _), *_] = summarize(found, **{**asked, "untrained": ["matching"]})
        assert heading == "It has learned to"

    def test_tasks_without_a_weight_are_not_trained(self):
        assert page.untrained_groups(MICRO) == []
        coarse = {**MICRO.runs["coarse"], "tasks.image_text.itm": 0.0}
        plan = dataclasses.replace(MICRO, runs={**MICRO.runs, "coarse": coarse})
        assert page.untrained_groups(plan) == ["matching"]

    def test_what_is_not_learned_refers_to_the_evidence(self):
        weak = ability(group="size", model=0.5)
        asked = {"novel": "new combinations", "has_evidence": True}
        assert "docs/evidence.md" in summarize([ability(), weak], **asked)[-1][1]
        assert len(summarize([ability()], **asked)) == 1


class TestHeadlines:
    @staticmethod
    def row(split, model, chance, blind):
        return MetricRow(
            metric="vqa/accuracy",
            name="x",
            split=split,
            model=model,
            chance=chance,
            blind=blind,
            count=100,
        )

    def test_no_rows(self):
        assert make_headlines([], NAMES) == []

    def test_bars(self):
        rows = [self.row("val", 0.6, 0.1, 0.3), self.row("novel", 0.5, 0.2, 0.15)]
        (headline,) = make_headlines(rows, NAMES)
        assert [(bar.label, bar.value, bar.mark) for bar in headline.bars] == [
            ("chance", 0.1, None),
            ("blind guess", 0.3, None),
            ("new pictures", 0.6, 0.3),
            ("new combinations", 0.5, 0.2),
        ]

    @pytest.mark.parametrize(
        ("val", "novel", "verdict"),
        [(0.9, 0.8, "learned"), (0.9, 0.6, "partly learned"), (0.9, 0.44, "not learned")],
    )
    def test_the_worse_split_counts(self, val, novel, verdict):
        # Of 100 questions at 30%, three standard errors are 14%.
        rows = [self.row("val", val, 0.1, 0.3), self.row("novel", novel, 0.3, None)]
        (headline,) = make_headlines(rows, NAMES)
        assert headline.verdict == verdict

    def test_without_baselines(self):
        (headline,) = make_headlines([self.row("val", 0.6, None, None)], NAMES)
        assert [bar.value for bar in headline.bars] == [0.6]


def test_kind_tables():
    assert make_kind_tables([]) == []
    color, novel = ability(example="what color?"), ability(split="novel")
    relation = ability(task=EXPRESSIONS, group="relation", name="relation")
    match = ability(task=PAIRS, group="matching")
    expressions, questions = make_kind_tables([color, relation, match, novel])
    assert expressions.kinds == [("relation", "", [relation])]
    assert questions.kinds == [("color", "what color?", [color, novel])]
    assert QUESTIONS in page._KIND_TITLES


class TestExamples:
    def test_counts_are_stated(self):
        text = page._describe_twice(
            [
                Twice(split="val", count=9, both_found=7, by_chance=2.25, shown=[], relations=[]),
                Twice(split="novel", count=0, both_found=0, by_chance=0.0, shown=[], relations=[]),
            ],
            NAMES,
        )
        assert "both on 7 of the first 9 new pictures (picking objects at random: 2). Shown" in text
        scored = Scored(split="novel", count=50, right=12, hits=[], misses=[])
        assert "On 12 of the first 50 pictures with new combinations" in page._describe_scored(
            scored, NAMES
        )

    def test_hits_come_first(self, finished):
        image = next((finished / "data" / "images" / "novel").rglob("*.jpg"))
        example = Example(
            image=str(image.relative_to(finished / "data")),
            split="novel",
            boxes=[RIGHT, WRONG],
            question="what color is it?",
            answer="red",
            truth="blue",
        )
        scored = Scored(split="novel", count=50, right=12, hits=[example], misses=[example] * 2)
        hits, misses = page._groups(scored, finished / "data")
        assert (len(hits.tiles), len(misses.tiles)) == (1, 2)
        assert "everything is right" in hits.title
        assert "The first 2 in file order with a mistake" in misses.title
        (tile,) = hits.tiles
        assert tile.image.startswith(b"\xff\xd8")
        assert tile.texts == [
            (1, "a red star", "found", True),
            (2, "a ring", "missed", False),
            (0, "what color is it?", "red (it is blue)", False),
        ]
        assert tile.alt.startswith("a red star: found; a ring: missed; what color")

    def test_groups_without_images_are_not_shown(self, tmp_path):
        scored = Scored(split="novel", count=0, right=0, hits=[], misses=[])
        assert page._groups(scored, tmp_path) == []


class TestOwnPicture:
    EXAMPLE = Example(image="images/a b.jpg", split="novel", boxes=[RIGHT, WRONG], question="why?")

    def test_a_drawing_and_a_picture_of_the_demo(self, tmp_path):
        scored = Scored(split="novel", count=1, right=1, hits=[self.EXAMPLE], misses=[])
        lines = own_commands(tmp_path, "scenes", scored)
        assert lines[0].startswith("fiber ground drawing.png --phrases 'a red circle; ")
        assert lines[1].startswith("fiber answer drawing.png ")
        image = f"'{tmp_path}/data/images/a b.jpg'"
        assert f"fiber ground {image} --phrases 'a red star; a ring'" in lines[2]
        assert lines[3] == f"fiber answer {image} 'why?' --model {tmp_path}"

    def test_stamps_cannot_be_drawn(self, tmp_path):
        scored = Scored(split="novel", count=1, right=0, hits=[], misses=[self.EXAMPLE])
        assert "drawing.png" not in "\n".join(own_commands(tmp_path, "stamps", scored))
        none = Scored(split="novel", count=0, right=0, hits=[], misses=[])
        assert own_commands(tmp_path, "stamps", none) == []

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [
            ({"max_objects": 3}, "grayish, textured backgrounds; on others, such as white, expect"),
            ({"max_objects": 5, "varied": True}, "a plain or textured background."),
        ],
    )
    def test_backgrounds(self, tmp_path, parameters, said):
        (tmp_path / "dataset.json").write_text(json.dumps({"parameters": parameters}))
        text = page._describe_own(tmp_path, "scenes")
        assert said in text
        assert f"1 to {parameters['max_objects']} shapes" in text
        assert "diamond" in text
        assert "guesses" in page._describe_own(tmp_path, "stamps")


def test_claims(tmp_path, monkeypatch):
    assert page.read_claims() == []
    monkeypatch.setattr(page, "EVIDENCE_FILE", tmp_path / "evidence.json")
    claim = Claim("Finding", "33%", "96%", "69%", "73%", "Fusion helps.")
    (tmp_path / "evidence.json").write_text(json.dumps({"claims": [claim._asdict()]}))
    assert page.read_claims() == [claim]


def test_the_legend_of_curves_has_the_losses_that_were_trained(tmp_path):
    boxes = ("alignment", "box")
    for run, losses in (("fine", boxes), ("coarse", ("itc",))):
        (tmp_path / run).mkdir()
        (tmp_path / run / "curves.png").touch()
        times = {"wall_seconds": 1.0, "goodput": 1.0}
        line = {"step": 1, "losses": dict.fromkeys(losses, 1.0), "performance": times}
        (tmp_path / run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    first = {
        "tasks.grounding.first_sources": ("referring:noun", "referring", "referring"),
        "tasks.grounding.first_steps": 2,
    }
    plan = dataclasses.replace(MICRO, runs=MICRO.runs | {"fine": {**MICRO.runs["fine"], **first}})
    (fine, _), (coarse, _) = page._curves(tmp_path, plan)
    assert (
        " its edges. The first 2 steps of the task grounding read referring:noun, referring."
        in fine
    )
    assert "The first" not in coarse
    assert fine.startswith("Fine stage. alignment: which words an object fits; box: its edges. ")
    assert coarse.startswith("Coarse stage. itc: contrast of pictures and captions. ")
