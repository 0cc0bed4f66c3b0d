"""The pages that name files name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: A path in backticks, with a folder or a suffix.
PATH = re.compile(r"`((?:[\w.-]+/)*[\w.-]+(?:/|\.(?:py|rs|pyi|json|md)))`")


def find(name: str) -> bool:
    roots = (ROOT, ROOT / "python" / "fiber", ROOT / "tests")
    return any((root / name).exists() for root in roots)


@pytest.mark.parametrize("page", ["docs/glossary.md", "docs/one-picture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_exists(page):
    named = PATH.findall((ROOT / page).read_text(encoding="utf-8"))
    assert len(named) > 10
    missing = sorted({name for name in named if "/" in name and not find(name)})
    assert not missing, f"{page} names {', '.join(missing)}"


def test_a_term_of_the_glossary_has_one_line():
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    terms = [line.split("|")[1].strip().lower() for line in lines if line.startswith("| ")]
    terms = [term for term in terms if term != "term"]
    assert len(terms) > 60
    twice = {term for term in terms if terms.count(term) > 1}
    assert not twice
