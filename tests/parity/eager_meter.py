"""Compare the benches' eager METER with recorded cases, so that it stays a fair peer.

Compared are its whole passes, tensor by tensor, the outputs of the heads and the losses that it is
timed for, and the gradients of those losses by published name. Optimizer steps and images of
another size are not among what it is timed for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benches import eager_meter
from benches.eager_meter import Batch, EagerMeter
from fiber.models.meter.keys import ignored_meter_key
from tests.parity.comparison import Comparison
from tests.parity.meter import EMPTY_ROW, compare_gradients, compare_tensors
from tests.parity.meter_case import TASKS, MeterCase, vqa_targets
from tests.parity.tolerances import METER


def build(case: MeterCase, task: str) -> EagerMeter:
    """Make the model of a task with the weights of a case.

    Raises:
        ValueError: if a tensor of either side is unknown to the other.
    """
    config = case.meter_config(task)
    model = EagerMeter(config)
    found = model.load_state_dict(case.published_state(task), strict=False)
    unknown = [name for name in found.unexpected_keys if ignored_meter_key(name, config) is None]
    if found.missing_keys or unknown:
        raise ValueError(f"missing {found.missing_keys}, unexpected {unknown}")
    return model


def compare_case(path: Path) -> Comparison:
    """Run the eager model's passes on one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = MeterCase(path)
    comparison = Comparison(f"{case.name} (eager)")
    for task in TASKS:
        model = build(case, task).eval()
        with torch.no_grad():
            if task == "pretrain":
                compare_tensors(comparison, case, "pair", run_pair(model, case))
                _compare_edges(comparison, case, model)
            compare_tensors(comparison, case, "heads", run_heads(model, case, task))
        model.train()
        if task == "irtr":
            model.itm_score.requires_grad_(False)
        for name, loss in losses(model, case, task).items():
            model.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            entry = f"{task}.train.loss.{name}"
            comparison.number("losses", entry, value.item(), case.scalars[entry], METER.losses)
            grads = {key: parameter.grad for key, parameter in model.named_parameters()}
            compare_gradients(comparison, case, grads, f"{task}.{name}")
    return comparison


def recorded_batch(case: MeterCase, task: str) -> Batch:
    """The recorded inputs of a task as the bench's batch; a task without a field gets another's."""
    ids, mask = case.text()
    false = [case.text(f"false_text_{number}") for number in range(case.config["false_texts"])]
    return Batch(
        images=case.input("image"),
        false_images=case.input("false_image_0"),
        ids=ids,
        text_mask=mask,
        itm_labels=case.stored(f"{'irtr' if task == 'irtr' else 'pretrain'}.itm_labels").long(),
        masked_ids=case.input("text_ids_mlm"),
        mlm_labels=case.input("text_labels_mlm"),
        false_ids=torch.stack([own for own, _ in false], 1),
        false_mask=torch.stack([own for _, own in false], 1),
    )


def run_pair(model: EagerMeter, case: MeterCase) -> dict[str, Tensor]:
    """Run a whole pass on the unmasked pairs; return its features and what is inside it."""
    found: dict[str, Tensor] = {}
    with recorded_modules(model, found):
        features = model.infer(case.input("image"), *case.text())
    found["pair.text_feats"], found["pair.image_feats"], found["pair.cls"] = features
    return found


def run_heads(model: EagerMeter, case: MeterCase, task: str) -> dict[str, Tensor]:
    """Compute the recorded outputs of the heads of a task."""
    batch = recorded_batch(case, task)
    texts = batch.ids, batch.text_mask
    if task == "nlvr2":
        pooled = [
            model.infer(case.input(f"image_{n}"), *texts, image_type=1 + n).pooled for n in (0, 1)
        ]
        found = {f"nlvr2.cls.{n}": each for n, each in enumerate(pooled)}
        found["nlvr2_logits"] = model.nlvr2_classifier(torch.cat(pooled, -1))
    elif task == "pretrain":
        masked = model.infer(batch.images, batch.masked_ids, batch.text_mask)
        found = {"mlm_logits": model.mlm_score(masked.text)}
        found["itm_logits"] = eager_meter.itm_logits(model, batch)
    elif task == "irtr":
        found = {"score": eager_meter.ranking_scores(model, batch)}
        found["itm_logits"] = eager_meter.itm_logits(model, batch)
    else:
        head = getattr(model, f"{task}_classifier")
        found = {f"{task}_logits": head(model.infer(batch.images, *texts).pooled)}
    return {f"{task}.{name}": value for name, value in found.items()}


def losses(model: EagerMeter, case: MeterCase, task: str) -> dict[str, Callable[[], Tensor]]:
    """Recorded losses that benches time; each call builds a new graph."""
    batch = recorded_batch(case, task)
    if task == "vqa":
        arguments = batch.images, batch.ids, batch.text_mask, vqa_targets(case)
        return {"vqa": lambda: eager_meter.vqa_loss(model, *arguments)}
    functions = {
        "pretrain": {"mlm": eager_meter.mlm_loss, "itm": eager_meter.itm_loss},
        "irtr": {"irtr": eager_meter.ranking_loss, "itm": eager_meter.itm_loss},
    }
    named = functions.get(task, {})
    return {name: lambda loss=loss: loss(model, batch) for name, loss in named.items()}


#: Allowed where every token is hidden. Scores are near -10,000 there, where float32 has steps of
#: 1e-3: the recorded features are off those in float64 by up to 7.1e-5, and so may ours be.
EMPTY_TOLERANCE = 1.5e-4


def _compare_edges(comparison: Comparison, case: MeterCase, model: EagerMeter) -> None:
    """Compare unusual masks, those that hide every token included."""
    ids, mask = case.stored("edge.text_ids"), case.stored("edge.text_masks").bool()
    assert not mask[EMPTY_ROW].any()
    features = model.infer(case.input("image"), ids, mask)
    names = ("edge.text_feats", "edge.image_feats", "edge.cls")
    for name, value in zip(names, features, strict=True):
        recorded = case.stored(name).reshape(case.records[name]["shape"])
        absmax = case.records[name]["absmax"]
        for row in range(len(ids)):
            group, limit = "edge cases", case.tolerances.tensors
            if row == EMPTY_ROW:
                group, limit = "hidden texts", EMPTY_TOLERANCE
            label = f"{name}[{row}]"
            comparison.tensor(group, label, value[row], recorded[row], limit, absmax)
    comparison.compared |= {*names, "edge.text_ids", "edge.text_masks"}


@contextmanager
def recorded_modules(model: EagerMeter, into: dict[str, Tensor]) -> Iterator[None]:
    """Store the output of every block and layer under its recorded name."""
    named: dict[str, nn.Module] = {
        "text.embeddings": model.text_transformer.embeddings,
        "text.transform": model.cross_modal_text_transform,
        "image.transform": model.cross_modal_image_transform,
    }
    layers = model.text_transformer.encoder.layer
    named |= {f"text.layer{number}": layer for number, layer in enumerate(layers)}
    if model.is_clip:
        visual = model.vit_model.visual
        blocks = visual.transformer.resblocks
        named |= {"image.conv1": visual.conv1, "image.ln_pre": visual.ln_pre}
        named |= {"image.ln_post": visual.ln_post}
        named |= {f"image.block{number}": block for number, block in enumerate(blocks)}
    else:
        named |= {"image.patch_embed": model.vit_model.patch_embed}
        named |= {"image.norm": model.vit_model.norm}
        for number, stage in enumerate(model.vit_model.stages):
            for block, module in enumerate(stage.typed_blocks):
                named[f"image.stage{number}.block{block}"] = module
            if stage.downsample is not None:
                named[f"image.stage{number}.downsample"] = stage.downsample
    for side in ("text", "image"):
        levels = getattr(model, f"cross_modal_{side}_layers")
        named |= {f"cross.{side}{number}": level for number, level in enumerate(levels)}
        named[f"cross.{side}0.self"] = levels[0].attention
        named[f"cross.{side}0.cross"] = levels[0].crossattention

    def recorder(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        # CLIP's blocks are (T, B, D), recorded ones (B, T, D).
        is_block = model.is_clip and name.startswith("image.block")

        def record(_module: nn.Module, _arguments: tuple, output: Tensor) -> None:
            into[f"pair.{name}"] = output.transpose(0, 1) if is_block else output

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in named.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
