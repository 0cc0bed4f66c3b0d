import pytest

from fiber.inference.noun_phrases import noun_phrases


class TestPhrases:
    @pytest.mark.parametrize(
        ("caption", "phrases"),
        [
            ("", []),
            ("of the", []),
            ("dog", ["dog"]),
            ("A big  dog", ["A big  dog"]),
            ("the cat, a dog; a bird.", ["the cat", "a dog", "a bird"]),
            ("a cup to the right of the cup", ["a cup", "the cup"]),
            ("A car is parked behind the house", ["A car", "the house"]),
            ("an \u00e9clair on a plate", ["an \u00e9clair", "a plate"]),
            ("the woman's hat on a T-shirt", ["the woman's hat", "a T-shirt"]),
        ],
    )
    def test_phrases_of(self, caption, phrases):
        assert [caption[start:end] for start, end in noun_phrases(caption)] == phrases
