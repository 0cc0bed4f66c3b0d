"""CIDEr-D rewards for self-critical sequence training (SCST) on sampled captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.record import RecordSet
from fiber.messages import shown
from fiber.metrics.cider import DocumentFrequencies, cider_d_scores, reward_text
from fiber.models.fiber.beam_search import written_tokens
from fiber.tasks.caption.fields import CaptionTask


@dataclass(frozen=True, kw_only=True)
class CaptionRewards:
    """CIDEr-D of sampled captions against the training captions of their image.

    As in the published code, captions are preprocessed with `metrics.cider.reward_text`.
    """

    tokenizer: Tokenizer
    #: Image id by record key.
    image_ids: Mapping[str, str]
    #: Distinct preprocessed captions by image id.
    references: Mapping[str, tuple[str, ...]]
    frequencies: DocumentFrequencies

    @classmethod
    def of(cls, records: RecordSet, tokenizer: Tokenizer, task: CaptionTask) -> CaptionRewards:
        """Group captions by image_id; duplicate captions of an image count once.

        Document frequencies are read from `task.cider_frequencies` or computed from the records.

        Raises:
            FileNotFoundError: if `task.cider_frequencies` is missing.
            ValueError: if an image has only empty captions, two images share a key, or frequencies
                would be computed from a single image.
        """
        image_ids: dict[str, str] = {}
        texts: dict[str, dict[str, None]] = {}
        for record in (records[number] for number in range(len(records))):
            if image_ids.setdefault(record.key, record.image_id) != record.image_id:
                raise ValueError(
                    f"record key {shown(record.key)} is used for the images"
                    f" {shown(image_ids[record.key])} and {shown(record.image_id)};"
                    " tasks.caption.objective"
                    " 'cider' looks up captions by key, so each key must belong to one image"
                )
            texts.setdefault(record.image_id, {})[record.text] = None
        for image_id, found in texts.items():
            if not any(text.strip() for text in found):
                raise ValueError(
                    f"image {shown(image_id)} has only empty captions; tasks.caption.objective"
                    " 'cider'"
                    " needs at least one caption that contains words"
                )
        references = {image_id: tuple(map(reward_text, found)) for image_id, found in texts.items()}
        if task.cider_frequencies is not None:
            frequencies = DocumentFrequencies.read(task.cider_frequencies)
        elif len(references) < 2:
            raise ValueError(
                "tasks.caption.objective 'cider' needs captions of at least 2 images, got"
                f" {len(references)}; words that occur in every image's captions have weight 0"
            )
        else:
            frequencies = DocumentFrequencies.of(references.values())
        return cls(
            tokenizer=tokenizer,
            image_ids=image_ids,
            references=references,
            frequencies=frequencies,
        )

    def __call__(self, keys: Sequence[str], token_ids: Tensor) -> Tensor:
        """Return the (B, S) float32 CIDEr-D of sampled captions, in [0, 10].

        `keys` are B record keys; `token_ids` (B, S, n) come from `sample_captions`.
        """
        samples = [
            reward_text(self.tokenizer.decode(written_tokens(ids)))
            for ids in token_ids.flatten(0, 1).tolist()
        ]
        references = [self.references[self.image_ids[key]] for key in keys]
        repeated = [captions for captions in references for _ in range(token_ids.shape[1])]
        scores = torch.from_numpy(cider_d_scores(samples, repeated, self.frequencies))
        return scores.float().view(token_ids.shape[:2]).to(token_ids.device)
