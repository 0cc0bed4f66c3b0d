"""The page on evidence and the table of the demo's page are what the rows give."""

import json

import pytest


def rows(bench, fused, none, longer=None, split_of=("val", "novel")):
    """Rows of three arms; each value is one seed's."""
    arms = {bench.FUSED: fused, bench.NONE: none, f"{bench.NONE}{bench.EQUAL_TIME}": longer or none}
    return [
        {
            "arm": arm,
            **{
                f"{metric}/{split}": str(value) if split in split_of else ""
                for metric in bench.METRICS
                for split in ("val", "novel")
            },
        }
        for arm, values in arms.items()
        for value in values
    ]


def test_the_page_is_what_its_rows_give(bench):
    page = bench.PAGE.read_text(encoding="utf-8")
    assert page == bench.fill(page), "run python benches/evidence_page.py"


def test_the_claims_are_what_the_rows_give(bench):
    claims = json.loads(bench.CLAIMS.read_text())
    assert claims == {"claims": bench.claims()}


def test_an_arm_without_all_seeds_is_left_out(bench):
    found = rows(bench, (0.9, 0.9, 0.91), (0.5, 0.51, 0.5))
    assert bench.fusion_claims(found[:-1]) == []
    assert bench.fusion_claims(found) != []


@pytest.mark.parametrize(
    ("fused", "none", "longer", "claimed"),
    [
        ((0.9, 0.9, 0.91), (0.5, 0.51, 0.5), None, "Fusion is needed."),
        # Worse is no need.
        ((0.5, 0.51, 0.5), (0.9, 0.9, 0.91), None, "It was not shown that fusion helps."),
        # Less than three deviations.
        ((0.9, 0.8, 0.7), (0.6, 0.61, 0.6), None, "It was not shown that fusion helps."),
        # After the same time the arm without fusion is as good.
        ((0.9, 0.9, 0.91), (0.5, 0.51, 0.5), (0.9, 0.9, 0.9), "no gain was shown."),
        # More time alone does not make a claim of fewer samples.
        ((0.9, 0.8, 0.7), (0.6, 0.61, 0.6), (0.2, 0.2, 0.2), "It was not shown that fusion helps."),
    ],
)
def test_a_claim_needs_three_deviations(bench, fused, none, longer, claimed):
    assert bench.fusion_claims(rows(bench, fused, none, longer))[0]["finding"].endswith(claimed)


def test_what_no_arm_has_learned_is_said(bench, monkeypatch):
    half = {(metric, split): 0.5 for metric in bench.METRICS for split in ("val", "novel")}
    half["winoground/group", "val"] = half["winoground/group", "novel"] = 1 / 6
    monkeypatch.setattr(bench, "guesses", lambda: half)
    claims = bench.fusion_claims(rows(bench, (0.1, 0.1, 0.11), (0.1, 0.1, 0.1)))
    assert all(
        claim["finding"].endswith("On average, none is above the guess.") for claim in claims
    )
    # One arm is above a sixth, though not above a half.
    claims = bench.fusion_claims(rows(bench, (0.1, 0.1, 0.11), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2)))
    assert [claim["finding"] == bench.AT_CHANCE for claim in claims] == [
        *(True, True, True, True, False)
    ]
    assert "pictures" in claims[-1]["what"]
    assert [claims[-1][name] for name in ("guess", "fused")] == ["17%", "10% (10 to 11)"]


def test_every_arm_and_seed_has_a_row(bench):
    arms = [*bench.ARMS, *(f"{arm}{bench.EQUAL_TIME}" for arm in (bench.LATE, bench.NONE))]
    found = sorted((row["arm"], int(row["seed"])) for row in bench.read("evidence"))
    assert found == sorted((arm, seed) for arm in arms for seed in bench.SEEDS)


def test_a_claim_needs_both_splits(bench):
    found = rows(bench, (0.9, 0.9, 0.91), (0.5, 0.51, 0.5))
    for row in found:
        for metric in bench.METRICS:
            row[f"{metric}/novel"] = "0.5"
    assert "It was not shown" in bench.fusion_claims(found)[0]["finding"]
    # A kind that novel does not ask for counts by val alone.
    found = rows(bench, (0.9, 0.9, 0.91), (0.5, 0.51, 0.5), split_of=("val",))
    claim = bench.fusion_claims(found)[0]
    assert (claim["fused"], claim["same_samples"]) == ("90% (90 to 91)", "50% (50 to 51)")
    assert claim["finding"] == "Fusion is needed."


def test_a_verdict_lists_what_is_better_and_worse(bench):
    found = rows(bench, (0.9, 0.9, 0.91), (0.5, 0.51, 0.5))
    assert "better on expressions: relations, " in bench.verdict(found, bench.NONE)
    assert "worse on nothing." in bench.verdict(found, bench.NONE)
    turned = rows(bench, (0.5, 0.51, 0.5), (0.9, 0.9, 0.91))
    assert "better on nothing; worse on expressions: rel" in bench.verdict(turned, bench.NONE)
    same = rows(bench, (0.5, 0.51, 0.5), (0.5, 0.5, 0.51))
    assert "better on nothing; worse on nothing." in bench.verdict(same, bench.NONE)


def test_stages_wait_for_all_arms_and_seeds(bench, monkeypatch):
    stages = bench.evidence_stages
    known = {
        "stages": "fine 1",
        "cpu_seconds": "1",
        **dict.fromkeys((*bench.STAGES_COLUMNS, *bench.COARSE_COLUMNS), "0.7"),
        **dict.fromkeys(("processor", "cores", "torch", "commit"), "1"),
    }
    rows = [
        {**known, "arm": arm} for arm in (*stages.ARMS, stages.EQUAL_TIME) for _ in bench.SEEDS
    ] + [{**known, "arm": stages.CHANCE}]
    monkeypatch.setattr(bench, "read", lambda name: rows)
    assert "| one color with boxes | 0.700 |" in bench.stages()
    monkeypatch.setattr(bench, "read", lambda name: rows[1:])
    assert bench.stages() == bench.NOT_MEASURED


def test_every_order_and_seed_of_the_stages_has_a_row(bench):
    stages = bench.evidence_stages
    found = sorted((row["arm"], int(row["seed"])) for row in bench.read("evidence_stages"))
    arms = [(arm, seed) for arm in (*stages.ARMS, stages.EQUAL_TIME) for seed in bench.SEEDS]
    assert found == sorted([*arms, (stages.CHANCE, 0)])


def test_a_page_with_other_blocks_is_refused(bench):
    with pytest.raises(
        ValueError, match="expected the blocks fusion, binding, forms, stages, starts"
    ):
        bench.fill("<!-- rows: other -->\n<!-- end -->")


def stage_rows(bench, arm, values, retrieval, vqa):
    stages = bench.evidence_stages
    arms = {arm: values, stages.EQUAL_TIME: (0.4, 0.41, 0.4)}
    return [
        {
            "arm": name,
            **{column: str(value) for column in bench.STAGES_COLUMNS},
            "coarse/retrieval": str(retrieval),
            "coarse/vqa": str(vqa),
        }
        for name, own in arms.items()
        for value in own
    ]


def test_captions_are_judged_only_if_they_were_learned(bench, monkeypatch):
    stages = bench.evidence_stages
    arm = stages.CAPTIONS_BOXES
    monkeypatch.setattr(stages, "ARMS", {stages.BOXES: (), arm: ()})
    learned = bench.stages_claim(stage_rows(bench, arm, (0.6, 0.6, 0.61), 0.7, 0.5))
    assert "better than *boxes, equal time* on words with boxes" in learned
    same = bench.stages_claim(stage_rows(bench, arm, (0.4, 0.42, 0.4), 0.7, 0.5))
    assert "better than *boxes, equal time* on nothing" in same
    assert "no claim" in bench.stages_claim(stage_rows(bench, arm, (0.6, 0.6, 0.6), 0.5, 0.5))
    assert "(VQA)" in bench.stages_claim(stage_rows(bench, arm, (0.6, 0.6, 0.6), 0.7, 0.4))


def test_binding_waits_for_all_arms_and_seeds(bench, monkeypatch):
    known = {
        "fine_steps": "1",
        "coarse_steps": "2",
        "cpu_seconds": "3",
        **{f"{m}/{split}": "0.7" for m in bench.BINDING_METRICS for split in ("val", "novel")},
        **dict.fromkeys(("processor", "cores", "torch", "commit"), "1"),
    }
    arms = (bench.FUSED, bench.NONE, f"{bench.NONE}{bench.EQUAL_TIME}")
    rows = [{**known, "arm": arm} for arm in arms for _ in bench.SEEDS]
    monkeypatch.setattr(bench, "read", lambda name: rows)
    assert "| no fusion, equal time | 1 | 2 | 3 | 3 |" in bench.binding()
    monkeypatch.setattr(bench, "read", lambda name: rows[1:])
    assert bench.binding() == bench.NOT_MEASURED
