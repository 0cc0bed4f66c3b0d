"""Documents of models and runs in JSON: configs, vocabularies, positions, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch

from fiber.checkpoints.encoders import encoder_states
from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.load import load_stored, read_init
from fiber.checkpoints.model_dir import save_model
from fiber.checkpoints.vocabulary.files import read_tokenizer
from fiber.checkpoints.vocabulary.wordpiece import read_vocab_txt
from fiber.cli.data.inspect import _parameters
from fiber.config_io import to_dict
from fiber.data import Tokenizer
from fiber.data.formats.generated import DESCRIPTION, other_version
from fiber.data.prompts.classes import read_classes
from fiber.models.registry import build_model
from fiber.training.checkpoint.folder import Position, RunCheckpoint
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import QuestionTask, TasksConfig
from fiber.training.metrics_file import draw_curves, read_metrics
from fiber.training.run_dir import RunFolder, read_run_config
from fiber.training.tracking.goodput import ATTEMPTS_FILE, Goodput, begin_attempt
from fiber.training.tracking.kept import read_kept
from tests.fuzz import seeds
from tests.fuzz.generated.documents import Document, json_document
from tests.fuzz.generated.verdict import complaint


@cache
def _tokenizer() -> Any:
    return json.loads(Tokenizer.train(["a cup of tea"] * 9, 270).to_json())


def _read_tokenizer(folder: Path) -> None:
    ids, _ = read_tokenizer(folder / "tokenizer.json").encode("a cup of tea", max_tokens=40)
    assert len(ids) <= 40


@cache
def _run_config() -> dict[str, Any]:
    config = RunConfig(model=seeds.TINY, tasks=TasksConfig(question=QuestionTask(share=1)))
    return {"fiber_version": "1", "init": None, **to_dict(config)}


#: Of a generated folder.
_DESCRIPTION = {"parameters": {"generator": "scenes", "version": 5, "seed": 0}}


def _read_description(folder: Path) -> None:
    """Read a description as training and as `fiber data inspect` do."""
    other_version(folder)
    _parameters(folder / DESCRIPTION)


def _words(count: int) -> dict[str, Any]:
    return {"do_lower_case": True, "model_max_length": 512}


def _write_words(folder: Path) -> None:
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cup", "##s")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))


def _read_words(folder: Path) -> None:
    read_vocab_txt(folder / "vocab.txt").encode("cups")


def _position(count: int) -> dict[str, Any]:
    tasks = {f"task{number}": number for number in range(count + 1)}
    names = dict.fromkeys(tasks, "0" * 64)
    position = Position(
        step=7,
        consumed=tasks,
        records=tasks,
        fingerprints=names,
        vocabulary_sha256="0" * 64,
        scores=(0.5,),
    )
    return to_dict(position)


def _read_position(folder: Path) -> None:
    checkpoint = RunCheckpoint(folder=folder, step=7)
    checkpoint.read_position()
    # Of other data: the message lists what differs.
    try:
        checkpoint.position({}, {})
    except ValueError as error:
        problem = complaint(str(error), folder)
        assert not problem, problem


def _read_config(folder: Path) -> None:
    run = RunFolder(folder)
    run.stored_config()
    run.stored_init()


def _kept(count: int) -> dict[str, Any]:
    metrics = {f"metric {number}": 0.5 for number in range(count + 1)}
    own = {"data": "old", "task": "coco", "split": "val", "fingerprint": "0" * 64}
    return {**own, "records": 9, "share": 0.25, "before": metrics, "after": {"ap": 0.5}}


#: Metrics files of more bytes are not drawn, which would take long where work is counted.
_DRAWN_BYTES = 1000


def _read_metrics(folder: Path) -> None:
    """Read metrics as a run that resumes does, and draw them."""
    file = folder / "metrics.jsonl"
    entries = read_metrics(file)
    (folder / ATTEMPTS_FILE).unlink(missing_ok=True)
    attempt = begin_attempt(folder, entries, len(entries), started=1.0, environment={})
    assert all(map(math.isfinite, Goodput(attempt).fields(0.5).values()))
    if file.stat().st_size <= _DRAWN_BYTES:
        RunFolder(folder).draw({"itc": 1.0})


def _import_matplotlib(folder: Path) -> None:
    """Import what draws before processes are forked."""
    draw_curves(_metrics(1), folder / "curves.png")


def _metrics(count: int) -> list[dict[str, Any]]:
    rest = {"losses": {"itc": 1.0}, "learning_rates": {"new": 0.1}, "validation": {"score": 0.5}}
    rest |= {"performance": {"wall_seconds": 2.5, "goodput": 0.9}}
    return [{"step": number, **rest} for number in range(count + 1)]


def _model(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    save_model(build_model(seeds.TINY), folder, answers=("yes", "no"), classes=("cup",))


def _model_config(count: int) -> dict[str, Any]:
    return {"model": to_dict(seeds.TINY), "data": {"split": "train"}, "data_path": "/data"}


def _load(folder: Path) -> None:
    load_stored(folder, device="cpu")


def _encoder_config(count: int) -> dict[str, Any]:
    """The config of an encoder of transformers, whose fields are compared with the model's."""
    text = seeds.TINY.roberta
    return {
        "model_type": "roberta",
        "num_attention_heads": text.num_heads,
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute",
        "vision_config": {"hidden_size": 4},
    }


def _write_encoder(folder: Path) -> None:
    state = encoder_states(build_model(seeds.TINY))["roberta"]
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _read_encoder(folder: Path) -> None:
    initialize(build_model(seeds.TINY), read_init(folder))


def documents() -> list[Document]:
    """Files in JSON of runs and models."""

    def run(
        file: str,
        tree: Callable[[int], Any],
        read: Callable[[Path], object],
        prepare: Callable[[Path], object] = lambda folder: None,
    ) -> Document:
        return json_document("configs", file, tree, read, prepare)

    def model(file: str, tree: Callable[[int], Any]) -> Document:
        return json_document("configs", file, tree, _load, _model, f"{file} of a model")

    def strings(count: int) -> list[str]:
        return [f"answer {number}" for number in range(count + 2)]

    def classes(count: int) -> list[Any]:
        named = {"name": "puffin", "prefix": "a ", "suffix": " with orange beak"}
        return ["cup", *(named | {"name": f"class {number}"} for number in range(count + 1))]

    return [
        model("config.json", _model_config),
        model("answers.json", lambda _: ["yes", "no"]),
        model("classes.json", strings),
        run("config.json", lambda _: _run_config(), _read_config),
        run("printed.json", lambda _: _run_config(), lambda f: read_run_config(f / "printed.json")),
        json_document(
            "configs", "config.json", _encoder_config, _read_encoder, _write_encoder,
            "config.json of an encoder",
        ),
        run("data.json", _position, _read_position),
        run("kept.json", _kept, lambda f: read_kept(RunFolder(f))),
        run("metrics.jsonl", _metrics, _read_metrics, _import_matplotlib),
        run("classes.json", classes, lambda f: read_classes(f / "classes.json")),
        run(DESCRIPTION, lambda _: _DESCRIPTION, _read_description),
        json_document("configs", "tokenizer_config.json", _words, _read_words, _write_words),
        run("tokenizer.json", lambda _: _tokenizer(), _read_tokenizer),
    ]  # fmt: skip
