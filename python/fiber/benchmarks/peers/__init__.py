"""The peers of `fiber bench data`, and fiber itself: what each can do, and how it is installed.

Every other module here is one peer's code. It is imported in a process of its own only (`worker`),
by an interpreter that the user may choose, and imports nothing of fiber but its neighbours.
A new peer is a module with `open_peer(task)` and an entry in `PEERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: (work, output) of the pictures' works.
_COARSE = frozenset({("squash", "float32"), ("crop", "float32")})
_COARSE_BYTES = frozenset({("squash", "uint8"), ("crop", "uint8")})
_FINE = frozenset({("fine", "float32")})
_TEXTS = frozenset({("captions", "int64"), ("offsets", "int64"), ("prompt", "int64")})
_BOXES = frozenset({("boxes", "float32")})

#: What glibc is told so that a freed picture's memory is kept for the next one.
_KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_TOP_PAD_": "67108864",
}
_TORCHVISION = "pip install torchvision"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One pipeline that people use."""

    #: Its name on the command line and in rows.
    name: str
    #: One line for a reader.
    title: str
    #: Module here, and the form of it that is meant.
    module: str
    variant: str = ""
    #: (work, output) that it does.
    does: frozenset[tuple[str, str]]
    #: Distributions whose versions are reported; without the first one the peer is absent.
    distributions: tuple[str, ...]
    #: How to get it.
    install: str
    #: For a work, how its result differs from what was asked for; "" as key: for all of them.
    differs: Mapping[str, str] = field(default_factory=dict)
    #: Added to its process's environment.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Shared library that its process begins with; where none is found, the peer is absent.
    preload: str = ""

    def can(self, work: str, output: str) -> bool:
        """Whether it takes part where this is asked for."""
        return (work, output) in self.does

    def remark(self, work: str) -> str:
        """Say how its result differs, if it does."""
        return "; ".join(text for key in ("", work) if (text := self.differs.get(key, "")))


OURS = Peer(
    name="fiber",
    title="fiber.data.DataLoader",
    module="fiber_loader",
    does=_COARSE | _COARSE_BYTES | _FINE | _TEXTS,
    distributions=("fiber-vl", "torch"),
    install="pip install fiber-vl",
    differs={
        "squash": "also tokenizes and masks a caption",
        "crop": "also tokenizes and masks a caption",
        "fine": "also tokenizes a caption, maps boxes to tokens",
    },
)
PEERS = (
    Peer(
        name="published",
        title="published FIBER: Pillow, torchvision v1, DataLoader",
        module="published",
        does=_COARSE | _FINE | _BOXES,
        distributions=("torchvision", "pillow", "torch"),
        install=_TORCHVISION,
        differs={"boxes": "corners inclusive"},
    ),
    Peer(
        name="torchvision-v2",
        title="torchvision v2 on Pillow's pictures, DataLoader",
        module="torchvision_v2",
        variant="pil",
        does=_COARSE | _FINE | _BOXES,
        distributions=("torchvision", "pillow", "torch"),
        install=_TORCHVISION,
        differs={"fine": "torchvision's own decoder"},
    ),
    Peer(
        name="torchvision-io",
        title="torchvision's decoder and v2 in DataLoader",
        module="torchvision_v2",
        variant="io",
        does=_COARSE | _COARSE_BYTES,
        distributions=("torchvision", "torch"),
        install=_TORCHVISION,
    ),
    Peer(
        name="torchvision-threads",
        title="torchvision's decoder and v2 in threads, malloc tuned",
        module="torchvision_v2",
        variant="threads",
        does=_COARSE | _COARSE_BYTES | _FINE,
        distributions=("torchvision", "torch"),
        install=_TORCHVISION,
        environment=_KEPT_MEMORY,
    ),
    Peer(
        name="torchvision-jemalloc",
        title="torchvision's decoder and v2 in threads, jemalloc",
        module="torchvision_v2",
        variant="threads",
        does=_COARSE | _COARSE_BYTES | _FINE,
        distributions=("torchvision", "torch"),
        install=f"{_TORCHVISION}; apt-get install libjemalloc2",
        environment={"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"},
        preload="libjemalloc.so.2",
    ),
    Peer(
        name="timm",
        title="timm's transforms, uint8 collation, DataLoader",
        module="timm_loader",
        does=_COARSE,
        distributions=("timm", "torchvision", "torch"),
        install="pip install timm",
    ),
    Peer(
        name="webdataset",
        title="webdataset's tar files, published transform, DataLoader",
        module="webdataset_loader",
        does=_COARSE,
        distributions=("webdataset", "torchvision", "torch"),
        install="pip install webdataset",
    ),
    Peer(
        name="opencv",
        title="hand-written OpenCV in threads",
        module="opencv",
        does=_COARSE | _FINE,
        distributions=("opencv-python-headless", "numpy"),
        install="pip install opencv-python-headless",
        differs={"": "no antialiasing", "crop": "crops keep the picture's shape"},
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
        title="FFCV, JPEG of its own file",
        module="ffcv_loader",
        variant="jpg",
        does=_COARSE | _COARSE_BYTES,
        distributions=("ffcv", "torch", "numba"),
        install="apt-get install pkg-config libopencv-dev libturbojpeg0-dev;"
        " pip install torchvision ffcv",
        differs={
            "": "encoded anew; fast DCT; INTER_AREA",
            "squash": "centre square instead of squash",
        },
    ),
    Peer(
        name="ffcv-raw",
        title="FFCV, raw pixels of its own file",
        module="ffcv_loader",
        variant="raw",
        does=_COARSE | _COARSE_BYTES,
        distributions=("ffcv", "torch", "numba"),
        install="apt-get install pkg-config libopencv-dev libturbojpeg0-dev;"
        " pip install torchvision ffcv",
        differs={
            "": "decodes nothing; INTER_AREA",
            "squash": "centre square instead of squash",
        },
    ),
    Peer(
        name="spdl",
        title="SPDL: threads around FFmpeg",
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
        title="Hugging Face tokenizers, padded, to numpy",
        module="texts",
        variant="tokenizers",
        does=_TEXTS,
        distributions=("tokenizers", "numpy"),
        install="pip install tokenizers numpy",
    ),
    Peer(
        name="transformers",
        title="Hugging Face transformers' fast tokenizer, to torch",
        module="texts",
        variant="transformers",
        does=frozenset({("captions", "int64"), ("offsets", "int64")}),
        distributions=("transformers", "tokenizers", "torch"),
        install="pip install transformers",
    ),
    Peer(
        name="gigatoken",
        title="gigatoken, padded",
        module="texts",
        variant="gigatoken",
        does=frozenset({("captions", "int64")}),
        distributions=("gigatoken", "numpy"),
        install="pip install gigatoken",
        differs={"captions": "lengths instead of a mask"},
    ),
    Peer(
        name="numpy",
        title="boxes in plain numpy",
        module="numpy_boxes",
        does=_BOXES,
        distributions=("numpy",),
        install="pip install numpy",
    ),
)
BY_NAME = {peer.name: peer for peer in (OURS, *PEERS)}
