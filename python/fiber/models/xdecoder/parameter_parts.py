"""Parts of X-Decoder, which choose learning rates, and decay as in its published code."""

from __future__ import annotations

from collections.abc import Mapping

from fiber.models.architecture import Part

#: The published rule looks for "backbone" and "lang_encoder" in names, so projections of both
#: encoders learn at their rate.
PARTS: Mapping[str, Part] = {
    "backbone": "encoder",
    "image_projection": "encoder",
    "text_projection": "encoder",
    "logit_scale": "encoder",
    "pixel_decoder": "head",
    "decoder": "head",
}
#: Everything is decayed but norms and tables of embeddings. The published rule goes by the class
#: and the name of modules, which exempts neither the norms of the text encoder nor biases.
DECAY: Mapping[str, bool] = {
    "backbone.text.word_embedding.weight": False,
    "backbone.text.*": True,
    "*norm.weight": False,
    "*norm.bias": False,
    "decoder.queries.weight": False,
    "decoder.query_positions.weight": False,
    "decoder.level_embedding.weight": False,
    "decoder.caption_positions.weight": False,
    "*": True,
}
