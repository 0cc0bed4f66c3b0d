"""What a command printed."""

import json


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def error_line(capsys) -> str:
    """The one line that a user's mistake is answered with."""
    printed = capsys.readouterr()
    assert printed.out == ""
    # A word on which model is used may stand above.
    *before, last = printed.err.splitlines()
    assert all(line.startswith("fiber: using") for line in before), printed.err
    assert last.startswith("fiber: error: ")
    return last
