"""Every trainer learns 32 samples by heart, from their pictures.

The recipes train as published but for their sizes: the model is micro, the learning rate one for
weights that start from nothing, and pictures are neither cut nor mirrored. Samples are chosen so
that their texts alone do not tell what is right, so what was learned must be lost when every sample
is measured with the picture of another one: no better than blind then, but for the luck of 32
draws.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fiber.checkpoints.model_dir import StoredModel, load_model
from fiber.config import preset
from fiber.data import DataLoader, sources
from fiber.data.record import Record, RecordSet
from fiber.evaluation import baselines
from fiber.evaluation.evaluate import evaluate
from fiber.models.registry import inference_transform
from fiber.synthetic.scenes import generate
from fiber.training.train import train

pytestmark = pytest.mark.slow

SAMPLES = 32
LEARNED = 0.95
#: Standard errors by which exchanged pictures may do better than a blind guess.
LUCK = 3.0


def captions(folder: Path) -> list[Record]:
    """Captions of different pictures, all different."""
    return different(sources.captions(folder, "train"))


def short_captions(folder: Path) -> list[Record]:
    """Captions such as "a red ring": any colour goes with any shape."""
    said = sources.captions(folder, "train")
    return different([r for r in said if r.text.startswith("a ") and len(r.text.split()) == 3])


def different(records: Sequence[Record]) -> list[Record]:
    """Choose records of different pictures and texts."""
    chosen: dict[str, Record] = {}
    for record in records:
        shown = {other.image_id for other in chosen.values()}
        if record.image_id not in shown and len(chosen) < SAMPLES:
            chosen.setdefault(record.text, record)
    return list(chosen.values())


def questions(folder: Path) -> list[Record]:
    """Eight questions, each with four pictures to which the answers differ."""
    asked = sources.questions(folder, "train")
    return balanced(asked, lambda record: max(record.answers or {}), answers=4)


def statements(folder: Path) -> list[Record]:
    """Sixteen statements, each with a pair of pictures of which it is true and one it is not."""
    return balanced(sources.reasoning(folder, "train"), lambda record: record.truth, answers=2)


def balanced(
    records: RecordSet, answer_of: Callable[[Record], Hashable], answers: int
) -> list[Record]:
    """Choose records of different pictures, such that each text has so many different answers."""
    by_text: dict[str, list[Record]] = defaultdict(list)
    for record in (records[i] for i in range(len(records))):
        by_text[record.text].append(record)
    chosen: list[Record] = []
    shown: set[Any] = set()
    for alike in by_text.values():
        own: dict[Hashable, Record] = {}
        for record in alike:
            taken = {image for other in own.values() for image in other.images} | shown
            if taken.isdisjoint(record.images) and len(own) < answers:
                own.setdefault(answer_of(record), record)
        if len(own) == answers and len(chosen) < SAMPLES:
            chosen += own.values()
            shown.update(image for record in own.values() for image in record.images)
    return chosen


def vqa_blind(records: list[Record], model: StoredModel) -> float:
    """The best answer to each question's words: right once in four times."""
    asked, scores = [r.text for r in records], [r.answers or {} for r in records]
    return baselines.vqa_blind(asked, scores, asked, scores)["accuracy"]


def nlvr2_blind(records: list[Record], model: StoredModel) -> float:
    """The best answer to each statement's words: right half of the time."""
    said, truths = [r.text for r in records], [bool(r.truth) for r in records]
    return baselines.statement_blind(said, truths, said, truths)["accuracy"]


def one_in_all(records: list[Record], model: StoredModel) -> float:
    """One sample of all, whatever the picture: its caption is right once."""
    return 1 / len(records)


def matching_blind(records: list[Record], model: StoredModel) -> float:
    """Every text is measured with its picture and stands once for another: half are true."""
    return baselines.matching_chance()["accuracy"]


def masked_words_blind(records: list[Record], model: StoredModel) -> float:
    """What stood between the same words in any of the captions, known by heart."""
    config, tokenizer = model.config, model.tokenizer
    assert tokenizer is not None
    # The loader of the measurement, so that the same words are masked.
    loader = DataLoader(
        records,
        "image_text",
        tokenizer=tokenizer,
        transform=inference_transform(config),
        batch_size=len(records),
        max_tokens=config.max_tokens,
        threads=1,
        seed=0,
    )
    batch = next(iter(loader.epoch()))
    return baselines.masked_word_blind(
        [tokenizer.encode(r.text, max_tokens=config.max_tokens)[0] for r in records],
        batch.masked_ids.numpy(),
        batch.text_mask.numpy(),
        batch.mlm_labels.numpy(),
        config.roberta.mask_id,
    )["accuracy"]


class Case(NamedTuple):
    """How a task is trained, and what it is measured by."""

    recipe: str
    samples: Callable[[Path], list[Record]]
    metrics: tuple[str, ...]
    #: What is reached without the picture.
    blind: Callable[[list[Record], StoredModel], float]
    #: Fields of the recipe that this task changes beside those of `SIZES`.
    changes: Mapping[str, Any] = {}
    #: Task whose model this one starts from.
    start: str | None = None
    #: Times that each sample is measured; words are masked anew each time.
    times: int = 1
    #: Guesses that are right or wrong each by itself.
    guesses: int = SAMPLES


CASES = {
    "vqa": Case("vqav2", questions, ("accuracy",), vqa_blind),
    "nlvr2": Case("nlvr2", statements, ("accuracy",), nlvr2_blind, {"train.steps": 100}),
    "retrieval": Case(
        "retrieval_coco",
        short_captions,
        ("image_to_text_recall_at_1", "text_to_image_recall_at_1"),
        one_in_all,
    ),
    # As its recipe says, matching goes on from a model that knows contrast.
    "matching": Case(
        "retrieval_coco_itm",
        short_captions,
        ("accuracy",),
        matching_blind,
        {"train.steps": 400},
        start="retrieval",
    ),
    "caption": Case("caption_coco", captions, ("reproduced",), one_in_all, {"optim.lr": 2e-3}),
    "masked_words": Case(
        "pretrain",
        short_captions,
        ("accuracy",),
        masked_words_blind,
        {
            "tasks.image_text.itc": 0.0,
            "tasks.image_text.itm": 0.0,
            "data.mlm_probability": 0.4,
            "train.steps": 300,
            "optim.lr": 2e-3,
        },
        times=8,
        # The colour and the shape of each; the article is known.
        guesses=2 * SAMPLES,
    ),
}

#: Fields that all recipes change: what 32 samples and a model from nothing need. The published
#: start hardly mixes the tokens of a model of this width.
SIZES = {
    "model": preset("micro"),
    "model.weight_start": "fan_in",
    "model.max_tokens": 24,
    "model.fusion.gate_start": 1.0,
    "model.image_text.num_answers": SAMPLES,
    "data.batch_size": SAMPLES,
    "data.transform.kind": "squash",
    "data.transform.rand_augment.num_ops": 0,
    "optim.lr": 1e-3,
    "optim.head_lr_multiplier": 1.0,
    "optim.cross_modal_lr_multiplier": 1.0,
    "optim.clip_norm": 1.0,
    "train.steps": 150,
    "train.accumulation": 1,
    "train.precision": "float32",
    "train.checkpoint_every": 0,
}


@pytest.fixture(scope="module")
def scenes(made_once) -> Path:
    """Pictures of one or two things, from which samples are chosen."""

    def make(folder: Path) -> None:
        generate(folder / "scenes", train=800, val=1, novel=1, image_size=64, max_objects=2)

    return made_once("overfit", make) / "scenes"


@pytest.fixture(scope="module")
def trained(scenes, made_once) -> Callable[[str], Path]:
    """Train a task, once for all processes, and return the folder of its model."""

    def finish(task: str) -> Path:
        case = CASES[task]
        start = case.start and finish(case.start)

        def make(folder: Path) -> None:
            train(
                case.recipe,
                data=case.samples(scenes),
                output=folder / "run",
                init=start,
                set={**SIZES, **case.changes},
                tokenizer=scenes / "tokenizer.json",
                device="cpu",
                threads=1,
                quiet=True,
            )

        return made_once(f"overfit_{task}", make) / "run"

    return finish


def measure(
    task: str, model: StoredModel, records: list[Record], output: Path, **options: Any
) -> dict[str, float]:
    """Measure a task; captions also by how many are reproduced word for word."""
    metrics = evaluate(model, task, data=records, output=output, rerank=False, threads=1, **options)
    if task == "caption":
        written = [entry["caption"] for entry in json.loads(output.read_text())]
        same = [text == record.text for text, record in zip(written, records, strict=True)]
        metrics["reproduced"] = sum(same) / len(same)
    return metrics


def with_luck(blind: float, guesses: int) -> float:
    """What so many independent guesses, each right with a chance of `blind`, do not exceed."""
    return blind + LUCK * (blind * (1 - blind) / guesses) ** 0.5


@pytest.mark.parametrize("task", CASES)
def test_trainer_learns_32_samples_from_their_pictures(task, scenes, trained, tmp_path):
    case = CASES[task]
    samples = case.samples(scenes)
    assert len(samples) == SAMPLES
    records = [
        replace(record, key=f"{record.key}/{time}")
        for time in range(case.times)
        for record in samples
    ]
    model = load_model(trained(task))
    learned = measure(task, model, records, tmp_path / "own.json")
    exchanged = measure(task, model, records, tmp_path / "exchanged.json", permute_images=True)
    bound = with_luck(case.blind(records, model), case.guesses)
    assert bound < LEARNED
    for name in case.metrics:
        assert learned[name] >= LEARNED, (name, learned)
        assert exchanged[name] <= bound, (name, bound, exchanged)
