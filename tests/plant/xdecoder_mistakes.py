"""Mistakes in X-Decoder: those of the recorded `micro_mutations.json` by their names, and others.

Surprises of the published code (S1 to S12) are planted as their repaired form.
"""

from __future__ import annotations

from tests.plant.mistakes import Check, Mistake

#: The comparison with each recorded case.
MICRO, FOCAL_L, POST = (
    Check(f"xdecoder {case}", ("tests/parity/test_xdecoder.py", "-k", names))
    for case, names in (
        ("micro", "test_the_committed_case_equals and micro and not focall"),
        ("focall", "test_the_committed_case_equals and focall"),
        ("post", "test_post_processing_equals"),
    )
)
#: Tests of the family's files.
FILES = Check("xdecoder files", ("tests/models/xdecoder/test_published.py",))

_FOCAL = "python/fiber/models/encoders/focalnet.py"
_TEXT = "python/fiber/models/encoders/clip_text.py"
_TEXT_CONFIG = "python/fiber/models/encoders/clip_text_config.py"
_CASE = "tests/parity/xdecoder_case.py"
_PIXEL = "python/fiber/models/xdecoder/pixel_decoder.py"
_DECODER = "python/fiber/models/xdecoder/decoder.py"
_NETWORK = "python/fiber/models/xdecoder/segmenter.py"
_CLASSES = "python/fiber/models/xdecoder/class_texts.py"
_INFER = "python/fiber/models/xdecoder/infer_config.py"
_MASKS = "python/fiber/ops/masks.py"
_POST = "python/fiber/postprocess/masks.py"

#: Recorded in `micro_mutations.json` or in the README's table. Padding is made by the caller of the
#: network, so that mistake is one of the recorded case.
RECORDED = (
    Mistake(
        "norm1 inside the branch (Focal-L's order)",
        _FOCAL,
        "tokens = _convolved(self.modulation_norm(tokens + update), self.mlp_conv)",
        "tokens = _convolved(tokens + self.modulation_norm(update), self.mlp_conv)",
    ),
    Mistake(
        "tanh GELU in the backbone",
        _FOCAL,
        "nn.Linear(channels, hidden), nn.GELU()",
        'nn.Linear(channels, hidden), nn.GELU(approximate="tanh")',
    ),
    Mistake(
        "padding pixels 0 before normalisation",
        _CASE,
        "padded = torch.zeros(len(images), 3, height, width)",
        "padded = (-torch.tensor(MEAN) / torch.tensor(STD))[:, None, None].expand("
        "len(images), 3, height, width).clone()",
    ),
    Mistake(
        "text LayerNorm eps 1e-5",
        _TEXT_CONFIG,
        "layer_norm_eps: float = 1e-12",
        "layer_norm_eps: float = 1e-5",
    ),
    Mistake(
        "bilinear attention mask (Mask2Former)",
        _MASKS,
        'mode="bicubic", align_corners=False, antialias=True',
        'mode="bilinear", align_corners=False',
    ),
    Mistake(
        "class query read directly",
        _DECODER,
        "own_class = similarity @ normed[:, :last]",
        "own_class = normed[:, last : last + 1]",
    ),
    Mistake(
        "row of grounding copy 0 not freed",
        _DECODER,
        "hidden[:, self.num_queries :][:, :1] = False",
        "pass",
    ),
    Mistake(
        "grounding tokens not updated between layers",
        _DECODER,
        "own = None if tokens is None else states[:, rows:]",
        "own = tokens",
    ),
)

#: Others, each of one place.
OTHERS = (
    Mistake("modulator not divided", _FOCAL, " / (self.levels + 1)", ""),
    Mistake("no mean in the modulation", _FOCAL, "total + mean * gates", "total + 0 * gates"),
    Mistake(
        "stem padding of Focal-L",
        _FOCAL,
        '"norm_after": 3, "norm_inside": 2',
        '"norm_after": 2, "norm_inside": 2',
    ),
    Mistake(
        "stem padding of Focal-T",
        _FOCAL,
        '"norm_after": 3, "norm_inside": 2',
        '"norm_after": 3, "norm_inside": 3',
        FOCAL_L,
    ),
    Mistake(
        "norm after the sum (Focal-T's order)",
        _FOCAL,
        "return tokens + self._drop(self.mlp_scale * self.mlp_norm(self.mlp(tokens)))",
        "return self.mlp_norm(tokens + self._drop(self.mlp_scale * self.mlp(tokens)))",
        FOCAL_L,
    ),
    Mistake(
        "next stage reads the norm",
        _FOCAL,
        "self._run(stage.downsample, tokens.permute",
        "self._run(stage.downsample, maps[-1].permute",
    ),
    Mistake("text without a causal mask", _TEXT, "is_causal=True", "is_causal=False"),
    Mistake("text vector of the first token", _TEXT, "last = text_mask.sum(1) - 1", "last = 0"),
    Mistake(
        "columns before rows in positions",
        _PIXEL,
        "torch.cat((rows, columns))",
        "torch.cat((columns, rows))",
    ),
    Mistake(
        "bilinear upsampling in the pyramid",
        _PIXEL,
        'size=stage.shape[-2:], mode="nearest"',
        'size=stage.shape[-2:], mode="bilinear"',
    ),
    Mistake(
        "values with positions in the pixel decoder",
        _PIXEL,
        "self.attention(placed, placed, tokens)",
        "self.attention(placed, placed, placed)",
    ),
    Mistake(
        "level embedding left out",
        _DECODER,
        ".transpose(1, 2) + self.level_embedding.weight[level]",
        ".transpose(1, 2)",
    ),
    Mistake(
        "queries see the class query",
        _DECODER,
        "return is_class[:, None] != is_class",
        "return torch.zeros_like(is_class[:, None] != is_class)",
    ),
    Mistake(
        "empty rows not freed",
        _DECODER,
        "hidden &= ~hidden.all(-1, keepdim=True)",
        "hidden[..., 0] &= ~hidden.all(-1)",
    ),
    Mistake(
        "caption positions left out",
        _DECODER,
        "placed = caption_tokens + self.caption_positions.weight[:length]",
        "placed = caption_tokens",
    ),
    Mistake(
        "S2: the class query is freed",
        _DECODER,
        "[:, self.num_queries :][:, :1] = ",
        "[:, self.num_queries - 1] = ",
    ),
    Mistake(
        "S3: class scale limited",
        _NETWORK,
        "return self.logit_scale.exp() * normalized",
        "return self.scale() * normalized",
    ),
    Mistake("S3: phrase scale not limited", _NETWORK, ".clamp(max=MAX_SCALE)", ""),
    Mistake("S6: the region is hidden", _DECODER, "found.append(~inside)", "found.append(inside)"),
    Mistake("suffixes of class names kept", _CLASSES, '"-other", "-merged", ', '"-other", '),
    Mistake("class vectors of sums", _CLASSES, "mean = unit.mean(1)", "mean = vectors.mean(1)"),
    Mistake(
        "panoptic pixels below a half",
        _POST,
        "pixels = owned & own",
        "pixels = owned",
        POST,
    ),
    Mistake("stuff in parts", _POST, "if label in stuff:", "if label in ():", POST),
    Mistake(
        "S1 of instances: scores without masks",
        _POST,
        "scores = best * inside / (masks.flatten(1).sum(1) + _AREA_EPS)",
        "scores = best",
        POST,
    ),
    Mistake(
        "the form of Focal-L is not told",
        _INFER,
        'block="norm_after" if has_convolutions else "norm_inside"',
        'block="norm_after"',
        FILES,
    ),
    Mistake(
        "layers that are missing make a smaller model",
        _INFER,
        "        _check_released_sizes(config)\n",
        "",
        FILES,
    ),
)

XDECODER = RECORDED + OTHERS

#: Surprises of the specification (section 6) that no change of this network makes.
NOT_PLANTED = {
    "S4": "phrases are asked together as published; asking them alone is the caller's choice",
    "S5": "steps and the cut at a period are arguments and tests/models/xdecoder",
    "S7": "the background is part of the class vectors; there is no head to set",
    "S8": "no template is drawn at random",
    "S9": "padding is given by the caller, as planted in 'padding pixels 0'",
    "S10": "the padding of phrases in training waits for the losses",
    "S11": "texts are identified in training only",
    "S12": "both forms are planted: 'norm1 inside', 'norm after the sum'",
    "S13": "parameter groups wait for training",
    "S14": "of the original's versions of NumPy and torch",
    "S15": "bits are compared on their own",
}
