"""What the page on evidence says in words is what the rows give."""

from statistics import mean

import pytest

from tests.benches.conftest import load_bench

page = load_bench("evidence_page")
FUSED, LATE, NONE, EQUAL = page.FUSED, page.LATE, page.NONE, page.EQUAL_TIME
IN, CO, MERGED, NO_FORM = page.fusion_page.ARMS
FLOPS = page.fusion_page.EQUAL_FLOPS
SPLITS = ("val", "novel")
#: A rate of presence, matching or NLVR2 that is above chance.
LEARNED = 0.55


def seeds(name, arm, metric, split):
    return page.floats([row for row in page.read(name) if row["arm"] == arm], f"{metric}/{split}")


def fusion(arm, metric, split="val"):
    return seeds("evidence", arm, metric, split)


def forms(arm, metric, split="val"):
    return seeds("fusion", arm, metric, split)


def learned(arm, metric):
    """Number of seeds of a form that learned a metric on both splits."""
    pairs = zip(*(forms(arm, metric, split) for split in SPLITS), strict=True)
    return sum(min(pair) > LEARNED for pair in pairs)


def stages(arm, column):
    return page.floats([row for row in page.read("evidence_stages") if row["arm"] == arm], column)


MATCHING, PRESENCE, NLVR2 = "matching/accuracy", "vqa/exists/accuracy", "nlvr2/accuracy"
RELATIONS, NOUNS = "refcoco/relation/accuracy_at_1", "refcoco/noun/accuracy_at_1"


def with_fusion_only():
    return all(
        min(fusion(FUSED, metric, split)) > LEARNED > max(fusion(arm, metric, split))
        for metric in (MATCHING, PRESENCE)
        for split in SPLITS
        for arm in (NONE, NONE + EQUAL)
    )


def fewer_samples_for_relations():
    values = [(fusion(FUSED, RELATIONS, s), [fusion(NONE, RELATIONS, s)]) for s in SPLITS]
    longer = fusion(NONE + EQUAL, RELATIONS)
    return all(page.is_better(*pair) for pair in values) and sum(v > 0.9 for v in longer) == 1


def one_block_is_as_good():
    rows, five = page.read("evidence"), page.FUSED
    return (
        page.compared(rows, page.METRICS, five, LATE) == "better on nothing; worse on nothing"
        and page.compared(rows, page.METRICS, five, LATE + EQUAL)
        == "better on nothing; worse on expressions: one noun"
        and min(fusion(five, PRESENCE)) > max(fusion(LATE, PRESENCE))
        and all(
            mean(fusion(NONE + EQUAL, NOUNS, split)) > mean(fusion(arm, NOUNS, split))
            for arm in (five, LATE, NONE, LATE + EQUAL)
            for split in SPLITS
        )
    )


def guess(metric, split):
    [row] = [
        r for r in page.read("evidence_guesses") if (r["metric"], r["split"]) == (metric, split)
    ]
    return max(float(row["chance"]), float(row["blind"]))


def binding_in_no_arm():
    arms = (FUSED, LATE, NONE, LATE + EQUAL, NONE + EQUAL)
    return all(
        mean(fusion(arm, metric, split)) < guess(metric, split) + 0.04
        for arm in arms
        for metric in ("vqa/color/accuracy", "vqa/shape/accuracy")
        for split in SPLITS
    )


def binding(arm, metric, split):
    rows = [row for row in page.read("evidence_binding") if row["arm"] == arm]
    return page.floats(rows, f"{metric}/{split}")


def shapes_are_bound_with_fusion():
    shape = "vqa/shape/accuracy"
    return all(
        page.is_better(
            binding(FUSED, shape, split), [binding(NONE + end, shape, split) for end in ("", EQUAL)]
        )
        and min(binding(FUSED, shape, split)) > guess(shape, split) + 0.1
        for split in SPLITS
    )


def shapes_are_guessed_without_fusion():
    shape, arms = "vqa/shape/accuracy", (NONE, NONE + EQUAL)
    return all(
        abs(mean(binding(arm, shape, "val")) - guess(shape, "val")) < 0.03
        and max(binding(arm, shape, "novel")) < guess(shape, "novel")
        for arm in arms
    )


def colors_are_bound_on_val_without_a_claim():
    color, arms = "vqa/color/accuracy", (NONE, NONE + EQUAL)
    own = binding(FUSED, color, "val")
    return (
        all(min(own) > max(binding(arm, color, "val")) for arm in arms)
        and not page.is_better(own, [binding(arm, color, "val") for arm in arms])
        and mean(binding(FUSED, color, "novel")) < guess(color, "novel")
    )


def binding_in_no_form():
    arms = (IN, CO, MERGED, NO_FORM, CO + FLOPS, MERGED + FLOPS, NO_FORM + FLOPS)
    return all(
        mean(forms(arm, metric, split)) < guess(metric, split)
        for arm in arms
        for metric in ("vqa/color/accuracy", "vqa/shape/accuracy")
        for split in SPLITS
    )


def equal_times_are_shorter():
    own, *others = (
        mean(page.floats([r for r in page.read("evidence") if r["arm"] == arm], "cpu_seconds"))
        for arm in (FUSED, LATE + EQUAL, NONE + EQUAL)
    )
    return all(0.9 * own < other < own for other in others)


def same_steps():
    counts = {arm: (learned(arm, NLVR2), learned(arm, MATCHING)) for arm in (IN, CO, MERGED)}
    return counts == {IN: (3, 3), CO: (1, 2), MERGED: (1, 2)}


def same_operations():
    counts = {
        arm: (learned(arm + FLOPS, NLVR2), learned(arm + FLOPS, MATCHING)) for arm in (CO, MERGED)
    }
    lower = all(
        mean(forms(arm + FLOPS, metric, split)) < mean(forms(IN, metric, split))
        for arm in (CO, MERGED)
        for metric in (NLVR2, MATCHING)
        for split in SPLITS
    )
    return counts == {CO: (2, 2), MERGED: (3, 3)} and lower


def without_fusion_at_chance():
    return not any(
        learned(arm, metric) for arm in (NO_FORM, NO_FORM + FLOPS) for metric in (NLVR2, MATCHING)
    )


def swapped_words_in_no_form():
    arms = (IN, CO, MERGED, NO_FORM, CO + FLOPS, MERGED + FLOPS, NO_FORM + FLOPS)
    return all(
        mean(forms(arm, f"winoground/{name}", split)) < chance + 0.05
        for arm in arms
        for name, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6))
        for split in SPLITS
    )


def captions_between_help():
    own, alone = "boxes, captions, boxes", page.evidence_stages.EQUAL_TIME
    return all(
        page.is_better(stages(own, name), [stages(alone, name)]) for name in ("boxed", "unboxed")
    )


def colors_not_shapes_from_captions():
    [color], [noun] = (stages("chance", f"unboxed/{name}") for name in ("color", "noun"))
    own = "boxes, captions, boxes"
    return (
        min(stages(own, "unboxed/color")) > color
        and abs(mean(stages(own, "unboxed/noun")) - noun) < 0.03
    )


def more_steps_on_boxes_bring_nothing():
    few, many = stages("boxes", "boxed"), stages(page.evidence_stages.EQUAL_TIME, "boxed")
    return mean(many) <= mean(few)


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [
        (
            "Captions are matched, and questions about presence answered, with fusion only.",
            with_fusion_only,
        ),
        (
            "Relations are learned from fewer samples with fusion; with as much time, one of the"
            " three models without fusion learned them too.",
            fewer_samples_for_relations,
        ),
        (
            "That five blocks are better than one was not shown: with as much time, single nouns"
            " are found more often by one, and most often without any. After the same samples, five"
            " blocks answered more questions about presence on every seed, but their seeds differ"
            " too much for a claim.",
            one_block_is_as_good,
        ),
        (
            "In no arm are they answered more than four points better, on average, than by a guess",
            binding_in_no_arm,
        ),
        (
            "Which object a question is about is learned with fusion: questions about shape are"
            " then answered more often than without it, after the same samples and after the same"
            " time, and more often than by a guess, on new combinations too.",
            shapes_are_bound_with_fusion,
        ),
        (
            "Without fusion, they are answered about as often as by the guess on val, and less"
            " often on new combinations.",
            shapes_are_guessed_without_fusion,
        ),
        (
            "Of the questions about color on val, each model with fusion answers more than any"
            " without, but its seeds differ too much for a claim; those on new combinations were"
            " not learned.",
            colors_are_bound_on_val_without_a_claim,
        ),
        (
            "Questions about color and shape were learned in no form: none answers more of them",
            binding_in_no_form,
        ),
        (
            "The arms of equal time took a little less than that of five blocks (table).",
            equal_times_are_shorter,
        ),
        (
            "With the same steps, fusion inside the encoders learned NLVR2 and matching on all"
            " three seeds. Co-attention and merged attention learned matching on two of three and"
            " NLVR2 on one;",
            same_steps,
        ),
        ("without fusion both stay at chance.", without_fusion_at_chance),
        (
            "With as many operations, merged attention learned both on all seeds and co-attention"
            " both on two, to lower means than fusion inside the encoders;",
            same_operations,
        ),
        (
            "Nor were those about relations and captions with swapped words;",
            swapped_words_in_no_form,
        ),
        (
            "Where boxes are few, captions and questions in between help: more expressions are"
            " found than after as much time on boxes alone, of words with boxes and of words that"
            " only captions have.",
            captions_between_help,
        ),
        (
            "Of the latter, colors are found more often than by chance on all seeds, shapes about"
            " as often as by chance.",
            colors_not_shapes_from_captions,
        ),
        ("More steps on the same 300 images bring nothing,", more_steps_on_boxes_bring_nothing),
    ],
)
def test_the_page_says_it_and_the_rows_give_it(sentence, holds):
    text = " ".join(page.PAGE.read_text(encoding="utf-8").split())
    assert sentence in text
    assert holds()


def test_every_form_and_seed_has_a_row():
    arms = [IN, CO, MERGED, NO_FORM, *(arm + FLOPS for arm in (CO, MERGED, NO_FORM))]
    found = sorted((row["arm"], int(row["seed"])) for row in page.read("fusion"))
    assert found == sorted((arm, seed) for arm in arms for seed in page.fusion_page.SEEDS)


def test_every_arm_and_seed_of_binding_has_a_row():
    found = sorted((row["arm"], int(row["seed"])) for row in page.read("evidence_binding"))
    assert found == sorted(
        (arm, seed) for arm in (FUSED, NONE, NONE + EQUAL) for seed in page.SEEDS
    )
