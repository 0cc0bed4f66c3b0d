"""Table, rows, verdicts and chart, from numbers that are written here."""

import csv

import pytest

from fiber.benchmarks import report
from fiber.benchmarks.lines import GATES, LINES, Gate, Line
from fiber.benchmarks.measure import Result, Side
from fiber.benchmarks.peers import BY_NAME, OURS

LINE = Line(kind="squash", work="squash", output="float32", title="squashed", corpus="coco640")
GATE = Gate(
    kind="squash", corpus="coco640", output="float32", rivals=("dali",), least=2.0, target=4.0
)


def side(name, costs, **more):
    return Side(
        peer=BY_NAME[name],
        costs=list(costs),
        rates=[100.0] * len(costs),
        peak_bytes=250_000_000,
        versions={"thing": "1.2"},
        **more,
    )


@pytest.fixture
def result():
    return Result(
        line=LINE,
        material="8 pictures",
        sides=(
            side(OURS.name, [2.0, 1.0, 6.0], levels=0.25),
            side("dali", [5.0, 4.0, 6.0], remark="as it is"),
            Side(peer=BY_NAME["timm"], failure="it broke"),
        ),
        absent=("spdl",),
        load=1.25,
    )


class TestTable:
    def test_fastest_first_with_ratios(self, result):
        lines = report.table(result).splitlines()
        assert lines[1:3] == ["squashed; float32", "8 pictures; CPU in ms a picture, load 1.2"]
        assert lines[4].split()[:4] == ["fiber", "2.00", "1.40-4.40", "1.00x"]
        assert lines[5].split()[:7] == ["dali", "5.00", "4.40-5.60", "2.50x", "100", "250", "1.2"]
        assert lines[5].endswith("as it is")
        assert lines[6].split() == ["timm", "failed:", "it", "broke"]
        assert lines[7] == "not installed: spdl"

    def test_columns_stand_under_their_heads(self, result):
        head, ours = report.table(result).splitlines()[3:5]
        for word, cell in (("CPU", "2.00"), ("ratio", "1.00x"), ("levels", "0.25")):
            assert head.index(word) + len(word) == ours.index(cell) + len(cell)

    @pytest.mark.parametrize(
        ("value", "text"), [(0.0, "0"), (0.1234, "0.123"), (9.876, "9.88"), (1234.5, "1234")]
    )
    def test_three_digits(self, value, text):
        assert report._three(value) == text


class TestRows:
    def test_a_row_for_each_measured_side(self, result):
        ours, dali = report.rows([result])
        assert list(ours)[:19] == list(report.ROW_COLUMNS)
        assert (dali["line"], dali["side"], dali["unit"]) == (
            "squash coco640 float32",
            "dali",
            "CPU ms a picture",
        )
        assert (dali["median"], dali["p20"], dali["p80"], dali["rounds"]) == (
            "5",
            "4.4",
            "5.6",
            "3",
        )
        assert (dali["peer"], dali["ratio_to_peer"], ours["ratio_to_peer"]) == ("fiber", "2.5", "1")
        assert (ours["levels_from_pillow"], dali["levels_from_pillow"]) == ("0.250", "")
        assert (dali["per_wall_second"], dali["peak_megabytes"]) == ("100", "250")
        assert dali["versions"] == "thing=1.2"
        assert dali["date"] and dali["processor"] and dali["commit"]

    def test_rows_are_added_to_a_file(self, result, tmp_path):
        file = tmp_path / "data.csv"
        for _ in range(2):
            report.append_rows(file, report.rows([result]))
        with file.open(newline="") as lines:
            assert [row["side"] for row in csv.DictReader(lines)] == ["fiber", "dali"] * 2

    def test_a_file_of_another_kind_is_left_alone(self, tmp_path):
        file = tmp_path / "data.csv"
        file.write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"data\.csv has the columns \['a', 'b'\]; expected"):
            report.append_rows(file, [])
        assert file.read_text() == "a,b\n1,2\n"


class TestVerdicts:
    def test_medians_decide(self, result):
        (verdict,) = report.judge([result], [GATE])
        assert (verdict.ratio, verdict.rival, verdict.holds) == (2.5, "dali", True)
        assert str(verdict) == (
            "squash coco640 float32 beside dali: 2.50 (dali); gate 2 holds, target 4 missed"
        )

    @pytest.mark.parametrize(("least", "holds"), [(2.5, True), (2.51, False)])
    def test_the_bound_itself_holds(self, result, least, holds):
        gate = Gate(**{**vars(GATE), "least": least})
        assert report.judge([result], [gate])[0].holds is holds

    def test_the_fastest_rival_counts(self, result):
        faster = side("torchvision-io", [3.0])
        both = Result(line=LINE, material="", sides=(*result.sides, faster))
        gate = Gate(**{**vars(GATE), "rivals": ("dali", "torchvision-io")})
        (verdict,) = report.judge([both], [gate])
        assert (verdict.ratio, verdict.rival, verdict.holds) == (1.5, "torchvision-io", False)

    @pytest.mark.parametrize(
        "change",
        [
            {"rivals": ("timm",)},
            {"rivals": ("spdl",)},
            {"corpus": "coco444"},
            {"output": "uint8"},
            {"kind": "crop"},
        ],
        ids=str,
    )
    def test_what_was_not_measured_does_not_hold(self, result, change):
        (verdict,) = report.judge([result], [Gate(**{**vars(GATE), **change})])
        assert verdict.holds is None
        assert "not measured; gate 2" in str(verdict)

    def test_every_gate_has_its_line_and_its_rivals(self):
        lines = {(line.kind, line.corpus, line.output): line for line in LINES}
        for gate in GATES:
            line = lines[gate.kind, gate.corpus, gate.output]
            assert OURS.can(line.work, line.output)
            for name in gate.rivals:
                assert (line.work, line.output) in BY_NAME[name].does

    def test_lines_have_names_of_their_own(self):
        assert len({line.name for line in LINES}) == len(LINES)


def test_chart(result, tmp_path):
    report.draw_chart(tmp_path / "data.png", [result, result])
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")
