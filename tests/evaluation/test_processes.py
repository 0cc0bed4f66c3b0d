"""Several processes that evaluate together get the metrics and predictions of one."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fiber.checkpoints.model_dir import StoredModel
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.processes import ONE_PROCESS, EvalProcesses
from fiber.models.registry import build_model
from fiber.tasks import all_evaluations, find_evaluation
from fiber.tasks.image_text import retrieval
from tests.evaluation.measured import detection_records, new_models, records_for
from tests.losses.two_ranks import run_on_ranks
from tests.models.encoders.test_swin import randomise
from tests.training.micro_runs import all_records
from tests.training.test_meter import TINY

#: Evaluations of FIBER's and METER's models; those of masks are in tests/tasks.
OWN = [name for name, each in all_evaluations().items() if "mask" not in each.heads]
#: Task, heads of another model than that of `new_models`, options.
CASES = {
    **{name: (name, None, {}) for name in OWN if name != "snli"},
    "retrieval by ITC alone": ("retrieval", None, {"rerank": False}),
    "retrieval with three candidates": ("retrieval", None, {"candidates": 3}),
    "retrieval by ITM alone": ("retrieval", ("itm",), {}),
    "retrieval by the ranking head": ("retrieval", ("rank",), {}),
    "snli": ("snli", ("snli",), {}),
    "permuted vqa": ("vqa", None, {"permute_images": True}),
}
#: With 12 records: several batches, of which the last is smaller; as many as records; one.
BATCH_SIZES = (5, 1, 64)


def meter(tokenizer, heads):
    config = replace_fields(TINY.with_vocabulary(tokenizer.vocab_size), {"image_text.heads": heads})
    network = build_model(config)
    randomise(network)
    spread(network)
    return StoredModel(network=network, tokenizer=tokenizer)


def spread(network):
    """Let outputs differ between records, which those of a new model hardly do."""

    def spread_out(real, *arguments):
        return torch.sin(1e5 * real(*arguments))

    heads = "vqa", "statement", "snli", "mlm", "caption", "itm"
    names = "embed_images", "text_vectors", "ranking_scores", *(f"{head}_logits" for head in heads)
    for name in names:
        if hasattr(network, name):
            setattr(network, name, partial(spread_out, getattr(network, name)))


def fiber_models(tokenizer):
    models = new_models(tokenizer)
    randomise(models["coarse"].network)
    spread(models["coarse"].network)
    torch.nn.init.zeros_(models["fine"].network.head.bias)
    return models


def records_of(task, pictures):
    if find_evaluation(task).source == "detection":
        return detection_records(pictures)
    records = records_for(task, pictures)
    if task == "snli":
        return [
            dataclasses.replace(record, answers={ENTAILMENT[number % 3]: 1.0})
            for number, record in enumerate(records)
        ]
    return records


def measured(pictures, output, batch_sizes, processes=ONE_PROCESS):
    """Metrics of every case and batch size; predictions are written to a folder."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(pictures / "tokenizer.json"))
    models = fiber_models(tokenizer)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        # Several blocks of queries.
        patch.setattr(retrieval, "QUERIES_AT_ONCE", 4)
        for name, (task, heads, options) in CASES.items():
            stage = "fine" if "grounding" in find_evaluation(task).heads else "coarse"
            model = models[stage] if heads is None else meter(tokenizer, heads)
            for size in batch_sizes:
                found[f"{name}, {size}"] = evaluate(
                    model,
                    task,
                    data=records_of(task, pictures),
                    output=output / f"{name}, {size}",
                    batch_size=size,
                    threads=1,
                    processes=processes,
                    **options,
                )
    return found


def gather(value):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def together():
    return EvalProcesses(dist.get_rank(), dist.get_world_size(), gather)


def measured_together(pictures, output):
    folder = Path(output) / str(dist.get_rank())
    return measured(Path(pictures), folder, BATCH_SIZES, together())


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    """Metrics and predictions of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return measured(pictures, folder, BATCH_SIZES), predictions_in(folder)


def predictions_in(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_every_validation_task_is_measured():
    assert set(OWN) == {task for task, _, _ in CASES.values()}


# One batch of all records leaves the other processes without any.
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_metrics_and_predictions_are_those_of_one_process(pictures, tmp_path, alone, count):
    metrics, predictions = alone
    for found in run_on_ranks(count, measured_together, tmp_path, str(pictures), str(tmp_path)):
        assert found == metrics
    assert predictions_in(tmp_path / "0") == predictions
    # Only the first process writes.
    assert not any((tmp_path / str(rank)).exists() for rank in range(1, count))


def test_predictions_differ_between_records(alone):
    """Otherwise, records in another order would not be noticed."""
    ids = "key", "question_id", "image_id", "image_key", "text_key"
    for name, text in alone[1].items():
        if name.startswith("nlvr2"):
            found = {line.rpartition(",")[2] for line in text.splitlines()}
        else:
            entries = json.loads(text)
            found = {str({k: v for k, v in e.items() if k not in ids}) for e in entries}
        assert len(found) > 1, name


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 8])
def test_results_are_in_the_order_of_the_batches(world_size, count):
    items = [f"batch {number}" for number in range(count)]
    own = [items[rank::world_size] for rank in range(world_size)]
    called = []
    for rank in range(world_size):
        processes = EvalProcesses(rank, world_size, lambda _: [[x.upper() for x in o] for o in own])
        found = processes.map(lambda item: called.append(item) or item.upper(), items)
        assert found == [item.upper() for item in items]
    # Each is computed once.
    assert sorted(called) == items


def test_one_process_computes_results_when_they_are_asked_for():
    results = ONE_PROCESS.in_order(iter(range(3)))
    assert next(results) == 0 and list(results) == [1, 2]


class AskedError(Exception):
    """Raised instead of a gather."""


def test_a_bad_record_is_an_error_where_it_is_read(models, pictures):
    records = all_records(pictures)["question"]
    data = [*records[:-1], dataclasses.replace(records[-1], images=("absent.png",))]

    def gather_nothing(value):
        raise AskedError

    # The last of three batches is that of the third process.
    for rank, error in enumerate((AskedError, AskedError, FileNotFoundError)):
        processes = EvalProcesses(rank, 3, gather_nothing)
        with pytest.raises(error):
            evaluate(models["coarse"], "vqa", data, batch_size=5, threads=1, processes=processes)
