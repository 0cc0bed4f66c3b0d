"""The table on the terminal and the page."""

import dataclasses
from html.parser import HTMLParser

from fiber.demo.floors import MetricRow
from fiber.demo.report import DemoReport, Throughput, format_table, write_html

ROWS = [
    MetricRow(
        metric="vqa/accuracy",
        name="questions <&>",
        split="val",
        model=0.51234,
        chance=0.1,
        blind=0.3,
        no_fusion=0.4,
        permuted=0.35,
        floor=0.45,
        verdict="ok",
    ),
    MetricRow(
        metric="retrieval/x",
        name="retrieval",
        split="novel",
        model=0.1,
        chance=None,
        blind=None,
        floor=0.2,
        verdict="FELL",
    ),
    MetricRow(
        metric="detection/ap50",
        name="detection",
        split="val",
        model=0.0,
        chance=0.0,
        blind=0.0,
        verdict="not learned",
    ),
]


def report(**changes):
    values = {
        "title": "A <demo>",
        "verdict": "It passed.",
        "problems": [],
        "rows": ROWS,
        "throughput": [Throughput(stage="data", images=100, seconds=4.0)],
        "figures": [],
        "commands": ["fiber demo --output 'a b'", "fiber eval x > y"],
        "machine": {"processor": "Z80"},
    }
    return DemoReport(**{**values, **changes})


class TestTable:
    def test_nothing(self):
        assert format_table([]).splitlines()[0].split()[:3] == ["metric", "split", "model"]

    def test_every_number_in_its_column(self):
        header, line, *rows = format_table(ROWS).splitlines()
        assert set(line) == {"-"}
        assert len(line) == max(map(len, [header, *rows]))
        for name, text in [("model", "0.512"), ("no fusion", "0.400"), ("floor", "0.450")]:
            assert rows[0][: header.index(name) + len(name)].endswith(text)
        assert rows[0].endswith("ok")
        assert rows[1].endswith("FELL")
        assert rows[1].split()[-5:] == ["-", "-", "-", "0.200", "FELL"]
        assert rows[2].endswith("not learned")


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects the cells of tables."""

    def __init__(self):
        super().__init__()
        self.open, self.rows = [], []

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


class TestPage:
    def test_without_anything(self, tmp_path):
        path = tmp_path / "report.html"
        write_html(report(rows=[], throughput=[], commands=[], machine={}), path)
        assert path.read_text().startswith("<!doctype html>")
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]

    def test_texts_are_escaped(self, tmp_path):
        path = tmp_path / "report.html"
        write_html(report(), path)
        text = path.read_text()
        assert "A &lt;demo&gt;" in text
        assert "questions &lt;&amp;&gt;" in text
        assert "fiber eval x &gt; y" in text
        assert "<demo>" not in text

    def test_the_table_is_that_of_the_terminal(self, tmp_path):
        path = tmp_path / "report.html"
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        table = [("metric", "split"), ("vqa", "val")]
        figures = [("'\"<>&", tmp_path / "a.png")]
        write_html(report(problems=["x"], notes=["y"], ablations=table, figures=figures), path)
        page = Tags()
        page.feed(path.read_text())
        page.close()
        assert page.open == []
        header, _, *lines = format_table(ROWS).splitlines()
        assert " ".join(page.rows[0]).split() == header.split()
        for row, line in zip(page.rows[1:4], lines, strict=True):
            assert " ".join(row).split() == line.split()
        assert page.rows[4:] == [
            ["metric", "split"],
            ["vqa", "val"],
            ["stage", "images", "seconds", "images per second"],
            ["data", "100", "4.0", "25"],
            ["what", "value"],
            ["processor", "Z80"],
        ]

    def test_verdicts_can_be_seen(self, tmp_path):
        path = tmp_path / "report.html"
        write_html(report(), path)
        text = path.read_text()
        assert text.count('<tr class="failed">') == 1
        assert text.count('<tr class="unlearned">') == 1

    def test_what_does_without_fusion_is_named(self, tmp_path):
        path = tmp_path / "report.html"
        write_html(report(), path)
        assert "with fusion switched off" not in path.read_text()
        rows = [dataclasses.replace(ROWS[2], no_fusion=0.0), ROWS[0]]
        write_html(report(rows=rows), path)
        assert "Not worse with fusion switched off: detection on val.</p>" in (path.read_text())

    def test_problems_are_listed(self, tmp_path):
        path = tmp_path / "report.html"
        write_html(report(problems=["a < b", "c"]), path)
        assert "<ul>\n<li>a &lt; b</li>\n<li>c</li>\n</ul>" in path.read_text()

    def test_speed(self, tmp_path):
        path = tmp_path / "report.html"
        rows = [
            Throughput(stage="data", images=100, seconds=4.0),
            Throughput(stage="cached", images=0, seconds=0.0),
        ]
        write_html(report(throughput=rows), path)
        assert '<td class="text">25</td>' in path.read_text()
        assert "cached" not in path.read_text()

    def test_pictures_are_embedded(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        path = tmp_path / "report.html"
        write_html(report(figures=[("what 'it' says", tmp_path / "a.png")]), path)
        text = path.read_text()
        assert 'src="data:image/png;base64,iVBORw=="' in text
        assert 'alt="what &#39;it&#39; says"' in text

    def test_ablations(self, tmp_path):
        path = tmp_path / "report.html"
        table = [("metric", "split", "the demo"), ("vqa", "val", "0.500")]
        write_html(report(ablations=table, ablations_source="recorded"), path)
        text = path.read_text()
        assert "<h2>Ablations</h2>" in text
        assert "recorded" in text
        assert '<td class="text">0.500</td>' in text
