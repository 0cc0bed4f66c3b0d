import pytest

from tests.parity.published_spans import published_positive_tokens

pytestmark = pytest.mark.oldest

#: "a   man ☕ b" as RoBERTa splits it: runs of spaces belong to no character, ☕ is two tokens.
TEXT = "a   man \u2615 b"
OFFSETS = [(0, 0), (0, 1), (2, 2), (3, 3), (4, 7), (8, 9), (8, 9), (10, 11), (0, 0)]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        pytest.param((0, 0), [], id="empty"),
        pytest.param((0, 1), [1], id="one letter"),
        pytest.param((4, 7), [4], id="one word"),
        pytest.param((2, 7), [4], id="starts two characters early"),
        pytest.param((1, 7), [], id="starts three characters early"),
        pytest.param((0, 4), [], id="ends three characters late"),
        pytest.param((0, 3), [1], id="ends two characters late"),
        pytest.param((8, 9), [5], id="the first of two tokens"),
        pytest.param((4, 11), [4, 5, 6, 7], id="all between"),
        pytest.param((11, 20), [], id="behind the text"),
    ],
)
def test_ends_of_a_span_are_looked_up(span, expected):
    assert published_positive_tokens(OFFSETS, [span]) == expected


def test_spans_join():
    assert published_positive_tokens(OFFSETS, [(8, 9), (0, 1), (0, 1)]) == [1, 5]
    assert published_positive_tokens(OFFSETS, []) == []
    assert published_positive_tokens([], [(0, 3)]) == []
