"""Hooks of mkdocs: pages that are elsewhere in the repository, and the reference of the commands.

The pages of docs/ and README.md are also read where the repository is browsed, so their links are
relative to their own place. In the site they are rewritten to its pages.
"""

from __future__ import annotations

import argparse
import logging
import os
import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Pages of the site that are files of the repository outside of docs/.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "LICENSE": "license.md",
    "NOTICE": "notice.md",
    "benches/README.md": "benches.md",
    "python/fiber/packaged/scenes/README.md": "scenes.md",
}
COMMANDS = "api/commands.md"
# A logger of mkdocs, so that its warnings count.
_LOG = logging.getLogger("mkdocs.hooks.fiber")
_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
# The header of a model card, for the Hugging Face Hub.
_CARD_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in ELSEWHERE.items():
        text = _CARD_HEADER.sub("", (ROOT / source).read_text(encoding="utf-8"))
        if not source.endswith(".md"):
            text = f"# {source.capitalize()}\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links to files of the repository to the pages of the site."""
    place = {new: old for old, new in ELSEWHERE.items()}
    own = place.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(own), link[2]))
        new = ELSEWHERE.get(target, target.removeprefix("docs/"))
        new = posixpath.relpath(new, posixpath.dirname(page.file.src_uri) or ".")
        return f"{link[1]}{new}{link[3] or ''}{link[4]}"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(rewrite, part) for part in parts)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Rewrite links of notebooks, which mkdocs leaves as they are."""
    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'(href="[^":]+)\.md([#"])', r"\1.html\2", html)
    return html


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of each link of a written page to a file or an anchor that does not exist."""
    root = Path(config.site_dir)
    anchors: dict[Path, set[str]] = {}
    for page in sorted(root.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src)="([^"]*)"', text):
            url = urlsplit(unescape(link))
            if url.scheme or url.netloc:
                continue
            # 404.html has links from the root, since it is shown at any place.
            start = root if url.path.startswith("/") else page.parent
            target = (start / unquote(url.path.lstrip("/"))).resolve() if url.path else page
            target = target / "index.html" if target.is_dir() else target
            if target not in anchors and target.suffix == ".html" and target.is_file():
                found = re.findall(r'\b(?:id|name)="([^"]+)"', target.read_text(encoding="utf-8"))
                anchors[target] = {unescape(each) for each in found}
            is_dead = not target.is_file() or (
                url.fragment != "" and unquote(url.fragment) not in anchors.get(target, ())
            )
            if is_dead:
                _LOG.warning("%s: the link %s leads nowhere", page.relative_to(root), link)


def _commands() -> str:
    """Write the help of every command as a page."""
    from fiber.cli import parser

    # argparse wraps at the width of the terminal.
    os.environ["COLUMNS"] = "100"
    whole = parser()
    lines = ["# Commands", "", "What `fiber COMMAND --help` prints.", ""]
    lines += _described("fiber", whole)
    return "\n".join(lines)


def _described(name: str, command: argparse.ArgumentParser) -> list[str]:
    lines = [f"## {name}", "", "```text", command.format_help().rstrip(), "```", ""]
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub, nested in action.choices.items():
                lines += _described(f"{name} {sub}", nested)
    return lines
