"""Mistakes in X-Decoder: those of the recorded `micro_mutations.json` by their names, and others.

Surprises of the published code (S1 to S13) are planted as their repaired form.
"""

from __future__ import annotations

from tests.plant.mistakes import Check, Mistake

#: The comparison with each recorded case.
MICRO, FOCAL_L, POST, GROUPS = (
    Check(f"xdecoder {case}", ("tests/parity/test_xdecoder.py", "-k", names))
    for case, names in (
        ("micro", "test_the_committed_case_equals and micro and not focall"),
        ("focall", "test_the_committed_case_equals and focall"),
        ("post", "test_post_processing_equals"),
        ("groups", "test_parameter_groups_equal"),
    )
)
#: Tests of the family's files.
FILES = Check("xdecoder files", ("tests/models/xdecoder/test_published.py",))

_FOCAL = "python/fiber/models/encoders/focalnet.py"
_TEXT = "python/fiber/models/encoders/clip_text.py"
_TEXT_CONFIG = "python/fiber/models/encoders/clip_text_config.py"
_CASE = "tests/parity/xdecoder_case.py"
_PIXEL = "python/fiber/models/masks/pixel_decoder.py"
_DECODER = "python/fiber/models/xdecoder/decoder.py"
_NETWORK = "python/fiber/models/xdecoder/segmenter.py"
_CLASSES = "python/fiber/models/xdecoder/class_texts.py"
_INFER = "python/fiber/models/xdecoder/infer_config.py"
_MASKS = "python/fiber/ops/masks.py"
_POST = "python/fiber/postprocess/masks.py"
_PARTS = "python/fiber/models/xdecoder/parameter_parts.py"
_POINTS = "python/fiber/losses/masks/point_sampling.py"
_MATCHING = "python/fiber/losses/masks/matching.py"
_MASK_LOSSES = "python/fiber/losses/masks/pixel_losses.py"
_REGION_TEXT = "python/fiber/losses/masks/region_text.py"
_LOSSES = "python/fiber/losses/masks/segmentation.py"
_REGIONS = "python/fiber/metrics/regions.py"

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
        ".transpose(1, 2) + levels[level]",
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
        "placed = caption_tokens + self._rows(self.caption_positions, length)",
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
        "scores = best * inside / f.float32(masks.sum((1, 2)) + _AREA_EPS)",
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

#: In training and metrics.
TRAINING = (
    Mistake(
        "points by corners of pixels",
        _POINTS,
        "F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)",
        "F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=True)",
    ),
    Mistake("points where a mask is most certain", _POINTS, "(-certainty).topk", "certainty.topk"),
    Mistake(
        "half of the points uncertain",
        _POINTS,
        "OVERSAMPLING, UNCERTAIN_SHARE = 3, 0.75",
        "OVERSAMPLING, UNCERTAIN_SHARE = 3, 0.5",
    ),
    Mistake(
        "phrases matched by a softmax over phrases",
        _MATCHING,
        "return -wide(similarity).softmax(0)",
        "return -wide(similarity).softmax(1)",
    ),
    Mistake(
        "matching weight of the class",
        _MATCHING,
        "label: float = 2.0",
        "label: float = 1.0",
    ),
    Mistake("dice without smoothing", _MASK_LOSSES, "DICE_SMOOTHING = 1.0", "DICE_SMOOTHING = 0.0"),
    Mistake(
        "background weighed as classes",
        _MASK_LOSSES,
        "BACKGROUND_WEIGHT = 0.1",
        "BACKGROUND_WEIGHT = 1.0",
    ),
    Mistake(
        "queries without a mask learn from texts",
        _LOSSES,
        "found = prediction.vectors[image][free].detach()",
        "found = prediction.vectors[image][free]",
    ),
    Mistake(
        "class names weighed as expressions",
        _LOSSES,
        "EXPRESSION_WEIGHT, CLASS_NAME_WEIGHT = 2.0, 0.5",
        "EXPRESSION_WEIGHT, CLASS_NAME_WEIGHT = 2.0, 2.0",
    ),
    Mistake(
        "directions of contrasts exchanged",
        _REGION_TEXT,
        "TO_TEXT, TO_REGION = 0.7, 0.3",
        "TO_TEXT, TO_REGION = 0.3, 0.7",
    ),
    Mistake(
        "tokens not weighted by position",
        _REGION_TEXT,
        "positions = text_mask.cumsum(1) * text_mask",
        "positions = text_mask.long()",
    ),
    Mistake(
        "targets of tokens normalized",
        _REGION_TEXT,
        "to_region = soft_cross_entropy(logits.T, targets.T).mean()",
        "weights = targets.T / targets.T.sum(1, keepdim=True)\n"
        "    to_region = soft_cross_entropy(logits.T, weights).mean()",
    ),
    Mistake(
        "captions divided by their tokens",
        _REGION_TEXT,
        "(all_rank_sum(is_target.sum()) + 1)",
        "all_rank_sum(is_target.sum())",
    ),
    Mistake(
        "states of phrases with a gradient",
        _DECODER,
        "torch.cat((states, tokens.detach()), 1)",
        "torch.cat((states, tokens), 1)",
    ),
    Mistake(
        "states of captions with a gradient",
        _DECODER,
        "torch.cat((states, caption_tokens.detach()), 1)",
        "torch.cat((states, caption_tokens), 1)",
    ),
    Mistake(
        "tokens of equal phrases twice",
        "python/fiber/models/features.py",
        "is_first = ~same.tril(-1).any(1)",
        "is_first = same.any(1)",
    ),
    Mistake(
        "S13: no decay of biases",
        _PARTS,
        '    "*": True,',
        '    "*bias": False,\n    "*": True,',
        GROUPS,
    ),
    Mistake(
        "S13: no decay of the text encoder's norms",
        _PARTS,
        '    "backbone.text.*": True,\n',
        '    "*norm.weight": False,\n    "backbone.text.*": True,\n',
        GROUPS,
    ),
    Mistake(
        "S13: the projection of images at the full rate",
        _PARTS,
        '"image_projection": "encoder"',
        '"image_projection": "head"',
        GROUPS,
    ),
    Mistake(
        "mIoU over the true classes",
        _REGIONS,
        "float(iou.sum() / ((true + found) > 0).sum())",
        "float(iou.mean())",
        POST,
    ),
    Mistake(
        "phrases by intersection over prediction",
        _REGIONS,
        "return both, int(np.count_nonzero(own)) + int(np.count_nonzero(real)) - both",
        "return both, int(np.count_nonzero(own))",
        POST,
    ),
)

XDECODER = RECORDED + OTHERS + TRAINING

#: Surprises of the specification (section 6) that no change of this network makes.
NOT_PLANTED = {
    "S4": "phrases are asked together as published; asking them alone is the caller's choice",
    "S5": "steps and the cut at a period are arguments and tests/models/xdecoder",
    "S7": "the background is part of the class vectors; there is no head to set",
    "S8": "no template is drawn at random",
    "S9": "padding is given by the caller, as planted in 'padding pixels 0'",
    "S10": "in each recorded case both images have as many tokens of phrases, so none is padded",
    "S11": "equal texts are told by their tokens; a salted hash cannot be planted",
    "S12": "both forms are planted: 'norm1 inside', 'norm after the sum'",
    "S14": "of the original's versions of NumPy and torch",
    "S15": "bits are compared on their own",
}
