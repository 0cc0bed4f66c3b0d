"""`fiber.Index`: search in the embeddings of many images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fiber.atomic_io import write_file
from fiber.bulk.annotator import Annotator
from fiber.bulk.duplicates import similar_groups
from fiber.bulk.map import model_fingerprint
from fiber.bulk.output import read_complete, unit_file
from fiber.bulk.parquet import read_rows, read_table_of, require_arrow, vectors_in
from fiber.bulk.sources import reopen
from fiber.bulk.store import (
    FILE,
    SOURCE_FIELDS,
    Store,
    nearest_rows,
    next_deleted,
    remove_unused,
    write_index,
    write_segment,
    writing,
)
from fiber.bulk.where import column_kinds, parse_where
from fiber.data.record import AnyPath, RecordSet
from fiber.inference.inputs import check_top_k, not_empty
from fiber.messages import shown

#: Default number of images that are reranked.
CANDIDATES = 100
#: Default least cosine similarity of duplicates.
DUPLICATE_SIMILARITY = 0.97
#: Rows that are copied at a time.
_COPY_ROWS = 65536


@dataclass(frozen=True)
class IndexHit:
    """An image that was found."""

    #: Number of the row in the index, until `optimize`.
    row: int
    key: str
    #: Path of the image, or its id.
    image: str | None
    #: Cosine similarity, or with reranking the probability by ITM that text and image match.
    score: float
    #: All columns of the row.
    columns: Mapping[str, Any] = field(repr=False)


class Index:
    """Embeddings of images in a folder, with columns, and the model that made them.

    Args:
        folder: folder of an index; see `open` and `create`.
        model: path or name of the model, or a model. Default: the one that the index names.
        options: options of loading the model, such as `device`.

    Raises:
        FileNotFoundError: if there is no index.
        ModuleNotFoundError: if pyarrow is not installed.
        ValueError: if it is of another program or version, or a file is damaged.
    """

    def __init__(self, folder: AnyPath, model: Any = None, **options: Any) -> None:
        self.folder = Path(folder)
        self._store = Store(self.folder)
        name = self._store.about["model"].get("name")
        self._annotator = Annotator(name if model is None else model, "embed", **options)
        self._is_checked = False
        self._sources: dict[int, RecordSet] = {}

    @classmethod
    def open(cls, folder: AnyPath, model: Any = None, **options: Any) -> Index:
        """Open an index; arguments and errors are those of the class."""
        return cls(folder, model, **options)

    @classmethod
    def create(cls, folder: AnyPath, embedded: AnyPath, **options: Any) -> Index:
        """Make an index of what `fiber map --task embed` wrote, or add that to one that exists.

        Raises:
            FileExistsError: if the folder has other files.
            ValueError: as `add`.
        """
        path = Path(folder)
        if not (path / FILE).exists():
            about = read_complete(Path(embedded), "embed")
            if path.exists() and any(not each.name.startswith(".") for each in path.iterdir()):
                raise FileExistsError(f"{path} has files but no {FILE}; expected a new folder")
            with writing(path):
                fields = {"model": about["model"], "width": _width(Path(embedded), about)}
                write_index(path, {**fields, "sources": [], "segments": [], "deleted": None})
        index = cls(path, **options)
        index.add(embedded)
        return index

    def __len__(self) -> int:
        return int(self._store.alive().sum())

    def __repr__(self) -> str:
        name = self._store.about["model"].get("name")
        return f"Index({str(self.folder)!r}, {len(self)} images, model {name!r})"

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._store.columns.schema.names) if self._store.count else []

    @property
    def model(self) -> Any:
        """The model, which is loaded on first use.

        Raises:
            ValueError: if it is another model, or another version of it, than that of the index.
        """
        if not self._is_checked:
            about = self._store.about["model"]
            found = model_fingerprint(self._annotator.stage)
            if found != about["fingerprint"]:
                raise ValueError(
                    f"{self.folder} has embeddings of the model {shown(about['name'])} with the"
                    f" fingerprint {about['fingerprint'][:12]}; got {self._annotator.name} with"
                    f" {found[:12]}, another model or another version of it"
                )
            self._is_checked = True
        return self._annotator.model

    def add(self, embedded: AnyPath) -> int:
        """Add what `fiber map --task embed` wrote; return the number of rows that are new.

        Rows whose key and image are in the index are skipped, so a call that is repeated adds
        nothing. New rows are found at once.

        Raises:
            BlockingIOError: if another process changes the index.
            FileNotFoundError: if `embedded` is no folder of `fiber map`.
            ValueError: if that is of another task or model, or not complete.
        """
        folder = Path(embedded)
        about = read_complete(folder, "embed")
        model = self._store.about["model"]
        if about["model"]["fingerprint"] != model["fingerprint"]:
            raise ValueError(
                f"{folder} has embeddings of the model {shown(about['model']['name'])} with the"
                f" fingerprint {about['model']['fingerprint'][:12]}; the index has those of"
                f" {shown(model['name'])} with {model['fingerprint'][:12]}"
            )
        with writing(self.folder):
            self._store = Store(self.folder)
            source = {name: about["source"][name] for name in SOURCE_FIELDS}
            sources = list(self._store.about["sources"])
            if source not in sources:
                sources.append(source)
            name, number = self._store.next_name(), sources.index(source)
            parts = self._new_parts(folder, about, number)
            rows = write_segment(self.folder, name, self._store.width, parts)
            if rows:
                segments = [*self._store.about["segments"], {"name": name, "rows": rows}]
                self._store.save({"sources": sources, "segments": segments})
            self._reload()
            remove_unused(self.folder, self._store.about)
        return rows

    def _new_parts(
        self, folder: Path, about: Mapping[str, Any], source: int
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield vectors and columns of each unit, without rows that are in the index."""
        arrow, _ = require_arrow("fiber.Index")
        known = set[tuple[str, str]]()
        if self._store.count:
            alive = self._store.columns.filter(arrow.array(self._store.alive()))
            known.update(zip(alive["key"].to_pylist(), alive["image"].to_pylist(), strict=True))
        for unit in range(about["source"]["units"]):
            path = unit_file(folder, unit)
            table = read_rows(path)
            if known:
                pairs = zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True)
                table = table.filter(
                    arrow.array([pair not in known for pair in pairs], arrow.bool_())
                )
            vectors = vectors_in(table, "embedding", path)
            numbers = arrow.array(np.full(len(table), source, np.int32))
            columns = table.drop_columns(["embedding"]).append_column("source", numbers)
            yield vectors, columns

    def search(
        self,
        query: str | np.ndarray | None = None,
        top_k: int = 20,
        *,
        like: Any = None,
        where: str | None = None,
        rerank: bool | None = None,
        candidates: int | None = None,
    ) -> Any:
        """Find the images that are most similar to a text, an image or vectors, best first.

        Args:
            query: a text, or (D,) or (Q, D) float vectors of unit length.
            top_k: maximum number of hits.
            like: an image instead of a text.
            where: condition on the columns, such as "width > 800 and text is not null"
                (`fiber.bulk.where`). Only rows for which it is true are found.
            rerank: rerank the best images of a text by ITM, each with one pass of the image
                encoder. Default: True for a text if the model has ITM.
            candidates: number of images to rerank (default: 100), at least `top_k`.

        Returns:
            A list of hits; for (Q, D) vectors, a list of such lists.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if neither or both of `query` and `like` are given, the condition is wrong,
                the model is not that of the index, or an image to rerank cannot be read.
        """
        check_top_k(top_k)
        if (query is None) == (like is None):
            raise ValueError("search: expected either a query or like, an image")
        is_text = isinstance(query, str)
        if rerank and not is_text:
            raise ValueError("search: only hits of a text can be reranked")
        usable = self._usable(where)
        if is_text and rerank is not False:
            can_rerank = "itm" in self.model.heads
            if rerank and not can_rerank:
                self.model.need_head("itm", "search with rerank")
            rerank = can_rerank
        if not is_text and candidates is not None:
            raise ValueError(f"search: candidates={candidates} is for a text, which is reranked")
        if candidates is not None:
            check_top_k(candidates)
        vectors = self._vectors(query if like is None else None, like)
        most = max(top_k, candidates or CANDIDATES) if rerank else top_k
        found = self._nearest(np.atleast_2d(vectors), most, usable)
        hits = [self._hits(rows, scores) for rows, scores in zip(*found, strict=True)]
        if rerank and is_text:
            return self._reranked(str(query), hits[0])[:top_k]
        return hits[0] if vectors.ndim == 1 else hits

    def _vectors(self, query: Any, like: Any) -> np.ndarray:
        if like is not None:
            self.model  # noqa: B018 (compares it with that of the index)
            return self._annotator.stage.embed_images(like)
        if isinstance(query, str):
            text = not_empty([query], "query")[0]
            self.model  # noqa: B018
            return self._annotator.stage.embed_texts(text)
        if not isinstance(query, np.ndarray) or query.dtype.kind != "f":
            raise TypeError(f"search: query must be a text or a float array, got {shown(query)}")
        if query.ndim not in (1, 2) or query.shape[-1] != self._store.width:
            raise ValueError(
                f"search: query has shape {query.shape}; expected ({self._store.width},) or (Q,"
                f" {self._store.width})"
            )
        return query.astype(np.float32)

    def _usable(self, where: str | None) -> np.ndarray | None:
        """Return (N,) bools, the rows that may be found, or None for all."""
        alive = self._store.alive() if self._store.about.get("deleted") else None
        if where is None:
            return alive
        mask = self._matching(where)
        return mask if alive is None else mask & alive

    def _matching(self, where: str) -> np.ndarray:
        if not self._store.count:
            raise ValueError(f"where: {self.folder} has no rows, and thus no columns")
        table = self._store.columns
        condition = parse_where(where, column_kinds(table.schema))
        return condition.mask(table.select(sorted(condition.columns())))

    def _nearest(
        self, queries: np.ndarray, top_k: int, usable: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = None
        matrices: Sequence[np.ndarray] = self._store.matrices
        if usable is not None and usable.mean() < 0.1:
            # Few rows are read on their own.
            rows = np.flatnonzero(usable)
            matrices, usable = [self._store.rows(rows)], None
        found, scores = nearest_rows(matrices, queries, top_k, usable)
        return (found if rows is None else rows[found]), scores

    def _hits(self, rows: np.ndarray, scores: np.ndarray) -> list[IndexHit]:
        if not len(rows):
            return []
        values = self._store.columns.take(rows).to_pylist()
        return [
            IndexHit(int(row), own["key"], own["image"], float(score), own)
            for row, score, own in zip(rows, scores, values, strict=True)
        ]

    def _reranked(self, text: str, hits: list[IndexHit]) -> list[IndexHit]:
        if not hits:
            return []
        images = [self.image(hit) for hit in hits]
        count = len(hits)
        found = self.model.search(text, images, count, rerank=True, candidates=count)
        return [
            IndexHit(hit.row, hit.key, hit.image, each.score, hit.columns)
            for each in found
            for hit in (hits[each.index],)
        ]

    def image(self, hit: IndexHit) -> Any:
        """Return the image of a hit as stored: a path, or bytes.

        Raises:
            FileNotFoundError, ValueError: if the source has moved or changed; the message names it.
        """
        number, record = hit.columns["source"], hit.columns["record"]
        sources = self._store.about["sources"]
        if not 0 <= number < len(sources):
            raise ValueError(
                f"{self.folder / FILE} has {len(sources)} sources; row {hit.row} is of number"
                f" {number}"
            )
        about = sources[number]
        if number not in self._sources:
            self._sources[number] = reopen(about, f"{self.folder / FILE}: sources.{number}")
        records = self._sources[number]
        if not 0 <= record < len(records) or (found := records[record]).key != hit.key:
            raise ValueError(
                f"{self.folder}: {about['data']} has changed since it was embedded: record {record}"
                f" is no longer {shown(hit.key)}; embed it again"
            )
        return found.images[0]

    def delete(self, where: str | None = None, *, keys: Sequence[str] | None = None) -> int:
        """Delete the rows that match a condition, or have one of the keys; return their number.

        Their vectors stay in the files until `optimize`.

        Raises:
            BlockingIOError: if another process changes the index.
            ValueError: if neither or both are given, or the condition is wrong.
        """
        if (where is None) == (keys is None):
            raise ValueError("delete: expected either where or keys")
        with writing(self.folder):
            self._store = Store(self.folder)
            if where is not None:
                mask = self._matching(where)
            elif isinstance(keys, str) or not all(isinstance(key, str) for key in keys or ()):
                raise TypeError(f"delete: keys must be a list of str, got {shown(keys)}")
            else:
                given = set(keys or ())
                there = self._store.columns["key"].to_pylist() if self._store.count else []
                mask = np.array([key in given for key in there], bool)
            alive = self._store.alive()
            count = int((mask & alive).sum())
            if count:
                self._write_deleted(~alive | mask)
        return count

    def _write_deleted(self, deleted: np.ndarray) -> None:
        name = next_deleted(self._store.about.get("deleted"))

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, deleted)
                file.flush()
                os.fsync(file.fileno())

        write_file(self.folder / name, write)
        self._store.save({"deleted": name})
        self._reload()
        remove_unused(self.folder, self._store.about)

    def optimize(self) -> None:
        """Write all rows as one segment, without those that are deleted.

        Other processes that have the index open keep reading the old files; they find the same
        images until they open it again.

        Raises:
            BlockingIOError: if another process changes the index.
        """
        arrow, _ = require_arrow("fiber.Index")
        with writing(self.folder):
            self._store = Store(self.folder)
            kept = np.flatnonzero(self._store.alive())
            if len(self._store.about["segments"]) > 1 or len(kept) < self._store.count:
                name = self._store.next_name()

                def parts() -> Iterator[tuple[np.ndarray, Any]]:
                    for first in range(0, max(len(kept), 1), _COPY_ROWS):
                        some = kept[first : first + _COPY_ROWS]
                        yield self._store.rows(some), self._store.columns.take(arrow.array(some))

                rows = write_segment(self.folder, name, self._store.width, parts())
                self._store.save({"segments": [{"name": name, "rows": rows}], "deleted": None})
            self._reload()
            remove_unused(self.folder, self._store.about)

    def duplicates(self, similarity: float = DUPLICATE_SIMILARITY) -> list[list[IndexHit]]:
        """Find groups of images whose embeddings are nearly the same.

        An image belongs to a group if it is similar to any other image of it.

        Args:
            similarity: least cosine similarity of two images, above 0 and at most 1.

        Returns:
            Groups of two or more hits by ascending row, larger groups first; `score` is the
            similarity to the first image of the group.

        Raises:
            ValueError: if `similarity` is out of range.
        """
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, got {shown(similarity)}")
        rows = np.flatnonzero(self._store.alive())
        vectors = self._store.rows(rows).astype(np.float32)
        # Their lengths were rounded to float16, and products are rounded to float32.
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        groups = similar_groups(vectors, similarity - 1e-6)
        return [self._hits(rows[g], vectors[g] @ vectors[g[0]]) for g in groups]

    def _reload(self) -> None:
        self._store = Store(self.folder)
        self._sources = {}


def _width(folder: Path, about: Mapping[str, Any]) -> int:
    if not about["source"]["units"]:
        raise ValueError(f"{folder} has no records; expected embeddings of images")
    path = unit_file(folder, 0)
    return vectors_in(read_table_of(path, ["embedding"]), "embedding", path).shape[1]
