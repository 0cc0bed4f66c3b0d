"""Which step's weights become the finished model."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiber.checkpoints.model_dir import StoredModel, load_model, read_tensors
from fiber.evaluation.evaluate import evaluate
from fiber.tasks import find_evaluation
from fiber.training import validation
from fiber.training.checkpoint.state import stored_weights
from fiber.training.train import train
from fiber.training.validation import _of_some_images
from tests.training.micro_runs import (
    all_records,
    coarse_config,
    colour_of,
    fine_config,
    run,
    with_dropout,
)
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

#: A checkpoint at steps 4 and 8, the end at step 10; all of them are measured.
CHANGES = {"validation__task": "vqa"}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def scored(monkeypatch):
    """Give `evaluate` scores by weights: in the order in which new weights come, as planned."""
    seen: list[dict] = []
    plan: list[float] = []

    def fake(model: StoredModel, task, *, data, rerank, threads, processes, **limits):
        assert (processes.rank, processes.world_size) == (0, 1)
        assert limits.keys() == {"max_pixels", "max_decode_bytes"}
        assert task == "vqa"
        weights = weights_of(model.network)
        place = next((i for i, known in enumerate(seen) if same(known, weights)), len(seen))
        if place == len(seen):
            seen.append(weights)
        # What an evaluation may do to a run: draw numbers, change the mode.
        torch.rand(7)
        model.network.eval()
        return {"accuracy": plan[place], "group/accuracy": 0.0}

    monkeypatch.setattr(validation, "evaluate", fake)
    return seen, plan


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.2, 0.9, 0.5), 1),
        ((0.0, 0.0, 0.0), 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [((0.1, 0.2, 0.3), 2), ((0.4, 0.4, 0.4), 2), ((0.4, 0.4, 0.1), 1)]
        ),
    ],
)
def test_the_best_step_is_the_model(pictures, tmp_path, scored, scores, best):
    seen, plan = scored
    plan.extend(scores)
    finished = run(coarse_config(**CHANGES), pictures, tmp_path / "r")
    assert len(seen) == 3 and same(load_file(tmp_path / "r" / "model.safetensors"), seen[best])
    assert [line["validation"] for line in finished.metrics if "validation" in line] == [
        {"score": score, "accuracy": score} for score in scores
    ]
    assert not list((tmp_path / "r" / "checkpoints").glob("best-*"))
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] and load_model(
        finished.folder
    )


def test_the_score_is_that_of_the_finished_model(pictures, tmp_path):
    finished = run(coarse_config(**CHANGES), pictures, tmp_path / "r")
    held_out = all_records(pictures)["question"][:6]
    lines = [line["validation"] for line in finished.metrics if "validation" in line]
    measured = evaluate(load_model(finished.folder), "vqa", data=held_out)
    assert len(lines) == 3
    assert max(line["score"] for line in lines) == measured["accuracy"]


def test_measuring_does_not_change_what_is_trained(pictures, tmp_path):
    measured = run(with_dropout(coarse_config(**CHANGES)), pictures, tmp_path / "measured")
    plain = run(with_dropout(coarse_config()), pictures, tmp_path / "plain")
    clocks = "seconds", "images_per_second", "performance", "validation"
    left = [
        [{k: v for k, v in line.items() if k not in clocks} for line in one.metrics]
        for one in (measured, plain)
    ]
    assert left[0] == left[1]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [6, 9])
@pytest.mark.parametrize("scores", [(0.2, 0.9, 0.5), (0.9, 0.2, 0.5)])
def test_a_resumed_run_chooses_as_one_never_stopped(
    pictures, tmp_path, scored, monkeypatch, scores, stop_at
):
    _, plan = scored
    plan.extend(scores)
    config = with_dropout(coarse_config(**CHANGES))
    run(config, pictures, tmp_path / "whole")
    stop_before(monkeypatch, stop_at)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "cut")
    run(config, pictures, tmp_path / "cut", resume=True)
    assert weights_equal(tmp_path / "whole", tmp_path / "cut")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")


@pytest.mark.slow
def test_a_run_stopped_between_best_weights_and_checkpoint_still_has_the_older_best(
    pictures, tmp_path, scored, monkeypatch
):
    seen, plan = scored
    plan.extend((0.5, 0.9, 0.1))
    config, written = coarse_config(**CHANGES), []
    real = validation.Validation.keep

    def keep(self, state, step):
        real(self, state, step)
        written.append(step)
        if written == [4, 8]:
            raise StopError

    monkeypatch.setattr(validation.Validation, "keep", keep)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "r")
    names = sorted(p.name for p in (tmp_path / "r" / "checkpoints").glob("best-*"))
    assert names == ["best-00000004.safetensors", "best-00000008.safetensors"]
    # The same weights measured elsewhere are not the best after all.
    plan[1] = 0.4
    run(config, pictures, tmp_path / "r", resume=True)
    assert same(load_file(tmp_path / "r" / "model.safetensors"), seen[0])


def test_a_resumed_run_misses_weights_that_were_removed(pictures, tmp_path, scored, monkeypatch):
    scored[1].extend((0.9, 0.2, 0.5))
    stop_before(monkeypatch, 6)
    with pytest.raises(StopError):
        run(coarse_config(**CHANGES), pictures, tmp_path / "r")
    (tmp_path / "r" / "checkpoints" / "best-00000004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"best-00000004.*step 4 has the best score"):
        run(coarse_config(**CHANGES), pictures, tmp_path / "r", resume=True)


@pytest.mark.slow
def test_damaged_best_weights_are_noticed(pictures, tmp_path, scored, monkeypatch):
    scored[1].extend((0.2, 0.9, 0.5))
    config = coarse_config(**CHANGES)
    run(config, pictures, tmp_path / "whole")
    stop_before(monkeypatch, 9)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "r")
    path = tmp_path / "r" / "checkpoints" / "best-00000008.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"step-00000008 .*best-00000008.*after step 4 "):
        run(config, pictures, tmp_path / "r", resume=True)
    assert weights_equal(tmp_path / "whole", tmp_path / "r")


def test_other_held_out_records_cannot_go_on(pictures, tmp_path, scored, monkeypatch):
    scored[1].extend((0.9, 0.2, 0.5))
    stop_before(monkeypatch, 6)
    with pytest.raises(StopError):
        run(coarse_config(**CHANGES), pictures, tmp_path / "r")
    fewer = all_records(pictures)["question"][:5]
    with pytest.raises(ValueError, match="saved with different data"):
        run(coarse_config(**CHANGES), pictures, tmp_path / "r", resume=True, validation=fewer)


def test_the_moving_average_is_what_is_measured(pictures, tmp_path, scored):
    seen, plan = scored
    plan.extend((0.1, 0.2, 0.3))
    run(coarse_config(train__ema_decay=0.9, **CHANGES), pictures, tmp_path / "r")
    averages = read_tensors(tmp_path / "r" / "model.safetensors")
    trained = stored_weights(tmp_path / "r" / "checkpoints" / "step-00000008")
    assert same(seen[2], averages) and not same(seen[1], trained)


def test_numbers_of_a_step_are_written_and_said(pictures, tmp_path, capsys):
    records = all_records(pictures)
    train(
        coarse_config(**CHANGES, tasks__image_text__share=0, tasks__caption__share=0),
        data={name: records[name] for name in ("question", "reasoning")},
        validation=records["question"],
        output=tmp_path / "r",
        tokenizer=pictures / "tokenizer.json",
        device="cpu",
        threads=1,
    )
    said = capsys.readouterr().err
    assert "step 4: vqa on val 0." in said and "best 0." in said
    scores = {
        line["step"]: line["validation"]["score"]
        for line in numbers(tmp_path / "r")
        if "validation" in line
    }
    assert f"(the weights of step {max(scores, key=lambda step: (scores[step], step))})" in said


def own_lines(pictures, *splits):
    """A user's questions: one line for each picture, with the splits in turn."""
    path = pictures / f"own-{'-'.join(splits) or 'none'}.jsonl"
    lines = []
    for number in range(12):
        line = {
            "image": str(pictures / f"{number}.png"),
            "question": "what colour is the square?",
            "answer": colour_of(number),
        }
        lines.append(json.dumps(line | ({"split": splits[number % len(splits)]} if splits else {})))
    path.write_text("\n".join(lines) + "\n")
    return path


QUESTIONS = {
    **CHANGES,
    **{f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")},
}


def train_on(path, output, **options):
    options.setdefault("quiet", True)
    config = coarse_config(**QUESTIONS, **options.pop("changes", {}))
    return train(config, data=path, output=output, device="cpu", threads=1, **options)


def test_a_file_with_splits_holds_its_own_records_out(pictures, tmp_path, monkeypatch):
    measured = []

    def fake(model, task, *, data, **options):
        measured.append([record.key for record in (data[i] for i in range(len(data)))])
        return {"accuracy": 0.5}

    monkeypatch.setattr(validation, "evaluate", fake)
    train_on(own_lines(pictures, "train", "val"), tmp_path / "r")
    assert len(measured) == 3 and len(measured[0]) == 6
    assert all(int(key.rpartition("/")[2]) % 2 == 0 for key in measured[0])


def test_a_part_of_a_file_without_splits_is_held_out(pictures, tmp_path, capsys, monkeypatch):
    measured = []

    def fake(model, task, data, **options):
        measured.append({data[index].image_id for index in range(len(data))})
        return dict.fromkeys(("accuracy", "official_accuracy", "published_accuracy"), 0.5)

    monkeypatch.setattr(validation, "evaluate", fake)
    path = own_lines(pictures)
    finished = train_on(path, tmp_path / "r", quiet=False)
    assert sum("validation" in line for line in finished.metrics) == 3
    assert "question: there is no split 'val', so" in capsys.readouterr().err
    # The same rows in memory, of which the images are paths, hold out the same images.
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    train_on(rows, tmp_path / "s", tokenizer=str(pictures / "tokenizer.json"))
    (held,) = {frozenset(Path(name).name for name in found) for found in measured}
    assert 0 < len(held) < len({row["image"] for row in rows}) / 2


def test_of_a_file_of_few_images_nothing_is_held_out(pictures, tmp_path, capsys):
    path = own_lines(pictures)
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    finished = train_on(path, tmp_path / "r", quiet=False)
    assert not any("validation" in line for line in finished.metrics)
    said = capsys.readouterr().err
    assert "the data has no held-out split; the model of the last step is kept" in said
    assert "--validation FILE" in said


def test_records_to_validate_by_may_be_named(pictures, tmp_path):
    other = own_lines(pictures, "val")
    finished = train_on(own_lines(pictures), tmp_path / "r", validation=other)
    assert sum("validation" in line for line in finished.metrics) == 3


@pytest.mark.parametrize(
    ("splits", "changes", "options", "error", "message"),
    [
        (("train", "dev"), {}, {}, ValueError, r"split 'val'.*validation.task=none"),
        (("train", "val"), {"validation__task": "caption"}, {}, ValueError, r"'text'.*'texts'"),
        ((), {}, {"validation": "absent.jsonl"}, FileNotFoundError, r"absent.jsonl.*exist"),
        (
            (),
            {"validation__task": None},
            {"validation": "x"},
            ValueError,
            r"validation.task.*None",
        ),
        (
            ("train", "val"),
            {"validation__task": "coco"},
            {},
            ValueError,
            r"'coco'.*head 'grounding'",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused_before_training(
    pictures, tmp_path, splits, changes, options, error, message
):
    config = {**QUESTIONS, **changes}
    with pytest.raises(error, match=message):
        train(
            coarse_config(**config),
            data=own_lines(pictures, *splits),
            output=tmp_path / "r",
            device="cpu",
            quiet=True,
            **options,
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation__task": "vqa2"}, r"validation.task: .*'vqa2'"),
        ({"validation__pictures": -1}, r"validation.pictures.*0.*-1"),
        (
            {**CHANGES, "data__split": "train+val"},
            r"validation.split 'val' is used for training \(data.split 'train\+val'\)",
        ),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        coarse_config(**changes)


def test_pictures_are_drawn_with_all_of_their_records(pictures):
    records = [
        dataclasses.replace(record, key=f"{record.key}-{turn}", image_id=record.images[0])
        for turn in range(2)
        for record in all_records(pictures)["question"]
    ]
    chosen = _of_some_images(records, 5)
    keys = [chosen[i].key for i in range(len(chosen))]
    assert len(keys) == 10 and len({chosen[i].image_id for i in range(10)}) == 5
    again = _of_some_images(records, 5)
    assert (
        keys
        == [again[i].key for i in range(10)]
        == sorted(keys, key=[r.key for r in records].index)
    )
    assert _of_some_images(records, 12) is records


@pytest.mark.parametrize("task", ["refcoco", pytest.param("flickr", marks=pytest.mark.slow)])
def test_boxes_choose_too(pictures, tmp_path, task):
    held_out = all_records(pictures)["grounding"][:4]
    config = fine_config(validation__task=task)
    finished = run(config, pictures, tmp_path / "r", validation=held_out)
    lines = [line["validation"] for line in finished.metrics if "validation" in line]
    (metric,) = find_evaluation(task).chosen_by
    assert [line["score"] for line in lines] == [line[metric] for line in lines]
    assert len(lines) == 2


@pytest.mark.slow
def test_checkpoint_before_a_damaged_one_has_its_best_weights(
    pictures, tmp_path, monkeypatch, scored
):
    scored[1].extend([0.1, 0.2, 0.3])
    torch.set_num_threads(1)
    config = coarse_config(**CHANGES)
    whole = run(config, pictures, tmp_path / "whole")
    stop_before(monkeypatch, 9)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "cut")
    damaged = tmp_path / "cut" / "checkpoints" / "step-00000008" / "__0_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.warns(RuntimeWarning, match=r"step-00000008.*distcp.*after step 4"):
        resumed = run(config, pictures, tmp_path / "cut", resume=True)
    assert numbers(whole.folder) == numbers(resumed.folder)
    assert weights_equal(whole.folder, resumed.folder)
