"""Ranks that do not train the same run, or not in one folder, refuse at the start."""

import json
import re
import signal
import socket

import pytest
import torch
import torch.distributed as dist

from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.data import Tokenizer
from fiber.training.distributed.agreement import agree
from fiber.training.distributed.processes import Processes, joined
from tests.losses.two_ranks import run_on_two_ranks
from tests.processes import start_python
from tests.training import micro_runs
from tests.training.micro_runs import coarse_config


def start_ranks(tmp_path, settings):
    """Start one process a rank with its own settings; return exit codes and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    errors = [tmp_path / f"{rank}.txt" for rank in range(2)]
    processes = [
        start_python(
            [micro_runs.__file__, json.dumps({"stage": "coarse", "resume": False, **own})],
            environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            errors=errors[rank],
        )
        for rank, own in enumerate(settings)
    ]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes], [path.read_text() for path in errors]


def test_two_folders_are_refused_with_both_paths(pictures, tmp_path):
    outputs = [str(tmp_path / name / "run") for name in "ab"]
    settings = [{"data": str(pictures), "output": output, "changes": {}} for output in outputs]
    codes, texts = start_ranks(tmp_path, settings)
    assert codes == [1, 1]
    for text in texts:
        last = text.splitlines()[-1]
        assert all(output in last for output in outputs)
        assert "use a folder that all nodes share" in last
    assert not list((tmp_path / "a").rglob(".rank0-*"))


def test_another_configuration_is_named_with_both_values(pictures, tmp_path):
    output = str(tmp_path / "run")
    settings = [
        {"data": str(pictures), "output": output, "changes": {"train__steps": steps}}
        for steps in (3, 4)
    ]
    codes, texts = start_ranks(tmp_path, settings)
    assert codes == [1, 1]
    for text in texts:
        assert re.search(r"train.steps is 4 on rank 1 \(.*\) and 3 on rank 0 \(", text)
    assert not (tmp_path / "run").exists()


def message_of(fingerprints, answers=((), ())):
    """Return what `agree` says on this rank about a fingerprint and a list of answers a rank."""
    processes = Processes(rank=dist.get_rank(), world_size=2, device=torch.device("cpu"))
    own = {"question": fingerprints[processes.rank]}
    words = ["a red square"] if fingerprints[0] != "words" else ["abc", "cba"][processes.rank :]
    vocabulary = Vocabulary(Tokenizer.train(words * 3, 262), answers[processes.rank])
    try:
        agree(coarse_config(), {"question": 12}, own, vocabulary, processes)
    except ValueError as error:
        return str(error)
    return ""


def test_other_data_is_named(tmp_path):
    for message in run_on_two_ranks(message_of, tmp_path, ["abc", "abd"]):
        assert "fingerprint of question is 'abd' on rank 1" in message


def test_another_vocabulary_is_named(tmp_path):
    answers = ("red", "blue"), ("blue", "red")
    for message in run_on_two_ranks(message_of, tmp_path, ["abc", "abc"], answers):
        assert "SHA-256 of the answers is " in message
        assert "tokenizer" not in message
    for message in run_on_two_ranks(message_of, tmp_path, ["words", "words"]):
        assert "SHA-256 of the tokenizer is " in message


def test_equal_ranks_agree(tmp_path):
    assert run_on_two_ranks(message_of, tmp_path, ["abc", "abc"]) == ["", ""]


def test_an_error_of_one_rank_ends_the_other_with_its_reason(pictures, tmp_path):
    settings = [
        {"data": str(data), "output": str(tmp_path / "run"), "changes": {}}
        for data in (pictures, tmp_path / "missing")
    ]
    codes, texts = start_ranks(tmp_path, settings)
    assert codes == [1, 1]
    last = texts[0].splitlines()[-1]
    assert re.search(r"LostRankError: rank 1 \(process \d+ on .*\) failed: .*missing", last)
    # It would fail again.
    assert "--resume" not in last


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_line_and_ended(pictures, tmp_path):
    settings = [
        {
            "data": str(pictures),
            "output": str(tmp_path / "run"),
            "changes": {"train__timeout_seconds": 8.0},
            "hangs": hangs,
        }
        for hangs in (False, True)
    ]
    codes, texts = start_ranks(tmp_path, settings)
    assert codes == [1, -signal.SIGKILL]
    last = texts[0].splitlines()[-1]
    assert re.search(
        r"rank 1 \(process \d+ on .*\) hangs in micro_runs.py:\d+ \(on_step_end\)", last
    )
    assert "--resume continues after step 0" in last


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_variable_is_named(monkeypatch, name):
    given = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for each, value in given.items():
        monkeypatch.setenv(each, value)
    monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=f"WORLD_SIZE is set but {name} is not"), joined("cpu"):
        pass
