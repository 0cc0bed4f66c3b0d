"""Compare the recorded texts of X-Decoder: templates, and ids through the tokenizer of CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fiber.data import Tokenizer
from fiber.models.encoders.clip_tokens import encode_text
from fiber.models.xdecoder.class_texts import TEMPLATES
from tests.golden import GOLDEN
from tests.parity.comparison import Comparison

#: CLIP's tokenizer, which is not part of the repository.
CLIP_TOKENIZER = GOLDEN.parents[1] / "../shared/assets/clip-bpe/tokenizer.json"
#: Entries of the file that are read elsewhere or say what it is.
_NOTES = ("note",)


def compare_texts(path: Path) -> Comparison:
    """Compare the templates, and the ids of all texts if CLIP's vocabulary is at hand."""
    content = json.loads(path.read_text())
    comparison = Comparison("texts")
    templates = comparison.group("templates", 0.0)
    for number, template in enumerate(content["templates"]):
        same = number < len(TEMPLATES) and TEMPLATES[number] == template
        templates.add(template, float(not same))
    templates.add("their number", float(abs(len(TEMPLATES) - len(content["templates"]))))
    comparison.compared.add("templates")
    # Of a folder beside the vocabulary, that one.
    places = (CLIP_TOKENIZER, path.absolute().parents[2] / "assets/clip-bpe/tokenizer.json")
    vocabulary = next((each for each in places if each.exists()), None)
    if vocabulary is not None:
        compare_ids(comparison, content, Tokenizer.from_file(vocabulary))
    else:
        names = ("ids", "context", "start", "end", "pad", "vocabulary")
        comparison.set_aside |= dict.fromkeys(
            names, f"CLIP's vocabulary is not at {CLIP_TOKENIZER}"
        )
    read = {*comparison.compared, *comparison.set_aside, *_NOTES}
    comparison.not_compared = sorted(set(content) - read)
    return comparison


def compare_ids(comparison: Comparison, content: dict, tokenizer: Tokenizer) -> None:
    """Compare the ids of all texts, and the special ids."""
    for text, ids in content["ids"].items():
        ours, _ = encode_text(tokenizer, text, content["context"])
        name = ascii(text)[:60]
        comparison.tensor("tokens", name, torch.tensor(ours), torch.tensor(ids), 0.0, 1.0)
    special = {
        "start": tokenizer.start_ids,
        "end": tokenizer.end_ids,
        "pad": [tokenizer.pad_id],
        "vocabulary": [tokenizer.vocab_size],
    }
    for name, ours in special.items():
        same = ours == [content[name]]
        comparison.group("special ids", 0.0).add(name, float(not same))
    comparison.compared |= {"ids", "context", *special}
