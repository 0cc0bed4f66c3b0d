"""Marks for tests whose expected values come from a package that changed them in some version."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version


def needs(package: str, oldest: str, reason: str) -> pytest.MarkDecorator:
    """Skip a test if the installed version of `package` is older than `oldest`.

    For peers only: what fiber itself returns does not depend on the version. A test without the
    package skips itself.
    """
    try:
        installed = version(package)
    except PackageNotFoundError:
        installed = oldest
    return pytest.mark.skipif(
        Version(installed) < Version(oldest),
        reason=f"{package} {installed} is older than {oldest}: {reason}",
    )
