"""Download models into the Hub's cache, and upload them.

Only the files of a model folder are downloaded: JSON, safetensors and the card. A repository with
other weights, such as pickles, is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from fiber.atomic_io import full_disk_advice, system_error
from fiber.checkpoints.adapters import files as adapter
from fiber.checkpoints.hub.names import PICKLES, SCHEME, HubModel, check_repo
from fiber.checkpoints.kept import CARD, METRICS
from fiber.checkpoints.model_dir import MODEL_FILES, STAGES
from fiber.messages import shown, shown_names
from fiber.metrics.presence import PRESENCE_FILE
from fiber.terminal import unescaped

#: Files of which a model, or an adapter, has both.
_PAIRS = (("config.json", "model.safetensors"), (adapter.CONFIG, adapter.WEIGHTS))
#: Names of the files that are downloaded and uploaded.
_FILES = (*MODEL_FILES, CARD, METRICS, PRESENCE_FILE, *_PAIRS[1], adapter.ABOUT)
_ALL_FILES = [*_FILES, *(f"{stage}/{file}" for stage in STAGES for file in _FILES)]


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
    small = _snapshot(name, [file for file in _ALL_FILES if not file.endswith(".safetensors")])
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
    places = (folder, *(folder / stage for stage in STAGES))
    if any((each / a).is_file() and (each / b).is_file() for each in places for a, b in _PAIRS):
        return folder
    hub = _hub(f"{name} is a model on the Hub")
    expected = (
        f"expected {' and '.join(_PAIRS[0])} at the top or in the folders {' and '.join(STAGES)},"
        f" or {' and '.join(_PAIRS[1])}"
    )
    try:
        files = list(hub.HfApi().list_repo_files(name.repo, revision=name.revision))
    except (OSError, *_network_errors()):
        # Only the Hub knows its files, and it is away.
        raise ValueError(f"{name} has no model of this package; {expected}") from None
    pickles = [file for file in files if file.endswith(PICKLES)]
    refused = f"; pickles are not downloaded: {shown_names(pickles)}" if pickles else ""
    raise ValueError(
        f"{name} has no model of this package; {expected}, got {shown_names(files)}{refused}"
    )


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
