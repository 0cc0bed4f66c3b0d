"""Mistakes in METER's merged attention, which no recorded case has."""

from __future__ import annotations

from tests.plant.mistakes import Check, Mistake

_BACKBONE = "python/fiber/models/meter/backbone.py"
_MERGED = Check("merged attention", ("tests/models/meter/test_merged.py", "-k", "plain"))

MERGED = (
    Mistake(
        "merged attention: text padding visible",
        _BACKBONE,
        "key_attention_mask(torch.cat((text_mask, real), 1))",
        "key_attention_mask(torch.cat((torch.ones_like(text_mask), real), 1))",
        _MERGED,
    ),
    Mistake(
        "merged attention: text and image cut apart at the wrong token",
        _BACKBONE,
        "return tokens[:, :length], tokens[:, length:]",
        "return tokens[:, -length:], tokens[:, :-length]",
        _MERGED,
    ),
    Mistake(
        "merged attention: only the first layer",
        _BACKBONE,
        "for level, layer in enumerate(self.layers):",
        "for level, layer in enumerate(self.layers[:1]):",
        _MERGED,
    ),
    Mistake(
        "merged attention: the last layer pools the token after the class token",
        _BACKBONE,
        "pooled = tokens[:, length:][:, : self._pooled_tokens]",
        "pooled = tokens[:, length + 1 :][:, : self._pooled_tokens]",
        _MERGED,
    ),
    Mistake(
        "merged attention: the last layer attends to its own queries alone",
        _BACKBONE,
        "tokens = self._run(layer, tokens, source, mask)",
        "mask = mask if tokens is source else None\n"
        "            tokens = self._run(layer, tokens, tokens, mask)",
        _MERGED,
    ),
)
