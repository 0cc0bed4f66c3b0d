"""`fiber plan`: a table or JSON of a recipe, and bad input."""

import json

import pytest

from fiber.cli import main
from fiber.config_io import to_dict
from fiber.training.config.run import load_recipe

from .output import error_line


def test_a_table(capsys):
    assert main(["plan", "small_vqa", "--gpus", "2", "--set", "train.accumulation=2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("small_vqa on 2 x h100 (1 node of 2, 80 GB each)\n")
    assert "2 GPUs x 2 micro-batches x" in captured.out
    assert captured.err.startswith("counting one step of small_vqa")


def test_a_printed_configuration(capsys, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(to_dict(load_recipe("small_vqa"))))
    printed = []
    for recipe in ("small_vqa", str(file)):
        assert main(["plan", recipe, "--gpus", "2", "--json"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert main(["plan", str(tmp_path / "none.json"), "--gpus", "2"]) == 2
    assert "none.json: No such configuration" in error_line(capsys)


def test_json(capsys):
    arguments = ["plan", "small_vqa", "--gpus", "4", "--gpus-per-node", "2", "--gpu", "a100-80gb"]
    assert main([*arguments, "--node-gbps", "200", "--disk-gbps", "2.5", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cluster"]["gpu"] == "a100-80gb"
    assert plan["cluster"]["node_gbps"] == 200
    assert plan["cluster"]["disk_gbps"] == 2.5
    assert plan["strategies"]["replicate"]["network_seconds"] > 0
    assert plan["checkpoint_minutes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian", "--gpus", "64"], "'pretrian' does not exist; did you mean pretrain"),
        (["pretrain", "--gpus", "64", "--gpu", "h10"], "'h10' is unknown; did you mean h100"),
        (["pretrain", "--gpus", "520"], "leaves 512 samples for 520 GPUs"),
        (["pretrain", "--gpus", "12"], "not a multiple of gpus_per_node 8"),
        (["pretrain", "--gpus", "8", "--utilization", "2"], "utilization must be in (0, 1]"),
        (["pretrain", "--gpus", "8", "--set", "data.batchsize=2"], "data.batch_size"),
    ],
)
def test_bad_input(capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RECIPE"),
        (["pretrain"], "--gpus"),
        (["pretrain", "--gpus", "0"], "expected a positive integer, got '0'"),
        (["pretrain", "--gpus", "8", "--node-gbps", "0"], "expected a number above 0, got '0'"),
        (["pretrain", "--gpus", "8", "--node-gbps", "nan"], "expected a number above 0"),
        (["pretrain", "--gpus", "8", "--image-kb", "many"], "got 'many'"),
        (["pretrain", "--gpu", "8"], "--gpus"),
    ],
)
def test_wrong_use(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
