"""Fill the marked blocks of docs/results.md from the rows in results/.

Command: python benches/results_page.py
The text between `<!-- rows: NAME -->` and `<!-- end -->` comes from the function of that name; the
rest of the page is written by hand. A test compares the committed page with what this module
writes, and refuses measured values outside the blocks.

Of a bench that was run several times, the rows of its last day count, and of these the last of each
side. A ratio is the peer's value over fiber's: above 1, fiber is faster or smaller.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from bench_kernels import EAGER_CALL, JUDGED_ABOVE, Medians, judged_calls, means
from page_tables import (
    NOT_MEASURED,
    PARTS,
    RESULTS,
    SPLITS,
    Row,
    factor,
    floats,
    groups,
    is_above,
    judged,
    machines,
    newest,
    read,
    shown,
    spread,
    table,
    value,
    verdict,
)

from fiber.benchmarks import workloads

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
MARKED = re.compile(r"<!-- rows: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)

IMAGE_KINDS = ("squash", "crop", "large", "fine")

BLOCKS: dict[str, Callable[[], str]] = {}


def block(function: Callable[[], str]) -> Callable[[], str]:
    """Register what writes the block of its name."""
    BLOCKS[function.__name__] = function
    return function


def fill(page: str) -> str:
    """Replace the content of every block.

    Raises:
        ValueError: if the page does not have each block of `BLOCKS` once.
    """
    names = sorted(name for name, _ in MARKED.findall(page))
    if names != sorted(BLOCKS):
        raise ValueError(f"{PAGE.name} has the blocks {names}; expected {sorted(BLOCKS)}")
    return MARKED.sub(
        lambda found: f"<!-- rows: {found[1]} -->\n{BLOCKS[found[1]]().rstrip()}\n<!-- end -->",
        page,
    )


# --- the data path


def data() -> dict[workloads.Workload, dict[str, Row]]:
    """Read the rows of the data path by workload and side, the fastest side first."""
    rows = read("data")
    found = {}
    for line in workloads.WORKLOADS:
        own = newest(row for row in rows if row["line"] == line.name)
        found[line] = dict(sorted(own.items(), key=lambda item: float(item[1]["median"])))
    return found


@block
def data_cpu() -> str:
    """CPU time per image of every loader, by workload."""
    found = {line: own for line, own in data().items() if line.kind in IMAGE_KINDS}
    body = []
    for side in next(iter(found.values())):
        cells = []
        for own in found.values():
            ratio = float(own[side]["median"]) / float(own["fiber"]["median"]) if side in own else 0
            median_of = own[side]["median"] if side in own else "-"
            cells.append(median_of + (f" ({factor(ratio)})" if ratio and side != "fiber" else ""))
        body.append([side, *cells])
    rows = [row for own in found.values() for row in own.values()]
    half = [(float(r["p80"]) - float(r["p20"])) / 2 / float(r["median"]) for r in rows]
    note = (
        f"\nSpread: half of the range from the 20th to the 80th percentile is {median(half):.1%} of"
        f" the median in a typical cell, {max(half):.0%} at most.\n"
    )
    return table(["loader", *(line.name for line in found)], body) + note + machines(rows)


@block
def data_peers() -> str:
    """Speed by wall time, memory and versions of the peers, and how their results differ."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for line, own in data().items():
        for side, row in own.items():
            found[side][line.name] = row
    rated = ("squash coco640 float32", "squash coco640 uint8", "fine coco640 float32")
    body = []
    for side, rows in found.items():
        rates = [rows[line]["per_wall_second"] if line in rows else "-" for line in rated]
        memory = [int(row["peak_megabytes"]) for row in rows.values()]
        levels = [float(r["levels_from_pillow"]) for r in rows.values() if r["levels_from_pillow"]]
        distance = f"{min(levels):g} to {max(levels):g}" if levels else "-"
        remarks = (part for row in rows.values() for part in row["remark"].split("; ") if part)
        versions = next(iter(rows.values()))["versions"].replace("=", " ")
        notes = shown("; ".join(dict.fromkeys(remarks)))
        peak = f"{min(memory)} to {max(memory)}"
        body.append([side, *rates, peak, distance, versions, notes])
    head = ["peer", *(f"{line}, per second" for line in rated), "peak MB", "levels"]
    return table([*head, "versions", "remark"], body)


@block
def data_materials() -> str:
    """Images and texts of the workloads."""
    materials = dict.fromkeys(own["material"] for each in data().values() for own in each.values())
    return "\n".join(f"- {shown(text)}" for text in materials)


@block
def data_gates() -> str:
    """Ratios that are asked for: CPU time of the fastest rival over fiber's."""
    costs = {
        line.name: {s: float(r["median"]) for s, r in own.items()} for line, own in data().items()
    }
    rivals = list(dict.fromkeys(gate.rivals for gate in workloads.GATES))
    body: dict[str, list[str]] = {}
    for gate in workloads.GATES:
        name = f"{gate.kind} {gate.corpus} {gate.output}"
        ratio = min(costs[name][side] for side in gate.rivals) / costs[name]["fiber"]
        asked = [
            verdict(f"{what} {bound:g}", ratio >= bound)
            for what, bound in (("gate", gate.least), ("target", gate.target))
            if bound is not None
        ]
        cells = body.setdefault(name, [name, *[""] * len(rivals)])
        cells[1 + rivals.index(gate.rivals)] = f"{ratio:.2f}x" + (
            f": {', '.join(asked)}" if asked else ""
        )
    return table(["work", *map(" or ".join, rivals)], body.values())


@block
def data_texts() -> str:
    """CPU time of texts and boxes."""
    head = ["work", "side", "CPU time", "ratio", "per second", "peak MB"]
    body = []
    for line, own in data().items():
        for side, row in own.items() if line.kind not in IMAGE_KINDS else ():
            ratio = row["ratio_to_peer"] and factor(float(row["ratio_to_peer"]))
            cost = f"{value(row)} ({row['p20']} to {row['p80']})"
            rate, memory = row["per_wall_second"], row["peak_megabytes"]
            body.append([shown(line.title), side, cost, ratio, rate, memory])
    return table(head, body)


def _beside(benches: Mapping[str, str]) -> str:
    """Write one line for each side of some benches next to its peer."""
    body, used = [], []
    for name, work in benches.items():
        rows = newest(read(name))
        for row in rows.values():
            if row["side"] != row["peer"]:
                pair = [
                    f"{shown(each['side'])}: {value(each)}" for each in (row, rows[row["peer"]])
                ]
                body.append(
                    [work, *pair, factor(1 / float(row["ratio_to_peer"])), judged(name, row)]
                )
                used.append(row)
    return table(["work", "side", "peer", "ratio", "target"], body) + machines(used)


@block
def data_parts() -> str:
    """Parts of the data path next to their peers."""
    return _beside(PARTS["data_parts"])


@block
def packs() -> str:
    """Packed folders, local and at a URL."""
    return _beside(PARTS["packs"])


def _cell(name: str, row: Row) -> str:
    if row["side"] == row["peer"]:
        return row["median"]
    target = f"; target {asked}" if (asked := judged(name, row)) else ""
    return f"{row['median']} ({factor(1 / float(row['ratio_to_peer']))}{target})"


@block
def jpeg() -> str:
    """JPEG decoding by corpus and instruction set."""
    rows = newest(read("turbo"))
    sides = list(dict.fromkeys(side.split(": ")[1] for side in rows))
    body = [
        [corpus, *(_cell("turbo", rows[f"{corpus}: {side}"]) for side in sides)]
        for corpus in dict.fromkeys(side.split(": ")[0] for side in rows)
    ]
    return table(["images", *sides], body) + machines(rows.values())


@block
def resize() -> str:
    """Resizing by side, size and filter."""
    found = {name: newest(read(name)) for name in PARTS["resize"]}
    sides = found[next(iter(found))]
    body = [[side, *(_cell(name, own[side]) for name, own in found.items())] for side in sides]
    used = (row for own in found.values() for row in own.values())
    return table(["side", *PARTS["resize"].values()], body) + machines(used)


# --- the model


@block
def model() -> str:
    """Speed and memory of the model next to its peers."""
    return _beside(PARTS["model"])


@block
def meter() -> str:
    """Cost of METER next to the published passes."""
    return _beside(PARTS["meter"])


@block
def segmentation() -> str:
    """X-Decoder next to the published passes, and what its data and losses do."""
    benches = PARTS["segmentation"]
    if not all((RESULTS / f"{name}.csv").is_file() for name in benches):
        return NOT_MEASURED
    return _beside(benches)


def _attention() -> tuple[dict[str, Row], Medians]:
    rows = newest(read("kernels"))
    found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for row in rows.values():
        side, operation, what, call = row["side"].split(", ", 3)
        found[operation, what, call][side] = float(row["median"])
    return rows, found


@block
def attention() -> str:
    """Geometric means over all calls on a CPU, and the calls that miss their gate."""
    rows, medians = _attention()
    body = [
        [
            f"{m.operation}, vs {m.peer}",
            m.what,
            factor(m.value),
            verdict(f"{m.least}x", m.value >= m.least),
        ]
        for m in means(medians)
    ]
    found = judged_calls(medians)
    slow = [f"{', '.join(name)} ({factor(r)})" for name, r in found.items() if r < EAGER_CALL]
    note = (
        f"\nGate of a single call: {EAGER_CALL}x eager, for the {len(found)} calls where eager"
        f" takes more than {JUDGED_ABOVE:g} ms. Missed by: {'; '.join(slow) or 'none'}. Smallest"
        f" ratio: {factor(min(found.values()))}.\n"
    )
    return table(["geometric mean", "pass", "ratio", "gate"], body) + note + machines(rows.values())


@block
def attention_calls() -> str:
    """Every call: fiber's milliseconds, and the times of eager and SDPA over fiber's."""
    calls: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for (operation, what, call), found in _attention()[1].items():
        size, batch, where = call.split(", ", 2)
        eager, sdpa = (factor(found[peer] / found["fiber"]) for peer in ("eager", "sdpa"))
        cell = f"{found['fiber']:.3g} ({eager}, {sdpa})"
        calls[operation, where][f"{size}, {batch}, {what}"] = cell
    columns = list(next(iter(calls.values())))
    body = [[*name, *(cells.get(c, "-") for c in columns)] for name, cells in sorted(calls.items())]
    return table(["operation", "call", *columns], body)


@block
def summary() -> str:
    """The main ratios of the page."""
    found = {line.name: own for line, own in data().items()}
    pairs = [
        (what, found[line]["fiber"], found[line][peer])
        for what, line, peer in PARTS["summary"]["data"]
    ]
    for what, name, side in PARTS["summary"]["benches"]:
        rows = newest(read(name))
        pairs.append((what, rows[side], rows[rows[side]["peer"]]))
    body = [
        [what, value(ours), value(peer), factor(float(peer["median"]) / float(ours["median"]))]
        for what, ours, peer in pairs
    ]
    windows = [m for m in means(_attention()[1]) if (m.operation, m.peer) == ("windows", "sdpa")]
    body += [[f"window attention, {m.what} (SDPA)", "-", "-", factor(m.value)] for m in windows]
    return table(["work (peer)", "fiber", "peer", "ratio"], body)


# --- what is learned


@block
def finetuned() -> str:
    """Each image-level task next to chance, counting and inputs taken away."""
    inputs = ("chance", "counted in training", "text", "picture", "both")
    names = PARTS["metrics"]
    body = []
    for (of, task, metric, split), rows in groups(
        read("finetune"), "data", "task", "metric", "split"
    ).items():
        if f"{task}/{metric}" in names and metric != "image_to_text_recall_at_10":
            values = [floats(rows, "value", inputs=each) for each in inputs]
            blind = max(each for column in values[:-1] for each in column)
            learned = "yes" if min(values[-1]) > blind else "**no**"
            body.append([of, names[f"{task}/{metric}"], split, *map(spread, values), learned])
    head = ["data", "task", "split", "chance", "most frequent", "text only", "image only"]
    return table([*head, "both", "learned"], sorted(body, key=lambda cells: cells[0]))


@block
def runs() -> str:
    """Length and cost of the runs of the tasks."""
    rows = [row for row in read("finetune") if int(row["steps"])]
    body = []
    for key, own in groups(rows, "data", "task", "steps", "batch_size", "coarse_steps").items():
        took = floats(own, "train_seconds")
        count = len({(row["inputs"], row["seed"]) for row in own})
        body.append([*key, str(count), f"{min(took):.0f} to {max(took):.0f}"])
    head = ["data", "task", "steps", "batch", "coarse steps", "runs", "seconds"]
    return table(head, body) + machines(rows)


@block
def small_meter() -> str:
    """The small METER next to runs without images and to counting."""
    rows = read("small_meter")
    names, body = PARTS["metrics"], []
    for column in rows[0]:
        task, _, split = column.rpartition("/")
        if split not in SPLITS:
            continue
        counted, text, both = (
            floats(rows, column, inputs=each) for each in ("counted", "text", "both")
        )
        learned = "yes" if is_above(both, [*counted, *text]) else "**no**"
        body.append([names[task], split, *map(spread, (counted, text, both)), learned])
    head = ["task", "split", "counted", "text only", "both", "learned"]
    return table(head, body) + machines(rows)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
