"""Rewards of self-critical captioning: how well sampled captions agree with their picture's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.record import RecordSet
from fiber.metrics.cider import DocumentFrequencies, cider_d_scores, reward_text
from fiber.models.fiber.captioner import written_tokens
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import CaptionTask
from fiber.training.data import TrainingData


@dataclass(frozen=True, kw_only=True)
class CaptionRewards:
    """CIDEr-D of captions of the pictures that a run trains on, as the published code has it.

    Captions are compared as they are written, but for a full stop at the end, with the end as a
    word of its own (`metrics.cider.reward_text`).
    """

    tokenizer: Tokenizer
    #: Record -> its picture.
    pictures: Mapping[str, str]
    #: Picture -> its different captions, brought to the form that is compared.
    references: Mapping[str, tuple[str, ...]]
    frequencies: DocumentFrequencies

    @classmethod
    def of(cls, records: RecordSet, tokenizer: Tokenizer, task: CaptionTask) -> CaptionRewards:
        """Collect the captions of each picture.

        Args:
            records: one for each caption; those with the same image_id show the same picture. A
                caption that a picture has twice counts once.
            tokenizer: turns tokens into text.
            task: names a file of document frequencies, or none: they are then counted from these
                captions.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if a picture has no caption, records of one key show two pictures, or there
                is a single picture to count document frequencies from.
        """
        pictures: dict[str, str] = {}
        texts: dict[str, dict[str, None]] = {}
        for record in (records[number] for number in range(len(records))):
            if pictures.setdefault(record.key, record.image_id) != record.image_id:
                raise ValueError(
                    f"record {record.key!r} is there for the pictures {pictures[record.key]!r} and"
                    f" {record.image_id!r}; tasks.caption.objective 'cider' finds a picture's"
                    " captions by the key, so expected each key once"
                )
            texts.setdefault(record.image_id, {})[record.text] = None
        for image_id, found in texts.items():
            if not any(text.strip() for text in found):
                raise ValueError(
                    f"picture {image_id!r} has no caption but empty ones;"
                    " tasks.caption.objective 'cider' needs at least one that samples can agree"
                    " with"
                )
        references = {image_id: tuple(map(reward_text, found)) for image_id, found in texts.items()}
        if task.cider_frequencies is not None:
            frequencies = DocumentFrequencies.read(task.cider_frequencies)
        elif len(references) < 2:
            raise ValueError(
                f"tasks.caption.objective 'cider' got captions of {len(references)} picture;"
                " expected at least 2, since words that every picture has are worth nothing"
            )
        else:
            frequencies = DocumentFrequencies.of(references.values())
        return cls(
            tokenizer=tokenizer, pictures=pictures, references=references, frequencies=frequencies
        )

    def __call__(self, keys: Sequence[str], token_ids: Tensor) -> Tensor:
        """Score sampled captions.

        Args:
            keys: B records, whose pictures the captions are about.
            token_ids: (B, S, n) int64 without <s>, as `sample_captions` returns them.

        Returns:
            (B, S) float32 CIDEr-D of each, from 0 to 10, on the device of the tokens.
        """
        said = [
            reward_text(self.tokenizer.decode(written_tokens(ids)))
            for ids in token_ids.flatten(0, 1).tolist()
        ]
        own = [self.references[self.pictures[key]] for key in keys]
        repeated = [captions for captions in own for _ in range(token_ids.shape[1])]
        scores = torch.from_numpy(cider_d_scores(said, repeated, self.frequencies))
        return scores.float().view(token_ids.shape[:2]).to(token_ids.device)


def caption_rewards(config: RunConfig, data: TrainingData) -> CaptionRewards | None:
    """Make the rewards of a run's captions; None where no task needs them.

    Errors are those of `CaptionRewards.of`.
    """
    task = config.tasks.caption
    if task.share == 0 or task.objective != "cider":
        return None
    return CaptionRewards.of(data.records["caption"], data.words.tokenizer, task)
