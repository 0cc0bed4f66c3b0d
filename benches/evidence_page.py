"""Fill the marked blocks of docs/evidence.md, and the table on fusion of the demo's page.

Command: python benches/evidence_page.py
Input: the rows of `evidence.py`, `evidence_guesses.py`, `evidence_binding.py`, `fusion.py`,
`evidence_stages.py` and `starts.py` in results/.
Output: docs/evidence.md with its chart, and python/fiber/demo/evidence.json. A test compares both
with the rows.

Differences are claimed by the rule of `page_tables.differs`, on val and, where it is measured
there, on novel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import evidence_binding
import evidence_stages
import fusion_page
from evidence import ARMS, EQUAL_TIME, SEEDS
from experiments import SPLITS
from page_tables import (
    NOT_MEASURED,
    RESULTS,
    Row,
    by_arm,
    compared,
    complete,
    differs,
    floats,
    groups,
    guesses,
    is_better,
    machines,
    read,
    spread,
    table,
    values_of,
)

from fiber.atomic_io import write_json

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence.md"
CLAIMS = ROOT / "python" / "fiber" / "demo" / "evidence.json"
MARKED = re.compile(r"<!-- rows: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)

FUSED, LATE, NONE = ARMS
#: Metrics of the fusion table by column of the rows, without the split.
METRICS = {
    "refcoco/relation/accuracy_at_1": "expressions: relations",
    "refcoco/noun/accuracy_at_1": "expressions: one noun",
    "refcoco/color/accuracy_at_1": "expressions: one color",
    "vqa/accuracy": "VQA: all questions",
    "vqa/color/accuracy": "VQA: color",
    "vqa/shape/accuracy": "VQA: shape",
    "vqa/exists/accuracy": "VQA: presence",
    "vqa/relation/accuracy": "VQA: relations",
    "matching/accuracy": "matching",
    "winoground/text": "swapped words: text",
    "winoground/image": "swapped words: image",
    "winoground/group": "swapped words: group",
}
#: Metrics of the table on binding, without the split.
BINDING_METRICS = {f"vqa/{metric}": METRICS[f"vqa/{metric}"] for metric in evidence_binding.METRICS}
#: Metrics of the table of the demo's page, and their names there.
CLAIMED_METRICS = {
    "refcoco/relation/accuracy_at_1": "Finding the object of a relation",
    "vqa/accuracy": "Answering questions of all kinds",
    "vqa/exists/accuracy": "Answering whether the picture shows a named object",
    "matching/accuracy": "Matching captions and pictures",
    "winoground/group": "Matching two captions with swapped words to two pictures",
}
#: The same of the longer coarse stages of `evidence_binding.py`.
CLAIMED_OF_BINDING = {
    "vqa/color/accuracy": "Naming the color of the shape in a question, after more steps",
    "vqa/shape/accuracy": "Naming the shape of the color in a question, after more steps",
}


#: Columns of the table of stages, and their names.
STAGES_COLUMNS = {
    "boxed": "words with boxes",
    "boxed/color": "one color with boxes",
    "boxed/noun": "one noun with boxes",
    "unboxed": "words in captions only",
    "unboxed/color": "one color in captions only",
    "unboxed/noun": "one noun in captions only",
}
COARSE_COLUMNS = {
    "coarse/retrieval": "coarse: text to image, R@10",
    "coarse/vqa": "coarse: VQA",
    "coarse/matching": "coarse: matching",
}
#: Results of the coarse stage from which on it counts as learned.
COARSE_GATES = {"coarse/retrieval": 0.6, "coarse/vqa": 0.45}

#: Finding on a metric that no arm has learned.
AT_CHANCE = "On average, none is above the guess."


def fusion_claims(
    rows: Sequence[Row], metrics: Mapping[str, str] = CLAIMED_METRICS
) -> list[dict[str, str]]:
    """Compare models trained with and without fusion; see `fiber.demo.report.Claim`.

    There is no comparison until every arm has its rows.
    """
    arms = (FUSED, NONE, f"{NONE}{EQUAL_TIME}")
    if len(complete(rows, arms, len(SEEDS))) < len(arms):
        return []
    found, known = [], guesses()
    for metric, name in metrics.items():
        splits = {s: values for s in SPLITS if (values := values_of(rows, metric, s, *arms))}
        fused, none, longer = splits["val"]
        at_chance = all(
            mean(values) <= known[metric, split] for split, own in splits.items() for values in own
        )
        found.append(
            {
                "what": name,
                "guess": f"{known[metric, 'val']:.0%}",
                "fused": _percents(fused),
                "same_samples": _percents(none),
                "same_time": _percents(longer),
                "finding": AT_CHANCE if at_chance else _what_fusion_does([*splits.values()]),
            }
        )
    return found


def claims() -> list[dict[str, str]]:
    """Return the rows of the demo's page."""
    longer = read("evidence_binding") if (RESULTS / "evidence_binding.csv").is_file() else []
    return fusion_claims(read("evidence")) + fusion_claims(longer, CLAIMED_OF_BINDING)


def _percents(values: Sequence[float]) -> str:
    """Format mean and range, as in "69% (63 to 73)"."""
    return f"{mean(values):.0%} ({100 * min(values):.0f} to {100 * max(values):.0f})"


def _what_fusion_does(by_split: Sequence[Sequence[Sequence[float]]]) -> str:
    """Compare values with fusion, without it, and without it after the same time, by split."""
    if all(is_better(own, others) for own, *others in by_split):
        return "Fusion is needed."
    if all(is_better(own, [none]) for own, none, _ in by_split):
        return "Fusion learns it from fewer samples; after the same time no gain was shown."
    return "It was not shown that fusion helps."


def verdict(rows: Sequence[Row], other: str, metrics: Mapping[str, str] = METRICS) -> str:
    """List the metrics on which five blocks are claimed to be better than another arm, or worse."""
    return f"- Five blocks against *{other}*: {compared(rows, metrics, FUSED, other)}."


def fusion() -> str:
    """Every metric by arm."""
    rows = read("evidence")
    arms = complete(rows, [*ARMS, *(f"{arm}{EQUAL_TIME}" for arm in (LATE, NONE))], len(SEEDS))
    return _against_five_blocks([row for row in rows if row["arm"] in arms], METRICS, arms)


def binding() -> str:
    """Answers to questions that bind color and shape, by arm."""
    rows = read("evidence_binding")
    arms = [FUSED, NONE, f"{NONE}{EQUAL_TIME}"]
    if complete(rows, arms, len(SEEDS)) != arms:
        return NOT_MEASURED
    return _against_five_blocks(rows, BINDING_METRICS, arms)


def _against_five_blocks(
    rows: Sequence[Row], metrics: Mapping[str, str], arms: Sequence[str]
) -> str:
    """Write the metrics of the arms, their cost, and the verdicts on five blocks."""
    costs = [
        [arm, own[0]["fine_steps"], own[0]["coarse_steps"], str(len(own)), _seconds(own)]
        for (arm,), own in groups(rows, "arm").items()
    ]
    return (
        by_arm(rows, metrics, arms)
        + "\n"
        + table(["arm", "fine steps", "coarse steps", "seeds", "CPU seconds"], costs)
        + "\n"
        + "\n".join(verdict(rows, arm, metrics) for arm in arms if arm != FUSED)
        + "\n"
        + machines(rows)
    )


def stages() -> str:
    """Accuracy of expressions by order of the stages."""
    rows = read("evidence_stages")
    arms = [evidence_stages.BOXES, evidence_stages.EQUAL_TIME, *list(evidence_stages.ARMS)[1:]]
    if complete(rows, arms, len(SEEDS)) != arms:
        return NOT_MEASURED
    longer = arms[1]
    body = []
    for column, name in STAGES_COLUMNS.items():
        known = {arm: floats(rows, column, arm=arm) for arm in arms}
        cells = [
            spread(values) + (" \\*" if arm != longer and differs(values, known[longer]) else "")
            for arm, values in known.items()
        ]
        body.append([name, spread(floats(rows, column, arm=evidence_stages.CHANCE)), *cells])
    for column, name in COARSE_COLUMNS.items():
        own = [row for row in rows if row[column]]
        body.append([name, "-", *(spread(floats(own, column, arm=arm)) for arm in arms)])
    costs = [
        [arm, own[0]["stages"], str(len(own)), _seconds(own)]
        for (arm,), own in groups(rows, "arm").items()
        if arm in arms
    ]
    return (
        table(["metric (val)", "chance", *arms], body)
        + "\n"
        + table(["arm", "steps", "seeds", "CPU seconds"], costs)
        + f"\n{stages_claim(rows)}\n"
        + machines(rows)
    )


def stages_claim(rows: Sequence[Row]) -> str:
    """State what captions bring, by arm that has them."""
    found = []
    for arm in list(evidence_stages.ARMS)[1:]:
        own = [row for row in rows if row["arm"] == arm]
        missed = [
            COARSE_COLUMNS[column].removeprefix("coarse: ")
            for column, least in COARSE_GATES.items()
            if mean(floats(own, column)) < least
        ]
        if missed:
            found.append(
                f"*{arm}*: no claim, since the coarse stage did not learn enough"
                f" ({', '.join(missed)})."
            )
            continue
        gains = [
            name
            for column, name in STAGES_COLUMNS.items()
            if is_better(
                floats(own, column), [floats(rows, column, arm=evidence_stages.EQUAL_TIME)]
            )
        ]
        better = ", ".join(gains) or "nothing"
        found.append(f"*{arm}*: better than *{evidence_stages.EQUAL_TIME}* on {better}.")
    return "\n".join(f"- {line}" for line in found)


def starts() -> str:
    """What is left out by metric, with and without it."""
    rows = read("starts")
    body = []
    for (start, metric), own in groups(rows, "start", "metric").items():
        for split in SPLITS:
            on, off = (floats(own, split, arm=arm) for arm in ("on", "off"))
            if len(on) < len(SEEDS) or len(off) < len(SEEDS):
                # Its bench has not finished.
                continue
            mark = " \\*" if differs(on, off) else ""
            name = metric.replace("/", ", ").replace("_", " ")
            body.append([start, name, split, own[0]["steps"], spread(on), spread(off) + mark])
    head = ["left out", "metric", "split", "steps", "with it", "without it"]
    return table(head, body) + machines(rows)


def _seconds(rows: Sequence[Row]) -> str:
    return f"{mean(floats(rows, 'cpu_seconds')):.0f}"


#: Function of each block, and the rows that it needs.
BLOCKS: dict[str, tuple[Callable[[], str], str]] = {
    "fusion": (fusion, "evidence"),
    "binding": (binding, "evidence_binding"),
    "forms": (fusion_page.forms, "fusion"),
    "stages": (stages, "evidence_stages"),
    "starts": (starts, "starts"),
}


def block(name: str) -> str:
    """Write a block; one whose rows are missing says so."""
    write, rows = BLOCKS[name]
    return write() if (RESULTS / f"{rows}.csv").is_file() else NOT_MEASURED


def fill(page: str) -> str:
    """Replace the content of every block.

    Raises:
        ValueError: if the page does not have exactly the blocks of this module.
    """
    if sorted(name for name, _ in MARKED.findall(page)) != sorted(BLOCKS):
        raise ValueError(f"{PAGE.name}: expected the blocks {', '.join(BLOCKS)}")
    return MARKED.sub(
        lambda found: f"<!-- rows: {found[1]} -->\n{block(found[1]).rstrip()}\n<!-- end -->",
        page,
    )


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if (RESULTS / "fusion.csv").is_file():
        fusion_page.draw(read("fusion"))
    write_json(CLAIMS, {"claims": claims()})
    print(f"wrote {PAGE.name} and {CLAIMS.name}")
