"""Write docs/results.md from the rows in results/.

Command: python benches/results_page.py
Everything on the page is computed here, its sentences included; a test makes the page again and
compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import boxes_page
import data_page
import kernels_page
from ablate import ARMS, SHOWN
from experiments import SPLITS
from finetune import CHANCE, COUNTED, FINETUNED
from page_parts import change, machines, read, spread, table

PAGE = Path(__file__).parents[1] / "docs" / "results.md"

#: What a person reads for a task, and the number that stands for it.
FINETUNED_NUMBERS = {
    "vqa": ("questions (VQA), accuracy", "accuracy"),
    "nlvr2": ("statements about two pictures (NLVR2), accuracy", "accuracy"),
    "retrieval": ("text finds picture, R@10", "text_to_image_recall_at_10"),
    "caption": ("captions, CIDEr-D", "cider_d"),
}
ABLATED_NAMES = (
    "text finds picture, R@10",
    "picture finds text, R@10",
    "matching, accuracy",
    "masked words, accuracy",
    "questions, accuracy",
)
#: Speed and memory: file of rows, and what its sides do.
BENCHES = {
    "model_step": "a step of coarse pre-training, micro-batch 8, `small`",
    "model_memory": "peak memory of that step above the weights",
    "model_flops_small": "forward FLOPs of a sample of that step, `small`",
    "model_flops_base": "the same, `base`",
    "swin": "the image tower alone, forward and backward",
    "retrieval": "matching every picture with every text",
    "retrieval_flops_base": "forward FLOPs of one more pair, `base`",
    "caption": "captions by beam search",
    "detector_backbone": "towers of the detector, 800 x 1344 pixels, 80 classes, `base`",
    "detector": "the same, from tensors to boxes",
    "detector_short": "the same for a prompt of three classes",
    "detector_options": "the same, with what may be kept or computed in bfloat16",
    "detector_compiled": "the same, compiled",
    "detector_memory": "peak memory of that picture above the weights",
    "import": "start of a process",
    "demo_data": "a sample of the demo's batches, CPU time, beside the loader before this engine",
}
#: The same of the data path.
DATA_BENCHES = {
    "turbo": "decoding a JPEG, one thread",
    "arm_decode": "decoding a JPEG on ARM, emulated",
    "arm_resize": "squash to 384 x 384 on ARM, emulated",
    "resize_640_384_bilinear": "480 x 640 to 384 x 384, bilinear, antialiased",
    "resize_640_384_bicubic": "the same, bicubic",
    "resize_640_1066_bilinear": "480 x 640 to 800 x 1066, bilinear, antialiased",
    "resize_640_1066_bicubic": "the same, bicubic",
    "resize_4000_384_bilinear": "3000 x 4000 to 384 x 384, bilinear, antialiased",
    "resize_4000_384_bicubic": "the same, bicubic",
    "rand_augment": "the published RandAugment, a picture of 384 x 384",
    "tokenizer_captions_64": "a caption, batch of 64",
    "tokenizer_captions_1024": "a caption, batch of 1,024",
    "tokenizer_prompt": "the prompt of 80 classes and a positive map of 16 boxes",
    "boxes_of_a_picture": "64 boxes of a picture: cut, resized, mirrored",
}
#: Ratios that are aimed at, by file and by what the name of the side begins with.
AIMS = {
    ("model_step", "fiber"): 1 / 2,
    ("model_memory", "fiber"): 1 / 2,
    ("model_flops_base", "fiber, queue form"): 1 / 1.68,
    ("model_flops_base", "fiber"): 1 / 2.1,
    # A fair peer has no slow trunk.
    ("swin", "eager"): 1.1,
    ("retrieval_flops_base", "fiber"): 1 / 3,
    ("caption", "cached"): 1 / 6,
    ("detector_backbone", "fiber"): 1 / 1.5,
    ("detector", "fiber"): 1 / 1.4,
    ("detector_memory", "fiber"): 0.6,
    **{("turbo", f"{corpus}: avx2"): 1 / 1.25 for corpus in ("coco640", "coco444")},
    **{("turbo", f"{corpus}: avx512"): 1 / 1.25 for corpus in ("coco640", "coco444")},
}
for _size in ("640_384", "640_1066", "4000_384"):
    for _kernel in ("bilinear", "bicubic"):
        AIMS[f"resize_{_size}_{_kernel}", "fiber rows, exact, avx"] = 1.0
        AIMS[f"resize_{_size}_{_kernel}", "fiber rows, fast"] = 1 / 2
#: Times that are aimed at, in the unit of the rows, in the same way.
TIMES = {
    ("rand_augment", "fiber"): 0.15,
    ("tokenizer_captions_64", "fiber, offsets"): 1.0,
    ("tokenizer_captions_64", "fiber"): 0.5,
    ("tokenizer_captions_1024", "fiber, offsets"): 1.0,
    ("tokenizer_captions_1024", "fiber"): 0.5,
    ("tokenizer_prompt", "fiber"): 5.0,
    ("boxes_of_a_picture", "fiber"): 1.0,
}
#: Ratios that a release must reach where the aim is higher.
GATES = {
    ("detector_backbone", "fiber"): 1 / 1.3,
    ("detector", "fiber"): 1 / 1.14,
    **{("turbo", f"{corpus}: avx2"): 1.0 for corpus in ("coco640", "coco444")},
    **{("turbo", f"{corpus}: avx512"): 1.0 for corpus in ("coco640", "coco444")},
}
#: What holds a missed target back.
HELD_BACK = """The step's time follows its FLOPs: half of the blocks of `small` and two thirds of
its text layers are fused and run once for each objective and each kind of pair, so that sharing
what lies below saves less there than in `base`, three quarters of whose blocks lie below. Few
pictures leave beam search waiting for small products; many keep it busy.
"""

#: What holds missed targets of the data path back, and what was not measured.
DATA_HELD_BACK = """What holds the missed ratios of the data path back (`perf record` of the
loader on one thread): the largest part of a squashed picture is its Huffman codes, each of which
begins where the one before it ended, and of a 12-megapixel photograph they are most. Every peer has
to read them, too; there fiber gains less than around them, though a thread reads those of two
pictures in one loop. A picture of the fine stage is written to the batch as
ten megabytes of floats, once, which takes as long as its codes; stores past the caches took no
less. A photograph of 12 megapixels that is resized whole waits for the horizontal pass of
its 3,000 rows: sums without rounding need two products where torchvision's, which may differ from
Pillow's, need one. From a fourfold reduction on `fast` is the exact resize.

On ARM no time was measured: instructions were counted under emulation (`arm.py`), beside a
program of libjpeg-turbo that writes its picture to a file as well. Codes are read with more
instructions than they once were here (`arm_decode.csv` has the rows of both) and fewer failed
guesses, which x86 repays; whether an ARM processor does, nobody has timed.
"""

#: What the ablation shows and what it cannot show, beside its numbers.
ABLATION_SHOWS = """What this cannot show: what matching brings. The recipe draws half of its wrong
pairs by the similarities of contrast, and in so few steps matching does not learn to tell them:
it stays near chance in the whole, and leaving it out leaves out little. Leaving contrast out
changes two things at once, the loss and the wrong pairs, which an untrained head then draws, all
but at random; these are learned. So `finetune.py` begins with random wrong pairs. Chance:
matching .500; a picture or a text among the ten first, some .020 (table above).
"""

HEAD = """# Results

Made by `python benches/results_page.py` from the rows in `benches/results/`, which hold the
commit, the versions and the machine of every number; do not edit by hand. How a row is made stands
at the top of each bench. Small models on small pictures, trained for minutes: the numbers show
that each part of the package learns what it should, and how much of it comes from where. They say
nothing about models of the published size.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    rows = read("boxes")
    if rows:
        boxes_page.draw(rows, PAGE.parent / "images" / boxes_page.PICTURE)
        print(f"wrote {PAGE.parent / 'images' / boxes_page.PICTURE}")


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        *_finetuned(read("finetune")),
        *_ablated(read("ablate")),
        *boxes_page.section(read("boxes")),
        *_benches(),
        *kernels_page.section(read("kernels")),
        *data_page.section(read("data")),
        *_data_parts(),
    ]
    return "\n".join(parts)


def _finetuned(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    parts = [
        "## Image-level tasks, each trained from one coarse checkpoint\n\n"
        "One coarse model of each data set is trained on one task at a time"
        " (`benches/finetune.py`). *Text only* and *picture only* are the same run with every"
        " picture grey, or every text the same, in training and in measuring. *Counted* says what"
        " was most frequent in training, for questions and statements by their string. *novel*"
        " shows compositions (scenes) or classes (stamps) that training never showed. *Both*: mean"
        " of the seeds, smallest and largest in brackets; the others are of one seed. A task counts"
        " as learned from both inputs where the worst seed lies above everything that misses one."
        "\n"
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        lines, learned, missed = [], [], []
        for task in FINETUNED:
            name, metric = FINETUNED_NUMBERS[task]
            for split in SPLITS:
                by_inputs: dict[str, list[float]] = {}
                for row in own:
                    if (row["task"], row["metric"], row["split"]) == (task, metric, split):
                        by_inputs.setdefault(row["inputs"], []).append(float(row["value"]))
                if not by_inputs.get("both"):
                    continue
                columns = (CHANCE, COUNTED, "text", "picture", "both")
                cells = [spread(by_inputs.get(column, [])) for column in columns]
                lines.append([name, split, *cells])
                without = [v for k, vs in by_inputs.items() if k != "both" for v in vs]
                above = min(by_inputs["both"]) > max(without, default=0.0)
                (learned if above else missed).append(f"{name} on {split}")
        seconds = [
            float(row["train_seconds"])
            for row in own
            if row["inputs"] in ("both", "text", "picture")
        ]
        head = ["task", "split", "chance", "counted", "text only", "picture only", "both"]
        parts += [
            f"### {data}\n",
            table(head, lines),
            f"Learned from both inputs: {'; '.join(learned) or 'nothing'}."
            f" Not learned: {'; '.join(missed) or 'nothing'}.\n\n"
            f"{max(int(row['coarse_steps']) for row in own)} steps of coarse pre-training before,"
            f" then {_steps(own)}."
            f" A run took {min(seconds):.0f} to {max(seconds):.0f} seconds of training on one"
            f" thread, with others beside it: {machines(own)}.\n",
        ]
    return parts


def _steps(rows: list[dict[str, str]]) -> str:
    """Say how many steps each task was trained, and of how many samples."""
    found = {
        row["task"]: f"{row['steps']} of {row['batch_size']} for {row['task']}"
        for row in rows
        if row["inputs"] == "both"
    }
    return ", ".join(found.values())


def _ablated(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    values = {
        arm: {
            (task, metric, split): [
                float(row[f"{task}/{metric}/{split}"]) for row in rows if row["arm"] == arm
            ]
            for task, metric in SHOWN
            for split in SPLITS
        }
        for arm in ARMS
    }
    lines, verdicts = [], []
    for (task, metric), name in zip(SHOWN, ABLATED_NAMES, strict=True):
        for split in SPLITS:
            key = (task, metric, split)
            lines.append([name, split, *(spread(values[arm][key]) for arm in ARMS)])
            for arm in ARMS:
                apart = change(values["whole"][key], values[arm][key])
                if arm != "whole" and apart:
                    verdicts.append(f"- {arm}: {name} on {split} {apart}")
    quiet = [arm for arm in ARMS if arm != "whole" and not any(f"- {arm}:" in v for v in verdicts)]
    if verdicts and quiet:
        verdicts.append(f"- no difference found: {', '.join(quiet)}")
    hours = sum(float(row["cpu_seconds"]) for row in rows) / 3600
    return [
        "## What fusion and each objective of pre-training bring\n\n"
        f"The coarse stage on scenes (`benches/ablate.py`, {rows[0]['steps']} steps), without the"
        " part that the column names; what is left out of the losses is measured all the same,"
        " with a head that was never trained. Mean of the seeds, smallest and largest in"
        " brackets.\n",
        table(["metric", "split", *ARMS], lines),
        ABLATION_SHOWS,
        "A difference is named where every one of three seeds of one lies above every seed of the"
        " other and the means are two of the larger standard deviation apart; three seeds cannot"
        " show a smaller one. Where nothing differs, three seeds still lie apart in one of ten"
        f" comparisons; the table has {len(lines) * (len(ARMS) - 1)} of them, so that a small"
        " difference that stands alone means little.\n",
        ("\n".join(verdicts) or _no_difference(rows)) + "\n",
        f"{len(rows)} of {3 * len(ARMS)} runs, {hours:.1f} CPU hours: {machines(rows)}.\n",
    ]


def _no_difference(rows: list[dict[str, str]]) -> str:
    seeds = {row["seed"] for row in rows}
    if len(seeds) < 3:
        return f"{len(seeds)} of three seeds have run: no difference is judged yet."
    return "No difference is that large."


def _benches() -> list[str]:
    lines, used = _lines(BENCHES)
    if not lines:
        return []
    return [
        "## Speed and memory\n\nMedians of interleaved rounds in one process or, for whole"
        " processes, of interleaved starts; the newest rows of each bench.\n",
        table(["what", "side", "peer", "ratio", "target"], lines),
        HELD_BACK,
        f"{machines(used)}.\n",
    ]


def _data_parts() -> list[str]:
    """The parts of the data path, each alone."""
    lines, used = _lines(DATA_BENCHES)
    if not lines:
        return []
    return [
        "### Parts of the data path\n\nMedians of interleaved rounds in one process, on one thread;"
        " the newest rows of each bench.\n",
        table(["what", "side", "peer", "ratio", "target"], lines),
        DATA_HELD_BACK,
        f"{machines(used)}.\n",
    ]


def _lines(benches: Mapping[str, str]) -> tuple[list[list[str]], list[dict[str, str]]]:
    """Lines of a table of the newest rows of some benches, and these rows."""
    lines, used = [], []
    for name, what in benches.items():
        newest: dict[str, dict[str, str]] = {row["side"]: row for row in read(name)}
        last = max((row["date"] for row in newest.values()), default="")
        for row in newest.values():
            if row["date"] == last and row["side"] != row["peer"]:
                peer = newest[row["peer"]]
                used.append(row)
                lines.append(
                    [
                        what,
                        f"{row['side']}: {row['median']} {row['unit']}",
                        f"{row['peer']}: {peer['median']} {peer['unit']}",
                        row["ratio_to_peer"],
                        _judged(name, row),
                    ]
                )
    return lines, used


def _judged(name: str, row: dict[str, str]) -> str:
    """Say whether a ratio reaches the one that is aimed at, if there is one, and its gate."""
    judged = []
    for what, bounds in (("", AIMS), ("gate ", GATES)):
        bound = next(
            (b for (file, side), b in bounds.items() if file == name and _is(row, side)), None
        )
        if bound is not None:
            verdict = "met" if float(row["ratio_to_peer"]) <= bound else "missed"
            judged.append(f"{what}{bound:.3f}: {verdict}")
    time = next((t for (file, side), t in TIMES.items() if file == name and _is(row, side)), None)
    if time is not None:
        verdict = "met" if float(row["median"]) <= time else "missed"
        judged.append(f"{time:g} {row['unit']}: {verdict}")
    return "; ".join(judged)


def _is(row: dict[str, str], side: str) -> bool:
    return row["side"].startswith(side)


if __name__ == "__main__":
    main()
