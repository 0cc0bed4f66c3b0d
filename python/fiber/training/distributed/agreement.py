"""Checks at the start that all ranks train the same run, in a folder that all of them see."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.config_io import field_names
from fiber.messages import shown
from fiber.training.config.run import RunConfig
from fiber.training.distributed.collectives import broadcast_object, gather_objects, wait_for_all
from fiber.training.distributed.processes import Processes

#: Seconds that a file of rank 0 may take to appear on another node's mount.
MOUNT_SECONDS = 5.0


def agree(
    config: RunConfig,
    records: Mapping[str, int],
    fingerprints: Mapping[str, str],
    vocabulary: Vocabulary,
    processes: Processes,
) -> None:
    """Fail on every rank unless all of them train the same.

    Args:
        config: configuration, fitted to the data.
        records: number of records by task.
        fingerprints: fingerprints of the same records.
        vocabulary: tokenizer, answers and classes of the run.
        processes: all ranks must call this.

    Raises:
        ValueError: if the configuration, the data, the vocabulary or a version differs on a rank;
            the message names the rank, its host, the field and both values.
    """
    if processes.world_size == 1:
        return
    facts: dict[str, Any] = {
        "fiber": version("fiber-vl"),
        "torch": torch.__version__,
        **{f"records of {name}": count for name, count in records.items()},
        **{f"fingerprint of {name}": text for name, text in fingerprints.items()},
        "SHA-256 of the tokenizer": _hash(vocabulary.tokenizer.to_json()),
        "SHA-256 of the answers": _hash(*vocabulary.answers),
        "SHA-256 of the classes": _hash(*vocabulary.classes),
        **_fields(config),
    }
    lines = []
    first, *others = gather_objects((socket.gethostname(), facts), processes)
    for rank, (host, facts_there) in enumerate(others, 1):
        names = dict.fromkeys((*first[1], *facts_there))
        different = [name for name in names if first[1].get(name) != facts_there.get(name)]
        lines += [
            f"{name} is {shown(facts_there.get(name))} on rank {rank} ({host})"
            f" and {shown(first[1].get(name))} on rank 0 ({first[0]})"
            for name in different
        ]
    if lines:
        more = f"; and {len(lines) - 8} more differences" if len(lines) > 8 else ""
        raise ValueError(f"the ranks do not train the same: {'; '.join(lines[:8])}{more}")


def check_shared(folder: Path, processes: Processes) -> None:
    """Fail on every rank unless all of them see the same folder.

    Raises:
        ValueError: if a rank does not see rank 0's folder; the message names both.
    """
    if processes.world_size == 1:
        return
    token = broadcast_object(f".rank0-{secrets.token_hex(8)}", processes)
    if processes.is_first:
        (folder / token).touch()
    wait_for_all(processes)
    deadline = time.monotonic() + MOUNT_SECONDS
    while not (is_seen := (folder / token).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    path = str(folder.absolute())
    first, *others = gather_objects((socket.gethostname(), path, is_seen), processes)
    if processes.is_first:
        (folder / token).unlink()
    blind = [
        f"rank {rank} on {host} ({path})"
        for rank, (host, path, seen) in enumerate(others, 1)
        if not seen
    ]
    if blind:
        raise ValueError(
            f"the run folder {first[1]} of rank 0 on {first[0]} is not the folder that other ranks"
            f" see: {', '.join(blind[:8])}; use a folder that all nodes share"
        )


def _hash(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _fields(config: RunConfig) -> dict[str, Any]:
    values = {name: attrgetter(name)(config) for name in field_names(config)}
    return {name: value for name, value in values.items() if not dataclasses.is_dataclass(value)}
