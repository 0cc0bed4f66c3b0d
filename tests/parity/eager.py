"""Compare the benches' eager model with recorded coarse cases, so that it stays a fair peer.

Compared are its forward passes, tensor by tensor, and the gradients of its losses by published
name. Queues, optimizer steps and beam search are not among what it is timed for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.eager_fiber import NO_LABEL, EagerFiber
from tests.parity.coarse_case import CoarseCase
from tests.parity.comparison import Comparison
from tests.parity.tolerances import CoarseTolerances, coarse_tolerances

#: Published parameters that no pass reads.
UNUSED = ("rank_output.", "text_transformer.pooler.")


def build(case: CoarseCase) -> EagerFiber:
    """Make the model with the weights of a case.

    Raises:
        ValueError: if a tensor of either side is unknown to the other.
    """
    model = EagerFiber(case.fiber_config())
    found = model.load_state_dict(case.published_state(), strict=False)
    unknown = [name for name in found.unexpected_keys if not name.startswith(UNUSED)]
    if found.missing_keys or unknown:
        raise ValueError(f"missing {found.missing_keys}, unexpected {unknown}")
    return model


def compare_case(path: Path) -> Comparison:
    """Run the eager model's passes on one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = CoarseCase(path)
    comparison = Comparison(f"{case.name} (eager)")
    allowed = coarse_tolerances(case.config)
    model = build(case).eval()
    with torch.no_grad():
        for name, value in outputs(model, case).items():
            if name in case.records:
                group = f"{name.split('.')[0]} passes"
                absmax = case.records[name].get("absmax", 1.0)
                ours, recorded = case.sample(name, value), case.stored(name)
                comparison.tensor(group, name, ours, recorded, allowed.tensors, absmax)
    model.train()
    for task, loss in losses(model, case).items():
        name = f"train.loss.{task}"
        if name not in case.scalars and task not in case.grads:
            continue
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        if name in case.scalars:
            comparison.number("losses", name, value.item(), case.scalars[name], allowed.losses)
        if task in case.grads:
            _compare_gradients(comparison, case, model, task, allowed)
    return comparison


def outputs(model: EagerFiber, case: CoarseCase) -> dict[str, Tensor]:
    """Every recorded forward tensor that the eager model computes."""
    found: dict[str, Tensor] = {}
    images, ids = case.input("image"), case.input("text_ids")
    mask = case.input("text_masks").bool()
    with recorded_modules(model, "itc", found):
        found["itc.image_cls"] = model.embed_images(images)
        found["itc.text_cls"] = model.embed_texts(ids, mask)
    with recorded_modules(model, "fused", found):
        features = model.fuse(images, ids, mask)
    found["fused.text_feats"], found["fused.image_feats"], found["fused.cls_feats"] = features
    found["fused.itm_logits"] = model.itm_logits(features.pooled)
    found["fused.vqa_logits"] = model.vqa_classifier(features.pooled)
    masked = model.fuse(images, case.input("text_ids_mlm"), mask)
    found["mlm.logits"] = model.mlm_score(masked.text)
    with recorded_modules(model, "caption", found):
        text = model.decode_text(images, ids, mask)
    found["caption.text_feats"], found["caption.logits"] = text, model.mlm_score(text)
    return found


@contextmanager
def recorded_modules(model: EagerFiber, prefix: str, into: dict[str, Tensor]) -> Iterator[None]:
    """Store the output of every block and layer under its recorded name, below `prefix`."""
    named: dict[str, nn.Module] = {"vit.patch_embed": model.vit_model.patch_embed}
    for number, stage in enumerate(model.vit_model.stages):
        for block, module in enumerate(stage.typed_blocks):
            named[f"vit.stage{number}.block{block}"] = module
        if stage.downsample is not None:
            named[f"vit.stage{number}.downsample"] = stage.downsample
    named["vit.norm"] = model.vit_model.norm
    named["txt.embeddings"] = model.text_transformer.embeddings
    named |= {f"txt.layer{n}": layer for n, layer in enumerate(model.text_transformer.layers)}

    def recorder(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def record(_module: nn.Module, _arguments: tuple, output: Tensor) -> None:
            into[f"{prefix}.{name}"] = output

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in named.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def losses(model: EagerFiber, case: CoarseCase) -> dict[str, Callable[[], Tensor]]:
    """Recorded losses without queue and draws; each call builds a fresh graph."""
    images, ids = case.input("image"), case.input("text_ids")
    mask = case.input("text_masks").bool()

    def mlm() -> Tensor:
        logits = model.mlm_score(model.fuse(images, case.input("text_ids_mlm"), mask).text)
        labels = case.input("text_labels_mlm")
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL)

    def nlvr2() -> Tensor:
        pooled = [model.fuse(i, ids, mask).pooled for i in (images, case.input("image_1"))]
        truths = torch.tensor([1, 0, 1])[: len(images)]
        return F.cross_entropy(model.nlvr2_classifier(torch.cat(pooled, -1)), truths)

    def caption_mle() -> Tensor:
        logits = model.mlm_score(model.decode_text(images, ids, mask))
        following = ids[:, 1:].masked_fill(~mask[:, 1:], NO_LABEL)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), following.flatten())

    return {"mlm": mlm, "nlvr2": nlvr2, "caption_mle": caption_mle}


def _compare_gradients(
    comparison: Comparison,
    case: CoarseCase,
    model: EagerFiber,
    task: str,
    allowed: CoarseTolerances,
) -> None:
    recorded = case.grads[task]
    largest = max(entry[0] for entry in recorded.values() if entry is not None)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, entry in recorded.items():
        if name.startswith(UNUSED):
            continue
        label, grad = f"{task} {name}", grads.get(name)
        if entry is None or grad is None:
            same = (entry is None) == (grad is None)
            comparison.group("gradients that are absent", 0.0).add(label, 0.0 if same else 1.0)
            continue
        error = abs(grad.double().norm().item() - entry[0])
        if entry[0] < allowed.gradient_floor * largest:
            group = comparison.group("small gradients", allowed.small_gradients)
            group.add(label, error / largest)
        else:
            comparison.group("gradients", allowed.gradients).add(label, error / entry[0])
