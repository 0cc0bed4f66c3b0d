"""FIBER: a vision-language model for image-level and region-level tasks."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from fiber import _core
from fiber._core import DecodeError
from fiber.distributions import TWO_DISTRIBUTIONS, is_installed_twice

if TYPE_CHECKING:
    from fiber.bulk.index import Index
    from fiber.bulk.map import map  # noqa: A004 (the name that users know from other libraries)
    from fiber.config import FiberConfig
    from fiber.evaluation.evaluate import evaluate
    from fiber.inference.load import load, merge
    from fiber.inference.masks.class_vectors import ClassVectors
    from fiber.models.fiber.backbone import FiberBackbone
    from fiber.models.fiber.detector import FiberDetector
    from fiber.models.fiber.image_text import FiberImageText
    from fiber.models.heads import MissingHeadError
    from fiber.postprocess.segmentation import Segmentation
    from fiber.training.tracking.callback import Callback
    from fiber.training.train import train

__version__ = _core.__version__

__all__ = [
    "Callback",
    "ClassVectors",
    "DecodeError",
    "FiberBackbone",
    "FiberConfig",
    "FiberDetector",
    "FiberImageText",
    "Index",
    "MissingHeadError",
    "Segmentation",
    "__version__",
    "evaluate",
    "load",
    "map",
    "merge",
    "train",
]

# Module of each public name, imported on first use so that `import fiber` does not load torch.
_HOMES = {
    "Callback": "fiber.training.tracking.callback",
    "ClassVectors": "fiber.inference.masks.class_vectors",
    "FiberBackbone": "fiber.models.fiber.backbone",
    "FiberConfig": "fiber.config",
    "FiberDetector": "fiber.models.fiber.detector",
    "FiberImageText": "fiber.models.fiber.image_text",
    "Index": "fiber.bulk.index",
    "MissingHeadError": "fiber.models.heads",
    "Segmentation": "fiber.postprocess.segmentation",
    "evaluate": "fiber.evaluation.evaluate",
    "load": "fiber.inference.load",
    "map": "fiber.bulk.map",
    "merge": "fiber.inference.load",
    "train": "fiber.training.train",
}
_SUBMODULES = {"data", "kernels", "config", "runtime"}
# Names that new users expect here.
_METHODS = {
    *("ground", "detect", "segment", "answer", "caption", "match", "reason", "entail", "search")
}
_ASKING = {"predict", "infer", "inference", "run", "ask"}
_LOADERS = {"Model", "AutoModel", "FIBER", "METER", "from_pretrained", "load_model", "pipeline"}

if _core.build_profile == "debug":
    warnings.warn(
        "fiber._core is a debug build, which is many times slower;"
        " rebuild with `maturin develop --release`",
        RuntimeWarning,
        stacklevel=2,
    )

if is_installed_twice():
    warnings.warn(TWO_DISTRIBUTIONS, RuntimeWarning, stacklevel=2)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                f"fiber.{name} needs torch, which is not installed: use an environment of"
                " `pip install 'fiber-vl'`; without torch, exported graphs run:"
                " fiber.runtime.load(folder)",
                name="torch",
            ) from None
    if name in _SUBMODULES:
        return importlib.import_module(f"fiber.{name}")
    raise AttributeError(f"module 'fiber' has no attribute {name!r}{_hint(name)}", name=name)


def _hint(name: str) -> str:
    """Return the end of the error for an unknown name; that of Python and its tools is empty."""
    if name.startswith("_"):
        return ""
    from fiber.config_io import nearest

    if name in _METHODS:
        return f"; it is a method of models: fiber.load(path).{name}"
    if name in _ASKING:
        return "; load a model, and ask it: fiber.load(path).ground(image, phrases)"
    if name in _LOADERS:
        return "; models are loaded by fiber.load(path)"
    return f"; {nearest(name, __dir__())}"


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
