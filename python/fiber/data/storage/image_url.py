"""Fetch an image over HTTP from a public address, with limits of bytes and time.

A URL may come from a file or another user, and a server in the own network may answer whoever can
connect to it. So the name of the host is resolved once, all its addresses are checked, and the
connection goes to one of them: a name that resolves differently the second time (DNS rebinding)
does not help. Each redirect is checked in the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from fiber.data.image_file import DOWNLOAD_SECONDS, MAX_DOWNLOAD_BYTES
from fiber.messages import printable, shown

#: Maximum number of redirects.
MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 16
#: Maximum number of characters of a URL, and of the reason of an error.
_MAX_URL, _MAX_REASON = 4096, 200
#: NAT64: the last 32 bits are an IPv4 address.
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class _Target(NamedTuple):
    """What a URL asks for: of which host, and by which path and query."""

    url: str
    scheme: str
    host: str
    port: int
    path: str


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet.

    Private, shared, loopback, link-local, multicast, reserved and unspecified addresses are not,
    nor are IPv6 addresses that contain such an IPv4 address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if any(ip in network for network in _NAT64):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def fetch_image(
    url: str,
    *,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout_seconds: float = DOWNLOAD_SECONDS,
    allowed: Callable[[str], bool] | None = None,
) -> bytes:
    """Return the content at a URL. Proxies that the environment names are not used.

    Args:
        url: http or https, without a user name.
        max_bytes: maximum number of bytes of the content.
        timeout_seconds: maximum time of the whole download, with redirects.
        allowed: whether an IP address may be connected to (default: `is_public`).

    Raises:
        ValueError: if the URL, or that of a redirect, is none of http or https, or resolves to an
            address that is not allowed, or the content has too many bytes.
        TimeoutError: if it takes longer.
        ConnectionError: if the host is unknown, does not answer, or answers with an error.
    """
    allowed, deadline = allowed or is_public, time.monotonic() + timeout_seconds
    target = _parse(url)
    for _ in range(MAX_REDIRECTS + 1):
        addresses = _checked_addresses(target, allowed, deadline, timeout_seconds)
        with _connected(target, addresses, deadline, timeout_seconds) as connection:
            answer = _ask(connection, target)
            if answer.status not in _REDIRECTS:
                return _read(answer, target, max_bytes)
            location = answer.headers.get("Location", "")
        if not location:
            raise ConnectionError(f"{_name(target)} is redirected without a new URL")
        new = _parse(urljoin(target.url, location))
        if (target.scheme, new.scheme) == ("https", "http"):
            raise ValueError(
                f"{_name(target)} is redirected from https to http, {_name(new)}; expected https"
            )
        target = new
    raise ConnectionError(f"image {shown(url)}: more than {MAX_REDIRECTS} redirects")


def _parse(url: str) -> _Target:
    """Split a URL, and escape what HTTP does not allow in one."""
    if len(url) > _MAX_URL:
        raise ValueError(f"image: the URL has {len(url):,} characters; expected at most {_MAX_URL}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"image {shown(url)} is no URL: {error}") from None
    if parts.scheme not in _PORTS:
        raise ValueError(f"image {shown(url)}: expected a URL of http or https")
    if not host:
        raise ValueError(f"image {shown(url)}: the URL has no host")
    if parts.username is not None:
        raise ValueError(f"image: the URL at {shown(host)} has a user name; expected none")
    try:
        # As browsers do; the query may be escaped already.
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        host = host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError as error:
        raise ValueError(f"image {shown(url)} is no URL: {error}") from None
    if re.search(r"[\x00-\x20\x7f]", host):
        raise ValueError(f"image {shown(url)}: the host has characters that no host has")
    path += f"?{query}" if query else ""
    return _Target(url, parts.scheme, host, port or _PORTS[parts.scheme], path)


def _checked_addresses(
    target: _Target, allowed: Callable[[str], bool], deadline: float, seconds: float
) -> list[str]:
    """Resolve the host, in a thread since that has no time limit, and check all its addresses."""
    found: queue.Queue[list[str] | Exception] = queue.Queue()

    def resolve() -> None:
        try:
            entries = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        addresses = found.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise _too_slow(target, seconds) from None
    if isinstance(addresses, Exception):
        raise ConnectionError(
            f"{_name(target)}: the host cannot be resolved ({_reason(addresses)})"
        ) from addresses
    refused = [address for address in addresses if not allowed(address)]
    if refused or not addresses:
        raise ValueError(
            f"{_name(target)}: the host is at {', '.join(refused) or 'no address'}; expected public"
            " addresses; download an image of a private network first, and pass the path of the"
            " file"
        )
    return addresses


@contextmanager
def _connected(
    target: _Target, addresses: list[str], deadline: float, seconds: float
) -> Iterator[http.client.HTTPConnection]:
    """Connect to the first address that answers; the connection is cut at the deadline."""
    plain, is_late = None, threading.Event()
    for number, address in enumerate(addresses, 1):
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_slow(target, seconds)
        try:
            plain = socket.create_connection((address, target.port), left)
            break
        except OSError as error:
            if number == len(addresses):
                raise _failed(target, error, seconds) from error
    assert plain is not None
    # Of the same connection, since TLS takes the socket over.
    spare = plain.dup()

    def cut() -> None:
        is_late.set()
        with suppress(OSError):  # The other side may have closed it.
            spare.shutdown(socket.SHUT_RDWR)

    # A server that sends a byte now and then would keep every single read within its time.
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    stream, kind = plain, http.client.HTTPConnection
    try:
        if target.scheme == "https":
            kind = http.client.HTTPSConnection
            stream = ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
        connection = kind(target.host, target.port)
        connection.sock = stream
        yield connection
        if is_late.is_set():  # What ends with the connection looks complete.
            raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        late = TimeoutError() if is_late.is_set() else error
        raise _failed(target, late, seconds) from error
    finally:
        timer.cancel()
        for each in (spare, plain, stream):
            each.close()


def _ask(connection: http.client.HTTPConnection, target: _Target) -> http.client.HTTPResponse:
    headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "fiber-vl"}
    connection.request("GET", target.path, headers=headers)
    return connection.getresponse()


def _read(answer: http.client.HTTPResponse, target: _Target, max_bytes: int) -> bytes:
    """Read the content of an answer, with at most one byte more than the limit."""
    if answer.status != 200:
        reason = printable(answer.reason or "", _MAX_REASON)
        raise ConnectionError(f"status {answer.status} {reason}".rstrip())
    expected, parts, count = answer.length, [], 0
    if expected is not None and expected > max_bytes:
        raise _too_large(target, max_bytes, f"{expected:,}")
    while part := answer.read(min(_CHUNK_BYTES, max_bytes + 1 - count)):
        parts.append(part)
        count += len(part)
        if count > max_bytes:
            raise _too_large(target, max_bytes, "more")
    if expected is not None and count < expected:
        raise ConnectionError(f"the connection ended after {count:,} of {expected:,} bytes")
    return b"".join(parts)


def _name(target: _Target) -> str:
    return f"image {shown(target.url)}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return printable(text, _MAX_REASON) or type(error).__name__


def _failed(target: _Target, error: BaseException, seconds: float) -> OSError:
    if isinstance(error, TimeoutError):
        return _too_slow(target, seconds)
    return ConnectionError(f"{_name(target)} cannot be fetched: {_reason(error)}")


def _too_slow(target: _Target, seconds: float) -> TimeoutError:
    return TimeoutError(
        f"{_name(target)} was not fetched within {seconds:g} seconds; pass a larger timeout_seconds"
    )


def _too_large(target: _Target, most: int, found: str) -> ValueError:
    return ValueError(
        f"{_name(target)} has {found} bytes; expected at most {most:,}; pass a larger"
        " max_download_bytes"
    )
