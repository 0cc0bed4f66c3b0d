"""What is compared with what: the lines of the benchmark, and the ratios that they must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """One kind of work on one corpus with one output: every peer that does it is compared."""

    #: What the user asks for it by.
    kind: str
    #: What peers are asked for (`peers.task.Task`).
    work: str
    output: str
    title: str
    #: Name of its plan, or of the user's own pictures; "" where no picture is read.
    corpus: str = ""
    batch_size: int = 64
    #: Whether JPEGs may be decoded smaller than they are, as in training, by peers that can.
    scaled: bool = False
    #: Mean distance in levels (of 255) from Pillow's pictures above which ours are taken for wrong.
    most_levels: float = 1.0
    #: What is counted, and the unit in which its CPU time is given.
    counted: str = "picture"
    unit: str = "ms"
    #: How many units are a second.
    per_second: float = 1e3
    #: Pictures, or texts, at most.
    most: int = 100_000
    #: How often an epoch goes over texts or boxes.
    repeats: int = 1

    @property
    def name(self) -> str:
        """Its name in rows."""
        return " ".join(part for part in (self.kind, self.corpus, self.output) if part)


_SQUASH = "coarse: squash to 384 x 384"
_CROP = "coarse: random resized crop to 384 x 384, flip"
_FINE = "fine: shorter side 800, at most 1333, flip, padded, boxes"

LINES = (
    Line(kind="squash", work="squash", output="float32", title=_SQUASH, corpus="coco640"),
    Line(kind="squash", work="squash", output="uint8", title=_SQUASH, corpus="coco640"),
    Line(kind="squash", work="squash", output="float32", title=_SQUASH, corpus="coco444"),
    Line(kind="squash", work="squash", output="uint8", title=_SQUASH, corpus="coco444"),
    Line(kind="squash", work="squash", output="float32", title=_SQUASH, corpus="det1333"),
    Line(kind="crop", work="crop", output="float32", title=_CROP, corpus="coco640"),
    Line(kind="crop", work="crop", output="uint8", title=_CROP, corpus="coco640"),
    Line(kind="crop", work="crop", output="float32", title=_CROP, corpus="coco444"),
    Line(
        kind="large",
        work="squash",
        output="float32",
        title=f"{_SQUASH}, decoded smaller by peers that can",
        corpus="big12",
        batch_size=16,
        scaled=True,
        most_levels=3.0,
    ),
    Line(
        kind="fine",
        work="fine",
        output="float32",
        title=_FINE,
        corpus="coco640",
        batch_size=4,
        most=96,
    ),
    Line(
        kind="captions",
        work="captions",
        output="int64",
        title="captions to padded ids and mask",
        counted="caption",
        unit="us",
        per_second=1e6,
        repeats=10,
    ),
    Line(
        kind="offsets",
        work="offsets",
        output="int64",
        title="captions to padded ids, mask and offsets",
        counted="caption",
        unit="us",
        per_second=1e6,
        repeats=10,
    ),
    Line(
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
    Line(
        kind="boxes",
        work="boxes",
        output="float32",
        title="boxes of a picture (64) clipped, resized, mirrored",
        counted="picture",
        unit="us",
        per_second=1e6,
        repeats=10,
    ),
)
KINDS = tuple(dict.fromkeys(line.kind for line in LINES))
CORPORA = tuple(dict.fromkeys(line.corpus for line in LINES if line.corpus))
#: Kinds that a user's own pictures are measured with.
OWN_KINDS = ("squash", "crop", "fine")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A ratio of a rival's CPU time to ours, in one line, that a release must reach."""

    kind: str
    corpus: str
    output: str
    #: Peers of which the fastest counts.
    rivals: tuple[str, ...]
    #: None: reported only.
    least: float | None
    #: What is aimed at.
    target: float | None = None


_THREADS = ("torchvision-threads", "torchvision-jemalloc")


def _squash_gates(
    corpus: str, gates: Sequence[float | None], aims: Sequence[float | None]
) -> list[Gate]:
    """Gates and aims beside the published pipeline, DALI, tv.io, FFCV and threads with uint8."""
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
