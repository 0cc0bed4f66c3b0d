"""Registry of the peers of `fiber bench data`, including fiber itself.

Peer modules are imported only in their own process (`worker`), by an interpreter that the user may
choose. Except for `fiber_loader`, they import nothing from fiber outside this package. To add a
peer, write a module with `open_peer(task)` and add an entry to `PEERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: (work, output) pairs.
_COARSE = frozenset({("squash", "float32"), ("crop", "float32")})
_COARSE_BYTES = frozenset({("squash", "uint8"), ("crop", "uint8")})
_FINE = frozenset({("fine", "float32")})
_CAPTIONS = frozenset({("captions", "int64")})
_OFFSETS = frozenset({("offsets", "int64")})
_PROMPT = frozenset({("prompt", "int64")})
_BOXES = frozenset({("boxes", "float32")})

_FFCV: dict[str, Any] = {
    "module": "ffcv_loader",
    "does": _COARSE | _COARSE_BYTES,
    "distributions": ("ffcv", "torch", "numba"),
    "install": "apt-get install pkg-config libopencv-dev libturbojpeg0-dev;"
    " pip install torchvision ffcv",
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A data pipeline to compare against."""

    #: Name on the command line and in CSV rows.
    name: str
    #: One-line description.
    title: str
    #: Name of a module in this package, and the variant to select in it.
    module: str
    variant: str = ""
    #: Supported (work, output) pairs.
    does: frozenset[tuple[str, str]]
    #: Distributions whose versions are reported; the peer requires the first one.
    distributions: tuple[str, ...]
    #: How to install the peer; by default, `pip install` the first distribution.
    install: str = ""
    #: How the output differs from the requested one, by kind of work; the key "" applies to all.
    differs: Mapping[str, str] = field(default_factory=dict)
    #: Environment variables to set in the peer's process.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Shared library to preload; the peer requires it.
    preload: str = ""

    def can(self, work: str, output: str) -> bool:
        """Return True if the peer supports this kind of work and output dtype."""
        return (work, output) in self.does

    def remark(self, work: str) -> str:
        """Return how the peer's output differs from the requested output; "" if it does not."""
        return "; ".join(text for key in ("", work) if (text := self.differs.get(key, "")))


OURS = Peer(
    name="fiber",
    title="fiber.data.DataLoader",
    module="fiber_loader",
    does=_COARSE | _COARSE_BYTES | _FINE | _CAPTIONS | _OFFSETS | _PROMPT,
    distributions=("fiber-vl", "torch"),
    differs={
        "squash": "also tokenizes and masks captions",
        "crop": "also tokenizes and masks captions",
        "fine": "also tokenizes captions and maps boxes to tokens",
    },
)
PEERS = (
    Peer(
        name="published",
        title="published FIBER: Pillow, torchvision v1, DataLoader",
        module="published",
        does=_COARSE | _FINE | _BOXES,
        distributions=("torchvision", "pillow", "torch"),
        differs={"boxes": "inclusive corners"},
    ),
    Peer(
        name="torchvision-v2",
        title="Pillow, torchvision v2, DataLoader",
        module="torchvision_v2",
        variant="pil",
        does=_COARSE | _FINE | _BOXES,
        distributions=("torchvision", "pillow", "torch"),
        differs={"fine": "torchvision decoder"},
    ),
    Peer(
        name="torchvision-io",
        title="torchvision decoder and v2, DataLoader",
        module="torchvision_v2",
        variant="io",
        does=_COARSE | _COARSE_BYTES,
        distributions=("torchvision", "torch"),
    ),
    Peer(
        name="torchvision-threads",
        title="torchvision decoder and v2, threads, tuned malloc",
        module="torchvision_v2",
        variant="threads",
        does=_COARSE | _COARSE_BYTES | _FINE,
        distributions=("torchvision", "torch"),
        # Make glibc keep the memory of a freed image for the next one.
        environment={
            "MALLOC_MMAP_THRESHOLD_": "1073741824",
            "MALLOC_TRIM_THRESHOLD_": "2147483648",
            "MALLOC_TOP_PAD_": "67108864",
        },
    ),
    Peer(
        name="torchvision-jemalloc",
        title="torchvision decoder and v2, threads, jemalloc",
        module="torchvision_v2",
        variant="threads",
        does=_COARSE | _COARSE_BYTES | _FINE,
        distributions=("torchvision", "torch"),
        install="pip install torchvision; apt-get install libjemalloc2",
        environment={"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"},
        preload="libjemalloc.so.2",
    ),
    Peer(
        name="timm",
        title="timm transforms, uint8 collation, DataLoader",
        module="timm_loader",
        does=_COARSE,
        distributions=("timm", "torchvision", "torch"),
    ),
    Peer(
        name="webdataset",
        title="webdataset tar files, published transform, DataLoader",
        module="webdataset_loader",
        does=_COARSE,
        distributions=("webdataset", "torchvision", "torch"),
    ),
    Peer(
        name="opencv",
        title="hand-written OpenCV, threads",
        module="opencv",
        does=_COARSE | _FINE,
        distributions=("opencv-python-headless", "numpy"),
        differs={"": "no antialiasing", "crop": "crops keep the aspect ratio"},
    ),
    Peer(
        name="dali",
        title="NVIDIA DALI on the CPU",
        module="dali",
        does=_COARSE | _COARSE_BYTES | _FINE,
        distributions=("nvidia-dali-cuda120", "numpy"),
        install="pip install nvidia-dali-cuda120 (0.5 GB)",
    ),
    Peer(
        name="ffcv-jpeg",
        title="FFCV, JPEG in its own format",
        variant="jpg",
        differs={"": "re-encoded; fast DCT; INTER_AREA", "squash": "center crop instead of squash"},
        **_FFCV,
    ),
    Peer(
        name="ffcv-raw",
        title="FFCV, raw pixels in its own format",
        variant="raw",
        differs={"": "decodes nothing; INTER_AREA", "squash": "center crop instead of squash"},
        **_FFCV,
    ),
    Peer(
        name="spdl",
        title="SPDL, FFmpeg in threads",
        module="spdl_loader",
        does=_COARSE | _COARSE_BYTES,
        distributions=("spdl-io", "spdl", "torch"),
        install="apt-get install ffmpeg; pip install spdl spdl-io numpy",
        differs={"": "FFmpeg's bicubic; uint8 is HWC"},
    ),
    Peer(
        name="tf-data",
        title="tf.data",
        module="tf_data",
        does=_COARSE,
        distributions=("tensorflow-cpu",),
        install="python -m venv TF; TF/bin/pip install tensorflow-cpu;"
        " then --python tf-data=TF/bin/python",
        environment={"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    ),
    Peer(
        name="tokenizers",
        title="Hugging Face tokenizers, padded NumPy arrays",
        module="texts",
        variant="tokenizers",
        does=_CAPTIONS | _OFFSETS | _PROMPT,
        distributions=("tokenizers", "numpy"),
        install="pip install tokenizers numpy",
    ),
    Peer(
        name="transformers",
        title="Hugging Face transformers, fast tokenizer, tensors",
        module="texts",
        variant="transformers",
        does=_CAPTIONS | _OFFSETS,
        distributions=("transformers", "tokenizers", "torch"),
    ),
    Peer(
        name="gigatoken",
        title="gigatoken, padded arrays",
        module="texts",
        variant="gigatoken",
        does=_CAPTIONS,
        distributions=("gigatoken", "numpy"),
        differs={"captions": "lengths instead of a mask"},
    ),
    Peer(
        name="numpy",
        title="boxes in NumPy",
        module="numpy_boxes",
        does=_BOXES,
        distributions=("numpy",),
    ),
)
BY_NAME = {peer.name: peer for peer in (OURS, *PEERS)}
