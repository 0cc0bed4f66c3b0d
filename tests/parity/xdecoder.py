"""Compare the X-Decoder model with recorded cases.

Attention masks are thresholds, so rounding may flip a bit, and a bit moves all that follows. Every
pass runs on the recorded bits, and our own bits are compared with them. Those of captions were not
recorded: they are computed in float64. On tiny, float32 flips one bit of the pass with phrases and
one of the caption of a region.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.encoders.focalnet import FocalNetEncoder
from fiber.models.xdecoder.captioner import CaptionDecoding, greedy_captions
from fiber.models.xdecoder.class_texts import mean_vectors
from fiber.models.xdecoder.decoder import Memory, Prediction, resize_masks
from fiber.models.xdecoder.keys import IMAGE, focalnet_keys
from fiber.models.xdecoder.pixel_decoder import sine_positions
from fiber.models.xdecoder.segmenter import XDecoder, join_tokens, retrieval_scores
from tests.parity.comparison import Comparison
from tests.parity.tolerances import ABSOLUTE_MAXIMA, WEIGHT_RULE
from tests.parity.xdecoder_case import NOT_DRAWN, XDecoderCase
from tests.parity.xdecoder_texts import compare_texts

#: Ends of the names of files beside a case: what is read, and what is no output of the model.
READ_COMPANIONS = ("_weights_check.json",)
NEVER_COMPARED_COMPANIONS = ("_mutations.json",)
UNIT_FILES = {"texts.json": compare_texts}
READ_UNIT_FILES: tuple[str, ...] = ()
SECTIONS: dict[str, Callable[[Path], Comparison]] = {}
#: Ends of the names of files that no comparison reads yet, and what each waits for.
PENDING_FILES = {
    "classes.json": "the evaluation of the published class lists",
    "post.json": "post-processing of masks, and metrics",
    "post.safetensors": "post-processing of masks, and metrics",
    "_losses.json": "losses and matching",
    "_losses.safetensors": "losses and matching",
    "_grad_l2.json": "losses and matching",
    "_param_groups.json": "the parameter groups of training",
}
#: Recorded tensors and numbers that wait, by the start of the name after "seg.imageN.".
PENDING_OUTPUTS = ("sem_seg", "panoptic", "segments", "instances")
#: Recorded numbers that are no output of the model (README, Never compared; Inputs).
_NOTES = ("margin.", "caption.margin", "caption_region.margin", "seconds", "torch")
_SETTINGS = ("classes_from", "retrieval.pictures", "second_implementation_worst")

#: Caption steps whose logits were recorded.
STEPS = 4


def is_case(path: Path) -> bool:
    """Whether a file with settings is a case of the network."""
    return not path.name.endswith(("_losses.json", "post.json"))


def compare_case(path: Path) -> Comparison:
    """Run every pass of one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = XDecoderCase(path)
    comparison = Comparison(case.name)
    for fault in case.name_faults():
        comparison.group("names", 0.0).add(fault, 1.0)
    if comparison.groups:
        return comparison
    _compare_weights(comparison, case)
    with torch.no_grad():
        if case.is_backbone:
            _compare_backbone(comparison, case)
        else:
            _compare_model(comparison, case, case.model())
    names = (*case.records, *case.scalars)
    comparison.set_aside |= {
        name: PENDING_FILES["post.json"]
        for name in names
        if name.startswith("seg.image") and name.split(".")[2].startswith(PENDING_OUTPUTS)
    }
    read = {*comparison.compared, *comparison.set_aside, *_SETTINGS}
    comparison.not_compared = sorted(
        name for name in names if name not in read and not name.startswith(_NOTES)
    )
    return comparison


def _compare_weights(comparison: Comparison, case: XDecoderCase) -> None:
    """Check the weight rule against recorded sums and samples, and maxima against tensors."""
    for name, (shape, total, norm, first) in case.weights_check.items():
        if name in NOT_DRAWN:
            continue
        flat = case.drawn(name).double().flatten()
        if list(case.drawn(name).shape) != shape:
            comparison.group("weight rule", WEIGHT_RULE).add(name, float("nan"))
            continue
        count = max(1.0, flat.numel() ** 0.5)
        ours = [flat.sum().item() / count, flat.norm().item() / count, *flat[:3].tolist()]
        theirs = [total / count, norm / count, *first]
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        comparison.group("weight rule", WEIGHT_RULE).add(name, worst)
    for name, record in case.records.items():
        stored = case.stored(name)
        if not stored.dtype.is_floating_point or "absmax" not in record or not stored.numel():
            continue
        # Errors are relative to it. Of a tensor that is stored in part only a bound is known.
        largest = stored.double().abs().max().item()
        wrong = record["absmax"] - largest if record["stride"] == 1 else 0.0
        wrong = max(abs(wrong), largest - record["absmax"]) / max(largest, 1.0)
        comparison.group("absolute maxima", ABSOLUTE_MAXIMA).add(name, wrong)
    # What the runs take as given.
    comparison.compared |= {name for name in case.records if name.startswith("input.")}


def compare_tensors(
    comparison: Comparison, case: XDecoderCase, group: str, found: dict[str, Tensor], allowed: float
) -> None:
    """Compare those of our tensors that were recorded."""
    for name, value in found.items():
        if name not in case.records or name in comparison.compared:
            continue
        record, stored, ours = case.records[name], case.stored(name), case.sample(name, value)
        if stored.dtype == torch.bool and ours.shape == stored.shape:
            comparison.compared.add(name)
            share = (ours != stored).sum().item() / max(1, stored.numel())
            comparison.group(f"{group} (bits)", case.tolerances.bits).add(name, share)
            continue
        # Without maxima, errors are absolute below 1 and relative above.
        absmax = record.get("absmax", stored.abs().max().item() if stored.numel() else 1.0)
        comparison.tensor(group, name, ours, stored, allowed, absmax)


@contextmanager
def recorded(model: nn.Module, prefix: str) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs of modules that were recorded, by recorded name, in the first call of each.

    Maps of blocks are recorded as (B, H W, C), those between stages as (B, C, H, W), tokens of
    maps and states as (N, B, D).
    """
    found: dict[str, Tensor] = {}
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "block": lambda out: out.flatten(1, 2),
        "map": lambda out: out.permute(0, 3, 1, 2),
        "states": lambda out: out.transpose(0, 1),
        "same": lambda out: out,
        "relu": F.relu,
    }
    hooks = []
    for name, module in model.named_modules():
        place = recorded_name(name)
        if place is not None:

            def keep(_: object, __: object, output: Tensor, place: tuple[str, str] = place) -> None:
                found.setdefault(f"{prefix}{place[0]}", shapes[place[1]](output))

            hooks.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def recorded_name(module: str) -> tuple[str, str] | None:
    """Return the recorded name of a module's output, and how its axes are ordered there."""
    parts = module.split(".")
    match parts:
        case ["backbone", "image", "patch_embedding"]:
            return "backbone.patch_embed", "map"
        case ["backbone", "image", "stages", stage, "downsample"]:
            return f"backbone.layers{stage}.downsample", "map"
        case ["backbone", "image", "stages", stage, "blocks", block]:
            return f"backbone.layers{stage}.block{block}", "block"
        case ["backbone", "image", "stages", stage, "blocks", block, "modulation"]:
            return f"backbone.layers{stage}.block{block}.modulation", "same"
        case ["backbone", "text", "blocks", block]:
            return f"text.block{block}", "same"
        case ["backbone", "text", "last_norm"]:
            return "text.last_hidden_state", "same"
        case ["pixel_decoder", "input_projection"]:
            return "pixel.input_proj", "same"
        case ["pixel_decoder", "layers", layer]:
            return f"pixel.encoder{layer}", "states"
        case ["pixel_decoder", "outputs", number]:
            return f"pixel.layer_{4 - int(number)}", "relu"
        case ["pixel_decoder", "laterals", number]:
            return f"pixel.adapter_{3 - int(number)}", "same"
        case ["pixel_decoder", "mask_features"]:
            return "pixel.mask_features", "same"
        case ["decoder", "layers", layer, ("cross_norm" | "self_norm") as norm]:
            return f"decoder.layer{layer}.{norm.removesuffix('_norm')}", "states"
        case ["decoder", "layers", layer]:
            return f"decoder.layer{layer}.ffn", "states"
        case _:
            return None


def _compare_backbone(comparison: Comparison, case: XDecoderCase) -> None:
    """Compare the image encoder alone."""
    encoder = FocalNetEncoder(case.focalnet()).eval()
    keys, state = focalnet_keys(case.focalnet(), "backbone.image", IMAGE), case.published_state()
    ours = {name.removeprefix("backbone.image."): state[key] for name, (key,) in keys.items()}
    encoder.load_state_dict(ours)
    wrapped = nn.ModuleDict({"backbone": nn.ModuleDict({"image": encoder})})
    with recorded(wrapped, "") as found:
        maps = encoder(case.images("image", (0, 1)))
    found |= {f"backbone.res{s + 2}": each.permute(0, 3, 1, 2) for s, each in enumerate(maps)}
    compare_tensors(comparison, case, "backbone", found, case.tolerances.tensors)


def class_vectors(model: XDecoder, case: XDecoderCase, count: int | None = None) -> Tensor:
    """Compute the vectors of the case's classes, from all of their texts or the first ones."""
    found = []
    for texts in case.class_texts():
        ids, mask = case.text(texts[:count])
        # Padding after a text changes nothing.
        length = int(mask.sum(1).max())
        found.append(model.encode_text(ids[:, :length], mask[:, :length]).vectors)
    return mean_vectors(torch.stack(found))


@contextmanager
def on_bits(model: XDecoder, bits: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let the layers of a pass read given attention masks; give our own masks."""
    decoder, own = model.decoder, []
    predict = decoder.predict

    def replaced(states: Tensor, memory: Memory, level: int | None) -> Prediction:
        prediction = predict(states, memory, level)
        if prediction.hidden is None:
            return prediction
        own.append(prediction.hidden)
        given = bits[len(own) - 1] if len(own) <= len(bits) else prediction.hidden
        if given.numel() != prediction.hidden.numel():
            return prediction
        return prediction._replace(hidden=given.view(prediction.hidden.shape))

    decoder.predict = replaced
    try:
        yield own
    finally:
        del decoder.predict


def recorded_bits(case: XDecoderCase, prefix: str) -> list[Tensor]:
    """Return the recorded attention masks of a pass."""
    layers = range(case.xdecoder_config().decoder.num_layers)
    names = [f"{prefix}.pred{number}.attn_mask" for number in layers]
    return [case.stored(name) for name in names if name in case.records]


def exact_bits(model: XDecoder, images: Tensor) -> list[Tensor]:
    """Compute the attention masks of images in float64; those of captions were not recorded."""
    double = copy.deepcopy(model).double()
    predictions = double.decoder(double.read_image(images.double()))
    return [each.hidden for each in predictions if each.hidden is not None]


def _compare_model(comparison: Comparison, case: XDecoderCase, model: XDecoder) -> None:
    """Compare all passes of a model."""
    text = case.tolerances.text
    with recorded(model, "") as found:
        ids, mask = case.text(case.config["phrases"])
        texts = model.encode_text(ids, mask)
    found |= {f"ground.{name}": value for name, value in found.items()}
    found |= {"text.ids": ids, "text.mask": mask.long()}
    found |= {"text.token_emb": texts.tokens, "text.class_emb": texts.vectors}
    classes = class_vectors(model, case)
    found |= {"text.classes": classes, "text.classes_one_template": class_vectors(model, case, 1)}
    compare_tensors(comparison, case, "text", found, text)
    _compare_segments(comparison, case, model, classes)
    _compare_phrases(comparison, case, model, classes)
    _compare_retrieval(comparison, case, model)
    for prefix, numbers in (("caption", (0, 1)), ("caption_region", (0,))):
        _compare_captions(comparison, case, model, prefix, numbers)


def run_image(
    model: XDecoder, case: XDecoderCase, numbers: tuple[int, ...]
) -> tuple[Memory, dict[str, Tensor]]:
    """Compute what the decoder reads of images, and the recorded tensors on the way."""
    with recorded(model, "") as found:
        maps = model.backbone.encode_image(case.images("image", numbers))
        memory = model.prepare(maps)
    found |= {f"backbone.res{stage + 2}": each for stage, each in enumerate(maps)}
    top = found["pixel.input_proj"]
    positions = sine_positions(top.shape[2], top.shape[3], top.shape[1], top)
    found["pixel.position"] = positions.expand_as(top)
    return memory, found


def run_predictions(
    model: XDecoder,
    memory: Memory,
    predictions: list[Prediction],
    classes: Tensor,
    prefix: str,
) -> dict[str, Tensor]:
    """Name the outputs of all predictions."""
    found = {}
    for number, each in enumerate(predictions):
        name = f"{prefix}.pred{number}"
        found[f"{name}.class"] = model.class_logits(each, classes)
        found[f"{name}.mask"] = model.decoder.mask_logits(each, memory, slice(None))
        found[f"{name}.caption"] = each.states @ model.decoder.class_projection
    return found


def _compare_segments(
    comparison: Comparison, case: XDecoderCase, model: XDecoder, classes: Tensor
) -> None:
    """Compare the pass with classes, and its masks at the wanted size."""
    memory, found = run_image(model, case, (0, 1))
    compare_tensors(comparison, case, "backbone and pixels", found, case.tolerances.tensors)
    bits = recorded_bits(case, "seg")
    with recorded(model, "") as states, on_bits(model, bits) as own:
        predictions = model.decoder(memory)
    _compare_bits(comparison, case, "seg", own, bits)
    found = run_predictions(model, memory, predictions, classes, "seg") | states
    compare_tensors(comparison, case, "segmentation", found, case.tolerances.tensors)
    logits = model.decoder.mask_logits(predictions[-1], memory, slice(None))
    found = {
        f"seg.image{number}.mask_logits": final_masks(case, logits[number : number + 1], number)[0]
        for number in (0, 1)
    }
    compare_tensors(comparison, case, "final masks", found, case.tolerances.final_masks)


def final_masks(case: XDecoderCase, logits: Tensor, number: int) -> Tensor:
    """Resize masks of an image to its wanted size: first to its padded pixels, whose padding goes.

    (1, R, H / 4, W / 4) -> (1, R, *wanted).
    """
    padded = (4 * logits.shape[-2], 4 * logits.shape[-1])
    height, width = case.config["image"][number]
    inside = resize_masks(logits, padded)[..., :height, :width]
    out = case.config["out"][number]
    return resize_masks(inside, (out[0], out[1]))


def _compare_phrases(
    comparison: Comparison, case: XDecoderCase, model: XDecoder, classes: Tensor
) -> None:
    """Compare the pass with phrases of the first image."""
    memory, found = run_image(model, case, (0,))
    found = {f"ground.{name}": value for name, value in found.items()}
    compare_tensors(comparison, case, "backbone and pixels", found, case.tolerances.tensors)
    ids, mask = case.text(case.config["phrases"])
    texts = model.encode_text(ids, mask)
    tokens = join_tokens(texts.tokens, mask)
    bits = recorded_bits(case, "ground")
    with recorded(model, "ground.") as states, on_bits(model, bits) as own:
        predictions = model.decoder.refer(memory, tokens)
    _compare_bits(comparison, case, "ground", own, bits)
    found = run_predictions(model, memory, predictions, classes, "ground") | states
    with on_bits(model, bits):
        answer = model.phrase_masks(memory, texts, tokens)
    rows, logits = answer.best()
    final = final_masks(case, logits, 0)[0]
    found |= {"ground.similarity": answer.similarity[0], "ground.mask_logits": final}
    found["ground.mask"] = final > 0
    compare_tensors(comparison, case, "phrases", found, case.tolerances.phrases)
    _compare_ids(comparison, case, "ground.matched_query", rows[0])


def _compare_bits(
    comparison: Comparison,
    case: XDecoderCase,
    prefix: str,
    own: Sequence[Tensor],
    bits: Sequence[Tensor],
) -> None:
    """Compare the attention masks of a pass with recorded or exact ones, all bits together."""
    names = [f"{prefix}.pred{number}.attn_mask" for number in range(len(own))]
    comparison.compared |= set(names)
    group = comparison.group("attention masks", case.tolerances.bits)
    if [each.numel() for each in own] != [each.numel() for each in bits]:
        group.add(f"{prefix}: {len(own)} masks of other sizes", float("nan"))
        return
    wrong = sum((a.flatten() != b.flatten()).sum().item() for a, b in zip(own, bits, strict=True))
    group.add(prefix, wrong / sum(each.numel() for each in bits))


def _compare_ids(comparison: Comparison, case: XDecoderCase, name: str, ours: Tensor) -> None:
    comparison.tensor("ids", name, ours, torch.tensor(case.scalars[name]), 0.0, 1.0)


def _compare_retrieval(comparison: Comparison, case: XDecoderCase, model: XDecoder) -> None:
    """Compare vectors of images and of captions, and the scores of their pairs."""
    kind = case.scalars["retrieval.pictures"]
    images = model.image_vectors(case.images(kind, (0, 1)))
    texts = [model.encode_text(*case.text(each)).vectors for each in case.config["captions"]]
    found: dict[str, Tensor] = {}
    for number in (0, 1):
        found[f"retrieval.image{number}.decoder"] = images.decoder[number : number + 1]
        found[f"retrieval.image{number}.backbone"] = images.backbone[number : number + 1]
    found["retrieval.scores"] = retrieval_scores(images, torch.cat(texts))
    compare_tensors(comparison, case, "retrieval", found, case.tolerances.tensors)
    found = {f"retrieval.text{number}": each for number, each in enumerate(texts)}
    compare_tensors(comparison, case, "text", found, case.tolerances.text)


def region_of(case: XDecoderCase, prefix: str) -> Tensor | None:
    """Return where the caption may look: the left half in "caption_region"."""
    if prefix == "caption":
        return None
    side = case.config["vlp"]
    region = torch.zeros(1, side, side, dtype=torch.bool)
    region[:, :, : side // 2] = True
    return region


def _compare_captions(
    comparison: Comparison,
    case: XDecoderCase,
    model: XDecoder,
    prefix: str,
    numbers: tuple[int, ...],
) -> None:
    """Compare captions that are continued with caches, and states of a full run."""
    images = case.images("vlp", numbers)
    memory, bits = model.read_image(images), exact_bits(model, images)
    region, steps, start = region_of(case, prefix), case.caption_steps, case.start_id
    with on_bits(model, bits) as own:
        written = greedy_captions(model, memory, start_id=start, region=region, steps=steps)
    _compare_bits(comparison, case, prefix, own, bits)
    # As recorded, what is not written yet is the start.
    ids = torch.full((len(numbers), model.config.max_tokens), start)
    ids[:, 1 : steps + 1] = written
    _compare_ids(comparison, case, f"{prefix}.ids", ids)
    with on_bits(model, bits):
        decoding, found = CaptionDecoding(model, memory, region), {}
    for step in range(STEPS):
        found[f"{prefix}.step{step}.logits"] = decoding.append(ids[:, step])
    # In the last step the last token is not there.
    ids[:, steps] = start
    tokens = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).tokens
    with on_bits(model, bits):
        states = model.decoder.caption(memory, tokens, region)[-1].captions
    assert states is not None
    compare_tensors(comparison, case, "captions", found, case.tolerances.text)
    found = {f"{prefix}.states": states}
    compare_tensors(comparison, case, "caption states", found, case.tolerances.states)
    comparison.set_aside[f"{prefix}.texts"] = (
        "needs CLIP's vocabulary; tests/models/xdecoder/test_published_texts.py decodes the ids"
    )
