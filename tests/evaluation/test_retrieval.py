"""Re-ranked retrieval against scores of single passes, ordered by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fiber.checkpoints.model_dir import StoredModel
from fiber.config import ImageTextConfig, preset
from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext
from fiber.evaluation.evaluate import evaluate
from fiber.models.registry import build_model
from fiber.tasks.image_text.retrieval import retrieval
from tests.evaluation.measured import pixels_of
from tests.metrics.recall import recall_at_k
from tests.models.encoders.test_swin import randomise
from tests.training.micro_runs import all_records, colour_of

PICTURES = 5


@pytest.fixture(scope="module")
def stored(pictures):
    """A model whose every parameter matters."""
    tokenizer = Tokenizer.from_file(str(pictures / "tokenizer.json"))
    model = build_model(preset("micro").with_vocabulary(tokenizer.vocab_size)).eval()
    randomise(model)
    return StoredModel(network=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def records(pictures):
    """Five pictures; the first has three captions, the second two."""
    found = []
    for number, record in enumerate(all_records(pictures)["image_text"][:PICTURES]):
        said = [record.text, f"{colour_of(number + 1)} number a", "square"][: max(1, 3 - number)]
        found += [
            Record(key=f"{number}/{text}", images=record.images, image_id=f"p{number}", text=text)
            for text in said
        ]
    return found


@pytest.fixture(scope="module")
def dense(stored, records):
    """(P, T) cosines and log odds, one picture and one text at a time; and the owners."""
    model, tokenizer = stored.network, stored.tokenizer
    owners = np.array([int(record.image_id[1:]) for record in records])
    shown = {record.image_id: pixels_of(record.images[0], model) for record in records}
    texts = [torch.tensor([tokenizer.encode(record.text)[0]]) for record in records]
    cosines, log_odds = np.zeros((2, PICTURES, len(records)))
    with torch.no_grad():
        for row, images in enumerate(shown.values()):
            for column, ids in enumerate(texts):
                mask = ids >= 0
                vector = model.embed_texts(ids, mask)[0]
                cosines[row, column] = model.embed_images(images)[0] @ vector
                pooled = model.pooled(model.backbone.encode_pair(images, ids, mask))
                logits = model.itm_logits(pooled)[0]
                log_odds[row, column] = logits[1] - logits[0]
    return cosines, log_odds, owners


def measure(stored, records, tmp_path, **options):
    path = tmp_path / "found.json"
    options = {"rerank": None if "candidates" in options else False} | options
    metrics = evaluate(stored, "retrieval", data=records, output=path, threads=1, **options)
    return metrics, json.loads(path.read_text())


def reranked_metrics(metrics):
    return {
        name.removeprefix("reranked/"): value
        for name, value in metrics.items()
        if name.startswith("reranked/")
    }


@pytest.mark.parametrize("candidates", [8, 10**9])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_all_candidates_give_what_exhaustive_matching_gives(
    stored, records, dense, tmp_path, candidates, batch_size
):
    cosines, log_odds, owners = dense
    metrics, predictions = measure(
        stored, records, tmp_path, candidates=candidates, batch_size=batch_size
    )
    assert reranked_metrics(metrics) == recall_at_k(log_odds, owners)
    first = {name: value for name, value in metrics.items() if "/" not in name}
    assert first == recall_at_k(cosines, owners)
    best = np.argsort(-log_odds, axis=0, kind="stable").T
    assert [entry["image_ids"] for entry in predictions] == [
        [f"p{place}" for place in row] for row in best
    ]


@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_the_best_ones_only_are_ordered_again(stored, records, dense, tmp_path, candidates):
    cosines, log_odds, owners = dense

    def ordered(axis):
        """Scores that put the k best first, ordered by matching, the others as they were."""
        order = np.argsort(-cosines, axis=axis, kind="stable")
        places = np.argsort(order, axis=axis, kind="stable")
        return np.where(places < candidates, 1000 + log_odds, -places)

    by_text, by_image = ordered(0), ordered(1)
    expected = recall_at_k(by_text, owners) | {
        name: value
        for name, value in recall_at_k(by_image, owners).items()
        if name.startswith("image_to_text")
    }
    metrics, predictions = measure(stored, records, tmp_path, candidates=candidates)
    assert reranked_metrics(metrics) == expected
    best = np.argsort(-by_text, axis=0, kind="stable").T
    assert [entry["image_ids"] for entry in predictions] == [
        [f"p{place}" for place in row] for row in best
    ]


def test_without_reranking_contrast_decides(stored, records, dense, tmp_path):
    cosines, _, owners = dense
    metrics, predictions = measure(stored, records, tmp_path)
    assert metrics == recall_at_k(cosines, owners)
    best = np.argsort(-cosines, axis=0, kind="stable").T
    assert predictions[0] == {"key": records[0].key, "image_ids": [f"p{p}" for p in best[0]]}


def test_prefixes_run_once(stored, records, tmp_path, monkeypatch):
    backbone, rows = stored.network.backbone, {"image_prefix": 0, "text_prefix": 0, "fuse": 0}

    def counted(name):
        run = getattr(backbone, name)

        def count(first, *rest, **options):
            rows[name] += len(first.tokens if name == "fuse" else first)
            return run(first, *rest, **options)

        return count

    for name in rows:
        monkeypatch.setattr(backbone, name, counted(name))
    measure(stored, records, tmp_path, candidates=100)
    # A picture once for its vector and once for all of its pairs; a pair once for both ways.
    assert rows == {
        "image_prefix": 2 * PICTURES,
        "text_prefix": len(records),
        "fuse": PICTURES * len(records),
    }


@pytest.mark.parametrize(
    ("task", "heads", "candidates", "message"),
    [
        ("matching", ("itm",), 3, "candidates is 3, but task 'matching'"),
        ("retrieval", ("itc", "itm"), -1, "candidates is -1; expected 1 or more"),
        ("retrieval", ("itc", "itm"), 0, "candidates is 0; expected 1 or more"),
    ],
)
def test_what_cannot_be_ordered_again(stored, records, task, heads, candidates, message):
    config = preset("micro").with_vocabulary(stored.tokenizer.vocab_size)
    model = build_model(dataclasses.replace(config, image_text=ImageTextConfig(heads=heads)))
    other = StoredModel(network=model, tokenizer=stored.tokenizer)
    with pytest.raises(ValueError, match=message):
        evaluate(other, task, data=records, candidates=candidates)


def test_candidates_need_the_matching_head(stored, records):
    config = preset("micro").with_vocabulary(stored.tokenizer.vocab_size)
    model = build_model(dataclasses.replace(config, image_text=ImageTextConfig(heads=("itc",))))
    other = StoredModel(network=model, tokenizer=stored.tokenizer)
    with pytest.raises(ValueError, match="3 candidates requires the head 'itm'"):
        retrieval(EvalContext.of(other, candidates=3), records)


@pytest.fixture(scope="module")
def matching_alone(stored):
    """The same model without the head of contrast, as fine-tuning by matching leaves it."""
    config = stored.network.config
    heads = tuple(head for head in config.image_text.heads if head != "itc")
    config = dataclasses.replace(
        config, image_text=dataclasses.replace(config.image_text, heads=heads)
    )
    model = build_model(config).eval()
    missing, _ = model.load_state_dict(stored.network.state_dict(), strict=False)
    assert not missing
    return StoredModel(network=model, tokenizer=stored.tokenizer)


def test_matching_alone_ranks_every_pair(matching_alone, records, dense, tmp_path):
    _, log_odds, owners = dense
    with pytest.warns(UserWarning, match="ranking with 'itm' only"):
        metrics, predictions = measure(matching_alone, records, tmp_path, candidates=10**9)
    assert metrics == recall_at_k(log_odds, owners)
    best = np.argsort(-log_odds, axis=0, kind="stable").T
    assert [entry["image_ids"] for entry in predictions] == [
        [f"p{place}" for place in row] for row in best
    ]


@pytest.mark.parametrize("candidates", [0, 3])
def test_matching_alone_has_no_candidates_to_choose(matching_alone, records, candidates):
    with pytest.raises(
        ValueError, match=rf"candidates is {candidates}, but the model has no head 'itc'"
    ):
        retrieval(EvalContext.of(matching_alone, candidates=candidates), records)
