"""Small hostile files: pickles, zip archives, tokenizers and model folders.

Each case is what a reader gave an unbounded amount of time, memory or stack for, or let run.
"""

from __future__ import annotations

import base64
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Content = dict[str, Any]


def legacy(pickled: bytes) -> bytes:
    """A file in the format of torch.save before 1.6, with one pickle and no storages."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(each, 2) for each in head) + pickled + pickle.dumps([], 2)


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive in the format of torch.save, with one pickle and no storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/version", b"3\n", zipfile.ZIP_STORED)
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


CONTAINERS: list[Callable[[bytes], bytes]] = [legacy, zipped, bytes]

#: A reference to a storage: a mark, "storage" and its class, then its number of elements.
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
NUMEL = b"X\x01\0\0\x000X\x03\0\0\0cpu"
ORDERED_DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def payload(module: str, name: str, argument: str) -> bytes:
    """A state dict beside the call of a function."""
    call = f"c{module}\n{name}\n(V{argument}\ntR".encode()
    return b"\x80\x02}(X\x0a\0\0\0state_dict}X\x01\0\0\0a" + call + b"u."


#: Pickles whose contents take far more time, memory or stack than their bytes.
PICKLES = {
    "key of 2^60 leaves": b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.",
    "deep key": b"\x80\x02}N" + b"\x85" * 150_000 + b"Ns.",
    "bytearray of 20 GB": b"\x80\x05\x96" + (20 << 30).to_bytes(8, "little") + b"xx.",
    "bytearray called with 20 GB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\5\x85R.",
    "tensor class called": b"\x80\x02ctorch\nFloatTensor\n\x8a\x05\0\0\0\0\5\x85R.",
    "colliding integers": b"\x80\x02}("
    + b"".join(pickle.dumps(each * (2**61 - 1), 2)[2:-1] + b"N" for each in range(1, 60_000))
    + b"u.",
    "colliding indices of the memo": b"N"
    + b"".join(b"p%d\n" % (each * (2**61 - 1)) for each in range(1, 60_000))
    + b".",
    "set of a tuple of 2^60 leaves": b"\x80\x02c__builtin__\nset\n]N" + b"2\x86" * 60 + b"a\x85R.",
    "storage whose numel is a tuple of 2^60 leaves": (
        b"\x80\x02" + STORAGE + NUMEL + b"N" + b"2\x86" * 60 + b"tQ."
    ),
    "storage whose key is a tuple of 2^60 leaves": (
        b"\x80\x02" + STORAGE + b"N" + b"2\x86" * 60 + b"X\x03\0\0\0cpuK\x01tQ."
    ),
    "tensor whose size is a tuple of 2^60 leaves": (
        b"\x80\x02" + REBUILD + (b"(" + STORAGE + NUMEL + b"K\x01tQK\0N") + b"2\x86" * 60
    )
    + b"\x85K\x01\x85\x89NtR.",
    "tensors of 60,000 dimensions": (
        b"\x80\x02" + REBUILD + b"q\1" + b"(" + STORAGE + NUMEL + b"K\x01tQK\0("
    )
    + (b"K\1" * 60_000 + b"tq\2h\2tq\3" + b"h\1h\3R0" * 100_000 + b"N."),
    "one long list in 100,000 calls": (
        b"\x80\x02" + ORDERED_DICT + b"q\1NN\x86q\2](" + b"h\2" * 200_000 + b"e\x85q\3"
    )
    + (b"h\1h\3R0" * 100_000 + b"."),
    "two million operations": b"\x80\x02" + b"N" * 2_000_000 + b".",
    "os.system": payload("posix", "system", "touch ran"),
    "torch.load": payload("torch", "load", "other.pt"),
    "keys 20,000 deep": b"\x80\x02}N" + b"\x85" * 20_000 + b"Ns.",
}


def probing_keys(bits: int = 18, most: int = 1 << 24) -> list[int]:
    """Integers whose probe sequences in a dict of 2^bits slots overlap, for quadratic time.

    A dict looks next at slot 5 i + 1, to which the upper bits of the hash add at first. The first
    half of the keys fill one such sequence; the others, all below `most`, end up at its start.
    """
    slot_mask, room = (1 << bits) - 1, (2 << bits) // 3
    sequence, slot = [], 1
    for _ in range(room // 2):
        sequence.append(slot)
        slot = (5 * slot + 1) & slot_mask
    is_taken, is_early = np.zeros((2, slot_mask + 1), bool)
    is_taken[sequence] = is_early[sequence[: len(sequence) // 3]] = True
    keys = np.arange(1 << 20, most)
    slots, upper = keys & slot_mask, keys
    for _ in range(6):
        hit = is_taken[slots]
        keys, slots, upper = keys[hit], slots[hit], upper[hit] >> 5
        slots = (slots * 5 + upper + 1) & slot_mask
    return sequence + keys[is_early[slots]][: room - len(sequence) - 10].tolist()


def probing_pickles() -> dict[str, bytes]:
    """Pickles with such keys, in the memo and in a dict. They take a second to make."""
    # Again and again, since finding a key takes as long as adding it.
    keys = [key.to_bytes(4, "little") for key in probing_keys()] * 3
    return {
        "memo that probes": b"\x80\x02N" + b"".join(b"r" + key for key in keys) + b".",
        "keys that probe": b"\x80\x02}(" + b"".join(b"J" + key + b"N" for key in keys) + b"u.",
    }


class Program(torch.nn.Module):
    """A TorchScript program that writes to a file when it is loaded."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target: str = target
        self.w = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.target, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.target = state[0]
        self.training = state[1]
        self.w = torch.from_file(state[0], True, 64)
        self.w.fill_(7.0)


def zip_files(program: bytes, weights: bytes) -> dict[str, bytes]:
    """Hostile zip archives, given a saved TorchScript program and saved weights."""
    deflated = zipped(b"\x80\x02" + b"\0" * 500_000_000 + b".", zipfile.ZIP_DEFLATED)
    entries, shared = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(entries, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"archive/data/{number}", b"")
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
    expanded = {f"layer.{number}": torch.zeros(1).expand(10**9) for number in range(100)}
    torch.save({"state_dict": expanded}, shared)
    sizes = bytearray(zipped(b"\x80\x02}."))
    entry = sizes.rindex(b"PK\x01\x02")
    sizes[entry + 20 : entry + 28] = (2**31 - 1).to_bytes(4, "little") * 2
    return {
        "TorchScript": program,
        "two directories": two_directories(program, weights),
        "deflated": deflated,
        "20,000 members": entries.getvalue(),
        "expanded tensors": shared.getvalue(),
        "sizes beyond the file": bytes(sizes),
        "intact": weights,
    }


def two_directories(first: bytes, second: bytes) -> bytes:
    """A file with two zip64 directories: torch finds that of `first`, zipfile that of `second`."""

    def parts(data: bytes) -> tuple[bytes, bytes, int]:
        archive = zipfile.ZipFile(io.BytesIO(data))
        end = data.rfind(b"PK\5\6")
        (size,) = struct.unpack("<I", data[end + 12 : end + 16])
        start = archive.start_dir
        return data[:start], data[start : start + size], len(archive.infolist())

    def moved(directory: bytes, by: int) -> bytes:
        out, at = bytearray(directory), 0
        while out[at : at + 4] == b"PK\1\2":
            lengths = struct.unpack("<HHH", out[at + 28 : at + 34])
            (offset,) = struct.unpack("<I", out[at + 42 : at + 46])
            out[at + 42 : at + 46] = struct.pack("<I", offset + by)
            at += 46 + sum(lengths)
        return bytes(out)

    def record(count: int, size: int, offset: int) -> bytes:
        head = (b"PK\6\6", 44, 45, 45, 0, 0)
        return struct.pack("<4sQHHIIQQQQ", *head, count, count, size, offset)

    (files, directory, count), (more, other, others) = parts(first), parts(second)
    body = files + more
    at, other = len(body), moved(other, len(files))
    body += directory
    found_by_torch = len(body)
    body += record(count, len(directory), at)
    at = len(body)
    body += other + record(others, len(other), at)
    body += struct.pack("<4sIQI", b"PK\6\7", 0, found_by_torch, 1)
    largest = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return body + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, *largest, 0)


def replace(pattern: dict[str, str], content: str) -> Content:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: Content) -> Content:
    return {"type": "Sequence", "normalizers": list(steps)}


def added(content: str, *, normalized: bool = True) -> Content:
    names = ("single_word", "lstrip", "rstrip")
    flags = dict.fromkeys(names, False) | {"normalized": normalized, "special": True}
    return {"id": 0, "content": content, **flags}


def charsmap(trie_bytes: int, texts: bytes) -> Content:
    """A SentencePiece normalizer with an empty trie that claims `trie_bytes` bytes."""
    data = base64.b64encode(struct.pack("<I", trie_bytes) + texts).decode()
    return {"type": "Precompiled", "precompiled_charsmap": data}


def tokenizers(whole: Content) -> dict[str, Content]:
    """Hostile tokenizers made of an intact one."""
    doubling = replace({"String": "a"}, "aa")
    words = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 8_000
        + [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    wide = template | {"single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 900}
    wide["special_tokens"] = {"<s>": {"id": "<s>", "ids": [0] * 3_000, "tokens": ["a"] * 3_000}}
    deep: Content = {"type": "Lowercase"}
    for _ in range(60):
        deep = sequence(deep)
    tokens = [added(f"<{number}>") for number in range(14_000)]
    bytes_again = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 34}
    backtracking = replace({"Regex": "(?=(a+)+$)(a+)+b"}, "")
    changes: dict[str, Content] = {
        "intact": {},
        "34 doubling rules": {"normalizer": sequence(*[doubling] * 34)},
        "doubling rules without types": {
            "normalizer": {"normalizers": [{k: doubling[k] for k in ("pattern", "content")}] * 34}
        },
        "prefix of 2 MB": {"normalizer": {"type": "Prepend", "prepend": "a" * 1_900_000}},
        "replacement of 1 MB": {"normalizer": replace({"String": "e"}, "e" * 1_000_000)},
        "empty pattern": {"normalizer": sequence(*[replace({"Regex": ""}, "aaaa")] * 12)},
        "growth undone": {
            "normalizer": sequence(*[doubling] * 11, replace({"Regex": "a+"}, "a")),
            "added_tokens": [added("a" * 60 + str(number)) for number in range(9_000)],
        },
        "Unicode growth": {"normalizer": sequence(*[{"type": "NFKD"}, {"type": "NFKC"}] * 3)},
        "bytes of bytes": {"pre_tokenizer": bytes_again},
        "growth while decoding": {
            "decoder": {"type": "Sequence", "decoders": [doubling] * 34},
        },
        "backtracking": {"normalizer": backtracking, "added_tokens": [added("a" * 4_000)]},
        "backtracking in many tokens": {
            "normalizer": backtracking,
            "added_tokens": [added("a" * 40 + str(number)) for number in range(10_000)],
        },
        "large pattern": {"normalizer": replace({"Regex": r"((\w{100}){100}){100}"}, "")},
        "many patterns": {"normalizer": sequence(*[replace({"Regex": r"\w{250}"}, "")] * 60)},
        "charsmap of 4 GB": {"normalizer": charsmap(2**32 - 4, b"a\0")},
        "charsmap with long texts": {"normalizer": charsmap(4, bytes(4) + b"a" * 10**6 + b"\0")},
        "empty charsmap": {"normalizer": charsmap(0, b"")},
        "14,000 added tokens": {"added_tokens": tokens},
        "long added tokens": {"added_tokens": [added("a" * 900_000), added("b" * 900_000)]},
        "template of 8,000 tokens": {"post_processor": template},
        "template of 2,700,000 tokens": {"post_processor": wide},
        "nested steps": {"normalizer": deep},
        "wide words": {"model": words | {"vocab": {"a" * 1_900_000: 0}}},
        "unigram of one long word": {
            "model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 1_900_000, 0.0]]},
        },
        "unigram of many words": {
            "model": {
                "type": "Unigram",
                "unk_id": 0,
                "vocab": [[f"{number:x}" * 60, -1.0] for number in range(5_000)],
            },
        },
        "largest ids": {"model": words | {"vocab": {"<unk>": 2**32 - 1, "a": 2**32 - 2}}},
        "padding to 10^9": {
            "padding": {
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_id": 1,
                "pad_to_multiple_of": 10**9,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            }
        },
    }
    return {name: whole | change for name, change in changes.items()}


#: Contents of config.json that are no config.
CONFIG_TEXTS = ("[]", "{}", "null", "3", '{"model": []}', '{"model": {"family": []}}', "[" * 10**5)

#: Values of numbers and lists in a config.
CONFIG_VALUES = (
    -1,
    0,
    10**12,
    2**70,
    10**400,
    1e300,
    None,
    "x",
    True,
    [],
    [1] * 9,
    {},
    [10**9] * 4,
)
