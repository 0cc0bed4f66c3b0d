"""A tokenizer that tests can count by hand."""

import re


class Words:
    """A tokenizer of words and punctuation, between <s> and </s>."""

    def encode(self, text):
        found = list(re.finditer(r"\w+|[^\w\s]", text))
        offsets = [(0, 0), *(match.span() for match in found), (0, 0)]
        return list(range(len(offsets))), offsets
