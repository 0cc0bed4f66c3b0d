"""Released files of METER and their heads.

They are files of the releases of github.com/zdou0830/METER.
"""

from __future__ import annotations

#: Heads of each file.
RELEASED: dict[str, tuple[str, ...]] = {
    "meter_clip16_288_roberta_pretrain.ckpt": ("itm", "mlm"),
    "meter_clip16_224_roberta_pretrain.ckpt": ("itm", "mlm"),
    "meter_swinbase_384_roberta_pretrain.ckpt": ("itm", "mlm"),
    "meter_clip16_288_roberta_vqa.ckpt": ("vqa",),
    "meter_clip16_288_roberta_nlvr2.ckpt": ("nlvr2",),
    "meter_clip16_288_roberta_snli.ckpt": ("snli",),
    "meter_clip16_288_roberta_flickr.ckpt": ("itm", "rank"),
    "meter_clip16_288_roberta_coco.ckpt": ("itm", "rank"),
}

#: Heads that METER does not have, and what to use instead.
_OTHER_HEADS = {
    "itc": (
        "METER has no contrastive head, and so no embeddings of images or texts; it searches by"
        " scoring every pair, with the head 'rank' or 'itm'"
    ),
    "caption": "METER has no caption head; FIBER has one (`fiber train caption_coco`)",
    "grounding": "METER predicts no boxes; FIBER does (`fiber train grounding`)",
}


def head_hint(head: str) -> str:
    """Say which released files have a head, or that METER has no such head."""
    if head in _OTHER_HEADS:
        return f"{_OTHER_HEADS[head]}."
    files = [name for name, heads in RELEASED.items() if head in heads]
    verb = "has" if len(files) == 1 else "have"
    return f"Of the released files, {', '.join(files)} {verb} the head {head!r}."
