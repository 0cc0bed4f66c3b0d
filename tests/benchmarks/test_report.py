"""Table, rows, verdicts and chart from synthetic measurements."""

import csv

import pytest

from fiber.benchmarks import report
from fiber.benchmarks.csv_rows import append_rows
from fiber.benchmarks.measure import Result, Side
from fiber.benchmarks.peers import BY_NAME, OURS
from fiber.benchmarks.workloads import GATES, WORKLOADS, Gate, Workload

WORKLOAD = Workload(
    kind="squash", work="squash", output="float32", title="squashed", corpus="coco640"
)
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
        workload=WORKLOAD,
        material="8 images",
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
        assert lines[1:3] == ["squashed; float32", "8 images; CPU in ms per image, load 1.2"]
        assert lines[4].split()[:4] == ["fiber", "2.00", "1.40-4.40", "1.00x"]
        assert lines[5].split()[:7] == ["dali", "5.00", "4.40-5.60", "2.50x", "100", "250", "1.2"]
        assert lines[5].endswith("as it is")
        assert lines[6].split() == ["timm", "failed:", "it", "broke"]
        assert lines[7] == "not installed: spdl"

    def test_columns_are_aligned_with_their_headings(self, result):
        head, ours = report.table(result).splitlines()[3:5]
        for word, cell in (("CPU", "2.00"), ("ratio", "1.00x"), ("levels", "0.25")):
            assert head.index(word) + len(word) == ours.index(cell) + len(cell)

    @pytest.mark.parametrize(
        ("value", "text"), [(0.0, "0"), (0.1234, "0.123"), (9.876, "9.88"), (1234.5, "1234")]
    )
    def test_three_digits(self, value, text):
        assert report._three_digits(value) == text


class TestRows:
    def test_one_row_per_measured_peer(self, result):
        ours, dali = report.rows([result])
        assert list(ours)[:19] == list(report.ROW_COLUMNS)
        assert (dali["line"], dali["side"], dali["unit"]) == (
            "squash coco640 float32",
            "dali",
            "CPU ms per image",
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

    def test_rows_are_appended_to_a_file(self, result, tmp_path):
        file = tmp_path / "data.csv"
        for _ in range(2):
            append_rows(file, report.columns(), report.rows([result]))
        with file.open(newline="") as lines:
            assert [row["side"] for row in csv.DictReader(lines)] == ["fiber", "dali"] * 2

    def test_a_file_with_other_columns_is_refused_and_kept(self, tmp_path):
        file = tmp_path / "data.csv"
        file.write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"data\.csv has columns \['a', 'b'\]; expected"):
            append_rows(file, report.columns(), [])
        assert file.read_text() == "a,b\n1,2\n"


class TestVerdicts:
    def test_medians_decide(self, result):
        (verdict,) = report.judge([result], [GATE])
        assert (verdict.ratio, verdict.rival, verdict.holds) == (2.5, "dali", True)
        assert str(verdict) == (
            "squash coco640 float32 vs dali: 2.50 (dali); gate 2 holds, target 4 missed"
        )

    @pytest.mark.parametrize(("least", "holds"), [(2.5, True), (2.51, False)])
    def test_the_bound_itself_holds(self, result, least, holds):
        gate = Gate(**{**vars(GATE), "least": least})
        assert report.judge([result], [gate])[0].holds is holds

    def test_the_fastest_rival_counts(self, result):
        faster = side("torchvision-io", [3.0])
        both = Result(workload=WORKLOAD, material="", sides=(*result.sides, faster))
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
    def test_a_gate_that_was_not_measured_does_not_hold(self, result, change):
        (verdict,) = report.judge([result], [Gate(**{**vars(GATE), **change})])
        assert verdict.holds is None
        assert "not measured; gate 2" in str(verdict)

    def test_every_gate_has_its_workload_and_its_rivals(self):
        workloads = {(each.kind, each.corpus, each.output): each for each in WORKLOADS}
        for gate in GATES:
            workload = workloads[gate.kind, gate.corpus, gate.output]
            assert OURS.can(workload.work, workload.output)
            for name in gate.rivals:
                assert (workload.work, workload.output) in BY_NAME[name].does

    def test_names_of_workloads_are_unique(self):
        assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)


def test_chart(result, tmp_path):
    report.draw_chart(tmp_path / "data.png", [result, result])
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")
