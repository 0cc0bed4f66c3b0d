"""Mistakes in METER: those of the recorded `*_mutations.json` by their names, and further ones.

A recorded mistake of several places is planted in each place alone, which is harder to see; then a
place in brackets follows its name.
"""

from __future__ import annotations

import dataclasses

from tests.plant.merged_mistakes import MERGED
from tests.plant.mistakes import COARSE, Check, Mistake

#: The comparison with each recorded case.
PARITY = {
    case: Check(
        f"meter {case}",
        ("tests/parity/test_meter.py", "-k", f"test_the_committed_case_equals and {case}"),
    )
    for case in ("clip", "swin")
}
_SWIN_CASE = PARITY["swin"]


def _tests(path: str, names: str) -> Check:
    """Tests by file and by a part of their names."""
    return Check(f"{path} {names}", (f"tests/{path}", "-k", names))


_CONFIG = "python/fiber/config.py"
_CLIP = "python/fiber/models/encoders/clip.py"
_SWIN = "python/fiber/models/encoders/swin.py"
_POSITIONS = "python/fiber/models/encoders/position_interpolation.py"
_ROBERTA = "python/fiber/models/encoders/roberta.py"
_METER_CONFIG = "python/fiber/models/meter/config.py"
_BACKBONE = "python/fiber/models/meter/backbone.py"
_FUSION = "python/fiber/models/meter/fusion.py"
_IMAGE_TEXT = "python/fiber/models/meter/image_text.py"
_INFER = "python/fiber/models/meter/infer_config.py"
_KEYS = "python/fiber/models/meter/keys.py"
_PREPROCESS = "python/fiber/models/meter/preprocess.py"
_GROUPS = "python/fiber/models/meter/parameter_parts.py"
_BUILD = "python/fiber/training/optim/build.py"
_MASKING = "rust/tokenizer/masking/positions.rs"
_RANKING = "python/fiber/tasks/ranking/fields.py"
_RECIPES = "python/fiber/recipes/meter.py"
_SNLI_VE = "python/fiber/data/datasets/snli_ve.py"

#: Mistakes that coarse FIBER's model shares: recorded name -> coarse name.
_SHARED = {
    "language head: LayerNorm eps 1e-5": "MLM head LayerNorm eps 1e-5",
    "text tower: LayerNorm eps 1e-12": "roberta LayerNorm eps 1e-12",
    "no relative position bias": "no relative position bias",
    "no shift mask": "no shifted-window mask",
    "no shift": "no shift at all",
    "tanh GELU in the image tower": "swin GELU tanh approximation",
    "image tower LayerNorm eps 1e-6 [Swin]": "swin LayerNorm eps 1e-6",
}
#: Those of `_SHARED` that only the case with Swin sees.
_OF_SWIN = [name for name in _SHARED if "LayerNorm eps" not in name or "Swin" in name]

#: Recorded in `*_mutations.json`.
RECORDED = (
    *(
        dataclasses.replace(
            mistake, name=name, check=_SWIN_CASE if name in _OF_SWIN else PARITY["clip"]
        )
        for name, coarse in _SHARED.items()
        for mistake in COARSE
        if mistake.name == coarse
    ),
    Mistake(
        "cross layers and language head: LayerNorm eps 1e-5 [cross layers]",
        _METER_CONFIG,
        "layer_norm_eps: float = 1e-12",
        "layer_norm_eps: float = 1e-5",
    ),
    Mistake(
        "tanh GELU in text and cross layers [text]",
        _ROBERTA,
        "nn.GELU()",
        'nn.GELU(approximate="tanh")',
    ),
    Mistake(
        "tanh GELU in text and cross layers [cross layers]",
        _FUSION,
        "nn.GELU()",
        'nn.GELU(approximate="tanh")',
    ),
    Mistake(
        "image layer reads the updated text",
        _BACKBONE,
        "image = self._run(image_layer, image_attended[:, :image_queries], text, mask)",
        # The last level may have computed fewer tokens than its mask has.
        "read = new_text if new_text.shape == text.shape else text\n"
        "            image = self._run(image_layer, image_attended[:, :image_queries], read, mask)",
    ),
    Mistake(
        "cross-attention before self-attention",
        _FUSION,
        """        return self.self_attention(tokens[:, :num_queries], tokens, mask)

    def forward(self, attended: Tensor, other: Tensor, other_mask: Tensor | None) -> Tensor:
        \"""Run the rest of the layer on the output of `attend`: (B, T, D) -> (B, T, D).\"""
        return self.feed_forward(self.cross_attention(attended, other, other_mask))
""",
        """        self.mask = mask
        return tokens[:, :num_queries]

    def forward(self, attended: Tensor, other: Tensor, other_mask: Tensor | None) -> Tensor:
        attended = self.cross_attention(attended, other, other_mask)
        mask = self.mask if attended.shape[1] > 1 else None
        return self.feed_forward(self.self_attention(attended, attended, mask))
""",
    ),
    Mistake(
        "text padding unmasked for the image",
        _BACKBONE,
        "image_attended[:, :image_queries], text, mask)",
        "image_attended[:, :image_queries], text, None)",
    ),
    Mistake(
        "text padding unmasked in the cross layers' text",
        _FUSION,
        "self.self_attention(tokens[:, :num_queries], tokens, mask)",
        "self.self_attention(tokens[:, :num_queries], tokens, None)",
    ),
    Mistake(
        "no token types [image]",
        _BACKBONE,
        "tokens = tokens + self.token_types(types)[:, None]",
        "tokens = tokens + 0 * self.token_types(types)[:, None]",
    ),
    Mistake(
        "no token types [text]",
        _BACKBONE,
        "tokens = tokens + self.token_types(token_ids.new_full((1,), TEXT))",
        "tokens = tokens + 0 * self.token_types(token_ids.new_full((1,), TEXT))",
    ),
    Mistake(
        "token types swapped",
        _BACKBONE,
        "TEXT, IMAGE, SECOND_IMAGE = 0, 1, 2",
        "TEXT, IMAGE, SECOND_IMAGE = 1, 0, 2",
    ),
    Mistake(
        "text positions from 0",
        _ROBERTA,
        "(real.cumsum(1) + tokens_before) * real + PAD_ID",
        "(real.cumsum(1) + tokens_before - 1) * real",
    ),
    Mistake(
        "no tanh in the image pooler",
        _IMAGE_TEXT,
        "self.image_pooler(image)), -1)",
        "self.image_pooler.linear(image)), -1)",
    ),
    Mistake(
        "pooled picture before text",
        _IMAGE_TEXT,
        "(self.text_pooler(output.text[:, 0]), self.image_pooler(image))",
        "(self.image_pooler(image), self.text_pooler(output.text[:, 0]))",
    ),
    Mistake(
        "other pooling of the picture (mean for CLIP, first token for Swin) [CLIP]",
        _IMAGE_TEXT,
        "image[:, 0] if is_clip else image.mean(1)",
        "image.mean(1)",
    ),
    Mistake(
        "other pooling of the picture (mean for CLIP, first token for Swin) [Swin]",
        _IMAGE_TEXT,
        "image[:, 0] if is_clip else image.mean(1)",
        "image[:, 0]",
        _SWIN_CASE,
    ),
    Mistake(
        "exact GELU in the image tower",
        _CLIP,
        "F.silu(1.702 * hidden) / 1.702",
        "F.gelu(hidden)",
    ),
    Mistake(
        "image tower LayerNorm eps 1e-6 [CLIP]",
        _CLIP,
        "LAYER_NORM_EPS = 1e-5",
        "LAYER_NORM_EPS = 1e-6",
    ),
    Mistake(
        "no ln_pre",
        _CLIP,
        "self.first_norm(torch.cat((first, patches), 1) + self.position_embedding)",
        "torch.cat((first, patches), 1) + self.position_embedding",
    ),
    Mistake("no ln_post", _CLIP, "return self.last_norm(tokens)", "return tokens"),
    Mistake(
        "ln_post on the class token only",
        _CLIP,
        "return self.last_norm(tokens)",
        "return torch.cat((self.last_norm(tokens[:, :1]), tokens[:, 1:]), 1)",
    ),
    Mistake(
        "one block fewer",
        _CLIP,
        "for block in self.blocks:\n            tokens",
        "for block in self.blocks[:-1]:\n            tokens",
    ),
    Mistake(
        "class token not handed to the cross layers",
        _BACKBONE,
        "            return self._run(self.image, images)\n",
        "            return self._run(self.image, images)[:, 1:]\n",
    ),
    Mistake(
        "no final norm of the image tower",
        _BACKBONE,
        "self.image_norm(self._run(self.image, images)[-1].flatten(1, 2))",
        "self._run(self.image, images)[-1].flatten(1, 2)",
        _SWIN_CASE,
    ),
    Mistake(
        "shift also where one window covers the map",
        _SWIN,
        "return window_size, 0 if min(map_size) <= self.window_size else shift",
        "return window_size, shift",
        _SWIN_CASE,
    ),
)

_PUBLISHED = "models/meter/test_published.py"
_RECOGNIZED = _tests(_PUBLISHED, "every_published_file_is_recognized")
_SIZES = _tests("models/meter/test_encoders.py", "published_sizes")
_TRANSFORM = _tests("models/meter/test_preprocess.py", "recorded or alpha or published")
_RECIPE = _tests("recipes/test_meter.py", "recipe or recorded or published")
_ROWS = _tests("data/datasets/test_snli_ve.py", "test_rows")

#: Weights, files, heads, optimizer, transforms and data.
FURTHER = (
    Mistake(
        "12 CLIP blocks by default", _CONFIG, "num_blocks: int = 11", "num_blocks: int = 12", _SIZES
    ),
    Mistake(
        "one CLIP block more than the file has",
        "python/fiber/models/infer.py",
        'num_blocks=count_numbers(state, re.escape(blocks) + r"(\\d+)\\."),',
        'num_blocks=count_numbers(state, re.escape(blocks) + r"(\\d+)\\.") + 1,',
        _RECOGNIZED,
    ),
    Mistake(
        "second picture of NLVR2 with the token type of the first",
        _IMAGE_TEXT,
        "torch.where(is_right, SECOND_IMAGE, IMAGE)",
        "torch.where(is_right, IMAGE, IMAGE)",
    ),
    Mistake(
        "token type of the second picture starts as that of text",
        _KEYS,
        "types[1:2].expand(max(missing, 0), -1)",
        "types[0:1].expand(max(missing, 0), -1)",
        _tests(_PUBLISHED, "second_image_of_nlvr2"),
    ),
    Mistake(
        "rank_output ignored, as in FIBER's files",
        _KEYS,
        '"rank": {"rank_head": "rank_output"},',
        '"rank": {},',
        _RECOGNIZED,
    ),
    Mistake(
        "rank_output in the head group", _GROUPS, '"rank_head": "encoder"', '"rank_head": "head"'
    ),
    Mistake(
        "rank_output of half the width",
        _IMAGE_TEXT,
        "nn.Linear(2 * width, 1)",
        "nn.Linear(width, 1)",
        _RECOGNIZED,
    ),
    Mistake(
        "zero-shot ranking by the other row of the ITM head",
        _IMAGE_TEXT,
        "return self.itm_logits(pooled)[:, 1]",
        "return self.itm_logits(pooled)[:, 0]",
        _tests("models/meter/test_inference.py", "without_a_ranking_head"),
    ),
    Mistake(
        "search without a ranking head by the log odds of a match",
        "python/fiber/inference/pairs.py",
        "    head = ranking_head(network)\n",
        "    head = ranking_head(network)\n"
        '    if "rank" not in network.config.heads:\n'
        "        head = match_log_odds(network)\n",
        _tests("models/meter/test_inference.py", "search_without_a_ranking_head"),
    ),
    Mistake(
        "norms of CLIP's blocks not decayed",
        _GROUPS,
        '    "backbone.image.blocks.*.attention_norm.weight": True,\n'
        '    "backbone.image.blocks.*.mlp_norm.weight": True,\n',
        "",
    ),
    Mistake(
        "ln_pre and ln_post not decayed",
        _GROUPS,
        '    "*image.first_norm.weight": True,\n    "*image.last_norm.weight": True,\n',
        "",
    ),
    Mistake(
        "token types with the cross lr",
        _GROUPS,
        '"backbone.token_types": "encoder"',
        '"backbone.token_types": "cross_modal"',
    ),
    Mistake(
        "PyTorch's AdamW",
        _BUILD,
        "return PublishedAdamW(list(groups.values()), **options)",
        "return torch.optim.AdamW(list(groups.values()), **options)",
    ),
    Mistake(
        "position table resized with antialias",
        _POSITIONS,
        'mode="bicubic", align_corners=False)\n    return torch.cat',
        'mode="bicubic", align_corners=False, antialias=True)\n    return torch.cat',
    ),
    Mistake(
        "class row of the position table resized with the others",
        _POSITIONS,
        "torch.cat((table[:1], resized[0]",
        "torch.cat((0.5 * (table[:1] + table[1:2]), resized[0]",
    ),
    Mistake(
        "squash instead of shorter side and centre crop",
        _PREPROCESS,
        "ImageTransform.center_crop(config",
        "ImageTransform.squash(config",
        _TRANSFORM,
    ),
    Mistake(
        "statistics of ImageNet with CLIP",
        _PREPROCESS,
        'return {"alpha": "premultiply", **CLIP_STATISTICS}',
        'return {"alpha": "premultiply"}',
        _TRANSFORM,
    ),
    Mistake(
        "statistics of CLIP with Swin",
        _PREPROCESS,
        "    return {}\n",
        "    return CLIP_STATISTICS\n",
        _TRANSFORM,
    ),
    Mistake(
        "alpha dropped before CLIP's resize",
        _PREPROCESS,
        '"alpha": "premultiply", ',
        "",
        _TRANSFORM,
    ),
    Mistake(
        "alpha premultiplied for Swin, too",
        _PREPROCESS,
        "    return {}\n",
        '    return {"alpha": "premultiply"}\n',
        _TRANSFORM,
    ),
    Mistake(
        "texts of 50 tokens for retrieval",
        _INFER,
        "_RETRIEVAL_TOKENS, _TOKENS = 40, 50",
        "_RETRIEVAL_TOKENS, _TOKENS = 50, 50",
        _RECOGNIZED,
    ),
    Mistake(
        "heads of the stored config taken for RoBERTa's",
        _INFER,
        "    text = _text(state, own)\n",
        '    text = infer_text(state, TEXT, stored_integer(stored, "num_heads"))\n',
        _tests("models/meter/test_infer_config.py", "heads"),
    ),
    Mistake(
        "SNLI-VE's classes in another order",
        _SNLI_VE,
        'ENTAILMENT = ("contradiction", "neutral", "entailment")',
        'ENTAILMENT = ("entailment", "neutral", "contradiction")',
        _ROWS,
    ),
    Mistake(
        "SNLI-VE's text is the premise",
        _SNLI_VE,
        'text=file.text(entry, "sentence2")',
        'text=file.text(entry, "sentence1")',
        _tests("data/datasets/test_snli_ve.py", "without_a_gold_label"),
    ),
    Mistake(
        "whole-word masking as if it had no effect: every word drawn by itself",
        _MASKING,
        """for first in 0..self.count {
            let other = first + uniform.below(self.max_tokens - first);
""",
        """for first in 0..self.max_tokens {
            let other = first;
            if uniform.next() >= 0.15 {
                continue;
            }
""",
        _tests("data/test_masking.py", "positions"),
    ),
    Mistake(
        "positions of masks drawn from those of the text alone",
        _MASKING,
        "let other = first + uniform.below(self.max_tokens - first);",
        "let other = first + uniform.below(ids.len().saturating_sub(first));",
        _tests("data/test_masking.py", "positions"),
    ),
    Mistake(
        "itm: 0.5 of the retrieval recipe used as a weight",
        _RANKING,
        "    rank: float = 1.0\n    itm: float = 1.0\n",
        "    rank: float = 1.0\n    itm: float = 0.5\n",
        _RECIPE,
    ),
    Mistake(
        "COCO trained with val instead of restval",
        _RECIPES,
        'changes = {"data.split": "train+restval"}',
        'changes = {"data.split": "train+val"}',
        _RECIPE,
    ),
)

METER = (*RECORDED, *FURTHER, *MERGED)

#: Mistakes that no change of the source is, and why.
NOT_PLANTED = {
    "window read from the name of the Swin": (
        "no name of an encoder is read; windows are inferred from the bias tables"
    ),
}
