"""Packed folders as earlier versions wrote them."""

import hashlib
import json

import numpy as np

from fiber.data.storage.pack_description import fingerprint_of_content
from fiber.data.storage.pack_index import ENTRY


def sign(folder, description):
    """Write pack.json with its fingerprint."""
    description.pop("fingerprint", None)
    content = {"fingerprint": fingerprint_of_content(description), **description}
    (folder / "pack.json").write_text(json.dumps(content, indent=1) + "\n")


def as_version_1(folder):
    """Turn a packed folder of version 2 into one of version 1, with JSON indexes."""
    description = json.loads((folder / "pack.json").read_text())
    assert description["version"] == 2
    indexes = []
    for entry in description["indexes"]:
        path, split = folder / entry["file"], entry["split"]
        found = np.fromfile(path, dtype=ENTRY)
        path.unlink()
        if entry["source"] != "images":
            continue
        lists = {
            "pictures": [[int(e[name]) for name in ("number", "start", "bytes")] for e in found],
            "crc32": found["crc32"].tolist(),
        }
        for kind, numbers in lists.items():
            name = f"index/{split}-{kind}.json"
            content = json.dumps(numbers, separators=(",", ":")).encode()
            (folder / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            indexes.append({"split": split, "file": name, "sha256": digest})
    description |= {"version": 1, "indexes": indexes}
    del description["block_bytes"]
    for kind in ("shards", "parts", "files"):
        for entry in description[kind]:
            del entry["crc32s"]
            if kind != "shards":
                del entry["bytes"]
    sign(folder, description)
    return folder


def without_checksums(folder):
    """Turn it into a folder of the first version, which had no checksums of images."""
    as_version_1(folder)
    description = json.loads((folder / "pack.json").read_text())
    del description["indexes"], description["files"]
    for file in (folder / "index").glob("*-crc32.json"):
        file.unlink()
    sign(folder, description)
    return folder
