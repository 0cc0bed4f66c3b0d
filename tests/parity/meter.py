"""Compare the METER model with recorded cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fiber.losses.entailment import entailment_loss
from fiber.losses.itm import pair_loss
from fiber.losses.mlm import mlm_loss
from fiber.losses.nlvr2 import nlvr2_loss
from fiber.losses.vqa import vqa_loss
from fiber.models.encoders.position_interpolation import resize_bias_tables, resize_position_table
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.keys import ignored_meter_key, meter_keys
from fiber.training.config.run import OptimConfig
from fiber.training.config.tasks import RankingTask, TasksConfig
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.step import TrainStep
from fiber.training.optim import build_optimizer, lr_factor, set_learning_rate
from tests.parity.comparison import Comparison
from tests.parity.meter_case import (
    TASKS,
    MeterCase,
    is_moved_by_noise,
    is_noise,
    published_pieces,
    vqa_targets,
)
from tests.parity.meter_extras import compare_extras
from tests.parity.tolerances import ABSOLUTE_MAXIMA, LEARNING_RATES, METER, WEIGHT_RULE

#: Ends of the names of files beside a case: what is read, and what is not an output of the model.
READ_COMPANIONS = ("_weights_check.json", "_optimizer_groups.json")
NEVER_COMPARED_COMPANIONS = ("_mutations.json",)
UNIT_FILES = {"extras.json": compare_extras}
#: Files that those read beside their own.
READ_UNIT_FILES = ("extras.safetensors",)
SECTIONS: dict[str, Callable[[Path], Comparison]] = {}
#: Files of the folder that no comparison reads yet, and what each waits for.
PENDING_FILES: dict[str, str] = {}

#: Settings of the recorded steps (README), and steps of their schedule.
OPTIM = OptimConfig(
    lr=1e-3,
    weight_decay=0.01,
    head_lr_multiplier=5.0,
    cross_modal_lr_multiplier=5.0,
    warmup_fraction=0.1,
    published_coarse=True,
)
STEPS = 10
#: Number of parameters from which on optimizer steps are made in float32.
LARGE = 100_000_000
#: Row of the edge cases whose mask is all zero. Ours hides every key of such a text, which has no
#: softmax; the original attends to all of them. No tokenizer writes such a text.
EMPTY_ROW = 3
#: Modules whose outputs were recorded, by recorded name; `{}` is a number.
_HOOKED = {
    "text.embeddings": "backbone.text.embeddings",
    "text.layer{}": "backbone.text.layers.{}",
    "text.transform": "backbone.text_transform",
    "image.conv1": "backbone.image.patch_embedding.projection",
    "image.ln_pre": "backbone.image.first_norm",
    "image.block{}": "backbone.image.blocks.{}",
    "image.ln_post": "backbone.image.last_norm",
    "image.patch_embed": "backbone.image.patch_embedding",
    "image.norm": "backbone.image_norm",
    "image.transform": "backbone.image_transform",
    "cross.text0.self": "backbone.text_layers.0.self_attention",
    "cross.text0.cross": "backbone.text_layers.0.cross_attention",
    "cross.image0.self": "backbone.image_layers.0.self_attention",
    "cross.image0.cross": "backbone.image_layers.0.cross_attention",
    "cross.text{}": "backbone.text_layers.{}",
    "cross.image{}": "backbone.image_layers.{}",
    "cross.text_pooled": "text_pooler",
    "cross.image_pooled": "image_pooler",
}


def compare_case(path: Path) -> Comparison:
    """Run every task of one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = MeterCase(path)
    comparison = Comparison(case.name)
    for fault in case.name_faults():
        comparison.group("names", 0.0).add(fault, 1.0)
    if comparison.groups:
        return comparison
    _compare_weights(comparison, case)
    # One model at a time: those of the published size take 1.4 GB each.
    for task in ("pretrain", *TASKS):
        try:
            model = case.model(task)
        except ValueError as error:
            comparison.group("names", 0.0).add(str(error), 1.0)
            return comparison
        if "pair.cls" not in comparison.compared:
            with torch.no_grad():
                compare_tensors(comparison, case, "pair", run_pair(model, case))
                _compare_edges(comparison, case, model)
                _compare_resized(comparison, case)
        else:
            _compare_task(comparison, case, task, model)
    steps = {f"{task}.steps" for task in case.steps}
    recorded = {*case.records, *case.scalars, *steps, *(f"grad.{task}" for task in case.grads)}
    comparison.not_compared = sorted(recorded - comparison.compared)
    return comparison


def _compare_weights(comparison: Comparison, case: MeterCase) -> None:
    """Check the weight rule and the inputs against their recorded sums and samples."""
    for entry, (shape, total, norm, first) in case.weights_check.items():
        name, _, task = entry.partition(" @")
        if name.startswith("input."):
            value = case.input(name.removeprefix("input."))
        else:
            value = case.drawn(name, task or "pretrain")
        if list(value.shape) != shape:
            comparison.group("weight rule", WEIGHT_RULE).add(entry, float("nan"))
            continue
        flat = value.double().flatten()
        count = max(1.0, flat.numel() ** 0.5)
        ours = [flat.sum().item() / count, flat.norm().item() / count, *flat[:3].tolist()]
        theirs = [total / count, norm / count, *first]
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        comparison.group("weight rule", WEIGHT_RULE).add(entry, worst)
    for name, record in case.records.items():
        stored = case.stored(name)
        if not stored.dtype.is_floating_point:
            continue
        # Errors are relative to it. Of a tensor that is stored in part only a bound is known.
        largest = stored.double().abs().max().item()
        wrong = record["absmax"] - largest if record["stride"] == 1 else 0.0
        wrong = max(abs(wrong), largest - record["absmax"]) / max(largest, 1.0)
        comparison.group("absolute maxima", ABSOLUTE_MAXIMA).add(name, wrong)
    # What the runs take as given.
    comparison.compared |= {name for name in case.records if name.startswith("input.")}


def compare_tensors(
    comparison: Comparison, case: MeterCase, group: str, found: dict[str, Tensor]
) -> None:
    """Compare those of our tensors that were recorded."""
    for name, value in found.items():
        if name in case.records and name not in comparison.compared:
            record = case.records[name]
            sampled, absmax = case.sample(name, value), record.get("absmax", 1.0)
            stored, allowed = case.stored(name), case.tolerances.tensors
            comparison.tensor(group, name, sampled, stored, allowed, absmax)


def run_pair(model: MeterImageText, case: MeterCase) -> dict[str, Tensor]:
    """Run the model on the unmasked pairs; return what was recorded inside it and its features."""
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    hooks = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: object, arguments: object, output: Tensor) -> None:
            # Maps of Swin are (B, H, W, C), recorded ones (B, H W, C).
            is_map = name.startswith("image.") and output.ndim == 4 and name != "image.conv1"
            found.setdefault(f"pair.{name}", output.flatten(1, 2) if is_map else output)

        return hook

    for name, path in _HOOKED.items():
        for number in range(64):
            chosen = modules.get(path.format(number))
            if chosen is not None:
                hooks.append(chosen.register_forward_hook(keep(name.format(number))))
            if "{}" not in name:
                break
    for stage in range(4):
        for block in range(64):
            place = f"backbone.image.stages.{stage}.blocks.{block}"
            if place in modules:
                keeper = keep(f"image.stage{stage}.block{block}")
                hooks.append(modules[place].register_forward_hook(keeper))
        merging = modules.get(f"backbone.image.stages.{stage}.merging")
        if merging is not None:
            hooks.append(merging.register_forward_hook(keep(f"image.stage{stage}.downsample")))
    ids, mask = case.text()
    backbone = model.backbone
    images = case.input("image").to(next(model.parameters()).dtype)
    image, text = backbone.image_prefix(images), backbone.text_prefix(ids, mask)
    output = backbone.fuse(image, text, mask)
    found["pair.cls"] = model.pooled(output)
    for hook in hooks:
        hook.remove()
    width = model.config.cross.width
    found["pair.cross.text_in"] = text[..., :width]
    found["pair.cross.image_in"] = image.tokens[..., :width]
    assert output.text is not None
    return found | {"pair.text_feats": output.text, "pair.image_feats": output.stages[-1]}


def _compare_edges(comparison: Comparison, case: MeterCase, model: MeterImageText) -> None:
    """Compare unusual masks, without the row that hides every token."""
    ids, mask = case.stored("edge.text_ids"), case.stored("edge.text_masks").bool()
    rows = [row for row in range(len(ids)) if row != EMPTY_ROW]
    output = model.backbone.encode_pair(case.input("image")[rows], ids[rows], mask[rows])
    assert output.text is not None
    found = {
        "edge.text_feats": output.text,
        "edge.image_feats": output.stages[-1],
        "edge.cls": model.pooled(output),
    }
    for name, value in found.items():
        recorded = case.stored(name).reshape(case.records[name]["shape"])[rows]
        absmax = case.records[name]["absmax"]
        comparison.tensor("edge cases", name, value, recorded, case.tolerances.tensors, absmax)
    comparison.compared |= {"edge.text_ids", "edge.text_masks"}


def _compare_resized(comparison: Comparison, case: MeterCase) -> None:
    """Compare tables and features of another image size."""
    state = case.published_state("pretrain")
    for name in case.records:
        if name.startswith("resize.position."):
            rows = case.records[name]["shape"][0]
            table = resize_position_table(state["vit_model.visual.positional_embedding"], rows)
            compare_tensors(comparison, case, "resized tables", {name: table})
        elif name.startswith("resize.bias."):
            stage, block, size = name.removeprefix("resize.bias.").split(".")
            table = resize_bias_tables(state, int(size) // 32)[
                f"vit_model.layers.{stage[-1]}.blocks.{block[-1]}.attn.relative_position_bias_table"
            ]
            compare_tensors(comparison, case, "resized tables", {name: table})
    model = case.model("pretrain", case.config["resize"])
    ids, mask = case.text()
    output = model.backbone.encode_pair(case.input("image_resized"), ids, mask)
    assert output.text is not None
    found = {"text_feats": output.text, "image_feats": output.stages[-1]}
    found["cls"] = model.pooled(output)
    named = {f"resize.{name}": value for name, value in found.items()}
    compare_tensors(comparison, case, "another image size", named)


def losses_of(model: MeterImageText, case: MeterCase, task: str) -> dict[str, Tensor]:
    """Compute the losses of a task on the recorded inputs, and what they were computed from."""
    ids, mask = case.text()
    dtype, backbone = next(model.parameters()).dtype, model.backbone
    images = case.input("image").to(dtype)
    found: dict[str, Tensor] = {}
    if task == "pretrain":
        prefix = backbone.image_prefix(images)
        masked = backbone.text_prefix(case.input("text_ids_mlm"), mask)
        text = backbone.fuse(prefix, masked, mask, wanted="text").text
        found["mlm_logits"] = model.mlm_logits(text)
        labels = case.input("text_labels_mlm")
        found["loss.mlm"] = mlm_loss(found["mlm_logits"], labels)
    if task in ("pretrain", "irtr"):
        labels = case.stored(f"{task}.itm_labels").long()
        chosen = torch.where(
            labels[:, None, None, None] == 1, images, case.input("false_image_0").to(dtype)
        )
        prefixes = backbone.image_prefix(chosen), backbone.text_prefix(ids, mask)
        with _seen_by(model.itm_head) as seen:
            fused = backbone.fuse(*prefixes, mask, wanted="pooled")
            found["loss.itm"] = pair_loss(model.itm_logits(model.pooled(fused)), labels)
        found |= {"itm.cls": seen[0], "itm_logits": seen[1], "itm_labels": labels}
    if task == "irtr":
        found |= _ranking(model, case, images)
    elif task == "nlvr2":
        both = torch.cat((case.input("image_0"), case.input("image_1"))).to(dtype)
        text = torch.cat([backbone.text_prefix(ids, mask)] * 2)
        prefix = model.image_prefix(both, torch.arange(len(both)) >= len(ids))
        output = backbone.fuse(prefix, text, mask.repeat(2, 1), wanted="pooled")
        left, right = model.pooled(output).chunk(2)
        found |= {"nlvr2.cls.0": left, "nlvr2.cls.1": right}
        found["nlvr2_logits"] = model.nlvr2_logits(left, right)
        found["loss.nlvr2"] = nlvr2_loss(found["nlvr2_logits"], torch.tensor([1, 0, 1, 1]))
    elif task in ("vqa", "snli"):
        output = backbone.encode_pair(images, ids, mask, wanted="pooled")
        found[f"{task}.cls"] = pooled = model.pooled(output)
        if task == "vqa":
            found |= {"vqa_logits": model.vqa_logits(pooled), "targets": vqa_targets(case)}
            found["loss.vqa"] = vqa_loss(found["vqa_logits"], found["targets"])
        else:
            found["snli_logits"] = model.snli_logits(pooled)
            found["loss.snli"] = entailment_loss(found["snli_logits"], torch.tensor([2, 0, 1, 1]))
    return found


def _ranking(model: MeterImageText, case: MeterCase, images: Tensor) -> dict[str, Tensor]:
    """Compute the ranking loss of a training step on the recorded true and false texts.

    ITM has other negatives there than the recorded ones, so it is left to `losses_of`.
    """
    count = case.config["false_texts"]
    step = TrainStep(model, TasksConfig(ranking=RankingTask(share=1, false_texts=count, itm=0.0)))
    with _seen_by(model.rank_head) as seen:
        loss = step("ranking", case.ranking_batch(images), Draw(0, 0))["rank"]
    return {"irtr.cls": seen[0], "score": seen[1].view(-1, 1 + count), "loss.irtr": loss}


@contextmanager
def _seen_by(head: nn.Module) -> Iterator[list[Tensor]]:
    """Give the input and the output of a module's call."""
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.extend((*inputs, output)))
    try:
        yield seen
    finally:
        hook.remove()


def only_losses(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the losses among the results of `losses_of`, by name."""
    return {
        name.removeprefix("loss."): value
        for name, value in found.items()
        if name.startswith("loss.")
    }


def _compare_task(
    comparison: Comparison, case: MeterCase, task: str, model: MeterImageText
) -> None:
    """Compare outputs, losses, gradients, groups and optimizer steps of one task."""
    with torch.no_grad():
        found = losses_of(model, case, task)
    outputs = {f"{task}.{name}": value for name, value in found.items()}
    compare_tensors(comparison, case, "heads", outputs)
    for name, loss in only_losses(found).items():
        entry = f"{task}.loss.{name}"
        comparison.number("losses", entry, loss.item(), case.scalars[entry], METER.losses)
    model.train()
    if task == "irtr":
        # Trained through, but never itself.
        model.itm_head.requires_grad_(False)
    for name in only_losses(found):
        model.zero_grad(set_to_none=True)
        loss = only_losses(losses_of(model, case, task))[name]
        loss.backward()
        entry = f"{task}.train.loss.{name}"
        comparison.number("losses", entry, loss.item(), case.scalars[entry], METER.losses)
        compare_gradients(comparison, case, case.published_grads(model), f"{task}.{name}")
    model.zero_grad(set_to_none=True)
    _compare_groups(comparison, case, model, task)
    _compare_steps(comparison, case, model, task)


def compare_gradients(
    comparison: Comparison, case: MeterCase, ours: Mapping[str, Tensor | None], loss: str
) -> None:
    """Compare the norm of every gradient by published name, and where there is none."""
    comparison.compared.add(f"grad.{loss}")
    config = case.meter_config(loss.split(".")[0])
    recorded = case.grads[loss]
    largest = max(values[0] for values in recorded.values() if values is not None)
    for name, values in recorded.items():
        if name not in ours:
            if values is not None and ignored_meter_key(name, config) is None:
                comparison.group("gradients", METER.gradients).add(name, float("nan"))
            continue
        own = ours[name]
        if values is None or own is None:
            # A parameter without gradient may have one of zeros in the other implementation.
            size = 0.0 if own is None else own.double().norm().item()
            other = 0.0 if values is None else values[0]
            comparison.group("no gradient", 0.0).add(f"{loss} {name}", max(size, other))
        elif not is_noise(name):
            norm = own.double().norm().item()
            if values[0] > METER.gradient_floor * largest:
                group = comparison.group("gradients", METER.gradients)
                group.add(f"{loss} {name}", abs(norm - values[0]) / values[0])
            else:
                group = comparison.group("small gradients", METER.small_gradients)
                group.add(f"{loss} {name}", abs(norm - values[0]) / largest)


def _compare_groups(
    comparison: Comparison, case: MeterCase, model: MeterImageText, task: str
) -> None:
    """Compare learning rate and weight decay of every parameter by name."""
    keys = meter_keys(model.config)
    names = {parameter: keys[name] for name, parameter in model.named_parameters()}
    ours = {
        name: (OPTIM.lr * group["lr_factor"], group["weight_decay"])
        for group in build_optimizer(model, OPTIM).param_groups
        for parameter in group["params"]
        for name in names[parameter]
    }
    for group in case.groups[task]:
        for name in group["names"]:
            if ignored_meter_key(name, model.config) is not None:
                continue
            if task == "irtr" and name.startswith("itm_score."):
                # Frozen: in a group of the original, where it never gets a gradient.
                comparison.group("groups", 0.0).add(f"{task} {name}", float(name in ours))
                continue
            same = ours.get(name) == (group["lr"], group["wd"])
            comparison.group("groups", 0.0).add(f"{task} {name} {ours.get(name)}", float(not same))


def _compare_steps(
    comparison: Comparison, case: MeterCase, model: MeterImageText, task: str
) -> None:
    """Compare the losses of three steps of the sum of losses, and the weights after them.

    Ours are made in float64, since AdamW makes full steps of gradients that are rounding errors,
    unless the model would not fit into memory. Losses before the weights change have no such noise.
    """
    if sum(parameter.numel() for parameter in model.parameters()) < LARGE:
        model.double()
    recorded = case.steps[task]
    optimizer = build_optimizer(model, OPTIM)
    for step, expected in enumerate(recorded["losses"]):
        losses = only_losses(losses_of(model, case, task))
        total = torch.stack(list(losses.values())).sum()
        for name, loss in {**{f"{n}_loss": v for n, v in losses.items()}, "total": total}.items():
            entry = f"{task} step {step} {name}"
            # The first learning rate is 0.
            is_changed = any(recorded["lr_factor"][:step])
            group = "steps" if is_changed else "steps before a change"
            allowed = case.tolerances.steps if is_changed else METER.steps
            comparison.number(group, entry, loss.item(), expected[name], allowed)
        if step == len(recorded["lr_factor"]):
            break
        factor = lr_factor(step, STEPS, OPTIM)
        comparison.number(
            "learning rates", f"{task} {step}", factor, recorded["lr_factor"][step], LEARNING_RATES
        )
        set_learning_rate(optimizer, OPTIM.lr * factor)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
    comparison.compared.add(f"{task}.steps")
    state = published_pieces(model)
    for name, (norm, *_) in recorded["params_after"].items():
        if name not in state or is_moved_by_noise(name):
            continue
        kind = "weights" if name.endswith("weight") else "biases"
        after = case.tolerances.weights_after, case.tolerances.biases_after
        tolerance = after[kind == "biases"]
        ours = state[name].double().norm().item()
        comparison.number(f"{kind} after steps", f"{task} {name}", ours, norm, tolerance)
