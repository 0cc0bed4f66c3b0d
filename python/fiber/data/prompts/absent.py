"""Phrases that are not in an image, as negatives in training and for calibration.

Annotations name what an image shows, never what it does not. A phrase of another image is taken for
absent only if its words exclude every annotated object of the image: "a red star" for an image of a
red circle and a blue star, since nothing in the data is both a circle and a star, or red and blue.
Words of which the data does not say that ("small", if sizes are rarely named) decide nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fiber.data.char_spans import CharSpan
from fiber.data.record import Record, RecordSet
from fiber.data.rng import MAX_RECORDS, Rng
from fiber.data.storage.shard_order import ShardMap, shard_map_of

# Random number stream for absent phrases.
_ABSENT = 251
# Number of epochs before the numbers of sets of the same records repeat.
_EPOCHS = 2**10
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset(("a", "an", "the"))
#: Number of words that are compared, the most frequent ones.
MAX_WORDS = 2000
#: Two words exclude each other if, by their frequencies, at least `_EXPECTED` objects should have
#: both, and at most `_SHARE` of these do.
_EXPECTED, _SHARE = 5.0, 0.02
#: Number of phrases of other images to look at for an absent one.
_TRIES = 6


class LonePhrase(NamedTuple):
    """A phrase of a record, as a text of its own."""

    text: str
    #: Half-open span of code points that names the object.
    head: CharSpan


class ObjectWords:
    """Words of the annotated objects of each image, and which words exclude each other.

    An object is a box of an image. Its words are those of all texts that name it, so all records
    of a dataset should be given: an object that no record has could be what a phrase names.

    Args:
        parts: records with boxes and the phrases or classes that name them.
    """

    def __init__(self, parts: Iterable[RecordSet]) -> None:
        texts: dict[object, dict[tuple[int, ...], set[str]]] = {}
        for part in {id(part): part for part in parts}.values():
            for index in range(len(part)):
                record = part[index]
                objects = texts.setdefault(record.images, {})
                for box, words in _named_boxes(record):
                    objects.setdefault(box, set()).update(words)
        named = [words for objects in texts.values() for words in objects.values() if words]
        counts = Counter(word for words in named for word in words)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
        self._ids = {word: index for index, word in enumerate(frequent)}
        self._excludes = self._exclusions(named, [counts[word] for word in self._ids])
        #: Indices of the words of each object, by image.
        self._objects = {
            image: tuple(self._known(words) for words in objects.values())
            for image, objects in texts.items()
        }

    def _exclusions(self, named: Sequence[set[str]], counts: Sequence[int]) -> np.ndarray:
        together: Counter[tuple[int, int]] = Counter()
        for words in named:
            together.update(combinations(sorted(self._known(words)), 2))
        both = np.diag(np.array(counts, np.float64))
        for (first, second), count in together.items():
            both[first, second] = both[second, first] = count
        expected = np.outer(counts, counts) / max(len(named), 1)
        return (expected >= _EXPECTED) & (both <= _SHARE * expected)

    def _known(self, words: Iterable[str]) -> list[int]:
        return [self._ids[word] for word in words if word in self._ids]

    def is_absent(self, record: Record, phrase: LonePhrase) -> bool:
        """Return True if no annotated object of a record's image can be what a phrase names.

        That is so if the words of its head exclude every object, or if another word does, such as
        that of a landmark. It is False for an image without annotated objects.
        """
        objects = self._objects.get(record.images, ())
        if not objects:
            return False
        head = self._known(_words(phrase.text[slice(*phrase.head)]))
        every = self._known(_words(phrase.text))
        excluded = np.array([self._excludes[every][:, own].any(1) for own in objects])
        in_head = np.array([word in head for word in every], bool)
        return bool(excluded[:, in_head].any(1).all() or excluded.all(0).any())

    def shared_words(self, record: Record, phrase: LonePhrase) -> int:
        """Return the number of words of a phrase that name objects of a record's image."""
        own = {word for words in self._objects.get(record.images, ()) for word in words}
        return len(own.intersection(self._known(_words(phrase.text))))


class AbsentPhrases:
    """Records of which some, drawn again each epoch, ask for a phrase that is not in the image.

    Such a record has the image of the original, a phrase of another record and no boxes. Of some
    phrases, the absent one that shares most words with the objects of the image is taken. Where
    none is found, the record is unchanged.

    Args:
        records: records with phrases or referring expressions.
        words: words of the objects of the images.
        chance: probability of an absent phrase.
        seed: in [0, 2 ** 64).
        number: number of this set, so that sets with the same records draw other phrases.

    Raises:
        ValueError: if there are more than 2 ** 32 records.
    """

    def __init__(
        self,
        records: RecordSet,
        words: ObjectWords,
        *,
        chance: float,
        seed: int = 0,
        number: int = 0,
    ) -> None:
        if len(records) > MAX_RECORDS:
            raise ValueError(f"records must have at most {MAX_RECORDS} items, got {len(records)}")
        self.records, self.words = records, words
        self.chance, self.seed, self.number = chance, seed, number

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.in_epoch(0, index)

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return a record as of an epoch."""
        index = range(len(self))[index]
        record = self.records[index]
        rng = Rng.of_record(self.seed, _ABSENT, epoch + self.number * _EPOCHS, index)
        if not rng.bernoulli(self.chance):
            return record
        phrase = absent_phrase(self.records, record, self.words, rng)
        return record if phrase is None else asking_for(record, phrase)

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if the records have no shards."""
        return shard_map_of(self.records)


def absent_phrase(
    records: RecordSet, record: Record, words: ObjectWords, rng: Rng
) -> LonePhrase | None:
    """Draw a phrase of other records that is not in the image of `record`.

    Returns None if none of some phrases is known to be absent.
    """
    best, most = None, -1
    for _ in range(_TRIES):
        phrases = phrases_of(records[rng.integer(len(records))])
        phrase = rng.choice(phrases) if phrases else None
        if phrase is None or not words.is_absent(record, phrase):
            continue
        if (shared := words.shared_words(record, phrase)) > most:
            best, most = phrase, shared
    return best


def phrases_of(record: Record) -> list[LonePhrase]:
    """Return the phrases of a record, each as `fiber.Model.ground` reads it.

    That is the whole text of an expression, of which a part names the object, and each phrase of a
    caption by itself.
    """
    if len(record.label_spans) == 1 and len(record.label_spans[0]) == 1:
        return [LonePhrase(record.text, record.label_spans[0][0])]
    texts = [record.text[slice(*own[0])] for own in record.label_spans if len(own) == 1]
    return [LonePhrase(text, (0, len(text))) for text in texts]


def asking_for(record: Record, phrase: LonePhrase) -> Record:
    """Return a record with a phrase in place of its text, and without boxes and masks."""
    return dataclasses.replace(
        record,
        text=phrase.text,
        boxes_xyxy=(),
        char_spans=(),
        box_labels=(),
        labels=(phrase.text[slice(*phrase.head)],),
        label_spans=((phrase.head,),),
        label_ids=(),
        label_groups=(),
        objects=None,
        masks=(),
        mask_labels=(),
        mask_crowd=(),
        phrases=(),
        phrase_masks=(),
        box_masks=(),
    )


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _ARTICLES]


def _named_boxes(record: Record) -> Iterator[tuple[tuple[int, ...], list[str]]]:
    """Yield the boxes of a record in whole pixels, with the words that name them."""
    for number, box in enumerate(record.boxes_xyxy):
        if record.char_spans:
            spans = record.char_spans[number]
            words = [word for span in spans for word in _words(record.text[slice(*span)])]
        else:
            words = _words(record.labels[record.box_labels[number]])
        yield tuple(round(side) for side in box), words
