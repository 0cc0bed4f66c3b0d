"""Released files of X-Decoder, and files of its kin that are other models.

The files are those of huggingface.co/xdecoder/X-Decoder and of the releases of
github.com/microsoft/X-Decoder.
"""

from __future__ import annotations

from collections.abc import Collection

#: Heads of an X-Decoder model. "mask": masks of classes and phrases; "caption": captions of images
#: and regions; "retrieval": vectors of images that texts are searched by.
XDECODER_HEADS = ("mask", "caption", "retrieval")

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


#: Heads of other families, and what to use instead.
_OTHER_HEADS = {
    "itc": "X-Decoder searches with the head 'retrieval'",
    "itm": "X-Decoder scores no pairs; it searches with the head 'retrieval'",
    "vqa": "X-Decoder's VQA head is not supported; FIBER and METER answer questions",
    "grounding": (
        "X-Decoder finds masks of phrases, which have boxes: model.segment(images, phrases=[...])"
    ),
}


def head_hint(head: str) -> str:
    """Say that released files have a head, or what to use instead of one that the family lacks."""
    if head in _OTHER_HEADS:
        return f"{_OTHER_HEADS[head]}."
    if head in XDECODER_HEADS:
        return f"All released files of X-Decoder have the head {head!r}."
    return f"X-Decoder has no head {head!r}."
