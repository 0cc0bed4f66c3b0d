"""Names of models on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fiber.messages import shown

#: Start of the name of a model on the Hub.
SCHEME = "hf://"
#: Ends of the names of files that hold pickles.
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
#: A repository's owner or name, as the Hub allows them.
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^\s@]+?))?(?:/(?P<stage>coarse|fine))?"
)
#: A snapshot in the Hub's cache, or a stage of it.
_SNAPSHOT = re.compile(
    r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})"
    r"(?P<stage>/(?:coarse|fine))?"
)
_EXPECTED = "expected hf://user/name, hf://user/name@revision or, for one stage, .../coarse"
#: Maximum number of folders whose names are compared with the user of a name.
_MAX_FOLDERS = 1000


class HubModel(NamedTuple):
    """The name of a model on the Hub."""

    #: User or organization, and name.
    repo: str
    #: Branch, tag or commit; None for the newest of the default branch.
    revision: str | None = None
    #: Stage of a repository with one model per stage.
    stage: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"/{self.stage}" if self.stage else "")


def parse_hub_name(path: str | os.PathLike[str]) -> HubModel | None:
    """Return the name of a model on the Hub, or None if `path` does not start with "hf://".

    Raises:
        ValueError: if it does and is no valid name.
    """
    text = os.fspath(path)
    # A `Path` merges the slashes.
    start = re.match(r"hf:/{1,2}", text)
    if start is None:
        return None
    found = _NAME.fullmatch(text[start.end() :])
    if found is None:
        raise ValueError(f"{shown(text)} is not the name of a model on the Hub; {_EXPECTED}")
    return HubModel(found["repo"], found["revision"], found["stage"])


def short_hub_name(text: str, reserved: Iterable[str] = ()) -> HubModel | None:
    """Return the name of a model on the Hub if a text has the form user/name, else None.

    A path on this machine must never become the name of a stranger's model: the text is none if
    there is a folder `user` here, or if `user` is one of `reserved` or almost the name of either.
    """
    found = _NAME.fullmatch(text)
    if found is None or found["repo"].endswith((*PICKLES, ".safetensors")):
        return None
    user = found["repo"].partition("/")[0]
    here = itertools.islice(Path().iterdir(), _MAX_FOLDERS)
    names = [name.lower() for name in (*reserved, *(each.name for each in here))]
    if os.path.lexists(user) or difflib.get_close_matches(user.lower(), names, n=1, cutoff=0.8):
        return None
    return HubModel(found["repo"], found["revision"], found["stage"])


def hub_name(folder: str | os.PathLike[str]) -> HubModel | None:
    """Return the repository and commit of a folder in the Hub's cache; None for another folder."""
    parts = Path(folder).parts
    for start, part in enumerate(parts):
        if part.startswith("models--"):
            found = _SNAPSHOT.fullmatch("/".join(parts[start:]))
            if found is not None:
                stage = found["stage"]
                repo = f"{found['owner']}/{found['name']}"
                return HubModel(repo, found["commit"], stage.lstrip("/") if stage else None)
    return None


def check_repo(repo: str) -> str:
    """Return user/name of the name of a repository. Raises ValueError if it is no such name."""
    found = _NAME.fullmatch(repo.removeprefix(SCHEME)) if isinstance(repo, str) else None
    if found is None or found["revision"] or found["stage"]:
        raise ValueError(f"repo: expected user/name, got {shown(repo)}")
    return found["repo"]
