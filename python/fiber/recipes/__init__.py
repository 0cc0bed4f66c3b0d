"""Recipes: one published or own training run a module, each with `recipe() -> RunConfig`."""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """List the recipes, as `fiber train RECIPE` takes them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
