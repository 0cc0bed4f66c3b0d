"""Parser class, shared options and argument types for all commands.

Argument types raise `argparse.ArgumentTypeError` for invalid text.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fiber.config_io import nearest
from fiber.messages import printable
from fiber.terminal import STDOUT, explain_output_errors

#: Maximum number of characters of an error or a warning.
MAX_MESSAGE = 4000

#: `--device`, as an entry of `add_options`.
DEVICE = {
    "--device DEVICE": "device to run on, such as cpu, cuda or cuda:1 (default: cuda if available,"
    " else cpu)"
}
#: Options for files that published checkpoints do not contain.
VOCABULARIES = {
    "--tokenizer DIR": "tokenizer.json, or a folder that contains it, vocab.json and merges.txt, or"
    " BERT's vocab.txt (default: the model's own)",
    "--answers FILE": "JSON file with a list of the VQA head's answers, in the order of the logits"
    " (default: the model's own)",
}
#: Limits of decoding one image; `limits_of` reads them.
LIMITS = {
    "--max-pixels N": "maximum number of pixels of an image file (default: 178956970)",
    "--max-decode-bytes SIZE": "maximum memory for decoding one image, such as 500MB (default: no"
    " limit)",
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


#: Options of other programs, and those of commands here, of which the first is meant.
_ALIASES = {
    **dict.fromkeys(("--conf", "--confidence", "--score", "--score-threshold"), ("--threshold",)),
    **dict.fromkeys(("--box-threshold", "--text-threshold"), ("--threshold",)),
    **dict.fromkeys(
        ("-o", "--out", "--output", "--output-dir", "--save-dir"), ("--output", "--save")
    ),
    **dict.fromkeys(("--gpu", "--cuda", "--cpu"), ("--device",)),
    **dict.fromkeys(("-m", "--weights", "--checkpoint", "--ckpt"), ("--model", "--init")),
    **dict.fromkeys(
        ("-p", "--prompt", "--prompts", "--text", "--labels"), ("--phrases", "--classes")
    ),
    **dict.fromkeys(("-d", "--dataset", "--data-dir"), ("--data",)),
}


class CommandParser(argparse.ArgumentParser):
    """ArgumentParser that suggests the closest command, choice or option for a misspelled one."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Parse arguments, and report unknown options with the usage of their command."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            # Options of other programs, such as --lr, are fields of a recipe here.
            has_fields = "--set" in self._option_string_actions and name.startswith("--")
            close = [each for each in _ALIASES.get(name, ()) if each in self._option_string_actions]
            cutoff = 0.85 if has_fields else 0.7
            close = close[:1] or difflib.get_close_matches(
                name, self._option_string_actions, 3, cutoff
            )
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; see {self.prog} --help"
            if has_fields and not close:
                hint = "; fields of the recipe are set by --set, as in --set train.steps=500"
            taken = {each.dest.upper() for each in self._get_positional_actions()}
            if (argument := name.lstrip("-").upper()) in taken:
                hint = f"; {argument} is passed without an option"
            if not name.startswith("-"):
                hint = self._describe_positionals()
            pair = (getattr(namespace, "set", None) or [""])[-1]
            if pair and "=" not in pair:
                hint = f"; did you mean --set {pair}={name}?"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace, unknown

    def _describe_positionals(self) -> str:
        """Return what a command takes besides options; an argument with spaces needs quotes."""
        names = [str(each.metavar or each.dest) for each in self._get_positional_actions()]
        return f"; expected only {' '.join(names)} (quote a text with spaces)" if names else ""

    def _other_names(self) -> dict[str, str]:
        """Return hints for commands that other programs have."""
        ask = (
            "a model is asked by fiber ground, detect, segment, answer, caption, match, reason,"
            " entail or search"
        )
        return {
            "help": f"did you mean {self.prog} --help?",
            "version": "did you mean fiber --version?",
            **dict.fromkeys(("predict", "infer", "inference", "run", "ask", "query", "chat"), ask),
            **dict.fromkeys(("fit", "finetune", "fine-tune"), "did you mean train?"),
            **dict.fromkeys(("test", "val", "validate"), "did you mean eval?"),
            **dict.fromkeys(("vqa", "question"), "did you mean answer?"),
            **dict.fromkeys(("retrieve", "retrieval"), "did you mean search?"),
            **dict.fromkeys(("info", "env", "check"), "did you mean doctor?"),
        }

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or an error; argparse would ignore that it cannot be written."""
        stream = file or sys.stderr
        with explain_output_errors(stream, STDOUT if stream is sys.stdout else "standard error"):
            stream.write(message)
            stream.flush()

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message, and exit with code 2.

        Arguments may be names of files, from a pattern of the shell. An error about missing
        arguments ends with the default of `example`, a command line or more than one.
        """
        if "arguments are required: " in message:
            example = self.get_default("example")
            message += f"; for example, {example}" if example else f"; see `{self.prog} --help`"
        if "not allowed with argument" in message:
            message += "; pass one of them"
        super().error(printable(message, MAX_MESSAGE))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = [str(choice) for choice in action.choices or ()]
        if choices and value not in choices:
            hint = nearest(str(value), choices)
            if isinstance(action, argparse._SubParsersAction):
                hint = self._other_names().get(value, hint)
            raise argparse.ArgumentError(action, f"unknown value {value!r}; {hint}")


def path_text(text: str) -> str:
    """Check that the path of a file or folder is not empty, as of an unset variable of the shell.

    An empty path would be the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected the path of a file or folder, got {text!r}")
    return text


def _path(text: str) -> Path:
    return Path(path_text(text))


def positive_int(text: str) -> int:
    """Parse a positive integer."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return number


def nonnegative_int(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a non-negative integer, got {text!r}")
    return int(text)


def process_count(text: str) -> int:
    """Parse a number of processes; "auto" becomes 0."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer or 'auto', got {text!r}")
    return int(text)


def node_range(text: str) -> tuple[int, int]:
    """Parse a number of nodes, or a range I:J."""
    least, colon, most = text.partition(":")
    if not least.isdecimal() or not (most if colon else least).isdecimal():
        raise argparse.ArgumentTypeError(f"expected I or I:J, such as 4 or 2:4, got {text!r}")
    return int(least), int(most if colon else least)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def score(text: str) -> float:
    """Parse a score from 0 to 1."""
    return _up_to_1(text, "a score from 0 to 1, such as 0.3")


def weight(text: str) -> float:
    """Parse the weight of one of two models, from 0 to 1."""
    return _up_to_1(text, "a weight from 0 to 1, such as 0.5")


def _up_to_1(text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def candidates(text: str) -> int:
    """Parse a number of retrieval candidates; "all" becomes `sys.maxsize`."""
    if text == "all":
        return sys.maxsize
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a non-negative integer or 'all', got {text!r}")
    return int(text)


def byte_count(text: str) -> int:
    """Parse a size in bytes, KB, MB or GB (powers of 1,024), such as "256MB"."""
    number, unit = text.rstrip("KMGkmgBb"), text.lstrip("0123456789").upper().removesuffix("B")
    if not number.isdecimal() or int(number) < 1 or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB, got {text!r}")
    return int(number) * _UNITS[unit]


def semicolon_list(text: str) -> tuple[str, ...]:
    """Split a list at semicolons, since class names may contain commas; one may be at the end."""
    items = tuple(item.strip() for item in text.strip().removesuffix(";").split(";"))
    if not all(items):
        raise argparse.ArgumentTypeError(
            'expected one or more items without empty ones, such as "a red mug; the laptop", got'
            f" {text!r}"
        )
    return items


def char_spans(text: str) -> list[list[tuple[int, int]]]:
    """Parse START:END spans; semicolons separate phrases, commas separate parts of a phrase."""
    spans = []
    for item in semicolon_list(text):
        found = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in item.split(",")]
        parts = [(int(match[1]), int(match[2])) for match in found if match]
        if len(parts) < len(found):
            raise argparse.ArgumentTypeError(f"expected START:END, such as 2:12, got {item!r}")
        spans.append(parts)
    return spans


def box_xyxy(text: str) -> tuple[float, float, float, float]:
    """Parse a box X0,Y0,X1,Y1 of finite numbers, whose sides are longer than 0."""
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not (-math.inf < x0 < x1 < math.inf and -math.inf < y0 < y1 < math.inf):
        raise argparse.ArgumentTypeError(
            "expected X0,Y0,X1,Y1 with X0 below X1 and Y0 below Y1, such as 10,20,110,90, got"
            f" {text!r}"
        )
    return x0, y0, x1, y1


def key_values(pairs: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Parse the KEY=VALUE arguments of a repeatable option into a dict.

    Raises:
        ValueError: if an argument has no key or no "=".
    """
    values = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise ValueError(f"{option} {pair!r}: expected KEY=VALUE, such as {example}")
        values[key] = value
    return values


#: Argument types by metavar; all others are strings.
_TYPES: dict[str, Callable[[str], Any]] = {
    "N": positive_int,
    "SIZE": byte_count,
    "DIR": _path,
    "FILE": _path,
    # Some of these may be a URL, or the name of a model.
    **dict.fromkeys(
        ("IMAGE", "LEFT", "RIGHT", "MODEL", "BASE", "TUNED", "SOURCE", "DATA", "IN", "INDEX"),
        path_text,
    ),
}


def add_options(
    command: argparse._ActionsContainer,
    options: Mapping[str, str],
    /,
    **settings: Mapping[str, Any],
) -> None:
    """Add the arguments in a table to a command or an argument group.

    `options` maps "--option METAVAR", "argument METAVAR" or "--flag" to its help text. The metavar
    N stands for a positive integer, and DIR, FILE, IMAGE and others for paths that are not empty.
    `settings` maps argument names to further `add_argument` keywords.
    """
    for option, text in options.items():
        name, _, metavar = option.partition(" ")
        own = settings.get(name.lstrip("-").replace("-", "_"), {})
        keywords: dict[str, Any] = {}
        if metavar:
            keywords = {"metavar": metavar, "type": _TYPES.get(metavar)}
        elif not own:
            keywords = {"action": "store_true"}
        command.add_argument(name, help=text, **{**keywords, **own})


@contextlib.contextmanager
def naming_option(option: str, folder: Path) -> Iterator[None]:
    """Name the option of an output folder in errors of the system about this folder."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename) in (folder, *folder.parents):
            error.filename = f"{option} {folder}: the folder cannot be created or written"
            in_the_way = next((each for each in (folder, *folder.parents) if each.is_file()), None)
            if in_the_way is not None:
                error.strerror = f"{in_the_way} is a file; pass another folder"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                error.strerror = f"{error.strerror}; pass another folder"
        raise


def limits_of(options: argparse.Namespace) -> dict[str, int]:
    """Return the limits of `LIMITS` that were given."""
    found = pick(options, "max_pixels", "max_decode_bytes")
    return {name: value for name, value in found.items() if value is not None}


def pick(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the named options as a dict."""
    return {name: getattr(options, name) for name in names}
