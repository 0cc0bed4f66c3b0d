"""The demo's folder: whose it is, and that nothing is measured twice."""

import json

import pytest

from fiber.demo.folder import DemoFolder, fingerprint

PARAMETERS = {"data": "scenes", "seed": 0, "coarse": {"train": {"steps": 3, "seed": 0}}}


class TestOpening:
    def test_a_new_one(self, tmp_path):
        folder = DemoFolder(tmp_path / "a" / "b", PARAMETERS)
        assert folder.noted("anything") is None
        assert json.loads((tmp_path / "a/b/demo.json").read_text())["parameters"] == PARAMETERS

    def test_an_empty_one(self, tmp_path):
        DemoFolder(tmp_path, PARAMETERS)
        assert (tmp_path / "demo.json").is_file()

    def test_again(self, tmp_path):
        DemoFolder(tmp_path, PARAMETERS).note("speed", {"seconds": 2.5})
        assert DemoFolder(tmp_path, PARAMETERS).noted("speed") == {"seconds": 2.5}

    def test_tuples_are_lists_in_a_file(self, tmp_path):
        parameters = {"sides": (64, 96)}
        DemoFolder(tmp_path, parameters)
        DemoFolder(tmp_path, parameters)

    def test_other_parameters_are_named(self, tmp_path):
        DemoFolder(tmp_path, PARAMETERS)
        before = (tmp_path / "demo.json").read_bytes()
        other = {"data": "scenes", "seed": 1, "coarse": {"train": {"steps": 4, "seed": 0}}}
        with pytest.raises(ValueError) as error:
            DemoFolder(tmp_path, other)
        assert "coarse.train.steps: 3 -> 4; seed: 0 -> 1" in str(error.value)
        assert "--output" in str(error.value)
        assert (tmp_path / "demo.json").read_bytes() == before

    def test_somebody_elses_files(self, tmp_path):
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(ValueError, match="is not a demo folder"):
            DemoFolder(tmp_path, PARAMETERS)
        assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]

    def test_a_file(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            DemoFolder(tmp_path / "x", PARAMETERS)

    def test_a_broken_description(self, tmp_path):
        (tmp_path / "demo.json").write_text("{")
        with pytest.raises(ValueError, match=r"demo\.json is not valid JSON"):
            DemoFolder(tmp_path, PARAMETERS)

    def test_data_of_another_version_of_the_generator(self, tmp_path):
        DemoFolder(tmp_path, PARAMETERS)
        (tmp_path / "data").mkdir()
        description = {"parameters": {"generator": "scenes", "version": 4}}
        (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match="data was made by version 4 of the generator"):
            DemoFolder(tmp_path, PARAMETERS)

    def test_leftovers_of_a_killed_process_go(self, tmp_path):
        DemoFolder(tmp_path, PARAMETERS)
        (tmp_path / ".part-measured.json").write_text("{")
        DemoFolder(tmp_path, PARAMETERS)
        assert not (tmp_path / ".part-measured.json").exists()


class TestMeasured:
    @pytest.fixture
    def calls(self):
        return []

    @pytest.fixture
    def measure(self, calls):
        def measure():
            calls.append(1)
            return {"metrics": {"accuracy": 0.1 + 0.2}}

        return measure

    def test_once(self, tmp_path, calls, measure):
        first = DemoFolder(tmp_path, {}).measured("a", "x", measure)
        # Another process finds exactly the same number.
        again = DemoFolder(tmp_path, {}).measured("a", "x", measure)
        assert again == first
        assert first["metrics"] == {"accuracy": 0.1 + 0.2}
        assert first["seconds"] >= 0
        assert len(calls) == 1

    def test_again_for_another_model(self, tmp_path, calls, measure):
        folder = DemoFolder(tmp_path, {})
        folder.measured("a", "x", measure)
        folder.measured("a", "y", measure)
        folder.measured("b", "x", measure)
        assert len(calls) == 3

    def test_what_failed_is_not_kept(self, tmp_path, measure):
        folder = DemoFolder(tmp_path, {})
        folder.measured("a", "x", measure)

        def stop():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            folder.measured("b", "x", stop)
        again = DemoFolder(tmp_path, {})
        assert again.known("b") == {}
        assert again.known("a")["metrics"] == {"accuracy": 0.1 + 0.2}


class TestFingerprint:
    def test_of_a_files_content(self, tmp_path):
        path = tmp_path / "weights"
        path.write_bytes(b"1")
        first = fingerprint(path, {"a": 1})
        assert first == fingerprint(path, {"a": 1})
        assert first != fingerprint(path, {"a": 2})
        path.write_bytes(b"2")
        assert first != fingerprint(path, {"a": 1})

    def test_parts_do_not_run_together(self):
        assert fingerprint("ab", "c") != fingerprint("a", "bc")
