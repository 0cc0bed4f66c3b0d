"""Workloads of `fiber bench data`, and the CPU time ratios that a release must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A kind of work, a corpus and an output dtype, measured for every peer that supports them."""

    #: Name on the command line (`--work`).
    kind: str
    #: `peers.task.PeerTask.work`.
    work: str
    output: str
    title: str
    #: Name of a corpus plan, "images" for the user's own files, or "" if no images are read.
    corpus: str = ""
    batch_size: int = 64
    #: Allow scaled JPEG decoding, as in training, for peers that support it.
    scaled: bool = False
    #: Maximum mean difference between fiber's images and Pillow's, on a scale of 0 to 255.
    most_levels: float = 1.0
    #: Type of item that is counted, and the unit of CPU time per item.
    counted: str = "image"
    unit: str = "ms"
    #: Number of such units in a second.
    per_second: float = 1e3
    #: Maximum number of images or texts.
    most: int = 100_000
    #: Repetitions of texts or boxes per epoch.
    repeats: int = 1

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, corpus, output), which identifies the workload."""
        return self.kind, self.corpus, self.output

    @property
    def name(self) -> str:
        """Name of the workload, as in the `line` column of the results."""
        return " ".join(filter(None, self.key))


_SQUASH = "coarse: squash to 384 x 384"
_CROP = "coarse: random resized crop to 384 x 384, flip"
_MICROSECONDS: dict[str, Any] = {"unit": "us", "per_second": 1e6, "repeats": 10}
_CAPTIONS: dict[str, Any] = {"counted": "caption", "output": "int64", **_MICROSECONDS}

WORKLOADS = (
    *(
        Workload(kind=kind, work=kind, output=output, title=title, corpus=corpus)
        for kind, title, corpus, output in (
            ("squash", _SQUASH, "coco640", "float32"),
            ("squash", _SQUASH, "coco640", "uint8"),
            ("squash", _SQUASH, "coco444", "float32"),
            ("squash", _SQUASH, "coco444", "uint8"),
            ("squash", _SQUASH, "det1333", "float32"),
            ("crop", _CROP, "coco640", "float32"),
            ("crop", _CROP, "coco640", "uint8"),
            ("crop", _CROP, "coco444", "float32"),
        )
    ),
    Workload(
        kind="large",
        work="squash",
        output="float32",
        title=f"{_SQUASH}, scaled decoding where supported",
        corpus="big12",
        batch_size=16,
        scaled=True,
        most_levels=3.0,
    ),
    Workload(
        kind="fine",
        work="fine",
        output="float32",
        title="fine: shorter side 800, at most 1333, flip, padded, boxes",
        corpus="coco640",
        batch_size=4,
        most=96,
    ),
    Workload(
        kind="captions", work="captions", title="captions to padded ids and mask", **_CAPTIONS
    ),
    Workload(
        kind="offsets",
        work="offsets",
        title="captions to padded ids, mask and offsets",
        **_CAPTIONS,
    ),
    Workload(
        kind="prompt",
        work="prompt",
        output="int64",
        title="prompt of 80 classes to ids and the positive map of 16 boxes",
        batch_size=1,
        counted="prompt",
        **{**_MICROSECONDS, "repeats": 1000},
    ),
    Workload(
        kind="boxes",
        work="boxes",
        output="float32",
        title="64 boxes of an image: clip, resize, flip",
        **_MICROSECONDS,
    ),
)
KINDS = tuple(dict.fromkeys(workload.kind for workload in WORKLOADS))
CORPORA = tuple(dict.fromkeys(workload.corpus for workload in WORKLOADS if workload.corpus))
#: Kinds that run on the user's own images.
OWN_KINDS = ("squash", "crop", "fine")


@dataclass(frozen=True)
class Gate:
    """Required ratio of a peer's CPU time to fiber's, for one workload."""

    kind: str
    corpus: str
    output: str
    #: Peers to compare against; the ratio is that of the fastest one.
    rivals: tuple[str, ...]
    #: Required ratio; None if the ratio is only reported.
    least: float | None
    #: Target ratio.
    target: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Key of the gate's workload; see `Workload.key`."""
        return self.kind, self.corpus, self.output


_THREADS = ("torchvision-threads", "torchvision-jemalloc")

GATES = (
    Gate("squash", "coco640", "float32", ("published",), 5.0, 8),
    Gate("squash", "coco640", "float32", ("dali",), 4.5, 7),
    Gate("squash", "coco640", "float32", ("torchvision-io",), 2.7, 4),
    Gate("squash", "coco640", "float32", ("ffcv-jpeg",), 1.8, 3),
    Gate("squash", "coco640", "uint8", _THREADS, 1.3, 2),
    Gate("squash", "coco444", "float32", ("published",), 4.0),
    Gate("squash", "coco444", "float32", ("dali",), 3.7),
    Gate("squash", "coco444", "float32", ("torchvision-io",), 2.5),
    Gate("squash", "coco444", "float32", ("ffcv-jpeg",), None),
    Gate("squash", "coco444", "uint8", _THREADS, 1.2),
    Gate("fine", "coco640", "float32", ("published",), 9.0, 15),
    Gate("fine", "coco640", "float32", ("dali",), 4.2, 7),
    Gate("fine", "coco640", "float32", ("torchvision-v2",), 4.8, 8),
    Gate("fine", "coco640", "float32", _THREADS, None),
    Gate("crop", "coco640", "float32", ("published",), None, 8),
    Gate("crop", "coco640", "float32", ("dali",), None, 5),
    Gate("crop", "coco640", "float32", ("torchvision-io",), None, 4),
    Gate("crop", "coco640", "float32", ("ffcv-jpeg",), None, 3),
    Gate("crop", "coco640", "uint8", _THREADS, None, 2),
    Gate("large", "big12", "float32", ("published",), None, 9),
    Gate("large", "big12", "float32", ("dali",), None, 6),
    Gate("large", "big12", "float32", ("torchvision-io",), None, 3.5),
)
