"""A model of a few parameters that goes through every loss of the coarse stage."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.losses.caption import caption_loss, gold_loss, self_critical_loss
from fiber.losses.distributed import fetch_rows, world_size
from fiber.losses.itc import itc_loss, text_fingerprints
from fiber.losses.itc_queue import PairQueue
from fiber.losses.itm import (
    half_pairs,
    hard_negatives,
    itm_loss,
    join_pairs,
    negative_rows,
    pair_loss,
)
from fiber.losses.mlm import mlm_loss
from fiber.losses.nlvr2 import nlvr2_loss
from fiber.losses.vqa import vqa_loss

WIDTH, VOCABULARY, ANSWERS = 6, 11, 5


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image_layer = nn.Linear(4, WIDTH)
        self.word_layer = nn.Embedding(VOCABULARY, WIDTH)
        self.match_layer = nn.Linear(WIDTH, 2)
        self.word_head = nn.Linear(WIDTH, VOCABULARY)
        self.answer_head = nn.Linear(WIDTH, ANSWERS)
        self.temperature = nn.Parameter(torch.tensor(0.2))

    def fuse(self, images: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        pooled = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return torch.tanh(images * pooled + pooled)

    def losses(self, batch: dict[str, Tensor], step: int) -> tuple[dict[str, Tensor], Tensor]:
        images, ids, mask = batch["images"], batch["token_ids"], batch["text_mask"]
        image_rows, text_rows = self.image_layer(images), self.word_layer(ids)
        pooled_text = self.fuse(torch.ones_like(image_rows), text_rows, mask)
        itc, similarities = itc_loss(
            F.normalize(image_rows, dim=1),
            F.normalize(pooled_text, dim=1),
            self.temperature,
            batch["image_ids"],
            text_fingerprints(ids, mask),
        )
        negatives = hard_negatives(similarities, seed=5, step=step)
        wrong = negative_rows(image_rows, text_rows, mask, negatives)
        pairs = join_pairs((image_rows, text_rows, mask), wrong)
        fused = self.fuse(pairs.image_rows, pairs.text_rows, pairs.text_mask)
        pooled = self.fuse(image_rows, text_rows, mask)
        half = half_pairs(batch["image_ids"], seed=5, step=step)
        half_images = fetch_rows(image_rows, half.image_index, half.counts)
        half_fused = self.fuse(half_images, text_rows, mask)
        words = self.word_head(torch.tanh(text_rows) * image_rows[:, None])
        losses = {
            "itc": itc,
            "itm": itm_loss(self.match_layer(fused), len(images), negatives),
            "itm_half": pair_loss(self.match_layer(half_fused), half.labels),
            "mlm": mlm_loss(words, batch["mlm_labels"]),
            "caption": caption_loss(words, ids, mask),
            "gold": gold_loss(words, words.detach() * 3, ids, mask),
            # Twice the caption's own tokens in place of samples.
            "self_critical": self_critical_loss(
                words.log_softmax(-1).gather(2, ids[..., None])[:, None, :, 0].expand(-1, 2, -1),
                mask[:, None].expand(-1, 2, -1),
                ids[:, :1] * torch.tensor([1, 2]) / VOCABULARY,
            ),
            "vqa": vqa_loss(self.answer_head(pooled), batch["targets"]),
            "nlvr2": nlvr2_loss(self.match_layer(pooled), batch["truths"]),
        }
        return losses, torch.stack([negatives.text_index, negatives.image_index])


def whole_batch(rows: int) -> dict[str, Tensor]:
    """Make `rows` samples with repeated pictures, a repeated text and texts of any length."""
    random = torch.Generator().manual_seed(rows)
    lengths = torch.randint(2, 7, (rows,), generator=random)
    lengths[0] = 6
    mask = torch.arange(6) < lengths[:, None]
    ids = torch.randint(2, VOCABULARY, (rows, 6), generator=random).masked_fill(~mask, 1)
    ids[-1], mask[-1] = ids[0], mask[0]
    picked = mask & (torch.rand(rows, 6, generator=random) < 0.4)
    return {
        "images": torch.randn(rows, 4, generator=random),
        "token_ids": ids,
        "text_mask": mask,
        "image_ids": torch.arange(rows) // 2 * (torch.arange(rows) % 3 + 1),
        "mlm_labels": ids.masked_fill(~picked, -100),
        "targets": torch.rand(rows, ANSWERS, generator=random),
        "truths": torch.randint(0, 2, (rows,), generator=random),
    }


def own_part(batch: dict[str, Tensor], first: int, rows: int) -> dict[str, Tensor]:
    """Rows [first, first + rows), padded no further than their longest text, as a loader does."""
    part = {name: value[first : first + rows] for name, value in batch.items()}
    longest = int(part["text_mask"].sum(1).max()) if rows else 1
    for name in ("token_ids", "text_mask", "mlm_labels"):
        part[name] = part[name][:, :longest]
    return part


def losses_and_gradients(split: tuple[int, ...], step: int) -> dict[str, dict[str, Tensor]]:
    """For each loss its mean over ranks, and the mean over ranks of every gradient."""
    toy = Toy()
    rank = dist.get_rank() if world_size() > 1 else 0
    batch = own_part(whole_batch(sum(split)), sum(split[:rank]), split[rank])
    losses, negatives = toy.losses(batch, step)
    results = {"negatives": {"rows": negatives}}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(
            loss, list(toy.parameters()), retain_graph=True, materialize_grads=True
        )
        results[name] = {"loss": loss.detach().clone()}
        results[name].update(
            {key: g.clone() for (key, _), g in zip(toy.named_parameters(), gradients, strict=True)}
        )
        if world_size() > 1:
            for value in results[name].values():
                dist.all_reduce(value)
                value /= world_size()
    return results


def all_splits(splits: list[tuple[int, int]], steps: int) -> dict[str, dict]:
    """Run every split of the batch, so that the two processes start only once."""
    return {
        f"{split}/{step}": losses_and_gradients(split, step)
        for split in splits
        for step in range(steps)
    }


def queue_after(splits: list[tuple[int, ...]], length: int) -> dict[str, Tensor]:
    """What a queue holds after one batch of each split, and some of its images."""
    queue = PairQueue(length, width=4, image_size=(1, 1), max_tokens=6)
    for split in splits:
        rank = dist.get_rank() if world_size() > 1 else 0
        part = own_part(whole_batch(sum(split)), sum(split[:rank]), split[rank])
        images, ids, mask = part["images"], part["token_ids"], part["text_mask"]
        pictures = images[:, :3, None, None]
        numbers = part["image_ids"], text_fingerprints(ids, mask)
        queue.enqueue(images, -images, pictures, ids, mask, *numbers)
    # The first process asks for more than the second.
    slots = torch.tensor([4, 0, 4, 3])[: 4 - 3 * (dist.get_rank() if world_size() > 1 else 0)]
    return queue.state_dict() | {"some": queue.image_rows(slots)}
