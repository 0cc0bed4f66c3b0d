"""The card of a model on the Hub: what it is, how it was trained, measured numbers, limits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fiber.atomic_io import read_json, write_json, write_text
from fiber.checkpoints.kept import CARD, METRICS, Kept
from fiber.checkpoints.provenance import DATA_PATH, MERGED, TRAINING
from fiber.messages import printable, shown

#: The Hub's name of the task of a head; the first head of a model that has one decides.
_PIPELINES = {
    "grounding": "zero-shot-object-detection",
    "mask": "image-segmentation",
    "vqa": "visual-question-answering",
    "caption": "image-to-text",
}
#: How a model with a head is asked.
_CALLS = {
    "grounding": 'model.ground("photo.jpg", ["a red mug", "the laptop"])',
    "vqa": 'model.answer("photo.jpg", "what is on the table?")',
    "mask": 'model.segment("photo.jpg", classes=["zebra", "grass"], stuff=["grass"])',
    "caption": 'model.caption("photo.jpg")',
    "itm": 'model.match("photo.jpg", "a red mug")',
    "itc": 'model.search("a red mug", ["a.jpg", "b.jpg"])',
    "retrieval": 'model.search("a red mug", ["a.jpg", "b.jpg"])',
    "nlvr2": 'model.reason(("left.jpg", "right.jpg"), "both show a dog")',
    "snli": 'model.entail("photo.jpg", "two people are cooking")',
}
#: Beside "model" there may be "chance" and "blind", with the same metrics.
_METRICS_FORM = '{"tasks": {"vqa": {"val": {"records": 100, "model": {"accuracy": 0.7}}}}}'
_NOT_MEASURED = "not measured"


def write_card(
    repo: str,
    described: Sequence[str],
    heads: Collection[str],
    training: Sequence[Mapping[str, Any]],
    kept: Kept,
    license_id: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a card: that of `kept`, with the Hub's metadata, or else a new one.

    Args:
        repo: user/name.
        described: a line for each stage.
        heads: names of the heads of all stages.
        training: config of the run that trained each stage, if known.
        kept: card and numbers that the model was loaded with.
        license_id: identifier of the license of the weights, such as "mit".
        metrics: see `check_metrics`; None for those of `kept`.

    Raises:
        ValueError: if the license or the numbers are invalid.
    """
    if license_id is not None and not (
        isinstance(license_id, str) and license_id.replace("-", "").replace(".", "").isalnum()
    ):
        raise ValueError(
            "license: expected an identifier, such as 'mit' or 'cc-by-4.0', got"
            f" {shown(license_id)}"
        )
    if kept.card:
        if metrics is not None:
            raise ValueError(
                "metrics: the model has a card of its own; write the numbers into its README.md"
            )
        if not kept.card.startswith("---"):
            return _front_matter(heads, license_id) + kept.card
        if license_id is not None:
            raise ValueError(
                f"license: the model's card has metadata of its own; write 'license: {license_id}'"
                " into its README.md"
            )
        return kept.card
    calls = [call for head, call in _CALLS.items() if head in heads]
    lines = [
        f"# {repo.partition('/')[2]}",
        "",
        *(f"- {line}" for line in described),
        "",
        "```python",
        "import fiber  # pip install 'fiber-vl[hub]'",
        "",
        f'model = fiber.load("hf://{repo}")',
        *calls,
        "```",
        "",
        "## Training",
        "",
        *(_training(training) or ["Not stated."]),
        "",
        "## Results",
        "",
        *_results(kept.metrics if metrics is None else metrics),
        "",
        "## Limits",
        "",
        "What is not in the table above was not measured. A detector can return a box for what is"
        " not in the picture; its scores are no probabilities unless they were calibrated.",
        "",
        "## License",
        "",
        license_id or "Not stated: ask the owner of this repository before you use the weights.",
    ]
    return _front_matter(heads, license_id) + "\n".join(lines) + "\n"


def publish(folder: Path, card: str, metrics: Mapping[str, Any] | None) -> None:
    """Make a saved model ready for others: its card, its numbers, and no paths of this machine."""
    write_text(folder / CARD, card)
    if metrics is not None:
        write_json(folder / METRICS, metrics)
    for path in folder.rglob("config.json"):
        values = read_json(path)
        if TRAINING in values:
            write_json(path, values | {TRAINING: _without_paths(values[TRAINING])})


def _front_matter(heads: Collection[str], license_id: str | None) -> str:
    pipeline = [name for head, name in _PIPELINES.items() if head in heads][:1]
    lines = [
        "library_name: fiber-vl",
        *([f"license: {license_id}"] if license_id else []),
        *(f"pipeline_tag: {name}" for name in pipeline),
        "tags:",
        *(f"- {tag}" for tag in ("fiber", "vision-language", *sorted(heads))),
    ]
    return "\n".join(("---", *lines, "---", "", ""))


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield task, split, metric, and the texts of the columns."""
    tasks = metrics.get("tasks", {})
    expected = f"metrics: expected {_METRICS_FORM}, got"
    if not isinstance(tasks, Mapping) or (metrics and not tasks):
        raise ValueError(f"{expected} {shown(metrics)}")
    for task, splits in tasks.items():
        if not isinstance(splits, Mapping):
            raise ValueError(f"{expected} {shown(splits)} for {shown(task)}")
        for split, values in splits.items():
            own = values.get("model") if isinstance(values, Mapping) else None
            if not isinstance(own, Mapping):
                raise ValueError(f"{expected} {shown(values)} for {shown(task)}, {shown(split)}")
            for metric, value in own.items():
                if "/" in str(metric):
                    continue  # By kind of word: too many rows for a card; they are in the file.
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ValueError(f"{expected} {shown(value)} for {shown(metric)}")
                others = (values.get(name, {}) for name in ("chance", "blind"))
                numbers = [each.get(metric) for each in others if isinstance(each, Mapping)]
                texts = [f"{value:.4g}", *(_number(each) for each in numbers)]
                yield task, split, metric, [*texts, str(values.get("records", _NOT_MEASURED))]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else _NOT_MEASURED


def _results(metrics: Mapping[str, Any]) -> list[str]:
    rows = list(_rows(metrics))
    if not rows:
        return ["No number was measured. `fiber eval` measures a model on your own data."]
    head = "| task | split | metric | model | chance | blind | records |"
    lines = [
        "chance guesses; blind is the best guess without the picture.",
        "",
        head,
        "|" + " --- |" * head.count(" |"),
    ]
    for *names, numbers in rows:
        cells = [*(printable(str(name), 60).replace("|", "\\|") for name in names), *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _without_paths(training: Mapping[str, Any]) -> dict[str, Any]:
    """Replace paths of the machine that trained a model by their last names."""
    values = dict(training)
    for name in (DATA_PATH, "init"):
        if isinstance(values.get(name), str):
            values[name] = PurePath(values[name]).name
    if isinstance(merged := values.get(MERGED), Mapping):
        values[MERGED] = {
            part: {**each, "model": PurePath(str(each.get("model"))).name, "trained_on": None}
            if isinstance(each, Mapping)
            else each
            for part, each in merged.items()
        }
    return values


def _training(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for values in map(_without_paths, runs):
        data, train = (values.get(name) for name in ("data", "train"))
        split = data.get("split") if isinstance(data, Mapping) else None
        batch = data.get("batch_size") if isinstance(data, Mapping) else None
        steps = train.get("steps") if isinstance(train, Mapping) else None
        facts = {
            "data": values.get(DATA_PATH),
            "split": split,
            "steps": steps,
            "records a step": batch,
            "starts from": values.get("init"),
        }
        told = [f"{name} {printable(str(value), 60)}" for name, value in facts.items() if value]
        if told:
            lines.append(f"- {', '.join(told)}; all values are in config.json.")
    return lines
