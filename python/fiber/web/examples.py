"""Examples of a page, from the data that its model was trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.checkpoints.provenance import TrainedOn
from fiber.data.datasets.resolve import open_source
from fiber.data.record import Record

#: Sources of examples by method, the preferred one first; search has no single image.
_SOURCES = {
    "ground": ("phrases", "referring"),
    "detect": ("detection",),
    "segment": ("phrases", "referring"),
    "answer": ("questions",),
    "caption": ("captions",),
    "match": ("captions",),
    "reason": ("reasoning",),
    "entail": ("entailment",),
}
#: Splits to take examples from, the preferred one first.
_SPLITS = ("val", "test", "novel")
#: Number of examples, of records that are looked at, and of labels in a text.
_COUNT, _MOST_RECORDS, _MOST_LABELS = 4, 200, 20
#: Images of the examples of the model in the package.
_SCENES = 12


class PageExamples:
    """Images with texts for each method.

    Args:
        model: a `fiber.Model`; exported graphs do not know their data.
        is_packaged: whether it is the model in the package, whose data is generated.
    """

    def __init__(self, model: Any, *, is_packaged: bool) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._data: Path | None = None
        self._splits: tuple[str, ...] = _SPLITS
        if is_packaged:
            from fiber.synthetic.scenes import generate

            self._folder = tempfile.TemporaryDirectory(prefix="fiber-examples-")
            self._data = generate(Path(self._folder.name) / "scenes", train=1, val=_SCENES, novel=1)
        elif (trained := _trained_on(model)) is not None:
            self._data, self._splits = Path(trained.path), (*_SPLITS, trained.split)

    def close(self) -> None:
        """Remove generated images."""
        if self._folder is not None:
            self._folder.cleanup()

    def of(self, method: str) -> list[tuple[list[str], str]]:
        """Return the paths of the images and the text of each example; empty without data."""
        found: list[tuple[list[str], str]] = []
        seen: set[str] = set()
        for record in self._records(method):
            images = [str(image) for image in record.images if isinstance(image, (str, Path))]
            text = _text(record, method)
            if len(images) != len(record.images) or not text or images[0] in seen:
                continue
            if all(Path(image).is_file() for image in images):
                seen.update(images)
                found.append((images, text))
            if len(found) == _COUNT:
                break
        return found

    def _records(self, method: str) -> Iterator[Record]:
        if self._data is None or not self._data.exists():
            return
        for source in _SOURCES.get(method, ()):
            for split in self._splits:
                try:
                    records = open_source(source, self._data, split)
                # Data that cannot be read has no examples; training has named what is wrong.
                except (OSError, ValueError):
                    continue
                for index in range(min(len(records), _MOST_RECORDS)):
                    yield records[index]
                return


def _trained_on(model: Any) -> TrainedOn | None:
    """Return the local data of the first stage that was trained on some."""
    stages = getattr(model, "stages", {"": model})
    known = (getattr(stage, "trained_on", None) for stage in stages.values())
    return next((each for each in known if each is not None), None)


def _text(record: Record, method: str) -> str:
    if method == "detect":
        return "; ".join(record.labels[:_MOST_LABELS])
    if method in ("ground", "segment") and record.labels:
        return "; ".join(dict.fromkeys(record.labels))
    return record.text
