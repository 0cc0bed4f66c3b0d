"""Compare the benches' eager X-Decoder with recorded cases, so that it stays a fair peer.

Compared are the texts, the passes with classes, with phrases and with captions, tensor by tensor,
panoptic segments, and the losses of masks, classes and phrases of every layer. As for the package's
model, every pass runs on the recorded attention masks. Retrieval, semantic maps, instances and
other losses are not among what it is timed for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches import eager_mask_losses, eager_segments
from benches.eager_xdecoder import EagerXDecoder, FocalNet, Prediction, sine_positions
from fiber.losses.masks.segmentation import CLASS_NAME_WEIGHT, EXPRESSION_WEIGHT
from fiber.models.features import PhraseTexts
from fiber.models.xdecoder.class_texts import class_texts, with_background
from fiber.models.xdecoder.keys import IMAGE, ignored_xdecoder_key
from fiber.models.xdecoder.training import joined_tokens
from tests.golden import XDECODER
from tests.parity import xdecoder
from tests.parity.comparison import Comparison
from tests.parity.tolerances import XDECODER_LOSSES
from tests.parity.xdecoder_case import XDecoderCase, compare_bits, compare_tensors
from tests.parity.xdecoder_losses import LOSS_NAMES, LossCase, recorded_points
from tests.parity.xdecoder_runs import exact_bits, recorded_bits

#: Thresholds of recorded panoptic maps, by the end of their names: of the score and the overlap.
_THRESHOLDS = {"": (0.8, 0.8), "_0.3_0.02": (0.3, 0.02), "_0.5_0.1": (0.5, 0.1)}


def build(case: XDecoderCase) -> EagerXDecoder:
    """Make the model with the weights of a case.

    Raises:
        ValueError: if a tensor of either side is unknown to the other.
    """
    config = case.xdecoder_config()
    model = EagerXDecoder(config)
    _load(model, case.published_state(), lambda name: ignored_xdecoder_key(name, config) is None)
    return model.eval()


def _load(model: nn.Module, state: dict[str, Tensor], is_known: Callable[[str], bool]) -> None:
    found = model.load_state_dict(state, strict=False)
    unknown = [name for name in found.unexpected_keys if is_known(name)]
    if found.missing_keys or unknown:
        raise ValueError(f"missing {found.missing_keys}, unexpected {unknown}")


def is_case(path: Path) -> bool:
    """Whether a file with settings is a case of the network."""
    return xdecoder.is_case(path)


@torch.no_grad()
def compare_case(path: Path) -> Comparison:
    """Run the eager model's passes on one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = XDecoderCase(path)
    comparison = Comparison(f"{case.name} (eager)")
    if case.is_backbone:
        model = FocalNet(case.focalnet())
        state = {name.removeprefix(IMAGE): value for name, value in case.published_state().items()}
        _load(model.eval(), state, lambda name: True)
        found: dict[str, Tensor] = {}
        with recorded_modules(model, "", found, path=IMAGE):
            model(case.images("image", (0, 1)))
        compare_tensors(comparison, case, "backbone", found, case.tolerances.tensors)
        return comparison
    model = build(case)
    classes = _compare_texts(comparison, case, model)
    _compare_segments(comparison, case, model, classes)
    _compare_phrases(comparison, case, model, classes)
    for prefix, numbers in (("caption", (0, 1)), ("caption_region", (0,))):
        _compare_captions(comparison, case, model, prefix, numbers)
    if path.with_name(f"{case.name}_losses.json").exists():
        _compare_losses(comparison, case, model)
    return comparison


def _compare_texts(comparison: Comparison, case: XDecoderCase, model: EagerXDecoder) -> Tensor:
    """Compare texts of phrases and the vectors of classes; return these."""
    ids, mask = case.text(case.config["phrases"])
    found: dict[str, Tensor] = {"text.ids": ids, "text.mask": mask.long()}
    with recorded_modules(model, "", found):
        found["text.token_emb"] = model.text(ids)
    found["text.class_emb"] = model.text.vectors(ids)
    texts = [case.text(own)[0] for own in case.class_texts()]
    classes = found["text.classes"] = model.class_vectors(texts)
    found["text.classes_one_template"] = model.class_vectors([own[:1] for own in texts])
    compare_tensors(comparison, case, "text", found, case.tolerances.text)
    return classes


def _named_predictions(prefix: str, predictions: Sequence[Prediction]) -> dict[str, Tensor]:
    found = {}
    for number, each in enumerate(predictions):
        assert each.classes is not None
        found[f"{prefix}.pred{number}.class"] = each.classes
        found[f"{prefix}.pred{number}.mask"] = each.masks
        found[f"{prefix}.pred{number}.caption"] = each.vectors
    return found


def _compare_segments(
    comparison: Comparison, case: XDecoderCase, model: EagerXDecoder, classes: Tensor
) -> None:
    bits, found = recorded_bits(case, "seg"), {}
    with recorded_modules(model, "", found), on_bits(model, bits) as own:
        predictions = model.segment(case.images("image", (0, 1)), classes)
    compare_bits(comparison, case, "seg", own, bits)
    found |= _named_predictions("seg", predictions)
    compare_tensors(comparison, case, "segmentation", found, case.tolerances.tensors)
    names, things = case.config["names"], case.config["things"]
    is_thing = [label < things for label in range(len(names))]
    class_logits, logits = predictions[-1].classes, predictions[-1].masks
    assert class_logits is not None
    for number in (0, 1):
        image, masks = f"seg.image{number}", _final(case, logits[number], number)
        found = {f"{image}.mask_logits": masks}
        compare_tensors(comparison, case, "final masks", found, case.tolerances.final_masks)
        for end, thresholds in _THRESHOLDS.items():
            ids, segments = eager_segments.panoptic(
                class_logits[number], masks, is_thing, *thresholds
            )
            name = f"{image}.segments{end}"
            theirs = [
                (each["id"], each["category_id"], each["isthing"]) for each in case.scalars[name]
            ]
            comparison.compared |= {name, f"{image}.panoptic{end}"}
            comparison.group("segments", 0.0).add(name, float(segments != theirs))
            name = f"{image}.panoptic{end}"
            share = (case.sample(name, ids) != case.stored(name)).double().mean().item()
            comparison.group("panoptic pixels", case.tolerances.bits).add(name, share)


def _final(case: XDecoderCase, logits: Tensor, number: int) -> Tensor:
    padded = [4 * side for side in logits.shape[-2:]]
    inside, wanted = (case.config[name][number] for name in ("image", "out"))
    return eager_segments.final_masks(logits, padded, inside, wanted)


def _compare_phrases(
    comparison: Comparison, case: XDecoderCase, model: EagerXDecoder, classes: Tensor
) -> None:
    ids, mask = case.text(case.config["phrases"])
    bits, found = recorded_bits(case, "ground"), {}
    with recorded_modules(model, "ground.", found), on_bits(model, bits) as own:
        predictions, similarity = model.refer(case.images("image", (0,)), ids, mask, classes)
    compare_bits(comparison, case, "ground", own, bits)
    found |= _named_predictions("ground", predictions)
    logits = predictions[-1].masks[0, case.xdecoder_config().decoder.num_queries :]
    padded = [4 * side for side in logits.shape[-2:]]
    inside, wanted = (case.config[name][0] for name in ("image", "out"))
    final = eager_segments.phrase_masks(similarity[0], logits, padded, inside, wanted)
    found |= {"ground.similarity": similarity[0], "ground.mask_logits": final}
    found["ground.mask"] = final > 0
    compare_tensors(comparison, case, "phrases", found, case.tolerances.phrases)
    matched = torch.tensor(case.scalars["ground.matched_query"])
    best = similarity[0].argmax(0)
    comparison.tensor("ids", "ground.matched_query", best, matched, 0.0, 1.0)


def _compare_captions(
    comparison: Comparison,
    case: XDecoderCase,
    model: EagerXDecoder,
    prefix: str,
    numbers: tuple[int, ...],
) -> None:
    images, region = case.images("vlp", numbers), xdecoder.region_of(case, prefix)
    # Bits of captions were not recorded: they are the exact ones of the package's model.
    bits = exact_bits(case.model(), images)
    outside = None if region is None else ~region
    # Every step decodes the queries again.
    with on_bits(model, bits) as own:
        ids, logits, states = model.caption(images, case.start_id, case.caption_steps, outside)
    compare_bits(comparison, case, prefix, own[: len(bits)], bits)
    recorded = torch.tensor(case.scalars[f"{prefix}.ids"])
    comparison.tensor("ids", f"{prefix}.ids", ids, recorded, 0.0, 1.0)
    found = {f"{prefix}.step{step}.logits": each for step, each in enumerate(logits)}
    compare_tensors(comparison, case, "captions", found, case.tolerances.text)
    found = {f"{prefix}.states": states}
    compare_tensors(comparison, case, "caption states", found, case.tolerances.states)


def _compare_losses(comparison: Comparison, case: XDecoderCase, model: EagerXDecoder) -> None:
    recorded = LossCase(case.path.with_name(f"{case.name}_losses.json"))
    listed = json.loads((XDECODER / "classes.json").read_text())["classes"]["coco_panoptic_133"]
    class_ids, _ = case.text([class_texts(name)[0] for name in with_background(listed)])
    texts = recorded.config["grounding_texts"]
    ids, mask = case.text([text for own in texts for text in own])
    images = recorded.inputs("image", recorded.images)
    kinds = {"text": EXPRESSION_WEIGHT, "class": CLASS_NAME_WEIGHT}
    phrases = eager_mask_losses.Phrases(
        ids,
        mask,
        [recorded.phrase_masks_of(number) for number in range(recorded.images)],
        [kinds[kind] for kind in recorded.config["grounding_mode"]],
    )
    labels = recorded.mask_labels.split(recorded.masks_per_image.tolist())
    targets = eager_mask_losses.Targets(
        labels, [recorded.masks_of(number) for number in range(recorded.images)]
    )
    options = eager_mask_losses.Options(
        num_points=case.config["cfg"]["MODEL.DECODER.TRAIN_NUM_POINTS"],
        phrase_layers=recorded.config["train_overrides"]["MODEL.DECODER.TOP_GROUNDING_LAYERS"],
    )
    ours = case.model()
    equal = (ids[:, None] == ids).all(-1).long().argmax(1)
    named = PhraseTexts(ours.encode_text(ids, mask).tokens, mask, equal, recorded.phrases_per_image)
    with on_bits(model, exact_bits(ours, images, joined_tokens(named))):
        layers = eager_mask_losses.layer_losses(
            model,
            images,
            class_ids,
            targets,
            phrases,
            options,
            lambda count, points: recorded_points([count], points),
        )
    for number, losses in enumerate(layers):
        for name, loss in losses.items():
            entry = f"{LOSS_NAMES[name]}_{number}"
            value = recorded.scalars["raw"][entry]
            comparison.number("losses", f"losses.{entry}", loss.item(), value, XDECODER_LOSSES)


@contextmanager
def on_bits(model: EagerXDecoder, bits: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let the layers of every pass read given attention masks; give our own masks."""
    predictor = model.sem_seg_head.predictor
    own: list[Tensor] = []
    map_hidden, calls = predictor.map_hidden, itertools.count()

    def replaced(masks: Tensor, size: Sequence[int]) -> Tensor:
        hidden = map_hidden(masks, size)
        # The mask after the last layer is not read.
        place = next(calls) % (len(bits) + 1)
        if place == len(bits):
            return hidden
        own.append(hidden)
        return bits[place].view(hidden.shape) if bits[place].numel() == hidden.numel() else hidden

    predictor.map_hidden = replaced
    try:
        yield own
    finally:
        del predictor.map_hidden


@contextmanager
def recorded_modules(
    model: nn.Module, prefix: str, into: dict[str, Tensor], path: str = ""
) -> Iterator[None]:
    """Store the first output of modules under their recorded names, after a prefix.

    `path` is the name of the module within the whole model, with a period.
    """
    hooks = []
    for name, module in model.named_modules():
        place = _recorded_name(path + name)
        if place is None:
            continue

        def keep(_: object, __: object, output: Tensor, place: tuple[str, str] = place) -> None:
            into.setdefault(f"{prefix}{place[0]}", _SHAPES[place[1]](output))
            if place[0] == "pixel.input_proj":
                into.setdefault(f"{prefix}pixel.position", sine_positions(output))

        hooks.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


#: From outputs to what was recorded of them.
_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "block": lambda out: out.flatten(1, 2),
    "map": lambda out: out.permute(0, 3, 1, 2),
    "text": lambda out: out.transpose(0, 1),
    "relu": F.relu,
    "same": lambda out: out,
}


def _recorded_name(module: str) -> tuple[str, str] | None:
    """Return the recorded name of a module's output, and how its axes are ordered there."""
    match module.removeprefix("sem_seg_head.").split("."):
        case ["backbone", name] if name.startswith("norm"):
            return f"backbone.res{int(name.removeprefix('norm')) + 2}", "map"
        case ["backbone", "patch_embed"]:
            return "backbone.patch_embed", "map"
        case ["backbone", "layers", stage, "downsample"]:
            return f"backbone.layers{stage}.downsample", "map"
        case ["backbone", "layers", stage, "blocks", block]:
            return f"backbone.layers{stage}.block{block}", "block"
        case ["backbone", "layers", stage, "blocks", block, "modulation"]:
            return f"backbone.layers{stage}.block{block}.modulation", "same"
        case ["predictor", "lang_encoder", "lang_encoder", "resblocks", block]:
            return f"text.block{block}", "text"
        case ["predictor", "lang_encoder", "lang_encoder", "ln_final"]:
            return "text.last_hidden_state", "same"
        case ["pixel_decoder", "transformer", "encoder", "layers", layer]:
            return f"pixel.encoder{layer}", "same"
        case ["pixel_decoder", name] if name.startswith("layer_"):
            return f"pixel.{name}", "relu"
        case ["pixel_decoder", name] if name != "transformer":
            return f"pixel.{name}", "same"
        case ["predictor", "transformer_cross_attention_layers", layer]:
            return f"decoder.layer{layer}.cross", "same"
        case ["predictor", "transformer_self_attention_layers", layer]:
            return f"decoder.layer{layer}.self", "same"
        case ["predictor", "transformer_ffn_layers", layer]:
            return f"decoder.layer{layer}.ffn", "same"
        case _:
            return None
