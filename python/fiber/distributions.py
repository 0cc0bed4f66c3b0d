"""The two distributions of this package; fiber-vl-runtime requires no torch."""

from __future__ import annotations

import os

#: Names on PyPI.
DISTRIBUTIONS = ("fiber-vl", "fiber-vl-runtime")
#: What to do where both are installed.
TWO_DISTRIBUTIONS = (
    "fiber-vl and fiber-vl-runtime are both installed, and they have the same files, so that"
    " removing one breaks the other: run `pip uninstall -y fiber-vl fiber-vl-runtime`, then install"
    " one of them; fiber-vl also runs exported graphs, with 'fiber-vl[onnx]'"
)


def is_installed_twice() -> bool:
    """Look for the metadata of both distributions next to this package.

    `import fiber` calls it, so it imports nothing that takes long.
    """
    folder = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    try:
        names = {each.partition("-")[0] for each in os.listdir(folder) if each.endswith("-info")}  # noqa: PTH208
    except OSError:
        # The package is in an archive.
        return False
    return names >= {name.replace("-", "_") for name in DISTRIBUTIONS}


def how_to_install(package: str, extra: str) -> str:
    """Return the command that installs a package of an extra of fiber-vl.

    fiber-vl-runtime has no extras, and an extra of fiber-vl would install the other distribution.
    """
    # Takes long to import, and `import fiber` does not need it.
    from importlib.metadata import distributions

    installed = [name for name in DISTRIBUTIONS if any(distributions(name=name))]
    if installed == ["fiber-vl-runtime"]:
        return f"pip install {package}"
    return f"pip install 'fiber-vl[{extra}]'"
