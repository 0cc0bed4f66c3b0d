"""Files of a packed folder at a URL, read in ranges over fsspec.

The URL is anything that fsspec opens: `s3://`, `gs://`, `hf://datasets/...`, `https://`,
`memory://`. A read that fails is repeated with growing pauses; what arrives is checked by the
caller's CRC-32, since a store or a proxy may cut or change it.
"""

from __future__ import annotations

import os
import random
import re
import time
import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeGuard, TypeVar

from fiber.data.storage.pack_description import DESCRIPTION, parse_description
from fiber.messages import printable

ResultT = TypeVar("ResultT")

#: Number of times that a read is tried.
ATTEMPTS = 8
#: Pause before the second try; it doubles with every try, up to `LONGEST_PAUSE_SECONDS`.
PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
#: Time after which a read of one block is given up and tried again.
TIMEOUT_SECONDS = 60.0
#: Errors, and HTTP statuses, that another try would not change.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, NotImplementedError)
_FINAL_STATUSES = (400, 401, 403, 404, 405, 410, 416)
#: Maximum number of characters of the reason of a failed try.
_MAX_REASON = 200
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class RemoteError(RuntimeError):
    """Data at a URL, or its local cache, cannot be read.

    It is not an `OSError`, so that `on_error` of the loader does not skip the records of a shard
    that cannot be reached.
    """


class _WrongBytesError(Exception):
    """What arrived is not what was asked for."""


def is_url(data: object) -> TypeGuard[str]:
    """Return whether `data` is a URL, as opposed to a path."""
    return isinstance(data, str) and _URL.match(data) is not None


class RemoteFolder:
    """A folder at a URL.

    Args:
        url: URL of the folder.
        timeout_seconds: see `TIMEOUT_SECONDS`; applies to file systems that are asynchronous in
            fsspec, as are those of HTTP, S3 and GCS.
        pause_seconds: see `PAUSE_SECONDS`.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float | None = None,
        pause_seconds: float | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        self._pause_seconds = PAUSE_SECONDS if pause_seconds is None else pause_seconds
        # A test that lowers it may end while a thread of its loader still tries.
        self._attempts = ATTEMPTS
        # The global generator belongs to the user.
        self._random = random.Random()

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """File system and path of the folder in it."""
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"{self.url} cannot be opened ({error}); expected a URL that fsspec knows;"
                " `pip install 'fiber-vl[remote]'` installs http, s3, gs and hf"
            ) from None

    def description(self) -> tuple[bytes, dict[str, Any]]:
        """Read `pack.json`; return its content and what it says.

        Raises:
            FileNotFoundError: if there is none.
            RemoteError, ValueError: see `read`.
        """
        url = f"{self.url}/{DESCRIPTION}"
        try:
            return self._retried(
                DESCRIPTION, "a description of a packed folder", self._fetch_description
            )
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{url} does not exist; expected the URL of a folder that `fiber data pack` wrote"
            ) from None

    def _fetch_description(self) -> tuple[bytes, dict[str, Any]]:
        content = self._cat(DESCRIPTION, None, None)
        try:
            return content, parse_description(content, DESCRIPTION)
        except ValueError as error:
            # It may have been cut or changed on its way.
            raise _WrongBytesError(str(error)) from None

    def read(self, name: str, start: int, end: int, crc32: int, whole: int) -> bytes:
        """Read the bytes from `start` to `end` of a file of `whole` bytes.

        Raises:
            RemoteError: if no try gives bytes of this CRC-32; the message has the URL, the number
                of tries, the last error and what was expected.
            ValueError: if the URL cannot be opened at all.
        """
        expected = f"bytes {start} to {end} of {whole} with CRC-32 {crc32}"

        def attempt() -> bytes:
            data = self._cat(name, start, end)
            if len(data) == whole != end - start:
                raise NotImplementedError("the server sends whole files where a range is asked for")
            if len(data) != end - start:
                raise _WrongBytesError(f"{len(data)} bytes arrived")
            if (actual := zlib.crc32(data)) != crc32:
                raise _WrongBytesError(f"bytes with CRC-32 {actual} arrived")
            return data

        try:
            return self._retried(name, expected, attempt)
        except FileNotFoundError:
            raise RemoteError(
                f"{self.url}/{name} does not exist, but {DESCRIPTION} lists it; expected {expected}"
            ) from None

    def _cat(self, name: str, start: int | None, end: int | None) -> bytes:
        system, root = self._opened
        options: dict[str, Any] = {}
        if getattr(system, "async_impl", False):
            options["timeout"] = self._timeout_seconds
        return system.cat_file(f"{root}/{name}", start=start, end=end, **options)

    def _retried(self, name: str, expected: str, attempt: Callable[[], ResultT]) -> ResultT:
        """Call `attempt` until it succeeds, `_attempts` times at most."""
        _ = self._opened  # An unknown protocol is no reason to try again.
        number = 0
        while True:
            number += 1
            try:
                return attempt()
            except FileNotFoundError:
                raise
            except Exception as error:
                # File systems raise what their libraries raise.
                final = isinstance(error, _FINAL) or _status(error) in _FINAL_STATUSES
                if final or number >= self._attempts:
                    raise RemoteError(
                        f"{self.url}/{name} cannot be read: attempt {number} of {self._attempts}"
                        f" failed with {_describe(error)}; expected {expected}"
                    ) from error
            pause = min(self._pause_seconds * 2 ** (number - 1), LONGEST_PAUSE_SECONDS)
            time.sleep(pause * self._random.uniform(0.5, 1))


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error, if it has one."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _describe(error: Exception) -> str:
    text = printable(" ".join(str(error).split()), _MAX_REASON)
    if isinstance(error, _WrongBytesError):
        return text
    if isinstance(error, OSError) and error.errno and not text:
        text = os.strerror(error.errno)
    return f"{type(error).__name__} ({text})" if text else type(error).__name__
