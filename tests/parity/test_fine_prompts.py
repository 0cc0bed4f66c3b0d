"""The class prompts of training that are recorded, and what a change of the record does."""

import json

import pytest

from tests.golden import FINE
from tests.parity.fine_prompts import SECTION, compare_drawn_prompts

pytestmark = pytest.mark.oldest

RECORDED = FINE / "data_text.json"


@pytest.fixture
def content():
    return json.loads(RECORDED.read_text())


def compare(content, tmp_path):
    path = tmp_path / "data_text.json"
    path.write_text(json.dumps(content))
    return compare_drawn_prompts(path)


def test_recorded_prompts(content):
    comparison = compare_drawn_prompts(RECORDED)
    print(comparison)
    assert comparison.ok, str(comparison)
    assert comparison.groups[SECTION].count == len(content[SECTION]) > 5


def test_every_changed_case_fails(content, tmp_path):
    for number, case in enumerate(content[SECTION]):
        changed = json.loads(json.dumps(content))
        of = changed[SECTION][number]
        if "annotations" in case:
            of["annotations"][0]["tokens_positive"][0][1] += 1
        elif "outcome" in case:
            of["outcome"] = "none"
        else:
            of["kept_labels"][0] += 1
        failed = compare(changed, tmp_path).groups[SECTION].failures
        assert [failure.split(":")[0] for failure in failed] == [f"{number} {case['fn']}"]


def test_a_case_of_another_kind_is_not_compared(content, tmp_path):
    content[SECTION].append({"fn": "new"})
    comparison = compare(content, tmp_path)
    assert not comparison.ok and comparison.not_compared == [f"{SECTION}: new"]
