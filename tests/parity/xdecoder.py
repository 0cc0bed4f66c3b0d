"""Compare the X-Decoder model with recorded cases.

Attention masks are thresholds, so rounding may flip a bit, and a bit moves all that follows. Every
pass runs on the recorded bits, and our own bits are compared with them. Those of captions were not
recorded: they are computed in float64. On tiny, float32 flips one bit of the pass with phrases and
one of the caption of a region.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fiber.models.encoders.focalnet import FocalNetEncoder
from fiber.models.masks.pixel_decoder import sine_positions
from fiber.models.xdecoder.captioner import CaptionDecoding, greedy_captions
from fiber.models.xdecoder.class_texts import mean_vectors
from fiber.models.xdecoder.decoder import Memory, Prediction
from fiber.models.xdecoder.keys import IMAGE, focalnet_keys
from fiber.models.xdecoder.segmenter import XDecoder, join_tokens, retrieval_scores
from tests.parity.comparison import Comparison
from tests.parity.tolerances import ABSOLUTE_MAXIMA, WEIGHT_RULE
from tests.parity.xdecoder_case import NOT_DRAWN, XDecoderCase, compare_bits, compare_tensors
from tests.parity.xdecoder_losses import compare_groups, compare_losses
from tests.parity.xdecoder_post import compare_outputs, compare_post, final_size
from tests.parity.xdecoder_runs import exact_bits, on_bits, recorded, recorded_bits
from tests.parity.xdecoder_texts import compare_texts

#: Ends of the names of files beside a case: what is read, and what is not an output of the model.
READ_COMPANIONS = ("_weights_check.json", "_losses.json", "_losses.safetensors", "_grad_l2.json")
NEVER_COMPARED_COMPANIONS = ("_mutations.json",)
UNIT_FILES = {
    "texts.json": compare_texts,
    "post.json": compare_post,
    "focalt_param_groups.json": compare_groups,
}
READ_UNIT_FILES = ("post.safetensors",)
SECTIONS: dict[str, Callable[[Path], Comparison]] = {}
#: Ends of the names of files that no comparison reads yet, and what each waits for.
PENDING_FILES = {
    "classes.json": "the evaluation of the published class lists",
}
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
            model = case.model()
            _compare_model(comparison, case, model)
            if path.with_name(f"{case.name}_losses.json").exists():
                compare_losses(comparison, case, model)
    names = (*case.records, *case.scalars)
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
    compare_bits(comparison, case, "seg", own, bits)
    found = run_predictions(model, memory, predictions, classes, "seg") | states
    compare_tensors(comparison, case, "segmentation", found, case.tolerances.tensors)
    logits = model.decoder.mask_logits(predictions[-1], memory, slice(None))
    scores = model.class_logits(predictions[-1], classes)
    for number in (0, 1):
        compare_outputs(comparison, case, logits[number], scores[number], number)


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
    compare_bits(comparison, case, "ground", own, bits)
    found = run_predictions(model, memory, predictions, classes, "ground") | states
    with on_bits(model, bits):
        answer = model.phrase_masks(memory, texts, tokens)
    rows, logits = answer.best()
    final = final_size(case, logits[0], 0)
    found |= {"ground.similarity": answer.similarity[0], "ground.mask_logits": final}
    found["ground.mask"] = final > 0
    compare_tensors(comparison, case, "phrases", found, case.tolerances.phrases)
    _compare_ids(comparison, case, "ground.matched_query", rows[0])


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
    compare_bits(comparison, case, prefix, own, bits)
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
