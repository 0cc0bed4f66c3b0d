"""Errors of requests, with the HTTP status of each."""

from __future__ import annotations

from fiber.messages import printable

#: Maximum number of characters of a message.
_MAX_MESSAGE = 4_000


class RequestError(Exception):
    """An error in the reply to a request.

    Args:
        status: HTTP status.
        message: what is wrong, and what was expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def as_request_error(error: Exception) -> RequestError | None:
    """Return the error for the client, or None for a fault of the server.

    Methods of models raise ValueError and TypeError for bad input, among them `fiber.DecodeError`.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (ValueError, TypeError)):
        return RequestError(422, one_line(error))
    # torch's own error for the memory of a GPU is a RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return RequestError(503, "out of memory; try again, or send a smaller image")
    return None


def one_line(error: Exception | str) -> str:
    """Return the message of an error as one line of bounded length."""
    return printable(" ".join(str(error).split()), _MAX_MESSAGE) or type(error).__name__
