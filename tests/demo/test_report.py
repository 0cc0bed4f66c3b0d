"""The table on the terminal and the page."""

from html.parser import HTMLParser

from fiber.demo.floors import MetricRow
from fiber.demo.report import (
    Claim,
    DemoReport,
    Group,
    Headline,
    HeadlineBar,
    KindTable,
    Throughput,
    Tile,
    TileText,
    format_table,
    write_html,
)

from .test_abilities import ability

ROWS = [
    MetricRow(
        metric="vqa/accuracy",
        name="questions <&>",
        split="val",
        model=0.51234,
        chance=0.1,
        blind=0.3,
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


PNG, JPEG = b"\x89PNG", b"\xff\xd8"
TILE = Tile(JPEG, [TileText(2, "the 'ring'", "found", True), TileText(0, "why?", "no", False)])


def report(**changes):
    values = {
        "title": "A <demo>",
        "lead": ["It was trained."],
        "summary": [("learned", "It has learned to", "see (90%, guess 50%).")],
        "verdict": "It passed.",
        "problems": [],
        "headlines": [],
        "twice_text": "Asked twice, by a rule.",
        "twice": [],
        "scored_text": "Chosen by a rule.",
        "scored": [],
        "kinds": [],
        "claims": [],
        "curves": [],
        "own_text": "Draw a star.",
        "own_commands": ["fiber ground 'a b.png'"],
        "rows": ROWS,
        "throughput": [Throughput(stage="data", images=100, seconds=4.0)],
        "commands": ["fiber demo --output 'a b'", "fiber eval x > y"],
        "machine": {"processor": "Z80"},
    }
    return DemoReport(**{**values, **changes})


FULL = {
    "problems": ["x"],
    "notes": ["y"],
    "headlines": [
        Headline(
            "Finds it",
            "found boxes",
            [
                HeadlineBar("chance", 0.357, "chance"),
                HeadlineBar("new pictures", 0.925, "val", 0.357),
            ],
            "partly learned",
        )
    ],
    "twice": [("new pictures, both found", [TILE, TILE])],
    "scored": [Group("Hits", [TILE]), Group("Misses", [TILE])],
    "kinds": [KindTable("By words", [("color", "a <red> one", [ability(), ability(model=0.5)])])],
    "claims": [Claim("Finding", "33%", "96% (96 to 97)", "69%", "73%", "Fusion <helps>.")],
}


class TestTable:
    def test_nothing(self):
        assert format_table([]).splitlines()[0].split()[:3] == ["metric", "split", "model"]

    def test_every_number_in_its_column(self):
        header, line, *rows = format_table(ROWS).splitlines()
        assert set(line) == {"-"}
        assert len(line) == max(map(len, [header, *rows]))
        for name, text in [("model", "0.512"), ("permuted", "0.350"), ("floor", "0.450")]:
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
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def parsed(content, folder):
    write_html(content, folder / "report.html")
    page = Tags()
    page.feed((folder / "report.html").read_text())
    page.close()
    return page


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
        page = parsed(report(), tmp_path)
        header, _, *lines = format_table(ROWS).splitlines()
        assert " ".join(page.rows[0]).split() == header.split()
        for row, line in zip(page.rows[1:4], lines, strict=True):
            assert " ".join(row).split() == line.split()
        assert page.rows[4:] == [
            ["stage", "images", "seconds", "images per second"],
            ["data", "100", "4.0", "25"],
            ["what", "value"],
            ["processor", "Z80"],
        ]

    def test_tags_are_closed(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        assert parsed(report(curves=[("'\"<>&", tmp_path / "a.png")], **FULL), tmp_path).open == []

    def test_bars_have_their_numbers(self, tmp_path):
        write_html(report(**FULL), tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert ">36%</span>" in text
        assert 'class="fill chance" style="width: 35.7%"' in text
        assert 'class="fill val" style="width: 92.5%"' in text
        assert text.count('class="mark" style="left: 35.7%"') == 1

    def test_a_verdict_is_beside_its_task(self, tmp_path):
        write_html(report(**FULL), tmp_path / "report.html")
        verdict = '<span class="verdict partly-cell">partly learned</span>'
        assert f"<h3>Finds it {verdict}</h3>" in (tmp_path / "report.html").read_text()

    def test_fusion_is_a_table(self, tmp_path):
        header, row = parsed(report(**FULL), tmp_path).rows[4:6]
        assert header[1:3] == ["guess", "with fusion"]
        assert row == [*FULL["claims"][0]]

    def test_kinds_of_words(self, tmp_path):
        page = parsed(report(**FULL), tmp_path)
        assert page.rows[1:4] == [
            ["color “a <red> one”"],
            ["val", "100", "", "90%", "10%", "50%", "learned"],
            ["val", "100", "", "50%", "10%", "50%", "not"],
        ]

    def test_tiles_are_images_with_texts(self, tmp_path):
        write_html(report(**FULL), tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert text.count('src="data:image/jpeg;base64,/9g="') == 4
        assert text.count('alt="the &#39;ring&#39;: found; why?: no"') == 4
        assert text.count('<b class="number box2">2</b>') == 4
        assert text.index("Asked twice") < text.index("both found") < text.index("Hits</h3>")

    def test_sections_without_content_are_not_there(self, tmp_path):
        write_html(report(), tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        for title in ("asked twice", "Hits, then", "By kind", "Does fusion", "Training curves"):
            assert f"{title}" not in text.replace("Asked twice", "")
        write_html(report(**FULL), tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        after = text[text.index("<h2>Does fusion matter?</h2>") :]
        assert after.index("not those of the model") < after.index("Fusion &lt;helps&gt;.</td>")

    def test_a_failure_is_at_the_top(self, tmp_path):
        for problems in ([], ["x"]):
            write_html(report(problems=problems, verdict="Verdict."), tmp_path / "report.html")
            text = (tmp_path / "report.html").read_text()
            assert text.count("Verdict.") == 1
            assert (text.index("Verdict.") < text.index("It was trained.")) == bool(problems)

    def test_it_fits_on_a_phone(self, tmp_path):
        """Wide tables scroll by themselves, and the page is as wide as the screen."""
        write_html(report(), tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
        assert text.count('<div class="scroll"><table>') == text.count("<table>") == 3

    def test_verdicts_can_be_seen(self, tmp_path):
        path = tmp_path / "report.html"
        write_html(report(), path)
        text = path.read_text()
        assert text.count('<tr class="failed">') == 1
        assert text.count('<tr class="unlearned">') == 1

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
        write_html(report(curves=[("what 'it' says", tmp_path / "a.png")]), path)
        text = path.read_text()
        assert 'src="data:image/png;base64,iVBORw=="' in text
        assert 'alt="what &#39;it&#39; says"' in text
