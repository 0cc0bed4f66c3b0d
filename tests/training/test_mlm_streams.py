"""Masked tokens and labels of a run: what a seed masks decides what the run learns.

`mlm_streams.json` was recorded from the version that masked words and positions in Python. Write it
again with `python -m tests.training.test_mlm_streams`, only if the streams are to change.
"""

import io
import itertools
import json
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.training.config.run import DataConfig, RunConfig
from fiber.training.config.tasks import QuestionTask, TasksConfig
from fiber.training.data import open_data
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders
from tests.models import small_networks
from tests.training.micro_runs import coarse_config

RECORDED = Path(__file__).with_name("mlm_streams.json")
UNITS = ("token", "word", "position")
#: Seed of the run, (rank, ranks), samples already consumed by all ranks.
CASES = list(itertools.product((0, 7, 2**40 + 3), ((0, 1), (0, 3), (2, 3)), (0, 38)))
WORDS = ["left", "cup", "isn't", "2024", "x-ray", "na\u00efve", "<mask>", "(a)", "red", "right"]
#: Texts of 0 to 30 words; the model takes 16 tokens.
TEXTS = [
    " ".join(WORDS[(3 * at + count * at) % 10] for at in range(count))
    for count in (4, 0, 7, 1, 30, 3, 9, 2, 5, 6, 8)
]


def records(broken=()):
    """One record for each text, of which some have no image."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, format="PNG")
    return [
        Record(
            key=str(number),
            image_id=str(number),
            images=(b"" if number in broken else image.getvalue(),),
            text=text,
        )
        for number, text in enumerate(TEXTS)
    ]


def sums(unit, seed, ranks, consumed, *, task="image_text", broken=(), steps=5):
    """Checksums of masked tokens and of labels over some steps of 7 samples for all ranks."""
    others = {"image_text", "question", "reasoning", "caption"} - {task}
    config = coarse_config(
        **{f"tasks__{other}__share": 0 for other in others},
        data__batch_size=7,
        data__mlm_unit=unit,
        data__mlm_probability=0.4,
        data__on_error="skip" if broken else "raise",
        train__seed=seed,
    )
    source = open_data(config, records(broken), tokenizer=Tokenizer.train(TEXTS, 290))
    rank, world_size = ranks
    loaders = TaskLoaders(
        source.fit_model(config),
        source,
        Processes(rank=rank, world_size=world_size, device=torch.device("cpu")),
        consumed={task: consumed},
        threads=1,
    )
    masked = labels = 0
    for _ in range(steps):
        batch = loaders.next_batch(task)
        masked = zlib.crc32(batch.masked_ids.numpy().astype("<i8").tobytes(), masked)
        labels = zlib.crc32(batch.mlm_labels.numpy().astype("<i8").tobytes(), labels)
    return [masked, labels]


def recorded():
    """Checksums of all cases by name."""
    found = {
        f"{unit}, seed {seed}, rank {ranks[0]} of {ranks[1]}, {consumed} consumed": sums(
            unit, seed, ranks, consumed
        )
        for unit in UNITS
        for seed, ranks, consumed in CASES
    }
    for unit in UNITS:
        # The words of a row are those of its place among the samples that are kept.
        found[f"{unit}, skipped records"] = sums(unit, 3, (0, 1), 0, broken=(0, 4, 8))
        found[f"{unit}, captions"] = sums(unit, 3, (0, 1), 0, task="caption")
    return found


@pytest.mark.filterwarnings("ignore:skipped record")
def test_masked_tokens_and_labels_are_those_of_earlier_versions():
    assert recorded() == json.loads(RECORDED.read_text())


def test_each_unit_and_case_has_its_own_draws():
    found = json.loads(RECORDED.read_text())
    own = [tuple(value) for name, value in found.items() if "captions" not in name]
    assert len(own) == len(UNITS) * (len(CASES) + 1) == len(set(own))
    # Captions are masked by token, whatever the unit.
    assert len({tuple(value) for name, value in found.items() if "captions" in name}) == 1


def test_units_of_a_text_encoder():
    """BERT's tokenizer has no words of byte-level BPEs."""
    model = small_networks.network("METER BERT").config
    tasks = TasksConfig(question=QuestionTask(share=1))
    assert RunConfig(model=model, tasks=tasks).data.mlm_unit == "token"
    with pytest.raises(ValueError, match=r"mlm_unit 'word' is for byte-level BPEs; .* 'token'"):
        RunConfig(model=model, tasks=tasks, data=DataConfig(mlm_unit="word"))


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(recorded(), indent=1) + "\n")
