"""`fiber bench data` on eight tiny images, with the installed peers; nothing is timed."""

import csv
import importlib.metadata

import pytest

from fiber.benchmarks import data, report
from fiber.benchmarks.peers import BY_NAME
from fiber.cli import main

#: Few and quick to start; the last two are rarely installed.
PEERS = ("published", "torchvision-threads", "dali", "ffcv-jpeg")


def is_here(name: str) -> bool:
    try:
        importlib.metadata.version(BY_NAME[name].distributions[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def finished(tiny_images, tmp_path_factory):
    """A run: its folder, exit code and what it printed."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data._core, "build_profile", "release")
        printed = []
        patch.setattr("builtins.print", lambda *words, **more: printed.append((words, more)))
        chosen = [*("--images", str(tiny_images)), *("--work", "squash"), "--quick"]
        code = main(["bench", "data", *chosen, "--peers", ";".join(PEERS), "--output", str(folder)])
    texts = [" ".join(map(str, words)) for words, more in printed if "file" not in more]
    return folder, code, "\n".join(texts)


# Every peer is a process that imports its library.
a_run = pytest.mark.slow


def rows_of(folder):
    with (folder / "data.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@a_run
def test_every_installed_peer_has_a_row(finished):
    folder, code, _ = finished
    assert code == 0
    rows = rows_of(folder)
    found = {(row["line"], row["side"]) for row in rows}
    for name in ("fiber", *filter(is_here, PEERS)):
        assert ("squash images float32", name) in found
    assert ("squash images uint8", "fiber") in found
    assert ("squash images uint8", "torchvision-threads") in found
    # The published pipeline gives float32 only.
    assert ("squash images uint8", "published") not in found


@a_run
def test_columns_of_a_row(finished):
    folder, _, _ = finished
    for row in rows_of(folder):
        assert set(report.ROW_COLUMNS) < set(row)
        assert float(row["median"]) > 0 and float(row["per_wall_second"]) > 0
        assert float(row["p20"]) <= float(row["median"]) <= float(row["p80"])
        assert int(row["peak_megabytes"]) > 10
        assert row["rounds"] == "2"
        assert row["versions"] and row["commit"] and row["processor"]
        assert "8 images" in row["material"] and "batches of 8" in row["material"]


@a_run
def test_images_are_close_to_those_of_pillow(finished):
    folder, _, _ = finished
    for row in rows_of(folder):
        if row["side"] in ("fiber", "published", "torchvision-threads"):
            assert float(row["levels_from_pillow"]) <= 1


@a_run
def test_missing_peers_are_printed_with_an_install_command(finished):
    _, _, printed = finished
    for name in PEERS:
        said = f"not measured: {name}: {BY_NAME[name].distributions[0]} is not installed"
        assert (said in printed) is not is_here(name)
        if not is_here(name):
            first = BY_NAME[name].distributions[0]
            assert (BY_NAME[name].install or f"pip install {first}") in printed


@a_run
def test_saved_files(finished):
    folder, _, printed = finished
    names = {path.name for path in folder.iterdir()}
    assert {"data.csv", "data.txt", "data.png"} <= names
    assert (folder / "data.txt").read_text().count("published") >= 1
    assert str(folder / "data.png") in printed
    assert list(folder.glob("work/*/converted")) == []


def test_a_peer_that_supports_no_chosen_work_is_printed(capsys, tmp_path):
    chosen = data.Options(output=tmp_path, kinds=("squash",), peers=("numpy", "timm"))
    data._report_unsupported(chosen, data._workloads(chosen))
    assert capsys.readouterr().err == "not measured: numpy does not support squash\n"
    chosen = data.Options(output=tmp_path, kinds=("squash", "boxes"), peers=("numpy", "timm"))
    data._report_unsupported(chosen, data._workloads(chosen))
    assert capsys.readouterr().err == ""


class TestMistakes:
    """Exit code 2 and one line that names what is wrong."""

    @pytest.fixture(autouse=True)
    def a_release_build(self, monkeypatch):
        monkeypatch.setattr(data._core, "build_profile", "release")

    def complaint(self, capsys, tmp_path, *words):
        assert main(["bench", "data", "--output", str(tmp_path / "out"), *words]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("fiber: error: ")
        return last

    def test_missing_directory_of_images(self, capsys, tmp_path):
        said = self.complaint(capsys, tmp_path, "--images", str(tmp_path / "missing"))
        assert "missing: no such folder" in said

    def test_empty_directory_of_images(self, capsys, tmp_path):
        assert "no .jpg or .jpeg" in self.complaint(capsys, tmp_path, "--images", str(tmp_path))

    def test_missing_directory_of_photographs(self, capsys, tmp_path):
        said = self.complaint(capsys, tmp_path, "--photos", "missing", "--work", "squash")
        assert "missing: no such folder" in said

    @pytest.mark.parametrize(
        ("option", "value", "named"),
        [
            ("--work", "squash; paint", "unknown kind of work 'paint'; expected one of squash"),
            ("--peers", "nobody", "unknown peer 'nobody'; expected one of fiber"),
            ("--corpora", "coco", "unknown corpus 'coco'; expected one of coco640"),
            ("--python", "dali", "--python 'dali': expected KEY=VALUE, such as PEER=PATH"),
            ("--python", "dali=/not/there", "dali=/not/there: no such interpreter"),
            ("--python", "nobody=/bin/sh", "unknown peer 'nobody'"),
            ("--captions", "missing.txt", "missing.txt"),
            ("--tokenizer", "missing.json", "missing.json (--tokenizer): no tokenizer found"),
        ],
    )
    def test_values(self, option, value, named, capsys, tmp_path):
        said = self.complaint(capsys, tmp_path, option, value)
        assert named in said and "--init" not in said

    def test_peers_that_support_nothing(self, capsys, tmp_path):
        chosen = ("--work", "squash", "--peers", "numpy; tokenizers")
        said = self.complaint(capsys, tmp_path, *chosen)
        assert "no chosen peer (numpy, tokenizers) supports squash" in said

    def test_nothing_to_measure(self, capsys, tmp_path):
        said = self.complaint(capsys, tmp_path, "--work", "fine", "--corpora", "big12")
        assert "no workload has kind fine and corpus big12" in said

    def test_captions_that_are_not_text(self, capsys, tmp_path):
        (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
        (tmp_path / "nothing").write_text("\n\n")
        assert "not UTF-8 text" in self.complaint(
            capsys, tmp_path, "--captions", str(tmp_path / "bytes")
        )
        assert "no captions" in self.complaint(
            capsys, tmp_path, "--captions", str(tmp_path / "nothing")
        )

    def test_rows_with_other_columns(self, capsys, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "data.csv").write_text("a\n")
        assert "has columns ['a']" in self.complaint(capsys, tmp_path)

    def test_own_images_and_a_corpus(self, capsys, tmp_path):
        said = self.complaint(capsys, tmp_path, "--images", "x", "--corpora", "coco640")
        assert "--images" in said and "--corpora" in said

    def test_debug_build(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(data._core, "build_profile", "debug")
        assert "is a debug build" in self.complaint(capsys, tmp_path)


def result_with(ratio: float):
    """Results in which every gate has the same ratio."""
    from fiber.benchmarks.measure import Result, Side
    from fiber.benchmarks.workloads import WORKLOADS

    def side(peer):
        cost = 1.0 if peer.name == "fiber" else ratio
        return Side(peer=peer, costs=[cost], rates=[1.0])

    return [
        Result(
            workload=workload,
            material="",
            sides=tuple(side(p) for p in BY_NAME.values() if p.can(workload.work, workload.output)),
        )
        for workload in WORKLOADS
    ]


@pytest.mark.parametrize(
    ("ratio", "check", "code"), [(9.0, True, 0), (8.9, True, 1), (8.9, False, 0)]
)
def test_gates_decide_the_exit_code(ratio, check, code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_chart", lambda file, results: None)
    options = data.Options(output=tmp_path, check=check)
    assert data._finish(options, result_with(ratio), {}) == code
    printed = capsys.readouterr().out
    assert ("gate 9 holds" in printed) is (ratio == 9.0)
    assert ("gate 9 MISSED" in printed) is (ratio != 9.0)


def test_a_gate_that_was_not_measured_does_not_hold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_chart", lambda file, results: None)
    results = [r for r in result_with(20.0) if r.workload.kind != "fine"]
    assert data._finish(data.Options(output=tmp_path, check=True), results, {}) == 1
    assert "fine coco640 float32 vs dali: not measured; gate 4.2" in capsys.readouterr().out


def test_gates_of_other_work_and_peers_are_not_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_chart", lambda file, results: None)
    chosen = {"kinds": ("squash",), "corpora": ("coco640",), "peers": ("dali", "ffcv-jpeg")}
    options = data.Options(output=tmp_path, check=True, **chosen)
    results = [r for r in result_with(4.5) if r.workload.name.startswith("squash coco640")]
    assert data._finish(options, results, {}) == 0
    printed = capsys.readouterr().out
    assert "vs dali: 4.50 (dali); gate 4.5 holds" in printed
    assert "vs ffcv-jpeg: 4.50 (ffcv-jpeg); gate 1.8 holds" in printed
    assert "fine" not in printed and "published" not in printed
    # A peer that was chosen and is not there is no gate that holds.
    assert data._finish(options, [], {}) == 1


@pytest.mark.parametrize("chosen", [{"kinds": ("prompt",)}, {"peers": ("timm",)}], ids=str)
def test_a_check_of_nothing_is_an_error(chosen, tmp_path):
    with pytest.raises(ValueError, match="--check"):
        data.run(data.Options(output=tmp_path, check=True, **chosen))


@pytest.mark.parametrize(
    ("kinds", "corpora", "wanted"),
    [
        (("large", "prompt"), (), ["large big12 float32", "prompt int64"]),
        (("squash", "prompt"), ("det1333",), ["squash det1333 float32", "prompt int64"]),
        ((), ("big12",), ["large big12 float32"]),
    ],
    ids=str,
)
def test_workloads_are_chosen_by_kind_and_corpus(kinds, corpora, wanted, tmp_path):
    options = data.Options(output=tmp_path, kinds=kinds, corpora=corpora)
    assert [each.name for each in data._workloads(options)] == wanted


def test_own_images_replace_corpora(tmp_path):
    options = data.Options(output=tmp_path, images=tmp_path, kinds=("crop", "captions"))
    names = ["crop images float32", "crop images uint8", "captions int64"]
    assert [each.name for each in data._workloads(options)] == names
    # Default kinds.
    names = [each.kind for each in data._workloads(data.Options(output=tmp_path, images=tmp_path))]
    assert set(names) == {"squash", "crop", "fine"}


@pytest.mark.parametrize(
    ("options", "where"),
    [({"images": "."}, "own images"), ({"corpora": ("coco640",)}, "coco640")],
    ids=["own images", "a corpus"],
)
def test_work_that_is_not_measured_is_printed(options, where, capsys, tmp_path):
    chosen = data.Options(output=tmp_path, kinds=("crop", "large", "captions"), **options)
    workloads = data._workloads(chosen)
    assert {each.kind for each in workloads} == {"crop", "captions"}
    data._report_unsupported(chosen, workloads)
    assert capsys.readouterr().err == f"not measured: large on {where}\n"


def test_list(capsys):
    assert main(["bench", "data", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in BY_NAME:
        assert f"\n{name} " in printed
    assert "squash coco640 float32" in printed
    for name in PEERS:
        assert (f"{BY_NAME[name].distributions[0]} is not installed" in printed) is not is_here(
            name
        )
