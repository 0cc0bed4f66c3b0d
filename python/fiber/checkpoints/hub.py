"""Models on the Hugging Face Hub: their names, their download into the Hub's cache, their upload.

Only the files of a model folder are downloaded: JSON, safetensors and the card. A repository with
other weights, such as pickles, is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fiber.atomic_io import full_disk_advice, system_error
from fiber.messages import shown, shown_names
from fiber.terminal import unescaped

#: Start of the name of a model on the Hub.
SCHEME = "hf://"
#: Name of the file of a model's weights.
WEIGHTS = "model.safetensors"
#: Names of a model's files that are downloaded and uploaded.
FILES = (
    "config.json",
    WEIGHTS,
    "tokenizer.json",
    "answers.json",
    "classes.json",
    "metrics.json",
    "README.md",
    # For the transformers library.
    "tokenizer_config.json",
    "preprocessor_config.json",
)
#: Names of the subfolders of a repository with one model per stage.
_STAGES = ("coarse", "fine")
_ALL_FILES = [*FILES, *(f"{stage}/{file}" for stage in _STAGES for file in FILES)]
#: Ends of the names of files that hold pickles.
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
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
    if found is None or found["repo"].endswith((*_PICKLES, ".safetensors")):
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


def download(name: HubModel, check: Callable[[Path], object]) -> Path:
    """Download a model into the Hub's cache, unless it is there, and return its folder.

    Without a network, or with `HF_HUB_OFFLINE=1`, the revision that the cache has is used. A
    download that was interrupted goes on where it stopped. `check` gets the folder before the
    weights are downloaded.

    Raises:
        FileNotFoundError: if the repository, revision or model does not exist, or the Hub cannot be
            reached and the cache lacks the model.
        ImportError: if huggingface_hub is not installed.
        OSError: if the download fails.
        ValueError: if the repository has no model of this package.
    """
    small = _snapshot(name, [file for file in _ALL_FILES if not file.endswith(WEIGHTS)])
    check(small / name.stage if name.stage else small)
    pinned = name._replace(revision=small.name)
    return _model_in(_snapshot(pinned, _ALL_FILES), pinned)


def _snapshot(name: HubModel, files: Sequence[str]) -> Path:
    """Download files of a revision, if they exist, and return the folder of the snapshot."""
    hub = _hub(f"{name} is a model on the Hub")
    errors = hub.errors
    place = f"{name}: "
    try:
        # Its progress bars move the cursor.
        with contextlib.redirect_stderr(unescaped(sys.stderr)):
            found = hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=files)
        return Path(found)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{place}access must be asked for at {_url(hub, name.repo)}; then log in (`hf auth"
            " login`, or the environment variable HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{place}the Hub has no such model, or it is private: {_url(hub, name.repo)}; check the"
            " name, or log in (`hf auth login`, or the environment variable HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{place}the model has no revision {shown(name.revision)}; expected a branch, tag or"
            f" commit of {_url(hub, name.repo)}/commits/main"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{place}{_describe_absent(hub)}") from error
    except (errors.HfHubHTTPError, OSError, *_network_errors()) as error:
        cause = system_error(error)
        full = full_disk_advice(cause, Path(hub.constants.HF_HUB_CACHE)) if cause else ""
        message = f"{place}the download failed ({type(error).__name__}: {shown(str(error))})" + (
            full or "; run the same again: it goes on where it stopped"
        )
        raise (OSError(cause.errno, message) if full and cause else OSError(message)) from error


def _model_in(snapshot: Path, name: HubModel) -> Path:
    """Return the model's folder of a snapshot. Raises ValueError if there is none."""
    folder = snapshot / name.stage if name.stage else snapshot
    for each in (folder, *(folder / stage for stage in _STAGES)):
        if (each / "config.json").is_file() and (each / WEIGHTS).is_file():
            return folder
    hub = _hub(f"{name} is a model on the Hub")
    expected = (
        f"expected config.json and {WEIGHTS} at the top or in the folders {' and '.join(_STAGES)}"
    )
    try:
        files = list(hub.HfApi().list_repo_files(name.repo, revision=name.revision))
    except (OSError, *_network_errors()):
        # Only the Hub knows its files, and it is away.
        raise ValueError(f"{name} has no model of this package; {expected}") from None
    pickles = [file for file in files if file.endswith(_PICKLES)]
    refused = f"; pickles are not downloaded: {shown_names(pickles)}" if pickles else ""
    raise ValueError(
        f"{name} has no model of this package; {expected}, got {shown_names(files)}{refused}"
    )


def check_repo(repo: str) -> str:
    """Return user/name of the name of a repository. Raises ValueError if it is no such name."""
    found = _NAME.fullmatch(repo.removeprefix(SCHEME)) if isinstance(repo, str) else None
    if found is None or found["revision"] or found["stage"]:
        raise ValueError(f"repo: expected user/name, got {shown(repo)}")
    return found["repo"]


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool | None,
    revision: str | None,
    message: str,
    token: str | None,
) -> str:
    """Upload the files of a model folder, in one commit, and return the URL of the commit.

    The repository is created if it does not exist. Files of other names stay as they are.

    Raises:
        ImportError: if huggingface_hub is not installed.
        OSError: if the upload fails; the message has the Hub's answer.
        ValueError: if `repo` is no valid name.
    """
    hub = _hub(f"{shown(repo)} is to be pushed to the Hub")
    repo = check_repo(repo)
    api = hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=_ALL_FILES,
        )
    except (hub.errors.HfHubHTTPError, OSError, *_network_errors()) as error:
        raise OSError(
            f"{SCHEME}{repo}: the upload failed ({type(error).__name__}:"
            f" {shown(str(error))}); pushing needs a token that may write (`hf auth login`, or the"
            " environment variable HF_TOKEN)"
        ) from error
    return str(done.commit_url)


def _hub(asked: str) -> ModuleType:
    """Import huggingface_hub. Raises ImportError, which names the extra, if it is missing."""
    try:
        hub = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
        importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        raise ImportError(
            f"{asked}, but huggingface_hub is not installed; `pip install 'fiber-vl[hub]'`"
        ) from error
    return hub


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the HTTP library, which differs between versions of huggingface_hub."""
    names = (each for each in ("httpx2", "httpx") if importlib.util.find_spec(each))
    return tuple(importlib.import_module(each).HTTPError for each in names)


def _url(hub: ModuleType, repo: str) -> str:
    return f"{hub.constants.ENDPOINT}/{repo}"


def _describe_absent(hub: ModuleType) -> str:
    """Say why a model is not at hand, and how to go on."""
    cache = hub.constants.HF_HUB_CACHE
    if hub.constants.HF_HUB_OFFLINE:
        return (
            f"the cache {cache} does not have it, and HF_HUB_OFFLINE forbids the network; unset"
            " HF_HUB_OFFLINE once to download it, or pass the path of a folder"
        )
    return (
        f"{hub.constants.ENDPOINT} cannot be reached, and the cache {cache} does not have it;"
        " check the network, or download it elsewhere (`hf download`) and pass the path of its"
        " folder"
    )
