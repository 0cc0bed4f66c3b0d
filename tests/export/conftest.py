"""Exported networks, each made once."""

import pytest

from fiber.export import export
from tests.export import networks

#: Networks whose graphs in a format other than float32 ONNX are compared; see the tests.
OTHERS = {
    ("torch", False): tuple(name for name in networks.NAMES if name != "X-Decoder"),
    ("openvino", False): ("METER merged",),
    ("onnx", True): ("coarse", "fine", "METER Swin", "METER merged"),
}


@pytest.fixture(scope="session")
def exported(made_once):
    """A function that returns the folder of a network's graphs in a format.

    All formats of a network are made by the first test that needs one, since they share the traced
    parts, which take about as long as one format.
    """

    def get(name: str, to: str, *, int8: bool = False):
        assert _is_made(name, to, int8), (name, to, int8)

        def make(folder):
            networks.save(name, folder / "model")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(export, "trace", _remembered(export.trace))
                for each, is_int8 in (("onnx", False), *OTHERS):
                    if _is_made(name, each, is_int8):
                        target = folder / _folder(each, is_int8)
                        export.export_model(folder / "model", target, each, int8=is_int8)

        return made_once(f"export_{name}".replace(" ", "_"), make) / _folder(to, int8)

    return get


def _is_made(name: str, to: str, int8: bool) -> bool:
    return (to == "onnx" and not int8) or name in OTHERS[to, int8]


def _folder(to: str, int8: bool) -> str:
    return f"{to}_int8" if int8 else to


def _remembered(trace):
    """Trace each part of a network once; the networks of all calls have the same weights."""
    found = {}

    def traced(part, *arguments):
        if part.name not in found:
            found[part.name] = trace(part, *arguments)
        return found[part.name]

    return traced
