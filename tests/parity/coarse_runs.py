"""What our model computes in every mode, by the recorded names of a coarse case."""

from __future__ import annotations

import re
from contextlib import contextmanager

from torch import Tensor, nn

from fiber.losses.caption import next_tokens
from fiber.models.fiber.beam_search import beam_search
from fiber.models.fiber.image_text import FiberImageText
from tests.parity.coarse_case import CoarseCase


@contextmanager
def recorded_modules(model: FiberImageText, prefix: str, into: dict[str, Tensor]):
    """Store the output of every block and layer under its recorded name, below `prefix`."""
    backbone = model.backbone
    handles = []

    def record(module: nn.Module, *names: str) -> None:
        def hook(_module: nn.Module, _arguments: tuple, output: Tensor) -> None:
            tokens = output.flatten(1, 2) if output.dim() == 4 else output
            for name in names:
                into[f"{prefix}.{name}"] = tokens

        handles.append(module.register_forward_hook(hook))

    record(backbone.image.patch_embedding, "vit.patch_embed")
    last_place = backbone.image.places[-1]
    for number, (stage, block) in enumerate(backbone.image.places):
        names = [f"vit.stage{stage}.block{block}"]
        if (stage, block) == last_place:
            names.append(f"vit.stage{stage}")
        record(backbone.image.block(number), *names)
    for stage in range(len(backbone.image.stages) - 1):
        merging = backbone.image.stages[stage].merging
        record(merging, f"vit.stage{stage}.downsample", f"vit.stage{stage}")
    record(model.itc_image_norm, "vit.norm")
    record(backbone.text.embeddings, "txt.embeddings")
    for number, layer in enumerate(backbone.text.layers):
        record(layer, f"txt.layer{number}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_dual(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Contrastive mode."""
    found: dict[str, Tensor] = {}
    with recorded_modules(model, "itc", found):
        output = model.backbone.encode_image(case.input("image"))
        text = model.backbone.encode_text(case.input("text_ids"), case.input("text_masks").bool())
        found["itc.image_cls"] = model.image_vectors(output)
    found["itc.text_cls"] = model.text_vectors(text)
    tokens = model.itc_image_norm(output.stages[-1]).flatten(1, 2)
    found["itc.image_feats"] = model.itc_image_transform(tokens)
    found["itc.text_feats"] = model.itc_text_transform(text)
    return found


def run_fused(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Fused mode on the unmasked and the masked text."""
    found: dict[str, Tensor] = {}
    images, mask = case.input("image"), case.input("text_masks").bool()
    with recorded_modules(model, "fused", found):
        output = model.backbone.encode_pair(images, case.input("text_ids"), mask)
    assert output.text is not None
    pooled = model.pooled(output)
    found["fused.text_feats"] = model.text_transform(output.text)
    found["fused.image_feats"] = model.image_transform(output.stages[-1].flatten(1, 2))
    found["fused.cls_feats"] = pooled
    found["fused.itm_logits"] = model.itm_logits(pooled)
    found["fused.rank_output"] = model.itm_logits(pooled)[:, 1:]
    found["fused.vqa_logits"] = model.vqa_logits(pooled)
    masked = model.backbone.encode_pair(images, case.input("text_ids_mlm"), mask)
    assert masked.text is not None
    found["mlm.logits"] = model.mlm_logits(masked.text)
    return found


def run_caption(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Captioning mode."""
    found: dict[str, Tensor] = {}
    ids, mask = case.input("text_ids"), case.input("text_masks").bool()
    with recorded_modules(model, "caption", found):
        tokens = model.backbone.encode_image(case.input("image")).stages[-1]
        text = model.decode_text(tokens, ids, mask)
    found["caption.image_embeds"] = tokens.flatten(1, 2)
    found["caption.text_feats"] = model.text_transform(text)
    found["caption.cls_feats"] = model.text_pooler(model.text_transform(text[:, 0]))
    found["caption.logits"] = model.caption_logits(text)
    found["caption.labels"] = next_tokens(found["caption.logits"], ids, mask)
    return found


def run_beams(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Beam search of every recorded width."""
    tokens = model.backbone.encode_image(case.input("image")).stages[-1]
    found = {}
    for name, record in case.records.items():
        width = re.fullmatch(r"beam(\d+)\.text_ids", name)
        if width:
            found[name] = beam_search(
                model, tokens, num_beams=int(width[1]), max_tokens=record["shape"][1] + 1
            ).token_ids
    return found
