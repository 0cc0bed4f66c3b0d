"""Draw captions of other images for every sample, as false candidates of a ranking loss.

Dimensions: B samples, K false texts of each, L tokens.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiber._core import Tokenizer
from fiber.data.batch import ImageTextBatch, RankingBatch
from fiber.data.record import RecordSet
from fiber.data.rng import MAX_RECORDS, Rng
from fiber.messages import shown

# Random number stream for false texts.
_FALSE_TEXTS = 252


class FalseTexts:
    """Draw K texts of a dataset for every sample, resampled every epoch.

    The texts are those of K distinct records with another image and another text, uniformly among
    all of them. A draw depends only on (seed, epoch, record index). Draws repeat after 65,536
    epochs. The texts of all records are kept in memory.

    The published code of METER draws any K records, which may describe the sample's own image.

    Args:
        records: captions, which are all read once.
        count: K, at least 1.
        seed: seed in [0, 2 ** 64).

    Raises:
        ValueError: if some record has fewer than K false texts, or there are more than 2 ** 32
            records.
    """

    def __init__(self, records: RecordSet, *, count: int, seed: int = 0) -> None:
        if len(records) > MAX_RECORDS:
            raise ValueError(f"records must have at most {MAX_RECORDS} items, got {len(records)}")
        self.count, self.seed = count, seed
        self._texts: list[str] = []
        #: Image number of each record.
        self._images: list[int] = []
        numbers: dict[str, int] = {}
        for index in range(len(records)):
            record = records[index]
            self._texts.append(record.text)
            self._images.append(numbers.setdefault(record.image_id, len(numbers)))
        self._check_counts(records)

    def __len__(self) -> int:
        return len(self._texts)

    def indices(self, epoch: int, index: int) -> tuple[int, ...]:
        """Return the K records whose texts are false for a record, for an epoch."""
        rng = Rng.of_record(self.seed, _FALSE_TEXTS, epoch, index)
        own, text = self._images[index], self._texts[index]
        others = (
            other
            for other in rng.permuted(len(self))
            if self._images[other] != own and self._texts[other] != text
        )
        return tuple(islice(others, self.count))

    def add(self, batch: ImageTextBatch, tokenizer: Tokenizer, *, max_tokens: int) -> RankingBatch:
        """Add the false texts of each sample to a batch of the loader of these records.

        All texts are padded to the longest.
        """
        texts = [self._texts[other] for sample in batch.samples for other in self.indices(*sample)]
        encoded = tokenizer.encode_batch(texts, max_tokens=max_tokens)
        # Copied, since torch warns about read-only buffers.
        false_ids = torch.from_numpy(np.array(encoded["token_ids"]))
        false_mask = torch.from_numpy(np.array(encoded["text_mask"]))
        length = max(batch.token_ids.shape[1], false_ids.shape[1])
        own = {
            name: _pad(tensor, length, filler)
            for name, tensor, filler in (
                ("token_ids", batch.token_ids, tokenizer.pad_id),
                ("text_mask", batch.text_mask, False),
                ("masked_ids", batch.masked_ids, tokenizer.pad_id),
                ("mlm_labels", batch.mlm_labels, -100),
            )
        }
        shape = (len(batch), self.count, length)
        return RankingBatch(
            **{**vars(batch), **own},
            false_ids=_pad(false_ids, length, tokenizer.pad_id).view(shape),
            false_mask=_pad(false_mask, length, False).view(shape),
        )

    def _check_counts(self, records: RecordSet) -> None:
        """Check that every record has K false texts."""
        pairs = list(zip(self._images, self._texts, strict=True))
        of_image, of_text, of_pair = Counter(self._images), Counter(self._texts), Counter(pairs)
        for index, (image, text) in enumerate(pairs):
            same = of_image[image] + of_text[text] - of_pair[image, text]
            if len(self) - same < self.count:
                record = records[index]
                raise ValueError(
                    f"record {shown(record.key)} has {len(self) - same} false texts; expected"
                    f" {self.count} or more of the {len(self)} texts to be of another image than"
                    f" {shown(record.image_id)} and to differ from {shown(text)}"
                )


def _pad(tensor: Tensor, length: int, filler: int) -> Tensor:
    """Pad the last dimension to a length."""
    return F.pad(tensor, [0, length - tensor.shape[-1]], value=filler)
