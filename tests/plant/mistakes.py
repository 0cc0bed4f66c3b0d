"""Mistakes that a careful reader of the published code can still make, as changes of our source.

The names are those of the recorded `*_mutations.json` (coarse) and `mutation_sensitivity.txt`
(fine), which say how far each moves the outputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Tests that run in a process of their own."""

    name: str
    #: As pytest takes them.
    arguments: tuple[str, ...]
    #: Whether kernels run in Triton's interpreter, or are compiled; None where there are none.
    interpreted: bool | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What Triton reads when a kernel is decorated."""
        if self.interpreted is None:
            return {}
        # One thread: the interpreter's products are too small to share.
        return {"TRITON_INTERPRET": str(int(self.interpreted)), "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Mistake:
    """A piece of source and what stands in its place."""

    #: As in the recorded table.
    name: str
    #: From the root of the repository; the kernels under their import name.
    file: str
    right: str
    wrong: str
    #: The one check that is asked whether it sees the mistake; None for that of its kind.
    check: Check | None = None
    #: Other pieces of the same file that are changed with it, each with what takes its place.
    more: tuple[tuple[str, str], ...] = ()

    def planted(self, source: str) -> str:
        """Make the mistake.

        Raises:
            ValueError: unless each right piece is in the source once, so that a mistake that no
                longer fits the source does not count as seen.
        """
        for right, wrong in ((self.right, self.wrong), *self.more):
            count = source.count(right)
            if count != 1:
                raise ValueError(
                    f"{self.name}: expected {right!r} once in {self.file}, found it {count} times"
                )
            source = source.replace(right, wrong)
        return source


_SWIN = "python/fiber/models/encoders/swin.py"
_FUSION = "python/fiber/models/fiber/fusion.py"
_BACKBONE = "python/fiber/models/fiber/backbone.py"
_IMAGE_TEXT = "python/fiber/models/fiber/image_text.py"
_HEADS = "python/fiber/models/image_text.py"
_DYHEAD = "python/fiber/models/fiber/dyhead.py"
_DETECTOR = "python/fiber/models/fiber/detector.py"
_KERNELS = "python/fiber/kernels/window_attention/torch_path.py"
_SHIFT_MASK = "python/fiber/kernels/window_attention/shift_mask.py"

COARSE = (
    Mistake(
        "no relative position bias",
        _KERNELS,
        "self.bias = bias.t().reshape(-1, tokens, tokens)",
        "self.bias = 0 * bias.t().reshape(-1, tokens, tokens)",
    ),
    Mistake(
        "relative position index transposed",
        _KERNELS,
        "self.bias = bias.t().reshape(-1, tokens, tokens)",
        "self.bias = bias.t().reshape(-1, tokens, tokens).mT",
    ),
    Mistake("no shifted-window mask", _SHIFT_MASK, ".float() * SHIFT_MASK", ".float() * 0.0"),
    Mistake(
        "no shift at all",
        _SWIN,
        "shifted=block % 2 == 1,",
        "shifted=False,",
    ),
    Mistake(
        "i2t query norm dropped",
        _FUSION,
        "self.query(self.norm(attended))",
        "self.query(attended)",
    ),
    Mistake(
        "text padding not masked in i2t",
        _FUSION,
        "key, value, key_mask=text_mask)",
        "key, value, key_mask=torch.ones_like(text_mask))",
    ),
    Mistake(
        "alpha_i2t = 0",
        _FUSION,
        "read.reshape(attended.shape),",
        "0 * read.reshape(attended.shape),",
    ),
    Mistake(
        "alpha_t2i = 0",
        _BACKBONE,
        "lambda attended: fusion.text_to_image(attended, tokens, own),",
        "lambda attended: attended,",
    ),
    Mistake(
        "final LayerNorm applied in last fused text layer",
        _BACKBONE,
        "normalize_output=not last or self.config.fusion.normalize_last_text,",
        "normalize_output=True,",
    ),
    Mistake(
        "swin final norm applied in fused mode",
        _IMAGE_TEXT,
        "self.image_pooler(self.image_transform(output.stages[-1].mean((1, 2))))",
        "self.image_pooler(self.image_transform(\n"
        "            self.itc_image_norm(output.stages[-1]).mean((1, 2))))",
    ),
    Mistake(
        "swin GELU tanh approximation",
        _SWIN,
        "nn.GELU()",
        'nn.GELU(approximate="tanh")',
    ),
    Mistake("swin LayerNorm eps 1e-6", _SWIN, "LAYER_NORM_EPS = 1e-5", "LAYER_NORM_EPS = 1e-6"),
    Mistake(
        "roberta LayerNorm eps 1e-12",
        "python/fiber/config.py",
        "layer_norm_eps: float = 1e-5",
        "layer_norm_eps: float = 1e-12",
    ),
    Mistake(
        "MLM head LayerNorm eps 1e-5",
        _HEADS,
        "LANGUAGE_HEAD_EPS = 1e-12",
        "LANGUAGE_HEAD_EPS = 1e-5",
    ),
    Mistake(
        "sequential fusion (text reads updated image)",
        _BACKBONE,
        "lambda attended: fusion.text_to_image(attended, tokens, own),",
        "lambda attended: fusion.text_to_image(attended, new_tokens, own),",
    ),
    Mistake(
        "patch merging order (0,0),(0,1),(1,0),(1,1)",
        _SWIN,
        "squares.permute(0, 1, 3, 4, 2, 5)",
        "squares.permute(0, 1, 3, 2, 4, 5)",
    ),
)

#: Mistakes of both stages: fine name -> coarse name.
_OF_BOTH_STAGES = {
    "rel-pos index transposed": "relative position index transposed",
    "no shift mask (-100 -> 0)": "no shifted-window mask",
    "merge order x1<->x2": "patch merging order (0,0),(0,1),(1,0),(1,1)",
    "alpha_i2t dropped": "alpha_i2t = 0",
    "alpha_t2i dropped": "alpha_t2i = 0",
    "text mask ignored in i2t": "text padding not masked in i2t",
    "GELU tanh": "swin GELU tanh approximation",
}

FINE = (
    *(
        dataclasses.replace(mistake, name=name)
        for name, coarse in _OF_BOTH_STAGES.items()
        for mistake in COARSE
        if mistake.name == coarse
    ),
    Mistake(
        "sequential instead of parallel fusion (s3)",
        _BACKBONE,
        "lambda attended: fusion.text_to_image(attended, tokens, own),",
        # The first four of the six pairs are those of the third stage.
        "lambda attended: fusion.text_to_image(\n"
        "                attended, new_tokens if pair < 4 else tokens, own\n"
        "            ),",
    ),
    Mistake(
        "v3 LayerNorm used for v2",
        _FUSION,
        "self.query(self.norm(attended))",
        "self.query(nn.functional.layer_norm(attended, attended.shape[-1:]))",
    ),
    Mistake(
        "position ids off by one",
        "python/fiber/models/encoders/roberta.py",
        "(real.cumsum(1) + tokens_before) * real",
        "(real.cumsum(1) - 1 + tokens_before) * real",
    ),
    Mistake(
        "P6 from C5-side without P5 (relu missing p7)",
        "python/fiber/models/fiber/pyramid.py",
        "self.p7(F.relu(levels[-1]))",
        "self.p7(levels[-1])",
    ),
    Mistake(
        "DyConv crop offsets instead of flat",
        _DYHEAD,
        "    flat = values.flatten(1)[:, : kinds * height * width]\n"
        "    return flat.reshape(batch, kinds, height, width)",
        "    return values[:, :, :height, :width]",
    ),
    Mistake(
        "upsample align_corners False",
        _DYHEAD,
        "align_corners=True",
        "align_corners=False",
    ),
    Mistake("embedding not halved", _DETECTOR, "unit * 0.5", "unit * 1.0"),
    Mistake(
        "no L2 normalise",
        _DETECTOR,
        "F.normalize(text * text_mask.unsqueeze(-1), dim=-1)",
        "text * text_mask.unsqueeze(-1)",
    ),
    Mistake(
        "no box scale",
        _DETECTOR,
        "self.box_deltas(features) * scales[:, None]",
        "self.box_deltas(features) + 0 * scales[:, None]",
    ),
)

MISTAKES = {"coarse": COARSE, "fine": FINE}
