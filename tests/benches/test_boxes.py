import sys
from pathlib import Path

import numpy as np
import pytest

from fiber.data.record import Record
from fiber.synthetic import stamps
from fiber.synthetic.scenes import generate
from tests.synthetic.cutouts import write_pictures, write_stamp

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def boxes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHES))
    for name in ("boxes", "box_metrics", "experiments", "stamp_subset"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import boxes
    import experiments

    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    return boxes


@pytest.fixture
def box_metrics(boxes):
    import box_metrics

    return box_metrics


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes") / "scenes"
    return generate(folder, train=60, val=12, novel=12, image_size=48, max_objects=3)


@pytest.fixture(scope="module")
def few_stamps(tmp_path_factory):
    root = tmp_path_factory.mktemp("stamps")
    pictures = write_pictures(root)
    return stamps.generate(
        root / "data", train=30, val=12, novel=12, image_size=96, max_objects=3, **pictures
    )


def test_fewer_pictures_are_part_of_more_and_always_the_same(boxes):
    pictures = [f"{number}.jpg" for number in range(5000)]
    whole, quarter, least = (
        boxes.chosen_images(pictures, percent, seed=1) for percent in boxes.PERCENTS
    )
    assert (len(whole), len(quarter), len(least)) == (2400, 600, 120)
    assert set(least) < set(quarter) < set(whole)
    # Neither the order of the records nor how many a picture has decides.
    assert boxes.chosen_images([*reversed(pictures), *pictures], 5, seed=1) == least
    other = boxes.chosen_images(pictures, 5, seed=2)
    assert len(set(other) & set(least)) < len(least) / 2


def test_few_pictures_are_all_the_boxes_there_are(boxes):
    assert len(boxes.chosen_images(["a", "b", "c"], 100, seed=0)) == 3
    assert len(boxes.chosen_images(["a", "b", "c"], 5, seed=0)) == 1


def test_every_record_of_a_chosen_picture_is_taken_and_no_other(boxes, scenes):
    parts = boxes.boxed_records(scenes, 25, seed=0)
    pictures = {record.image_id for record in parts["detection"]}
    assert len(parts["detection"]) == len(pictures) == 15
    whole = boxes.boxed_records(scenes, 100, seed=0)
    for source, records in parts.items():
        kept = [record.key for record in whole[source] if record.image_id in pictures]
        assert [record.key for record in records] == kept and kept


def test_nouns_that_are_held_out_are_not_asked_for_in_training(boxes, few_stamps):
    held_out = boxes.read_json(few_stamps / "dataset.json")["held_out"]["nouns"]
    everything = boxes.sources.detection(few_stamps, "train")
    asked = boxes.boxed_records(few_stamps, 100, seed=0)["detection"]
    assert held_out and set(held_out) < set(everything[0].labels)
    for before, record in zip(everything, asked, strict=True):
        # One list of labels for all: what draws their prompts looks whether it is the same one.
        assert record.labels is asked[0].labels
        assert set(record.labels) == set(before.labels) - set(held_out)
        assert record.boxes_xyxy == before.boxes_xyxy
        names = [record.labels[label] for label in record.box_labels]
        assert names == [before.labels[label] for label in before.box_labels]
        said = [record.text[start:end] for ((start, end),) in record.char_spans]
        assert said == names


def test_groups_of_stamps_are_nouns_that_training_shows_and_those_held_out(
    boxes, box_metrics, few_stamps
):
    nouns = boxes.read_json(few_stamps / "dataset.json")["held_out"]["nouns"]
    asked = box_metrics.open_asked(few_stamps)
    for group, unseen in (("seen", False), ("unseen", True)):
        labels = [
            record.labels[label]
            for record, true in zip(asked.coco, box_metrics.true_boxes(asked, group), strict=True)
            for label in true.labels
        ]
        assert labels and all((label in nouns) == unseen for label in labels)
    heads = {box_metrics.head_phrase(record) for record in asked.refcoco["unseen"]}
    assert heads and all(head.endswith(tuple(nouns)) for head in heads)
    training = boxes.boxed_records(few_stamps, 100, seed=0)
    values = box_metrics.guess_frequent_boxes(asked, training)
    assert all(0 <= value <= 1 for value in values.values())


def test_both_arms_and_all_parts_have_the_same_steps(boxes):
    jobs = [job for kind, job in boxes.wanted([0, 1], ["scenes", "stamps"]) if kind == "scenes"]
    steps = {
        job.arm: boxes.fine_config("scenes", job).train.steps
        for job in jobs
        if job.arm != boxes.CHANCE
    }
    assert steps[boxes.FINE] == steps[boxes.COARSE_FINE] == steps[boxes.TEXT_ONLY]
    assert steps[boxes.LONGER] == steps[boxes.FINE] + boxes.coarse_config("scenes").train.steps
    assert len({(job.arm, job.percent, job.seed) for job in jobs}) == len(jobs)
    for arm in (boxes.COARSE_FINE, boxes.FINE):
        assert [job.seed for job in jobs if job.arm == arm] == [0, 0, 0, 1, 1, 1]
    assert [(job.percent, job.seed) for job in jobs if job.arm == boxes.LONGER] == [
        (percent, 0) for percent in boxes.PERCENTS
    ]


def test_a_run_that_has_its_row_is_known_again(boxes):
    from experiments import Rows

    job = boxes.Job(boxes.COARSE_FINE, 25, 1)
    Rows("boxes", boxes.KNOWN_BY).add([boxes._row("scenes", job)])
    again = Rows("boxes", boxes.KNOWN_BY)
    assert again.has(**job.known("scenes"))
    for other in (
        boxes.Job(boxes.FINE, 25, 1),
        boxes.Job(job.arm, 5, 1),
        boxes.Job(job.arm, 25, 0),
    ):
        assert not again.has(**other.known("scenes"))
    assert not again.has(**job.known("stamps"))


def test_a_missing_coarse_model_is_trained_before_what_needs_it_and_only_then(
    boxes, monkeypatch, tmp_path
):
    from concurrent.futures import ThreadPoolExecutor

    from experiments import Rows

    done = []

    def coarse(place):
        done.append(boxes.COARSE)
        place.coarse.mkdir(parents=True)
        (place.coarse / "model.safetensors").touch()
        return [boxes._row("scenes", boxes.Job(boxes.COARSE, 0, 0), seconds=3600)]

    def finish(place, job):
        assert place.has_coarse or not job.needs_coarse
        done.append(job.arm)
        return [boxes._row("scenes", job, seconds=3600)]

    monkeypatch.setattr(boxes, "train_coarse", coarse)
    monkeypatch.setattr(boxes, "finish", finish)
    monkeypatch.setattr(
        boxes, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers)
    )
    places = {"scenes": boxes.BoxPlace(data=tmp_path, runs=tmp_path)}
    monkeypatch.setattr(boxes.BoxPlace, "kind", "scenes")
    fine, both = boxes.Job(boxes.FINE, 5, 0), boxes.Job(boxes.COARSE_FINE, 5, 0)
    rows = Rows("boxes", boxes.KNOWN_BY)
    boxes.run_all(places, [("scenes", fine)], rows, 2, 100)
    assert done == [boxes.FINE]
    boxes.run_all(places, [("scenes", both)], rows, 2, 100)
    assert done == [boxes.FINE, boxes.COARSE, boxes.COARSE_FINE]
    # The budget is what all rows but extras took, those of earlier calls included.
    longer = boxes._row("scenes", boxes.Job(boxes.LONGER, 5, 0), seconds=7200)
    rows.add([longer, {**longer, "data": "other"}])
    waiting = [("scenes", boxes.Job(boxes.FINE, 5, seed)) for seed in (1, 2, 3)]
    boxes.run_all(places, waiting, rows, 1, 4)
    assert len(done) == 4 and len(rows.rows) == 6


def test_what_was_held_out_is_known_by_its_noun_or_by_colour_and_shape(box_metrics):
    names = box_metrics.names_held_out({"nouns": ["sea lion", "bear"]})
    assert names("a bear") and names("three large sea lions")
    assert not names("a bear cub") and not names("a beard") and not names("a sea lion's pup")
    names = box_metrics.names_held_out({"color_shape": [["blue", "cross"], ["red", "ring"]]})
    assert names("a plain blue cross") and names("two blue crosses")
    assert not names("a red cross") and not names("the blue ring")


def test_of_a_caption_only_the_phrases_about_what_was_held_out_are_asked(box_metrics):
    text = "a blue cross and a red star"
    first, second = ((0, 12),), ((17, 27),)
    record = Record(
        key="r",
        images=("x.png",),
        text=text,
        boxes_xyxy=((0, 0, 9, 9), (20, 20, 30, 30)),
        char_spans=(first, second),
        box_labels=(0, 1),
        labels=("a blue cross", "a red star"),
        label_spans=(first, second),
    )
    kept = box_metrics.only_phrases(record, lambda phrase: phrase.endswith("star"))
    assert (kept.text, kept.labels, kept.boxes_xyxy) == (text, ("a red star",), ((20, 20, 30, 30),))
    assert [phrase for _, phrase, _ in box_metrics.phrases_of([kept])] == ["a red star"]
    assert not box_metrics.only_phrases(record, lambda phrase: False).labels


def test_results_are_read_back_picture_by_picture(box_metrics):
    rows = [
        {"image_id": 1, "category_id": 3, "bbox": [2.0, 3.0, 4.0, 5.0], "score": 0.5},
        {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.25},
    ]
    empty, found = box_metrics.scored_boxes(rows, 2)
    assert len(empty.labels) == 0 and np.shape(empty.boxes_xyxy) == (0, 4)
    assert np.array(found.boxes_xyxy).tolist() == [[2, 3, 6, 8], [0, 0, 1, 1]]
    assert (list(found.labels), list(found.scores)) == ([2, 0], [0.5, 0.25])


def test_groups_of_scenes_are_val_and_novel_and_guesses_have_every_number(
    boxes, box_metrics, scenes
):
    asked = box_metrics.open_asked(scenes)
    images = {group: {r.image_id for r in asked.refcoco[group]} for group in box_metrics.GROUPS}
    assert all("/val/" in image for image in images["seen"])
    assert all("/novel/" in image for image in images["unseen"])
    seen, unseen = (box_metrics.true_boxes(asked, group) for group in box_metrics.GROUPS)
    counts = [(len(a.labels), len(b.labels)) for a, b in zip(seen, unseen, strict=True)]
    assert all((a > 0) != (b > 0) for a, b in counts)
    phrases = box_metrics.phrases_of(asked.flickr["unseen"])
    names = box_metrics.names_held_out(box_metrics.read_json(scenes / "dataset.json")["held_out"])
    assert phrases and all(names(phrase) for _, phrase, _ in phrases)

    training = boxes.boxed_records(scenes, 100, seed=0)
    wanted = {
        (column, group) for _, _, column in box_metrics.NUMBERS for group in ("seen", "unseen")
    }
    for values in (
        box_metrics.guess_by_chance(asked),
        box_metrics.guess_frequent_boxes(asked, training),
    ):
        assert values.keys() == wanted
        assert all(0 <= value <= 1 for value in values.values())


def test_few_stamps_are_one_of_each_kind_with_a_name_of_one_word(boxes, tmp_path):
    import stamp_subset

    for name, caption in (
        ("animals/a", "A frog."),
        ("animals/b", "A frog (a green one)."),
        ("animals/c", "A tree frog."),
        ("things/a", "A mug."),
        ("things/b", "A hen."),
        ("things/c", "A rooster."),
    ):
        write_stamp(tmp_path / "from" / f"{name}.png", caption)
    stamp_subset.choose(tmp_path / "from", tmp_path / "to", 3)
    files = sorted(path.name for path in (tmp_path / "to").iterdir())
    assert files == [f"{noun}{end}" for noun in ("frog", "hen", "mug") for end in (".png", ".txt")]
    with pytest.raises(FileExistsError):
        stamp_subset.choose(tmp_path / "from", tmp_path / "to", 3)
    with pytest.raises(ValueError, match="3 kinds of objects; expected 4 or more"):
        stamp_subset.choose(tmp_path / "from", tmp_path / "more", 4)
