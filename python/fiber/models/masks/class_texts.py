"""Texts that classes are encoded by: each name in several templates.

This module does not import torch: exported graphs are asked about classes without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fiber.messages import shown


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """Templates of a model, and the class that stands for no object."""

    #: Texts with "{}" in the place of the name; the vector of a class is the mean over them.
    templates: tuple[str, ...]
    #: Name of the last class.
    background: str
    #: Suffixes and marks of names that are left out of their texts, such as "-merged".
    removed: tuple[str, ...] = ()

    def of(self, name: str) -> tuple[str, ...]:
        """Return the texts of a class."""
        for part in self.removed:
            name = name.replace(part, "")
        return tuple(template.replace("{}", name) for template in self.templates)

    def with_background(self, names: Sequence[str]) -> tuple[str, ...]:
        """Append the background to the names of classes.

        Raises:
            ValueError: if there are no names, or a name is empty, there twice, or the background's.
        """
        if not names:
            raise ValueError("classes: expected at least one name, got none")
        for number, name in enumerate(names):
            if not name.strip():
                raise ValueError(f"classes: name {number} is empty")
            if name in names[:number]:
                raise ValueError(f"classes: {shown(name)} is there twice")
            if name == self.background:
                raise ValueError(f"classes: {shown(name)} is added as the last class; leave it out")
        return (*names, self.background)

    def prompts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of each class and, last, of the background.

        Raises:
            ValueError: see `with_background`.
        """
        return [self.of(name) for name in self.with_background(names)]
