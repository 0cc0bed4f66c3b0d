"""Released files of X-Decoder, and files of its kin that are other models.

The files are those of huggingface.co/xdecoder/X-Decoder and of the releases of
github.com/microsoft/X-Decoder.
"""

from __future__ import annotations

from collections.abc import Collection

#: Released files and what each is for.
RELEASED: dict[str, str] = {
    "xdecoder_focalt_last.pt": "Focal-T, masks of classes and phrases",
    "xdecoder_focalt_best_openseg.pt": "Focal-T, masks of classes that were not trained",
    "xdecoder_focalt_last_novg.pt": "Focal-T, captions",
    "xdecoder_focall_last.pt": "Focal-L, masks of classes and phrases",
    "xdecoder_focall_bestseg.pt": "Focal-L, masks of classes that were not trained",
    "xdecoder_focall_last_oq101.pt": "Focal-L with 101 queries",
}

#: Parts of the names of tensors that only other models have: (part, model, what to do instead).
_OTHERS = (
    ("pn_indicator", "SEEM", "its prompts of points and strokes are not supported"),
    ("mask_sptial_embed", "SEEM", "its prompts of points and strokes are not supported"),
    ("vqa_classifier.", "X-Decoder's VQA file", "of X-Decoder, the VQA head is not supported"),
    ("query_feat_caping", "X-Decoder's VQA file", "of X-Decoder, the VQA head is not supported"),
    (
        ".sampling_offsets.",
        "the DaViT form of X-Decoder",
        "it has deformable attention, for which there is a compiled operator only",
    ),
    ("backbone.main_blocks.", "the DaViT form of X-Decoder", "only FocalNet is supported"),
    ("backbone.convs.", "the DaViT form of X-Decoder", "only FocalNet is supported"),
)


def check_released(names: Collection[str]) -> None:
    """Check that a file with keys of the decoder is one of X-Decoder's with FocalNet.

    Raises:
        ValueError: if it is of SEEM, or the VQA file, or has DaViT; the message names the model, a
            tensor, and the supported files.
    """
    for part, model, instead in _OTHERS:
        found = next((name for name in names if part in name), None)
        if found is not None:
            raise ValueError(
                f"the file is {model} (it has {found}): {instead}; expected one of"
                f" {', '.join(RELEASED)}"
            )
