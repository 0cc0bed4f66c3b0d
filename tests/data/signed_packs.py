"""Changed packed folders whose checksums are right, so that what they contain is read."""

import hashlib
import json
import zlib
from itertools import accumulate

from fiber.data.storage.pack_description import fingerprint_of_content
from fiber.data.storage.pack_index import pack_entry


def sign(folder, description):
    """Write pack.json with its fingerprint."""
    description.pop("fingerprint", None)
    content = {"fingerprint": fingerprint_of_content(description), **description}
    (folder / "pack.json").write_text(json.dumps(content, indent=1) + "\n")


def line_index(lines):
    """The index of lines, the first image of each of which has its number."""
    starts = accumulate(map(len, lines), initial=0)
    return b"".join(
        pack_entry(start, len(line), number, zlib.crc32(line))
        for number, (start, line) in enumerate(zip(starts, lines, strict=False))
    )


def replace_lines(folder, name, lines):
    """Replace all records of index/NAME.jsonl, of as many images, by other lines of text."""
    contents = [f"{line}\n".encode() for line in lines]
    files = {f"index/{name}.jsonl": b"".join(contents), f"index/{name}.bin": line_index(contents)}
    description = json.loads((folder / "pack.json").read_text())
    for entry in (*description["parts"], *description["indexes"]):
        if content := files.get(entry["file"]):
            (folder / entry["file"]).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            entry |= {"bytes": len(content), "sha256": digest, "crc32s": [zlib.crc32(content)]}
    sign(folder, description)
