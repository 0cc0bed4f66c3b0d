"""Workloads of `fiber bench data`, and the ratios to other loaders that a release must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A kind of work on a corpus, with an output type; every peer that supports it is measured."""

    #: Name on the command line (`--work`).
    kind: str
    #: `peers.task.Task.work`.
    work: str
    output: str
    title: str
    #: Name of a corpus plan, "images" for the user's own files, "" if no image is read.
    corpus: str = ""
    batch_size: int = 64
    #: Allow scaled JPEG decoding, as in training, for peers that support it.
    scaled: bool = False
    #: Largest mean distance of fiber's images from Pillow's, in levels of 255. Above it, fail.
    most_levels: float = 1.0
    #: What is counted, and the unit of its CPU time.
    counted: str = "image"
    unit: str = "ms"
    #: Units per second.
    per_second: float = 1e3
    #: Maximum number of images or texts.
    most: int = 100_000
    #: Repetitions of texts or boxes per epoch.
    repeats: int = 1

    @property
    def name(self) -> str:
        """Name in the `line` column of rows."""
        return " ".join(part for part in (self.kind, self.corpus, self.output) if part)


_SQUASH = "coarse: squash to 384 x 384"
_CROP = "coarse: random resized crop to 384 x 384, flip"
_FINE = "fine: shorter side 800, at most 1333, flip, padded, boxes"

WORKLOADS = (
    Workload(kind="squash", work="squash", output="float32", title=_SQUASH, corpus="coco640"),
    Workload(kind="squash", work="squash", output="uint8", title=_SQUASH, corpus="coco640"),
    Workload(kind="squash", work="squash", output="float32", title=_SQUASH, corpus="coco444"),
    Workload(kind="squash", work="squash", output="uint8", title=_SQUASH, corpus="coco444"),
    Workload(kind="squash", work="squash", output="float32", title=_SQUASH, corpus="det1333"),
    Workload(kind="crop", work="crop", output="float32", title=_CROP, corpus="coco640"),
    Workload(kind="crop", work="crop", output="uint8", title=_CROP, corpus="coco640"),
    Workload(kind="crop", work="crop", output="float32", title=_CROP, corpus="coco444"),
    Workload(
        kind="large",
        work="squash",
        output="float32",
        title=f"{_SQUASH}, decoded smaller by peers that can",
        corpus="big12",
        batch_size=16,
        scaled=True,
        most_levels=3.0,
    ),
    Workload(
        kind="fine",
        work="fine",
        output="float32",
        title=_FINE,
        corpus="coco640",
        batch_size=4,
        most=96,
    ),
    Workload(
        kind="captions",
        work="captions",
        output="int64",
        title="captions to padded ids and mask",
        counted="caption",
        unit="us",
        per_second=1e6,
        repeats=10,
    ),
    Workload(
        kind="offsets",
        work="offsets",
        output="int64",
        title="captions to padded ids, mask and offsets",
        counted="caption",
        unit="us",
        per_second=1e6,
        repeats=10,
    ),
    Workload(
        kind="prompt",
        work="prompt",
        output="int64",
        title="prompt of 80 classes to ids and the positive map of 16 boxes",
        batch_size=1,
        counted="prompt",
        unit="us",
        per_second=1e6,
        repeats=1000,
    ),
    Workload(
        kind="boxes",
        work="boxes",
        output="float32",
        title="64 boxes of an image: clip, resize, flip",
        counted="image",
        unit="us",
        per_second=1e6,
        repeats=10,
    ),
)
KINDS = tuple(dict.fromkeys(workload.kind for workload in WORKLOADS))
CORPORA = tuple(dict.fromkeys(workload.corpus for workload in WORKLOADS if workload.corpus))
#: Kinds that run on the user's own images.
OWN_KINDS = ("squash", "crop", "fine")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Required ratio of a peer's CPU time to fiber's, for one workload."""

    kind: str
    corpus: str
    output: str
    #: Peers. The fastest one counts.
    rivals: tuple[str, ...]
    #: Required ratio; None: report only.
    least: float | None
    #: Ratio that is aimed at.
    target: float | None = None


_THREADS = ("torchvision-threads", "torchvision-jemalloc")


def _squash_gates(
    corpus: str, gates: Sequence[float | None], aims: Sequence[float | None]
) -> list[Gate]:
    """Gates and targets against the published pipeline, DALI, torchvision, FFCV and threads."""
    rivals = (("published",), ("dali",), ("torchvision-io",), ("ffcv-jpeg",), _THREADS)
    outputs = ("float32", "float32", "float32", "float32", "uint8")
    return [
        Gate(kind="squash", corpus=corpus, output=output, rivals=some, least=least, target=aim)
        for some, output, least, aim in zip(rivals, outputs, gates, aims, strict=True)
    ]


GATES = (
    *_squash_gates("coco640", (5.0, 4.5, 2.7, 1.8, 1.3), (8, 7, 4, 3, 2)),
    *_squash_gates("coco444", (4.0, 3.7, 2.5, None, 1.2), (None,) * 5),
    *(
        Gate(
            kind="fine",
            corpus="coco640",
            output="float32",
            rivals=rivals,
            least=least,
            target=aim,
        )
        for rivals, least, aim in (
            (("published",), 9.0, 15),
            (("dali",), 4.2, 7),
            (("torchvision-v2",), 4.8, 8),
            (_THREADS, None, None),
        )
    ),
    *(
        Gate(kind="crop", corpus="coco640", output=out, rivals=rivals, least=None, target=aim)
        for rivals, out, aim in (
            (("published",), "float32", 8),
            (("dali",), "float32", 5),
            (("torchvision-io",), "float32", 4),
            (("ffcv-jpeg",), "float32", 3),
            (_THREADS, "uint8", 2),
        )
    ),
    *(
        Gate(
            kind="large", corpus="big12", output="float32", rivals=(rival,), least=None, target=aim
        )
        for rival, aim in (("published", 9), ("dali", 6), ("torchvision-io", 3.5))
    ),
)
