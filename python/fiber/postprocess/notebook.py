"""Results as notebooks show them: `_repr_png_` and `_repr_html_` of Jupyter."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fiber.messages import printable

if TYPE_CHECKING:
    from PIL.Image import Image

#: Maximum longer side of a shown image, in pixels: a notebook stores what it shows.
MAX_SHOWN_SIDE = 1024
#: Maximum number of rows of a shown table, and of characters of a cell.
_MAX_ROWS, _MAX_CELL = 100, 240


def png_of(draw: Callable[[], Image]) -> bytes | None:
    """Draw a result and encode it as PNG, at most `MAX_SHOWN_SIDE` pixels wide and high.

    Returns:
        The PNG file, or None if there is no image to draw on, or it cannot be read any more.
    """
    try:
        image = draw()
    except (ValueError, OSError):
        return None
    image.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def html_of(
    title: str, png: bytes | None, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Return a title, an image, if any, and a table as HTML.

    Names of classes and phrases may be from a file, so all texts are escaped.
    """
    parts = [f"<p>{_escaped(title)}</p>"]
    if png is not None:
        encoded = base64.b64encode(png).decode()
        text = _escaped("; ".join(row[0] for row in rows[:_MAX_ROWS]))
        parts.append(
            f'<img alt="{text}" style="max-width:100%" src="data:image/png;base64,{encoded}">'
        )
    if rows:
        lines = [_row("th", header), *(_row("td", row) for row in rows[:_MAX_ROWS])]
        parts.append(f"<table>{''.join(lines)}</table>")
    if len(rows) > _MAX_ROWS:
        parts.append(f"<p>and {len(rows) - _MAX_ROWS:,} more</p>")
    return "\n".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_escaped(cell)}</{tag}>' for cell in cells)}</tr>"


def _escaped(text: str) -> str:
    return html.escape(printable(text, _MAX_CELL))
