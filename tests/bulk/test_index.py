"""`fiber.Index`: search, filters, changes, and what is refused."""

import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import fiber
from fiber.bulk import sources, store
from fiber.bulk.duplicates import similar_groups
from fiber.bulk.index import Index
from fiber.bulk.output import unit_file
from fiber.bulk.store import exact_search, writing
from fiber.data import open_source
from fiber.evaluation.evaluate import evaluate
from fiber.inference import MissingHeadError

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def embedded(made_once, coarse, small_scenes):
    """Embeddings of the 24 held-out scenes."""
    return (
        made_once(
            "bulk_embedded",
            lambda folder: fiber.map(
                small_scenes, "embed", folder / "data", model=coarse, split="val+novel"
            ),
        )
        / "data"
    )


@pytest.fixture
def index(embedded, coarse, tmp_path):
    return Index.create(tmp_path / "index", embedded, model=coarse)


def unit_vectors(count, width, seed=0):
    values = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def search_all(matrices, queries, top_k, usable=None):
    return exact_search(matrices, queries, top_k, usable, map)


def expected_ranks(matrix, queries, top_k, usable=None):
    """Ranks of a plain argsort over the stored rows."""
    scores = queries @ matrix.astype(np.float32).T
    if usable is not None:
        scores[:, ~usable] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :top_k], scores


@pytest.mark.parametrize("counts", [(0,), (1,), (5,), (40, 0, 61), (10_000,)])
@pytest.mark.parametrize("top_k", [1, 10, 1000])
def test_exact_search_is_an_argsort(counts, top_k, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_ROWS", 64 if sum(counts) < 1000 else 32_768)
    matrices = [
        unit_vectors(count, 24, seed).astype(np.float16) for seed, count in enumerate(counts)
    ]
    queries = unit_vectors(3, 24, 9)
    rows, scores = search_all(matrices, queries, top_k)
    expected, products = expected_ranks(np.concatenate(matrices), queries, top_k)
    assert rows.shape == scores.shape == (3, min(top_k, sum(counts)))
    found = np.take_along_axis(products, rows, 1)
    # Blocks may sum in another order, so that rows with nearly equal products change places.
    np.testing.assert_allclose(found, np.take_along_axis(products, expected, 1), atol=1e-6)
    np.testing.assert_allclose(scores, found, atol=1e-6)
    assert all(len(set(own)) == len(own) for own in rows.tolist())


def test_of_equal_rows_the_first_is_found():
    matrix = np.repeat(unit_vectors(3, 8), 50, axis=0).astype(np.float16)
    rows, _ = search_all([matrix], matrix[:1].astype(np.float32), 4)
    assert rows.tolist() == [[0, 1, 2, 3]]


def test_only_usable_rows_are_found():
    matrix = unit_vectors(500, 8).astype(np.float16)
    usable = np.arange(500) % 7 == 3
    queries = unit_vectors(2, 8, 5)
    rows, _ = search_all([matrix], queries, 5, usable)
    assert (rows == expected_ranks(matrix, queries, 5, usable)[0]).all()
    rows, _ = search_all([matrix], queries, 5, np.zeros(500, bool))
    assert rows.shape == (2, 0)


def test_a_text_an_image_and_vectors(index, coarse):
    images = [hit.image for hit in index.search(like=index_image(index, 3), top_k=24)]
    assert len(images) == len(set(images)) == 24
    assert images[0] == index_image(index, 3)
    hits = index.search("a red star", 5, rerank=False)
    stored = np.concatenate(index._store.matrices).astype(np.float32)
    expected = stored @ coarse.embed_texts("a red star")
    assert [hit.row for hit in hits] == np.argsort(-expected, kind="stable")[:5].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:5], atol=1e-6)
    several = index.search(stored[:2], 1)
    assert [own[0].row for own in several] == [0, 1]


def index_image(index, row):
    return index._store.columns["image"][row].as_py()


def test_the_best_are_reranked_by_itm(index, coarse):
    hits = index.search("a red star", 3, candidates=6)
    best = index.search("a red star", 6, rerank=False)
    scores = {hit.image: coarse.match(hit.image, "a red star") for hit in best}
    assert {hit.image for hit in hits} <= set(scores)
    np.testing.assert_allclose(
        [hit.score for hit in hits], sorted(scores.values())[::-1][:3], atol=1e-5
    )


def test_conditions_choose_rows(index):
    rows = index._store.columns.to_pylist()
    key = rows[5]["key"]
    assert [hit.key for hit in index.search("a star", where=f"key = '{key}'")] == [key]
    assert index.search("a star", where="width > 10000") == []
    hits = index.search("a star", where="record >= 0 and not width > 10000", rerank=False)
    assert len(hits) == 20
    with pytest.raises(ValueError, match=r"hight.*height"):
        index.search("a star", where="hight > 3")
    with pytest.raises(ValueError, match="number"):
        index.search("a star", where="width = 'wide'")


def test_the_same_is_added_once(index, embedded):
    before = len(index)
    assert index.add(embedded) == 0
    assert len(index) == before == 24
    assert len(index._store.about["segments"]) == 1


def test_what_is_added_is_found_at_once(index, coarse, small_scenes, tmp_path):
    fiber.map(small_scenes, "embed", tmp_path / "train", model=coarse, split="train")
    assert index.add(tmp_path / "train") == 30
    assert len(index) == 54
    image = index_image(index, 40)
    assert index.search(like=image, top_k=1)[0].image == image
    before = [hit.key for hit in index.search("a red star", 10)]
    index.optimize()
    assert len(index._store.about["segments"]) == 1
    assert [hit.key for hit in index.search("a red star", 10)] == before
    shutil.copytree(index.folder, tmp_path / "copy")
    copied = Index.open(tmp_path / "copy", coarse)
    assert [hit.key for hit in copied.search("a red star", 10)] == before


def test_deleted_rows_are_not_found(index, embedded, coarse):
    image = index_image(index, 3)
    hit = index.search(like=image, top_k=1)[0]
    assert index.delete(keys=[hit.key]) == 1
    assert index.delete(keys=[hit.key]) == 0
    assert index.search(like=image, top_k=1)[0].key != hit.key
    assert len(index) == len(Index.open(index.folder)) == 23
    # What was deleted may be added again.
    assert index.add(embedded) == 1
    assert index.search(like=image, top_k=1)[0].key == hit.key
    index.delete(where=f"key != '{hit.key}'")
    assert len(index) == 1
    index.optimize()
    assert len(index) == 1
    assert sorted(path.suffix for path in (index.folder / "vectors").iterdir()) == [".f16"]
    assert not list(index.folder.glob("deleted-*"))
    assert index.search(like=image)[0].key == hit.key
    index.delete(where="record >= 0")
    index.optimize()
    assert index.search(like=image) == []


def test_duplicates(index, coarse, mixed_images, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("00", "01", "02"):
        shutil.copy(mixed_images / f"{name}.png", images)
    for copy in ("a", "b"):
        shutil.copy(mixed_images / "01.png", images / f"01-{copy}.png")
    fiber.map(images, "embed", tmp_path / "vectors", model=coarse)
    own = Index.create(tmp_path / "own", tmp_path / "vectors", model=coarse)
    (group, *_) = own.duplicates(1.0)
    assert {"01.png", "01-a.png", "01-b.png"} <= {hit.key for hit in group}
    for wrong in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="similarity"):
            own.duplicates(wrong)


def test_groups_are_connected():
    angles = np.deg2rad([0, 100, 5, 10, 200, 205, 15])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    similarity = np.cos(np.deg2rad(6))
    assert similar_groups(vectors, similarity) == [[0, 2, 3, 6], [4, 5]]
    assert similar_groups(vectors[:0], similarity) == []


def test_another_model_is_refused_by_name(index, embedded, coarse, fine, micro_models, tmp_path):
    import torch

    other = fiber.load(micro_models["coarse"], device="cpu")
    with torch.no_grad():
        next(other.network.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"another model or another version"):
        Index.open(index.folder, other).search("a star")
    with pytest.raises(MissingHeadError):
        Index.open(index.folder, fine).search("a star")
    fiber.map(tmp_path_images(tmp_path), "embed", tmp_path / "other", model=other)
    with pytest.raises(ValueError, match="fingerprint"):
        index.add(tmp_path / "other")
    assert len(index) == 24


def tmp_path_images(tmp_path):
    from tests.bulk.conftest import save_images

    save_images(tmp_path / "few", 2)
    return tmp_path / "few"


def test_results_of_another_task_are_refused(coarse, mixed_images, tmp_path, monkeypatch, index):
    monkeypatch.setattr(sources, "UNIT_RECORDS", 10)
    fiber.map(mixed_images, "caption", tmp_path / "captions", model=coarse, num_beams=1)
    with pytest.raises(ValueError, match=r"caption.*embed"):
        Index.create(tmp_path / "new", tmp_path / "captions")
    fiber.map(mixed_images, "embed", tmp_path / "half", model=coarse, rank=0, ranks=2)
    with pytest.raises(ValueError, match="1 of 3 units are missing"):
        index.add(tmp_path / "half")
    with pytest.raises(FileNotFoundError):
        index.add(tmp_path / "nothing")


def test_vectors_that_are_not_normalized_are_refused(embedded, coarse, tmp_path):
    shutil.copytree(embedded, tmp_path / "data")
    path = unit_file(tmp_path / "data", 0)
    table = pyarrow.parquet.read_table(path)
    values = table["embedding"].combine_chunks().flatten().to_numpy() * 2
    column = pyarrow.FixedSizeListArray.from_arrays(values, coarse.network.embedding_width)
    place = table.schema.get_field_index("embedding")
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(place), column), path)
    with pytest.raises(ValueError, match=r"not normalized.*2"):
        Index.create(tmp_path / "index", tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "other"}, "has another format"),
        ({"version": 9}, "version 9"),
        ({"width": "many"}, "width"),
        ({"width": 31}, "bytes"),
        ({"segments": [{"name": "../../etc", "rows": 1}]}, "segment"),
        ({"segments": [{"name": "000007", "rows": 1}]}, "no file"),
        ({"deleted": "../deleted.npy"}, "deleted"),
    ],
)
def test_damaged_indexes(index, changes, named):
    path = index.folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=named):
        Index.open(index.folder)


def test_a_folder_that_is_no_index(tmp_path, embedded):
    with pytest.raises(FileNotFoundError, match="fiber index"):
        Index.open(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"index\.json"):
        Index.create(tmp_path, embedded)


def test_a_crash_while_adding_leaves_the_index_as_it_was(index, coarse, tmp_path, monkeypatch):
    fiber.map(tmp_path_images(tmp_path), "embed", tmp_path / "more", model=coarse)
    monkeypatch.setattr(store.Store, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        index.add(tmp_path / "more")
    monkeypatch.undo()
    opened = Index.open(index.folder, coarse)
    assert len(opened) == 24
    assert opened.add(tmp_path / "more") == 2
    assert len(list((index.folder / "vectors").iterdir())) == 2


def test_one_process_changes_an_index_at_a_time(index):
    with writing(index.folder), pytest.raises(BlockingIOError, match="another process"):
        index.delete(where="width > 3")


def test_images_that_changed_are_named(coarse, mixed_images, tmp_path):
    shutil.copytree(mixed_images, tmp_path / "images")
    fiber.map(tmp_path / "images", "embed", tmp_path / "vectors", model=coarse)
    index = Index.create(tmp_path / "index", tmp_path / "vectors", model=coarse)
    (tmp_path / "images" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"has changed since it was embedded: record"):
        index.search("a star", 20)
    assert len(index.search("a star", 20, rerank=False)) == 20


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        ((), {}, ValueError, "either a query or like"),
        (("a",), {"like": "b.jpg"}, ValueError, "either a query or like"),
        (("a", 0), {}, ValueError, "top_k"),
        (("  ",), {}, ValueError, "empty"),
        ((3,), {}, TypeError, "query"),
        ((np.zeros((2, 3), np.float32),), {}, ValueError, r"\(2, 3\)"),
        ((np.zeros(32, int),), {}, TypeError, "float"),
        (("a",), {"candidates": 0}, ValueError, "top_k"),
        (("a",), {"where": 3}, TypeError, "where"),
    ],
)
def test_wrong_arguments(index, arguments, options, error, named):
    with pytest.raises(error, match=named):
        index.search(*arguments, **options)


def test_wrong_deletions(index):
    for options in ({}, {"where": "width > 3", "keys": []}):
        with pytest.raises(ValueError, match="either where or keys"):
            index.delete(**options)
    with pytest.raises(TypeError, match="keys"):
        index.delete(keys="one")
    assert index.delete(keys=["unknown"]) == 0


def test_ranks_are_those_of_the_evaluation(small_scenes, tmp_path):
    """`fiber eval retrieval` computes with float32."""
    model = fiber.load("scenes", device="cpu")
    fiber.map(small_scenes, "embed", tmp_path / "val", model=model, split="val")
    index = Index.create(tmp_path / "index", tmp_path / "val", model=model)
    records = open_source("captions", small_scenes, "val")
    metrics = evaluate(model, "retrieval", small_scenes, split="val", rerank=True, candidates=12)
    for rerank, prefix in ((False, ""), (True, "reranked/")):
        found = []
        for record in records:
            hits = index.search(record.text, 1, rerank=rerank)
            found.append(hits[0].image == record.image_id)
        expected = metrics[f"{prefix}text_to_image_recall_at_1"]
        assert np.mean(found) == pytest.approx(expected, abs=1e-6)
        assert expected > 0.5


def test_commands(micro_models, small_scenes, tmp_path, capsys):
    from fiber.cli import main

    model, out = str(micro_models["coarse"]), str(tmp_path / "index")
    given = ["--model", model, "--split", "val", "--device", "cpu"]
    for new in (12, 0):
        assert main(["index", str(small_scenes), "--output", out, *given]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"output": out, "rows": 12, "new": new, "errors": 0}
    assert not list((tmp_path / "index").glob(".embedded"))
    asked = ["--index", out, "--top-k", "3", "--save", str(tmp_path / "sheet"), "--device", "cpu"]
    assert main(["search", "a red star", *asked, "--where", "width > 10"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3]
    assert {"key", "image", "score", "width", "text", "query"} <= set(lines[0])
    from PIL import Image

    with Image.open(tmp_path / "sheet" / "sheet.png") as sheet:
        assert sheet.width > 500
    assert main(["search", "--like", lines[0]["image"], *asked]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["image"] == lines[0]["image"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "--index", "i", "b.jpg"], "got both"),
        (["a", "--index", "i"], "no index"),
        (["a", "--index", "i", "--like", "b.jpg"], "either a text or --like"),
        (["a", "b.jpg", "--where", "width > 3"], "--where is for an index"),
        (["a", "b.jpg", "--like", "c.jpg"], "--like is for an index"),
        (["--like", "c.jpg", "--index", "i", "--candidates", "3"], "--candidates"),
        (["a"], "IMAGE"),
        (["--index", "i"], "TEXT"),
    ],
)
def test_wrong_commands(capsys, tmp_path, monkeypatch, arguments, named):
    from fiber.cli import main

    monkeypatch.chdir(tmp_path)
    try:
        code = main(["search", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert named in capsys.readouterr().err


def test_images_of_a_command_line_may_follow_options(micro_models, small_scenes, capsys):
    from fiber.cli import main

    image = next((small_scenes / "images" / "val").rglob("*.jpg"))
    model = ["--model", str(micro_models["coarse"]), "--device", "cpu"]
    assert main(["search", "a star", "--top-k", "2", *model, str(image)]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(image)
