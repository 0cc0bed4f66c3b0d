"""Read the body of a request: fields and images, as a form with uploads or as JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HTTPRequest

from fiber import DecodeError, _core
from fiber.config_io import nearest
from fiber.messages import printable, shown
from fiber.serve.errors import RequestError, one_line
from fiber.serve.requests import MAX_CLASSES, MAX_SEARCHED, Request

#: Maximum number of characters of the name of an image in a result.
_MAX_NAME = 255
_IN_JSON = "expected an image in base64"
_NOT_FETCHED = "URLs are not fetched and paths of the server are not read"


@dataclass(frozen=True)
class Image:
    """An encoded image, with its name if it was uploaded as a file."""

    name: str | None
    data: bytes


@dataclass(frozen=True)
class Parsed:
    """A request with its images."""

    request: Request
    images: Sequence[Image]
    #: Total number of pixels of the images.
    pixels: int


async def read_body(http: HTTPRequest, max_bytes: int) -> bytes:
    """Read a body of limited size.

    Raises:
        RequestError: if the body is larger.
    """
    too_large = RequestError(
        413, f"the body has more than {max_bytes:,} bytes, the limit of this server (--max-body)"
    )
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


async def parse(http: HTTPRequest, body: bytes, kind: type[Request], max_pixels: int) -> Parsed:
    """Parse the body of a request, and check its fields and the headers of its images.

    Raises:
        RequestError: if the body has another type, or a field or an image is invalid.
    """
    content = http.headers.get("content-type", "")
    media_type = content.partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        fields = await _read_form(http, body, kind)
    elif media_type == "application/json":
        fields = await asyncio.to_thread(_read_json, body)
    else:
        raise RequestError(
            415,
            f"Content-Type is {shown(media_type)}; expected multipart/form-data with the image as"
            " a file, or application/json with the image in base64",
        )
    return await asyncio.to_thread(_check, fields, kind, max_pixels)


async def _read_form(http: HTTPRequest, body: bytes, kind: type[Request]) -> dict[str, Any]:
    """Return the values of each field: a text or an `Image`, or a list if it is there twice."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        http.headers,
        stream(),
        max_files=MAX_SEARCHED,
        max_fields=MAX_CLASSES,
        max_part_size=1 << 20,
    )
    # The body is in memory, and so are its parts.
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {one_line(error)}") from error
    values: dict[str, list[Any]] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                name_of_file = printable(value.filename or "", _MAX_NAME) or None
                value = Image(name_of_file, await value.read())
            values.setdefault(name, []).append(value)
    finally:
        await form.close()
    for name in kind.image_fields:
        for value in values.get(name, []):
            if not isinstance(value, Image):
                hint = f"as of curl -F {name}=@photo.jpg; {_NOT_FETCHED}"
                raise RequestError(
                    422, f"{name}: expected an uploaded file, got the text {shown(value)}, {hint}"
                )
    return {name: own[0] if len(own) == 1 else own for name, own in values.items()}


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise RequestError(422, f"expected a JSON object, got {shown(fields)}")
    return fields


def _check(fields: dict[str, Any], kind: type[Request], max_pixels: int) -> Parsed:
    images: list[Image] = []
    for name in kind.image_fields:
        given = fields.pop(name, None)
        many = name == "images"
        if given is None or (many and not given):
            raise RequestError(422, f"{name} is missing; {_IN_JSON}, or an uploaded file")
        if isinstance(given, list) and not many:
            raise RequestError(
                422, f"{name}: expected one image, got {len(given)}; send a request for each"
            )
        listed = given if isinstance(given, list) else [given]
        if len(listed) > MAX_SEARCHED:
            raise RequestError(
                422, f"{name}: got {len(listed):,} images; expected at most {MAX_SEARCHED}"
            )
        for index, value in enumerate(listed):
            place = f"{name}[{index}]" if many else name
            images.append(value if isinstance(value, Image) else _from_base64(value, place))
    if wrong := [name for name, value in fields.items() if isinstance(value, Image)]:
        raise RequestError(
            422, f"unknown file {shown(wrong[0])}; {nearest(wrong[0], kind.image_fields)}"
        )
    request = check_fields(fields, kind)
    pixels = sum(_pixels(image, max_pixels) for image in images)
    return Parsed(request, images, pixels)


def _from_base64(value: object, place: str) -> Image:
    """Decode an image in base64, with or without the start of a data URL."""
    if not isinstance(value, str):
        raise RequestError(422, f"{place}: {_IN_JSON}, got {shown(value)}")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            422, f"{place}: {_IN_JSON}, got {shown(value)}; {_NOT_FETCHED}"
        ) from None
    return Image(None, data)


def check_fields(fields: Mapping[str, Any], kind: type[Request]) -> Any:
    """Return the request with these fields, without images.

    Raises:
        RequestError: if a field is unknown, missing or invalid.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = [*kind.image_fields, *kind.model_fields]
        raise RequestError(422, f"unknown field {shown(names[0])}; {nearest(names[0], known)}")
    place = names[0] + "".join(f"[{name}]" for name in names[1:] if name.isdecimal())
    if first["type"] == "missing":
        raise RequestError(422, f"{place} is missing; {kind.method} needs it")
    message = first["msg"].removeprefix("Value error, ")
    raise RequestError(422, f"{place}: {message}, got {shown(first['input'])}")


def _pixels(image: Image, max_pixels: int) -> int:
    """Return the number of pixels of an image by its header."""
    named = f"image {shown(image.name)}" if image.name else "image"
    try:
        height, width, _ = _core.probe_image(image.data)
    except DecodeError as error:
        raise RequestError(422, f"{named}: {one_line(error)}") from error
    if height * width > max_pixels:
        raise RequestError(
            422,
            f"{named} has {width} x {height} pixels; expected at most {max_pixels:,}, the limit of"
            " this server (--max-pixels)",
        )
    return height * width
