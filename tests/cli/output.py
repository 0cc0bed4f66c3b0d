"""What a command printed."""

import json


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def error_line(capsys) -> str:
    """Return the error of wrong input, which must be one line."""
    printed = capsys.readouterr()
    assert printed.out == ""
    # The model that is used may be logged before it, and a warning that is issued once per process.
    *before, last = printed.err.splitlines()
    assert all(
        line.startswith(("fiber: using", "fiber: warning: no English spaCy", "counting one step"))
        for line in before
    ), printed.err
    assert last.startswith("fiber: error: ")
    return last
