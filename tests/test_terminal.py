import errno
import io
import json
import logging
import os
import sys
import warnings
from unicodedata import bidirectional

import pytest

from fiber.progress import ImageProgress, say
from fiber.terminal import (
    EscapingStream,
    escape_controls,
    escaping,
    explain_output_errors,
    is_terminal,
    unescaped,
    without_log_lines,
)


def test_ordinary_text_stays():
    for text in ("", "a mug\n", "é 犬 \N{FAMILY} \u200d\u3000\xa0", '{"a": "\\u001b"}\n'):
        assert escape_controls(text) == text


#: Classes of characters that embed, override or isolate text of another direction.
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = ["\N{LEFT-TO-RIGHT MARK}", "\N{RIGHT-TO-LEFT MARK}", "\N{ARABIC LETTER MARK}"]


@pytest.mark.parametrize(
    "control",
    [
        *("\0", "\t", "\r", "\x1b", "\x7f", "\x9b", "\u2028", "\u2029", "\u206a", "\udcff"),
        *MARKS,
        *(each for each in map(chr, range(0x3000)) if bidirectional(each) in DIRECTIONS),
    ],
    ids=ascii,
)
def test_controls_are_escaped_as_in_json(control):
    written = escape_controls(f"a{control}b\n")
    assert written == f"a\\u{ord(control):04x}b\n"
    assert json.loads(escape_controls(json.dumps({control: [control]}, ensure_ascii=False))) == {
        control: [control]
    }


def test_streams_are_restored():
    streams = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), escaping():
        assert sys.stdout is not streams[0]
        1 / 0  # noqa: B018
    assert (sys.stdout, sys.stderr) == streams


def test_a_stream_is_otherwise_that_below(capsys):
    below = io.StringIO()
    stream = EscapingStream(below, "standard output")  # type: ignore[arg-type]
    assert stream.write("a\x1b") == 2
    stream.writelines(["b\r", "c\n"])
    print("d\x07", file=stream, flush=True)
    assert below.getvalue() == "a\\u001bb\\u000dc\nd\\u0007\n"
    with escaping():
        print("out\x1b")
        print("err\x1b", file=sys.stderr)
    assert capsys.readouterr() == ("out\\u001b\n", "err\\u001b\n")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    class FullDisk(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        OSError, match=r"^\[Errno 28\] out could not be .* free some space"
    ) as raised:
        EscapingStream(FullDisk(), "out").write("a")
    assert raised.value.errno == errno.ENOSPC and "MB are free" not in str(raised.value)
    with (
        (tmp_path / "out.txt").open("w") as file,
        pytest.raises(OSError, match=r"out, the file .*out\.txt, .* MB are free: free some space"),
        explain_output_errors(file, "out"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(BrokenPipeError, match=r"^$"), explain_output_errors(sys.stdout, "out"):
        raise BrokenPipeError


def test_log_lines_are_dropped(capsys):
    logger, handler = logging.getLogger("fiber.test"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught, without_log_lines():
            logger.warning("dropped")
            warnings.warn("dropped", FutureWarning, stacklevel=1)
            logger.error("kept")
        with pytest.raises(ZeroDivisionError), without_log_lines():
            1 / 0  # noqa: B018
        logger.warning("after")
    finally:
        logger.removeHandler(handler)
    assert not caught and capsys.readouterr().err == "kept\nafter\n"


def test_libraries_write_no_colors(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    with escaping():
        assert is_terminal(sys.stdout) and not sys.stdout.isatty()
    assert is_terminal(sys.stdout) and not is_terminal(io.StringIO())


def test_progress_bars_move_the_cursor(monkeypatch):
    """A bar writes carriage returns; a message above it has none."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with escaping():
        assert unescaped(sys.stderr) is terminal is unescaped(terminal)
        progress = ImageProgress()
        progress(1, 2)
        say("spoofed\r\x1b[2J")
        progress(2, 2)
    written = terminal.getvalue()
    assert "spoofed\\u000d\\u001b[2J\n" in written
    assert "\r" in written and "\\u000d" not in written.replace("spoofed\\u000d", "")
    # The bar is cleared before the message, which is what needs the same stream for both.
    before, _, after = written.partition("spoofed")
    assert before.endswith("\r") and "2/2" in after
