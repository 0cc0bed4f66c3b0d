"""A task's first steps may have sources of their own, in one run."""

import re

import pytest
import torch

from fiber.data import sources
from fiber.data.record import ConcatRecords
from fiber.synthetic.scenes import generate
from fiber.tasks.grounding.train import GroundingTraining
from fiber.training.config.tasks import first_part
from fiber.training.data import open_data
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders
from fiber.training.train import train
from tests.training.micro_runs import all_records, coarse_config, fine_config
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

RELATIONS_FIRST = {
    "model__max_tokens": 40,
    "tasks__grounding__sources": ("detection", "referring"),
    "tasks__grounding__first_sources": ("referring:relation",),
    "tasks__grounding__first_steps": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("first") / "data", train=20, val=1, novel=1)


def only_questions(**changes):
    shares = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")}
    return coarse_config(**shares, **changes)


def opened(config, folder, *, rank=0, world_size=1, consumed=None):
    data = open_data(config, folder)
    processes = Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))
    return TaskLoaders(data.fit_model(config), data, processes, consumed=consumed or {}, threads=1)


def keys(loaders, count, task="grounding"):
    return [list(loaders.next_batch(task).keys) for _ in range(count)]


def relation_keys(folder):
    referring = sources.referring(folder, "train")
    return {record.key for record in referring if record.group == "relation"}


class TestRecords:
    def test_of_the_first_steps(self, folder):
        records = open_data(fine_config(**RELATIONS_FIRST), folder).records
        assert list(records) == ["grounding", first_part("grounding")]
        referring = sources.referring(folder, "train")
        relations = [record for record in referring if record.group == "relation"]
        first = records[first_part("grounding")]
        assert [first[i] for i in range(len(first))] == relations
        # A source of both is read once.
        whole = records["grounding"]
        assert isinstance(whole, ConcatRecords) and whole.parts[1] is first.records

    def test_class_prompts_are_sampled_in_both(self, folder):
        first = {"tasks__grounding__first_sources": ("detection",)}
        later = {"tasks__grounding__sources": ("referring",)}
        records = open_data(fine_config(**RELATIONS_FIRST | first | later), folder).records
        assert hasattr(records[first_part("grounding")], "in_epoch")
        assert not hasattr(records["grounding"], "in_epoch")

    def test_questions_without_an_answer_of_the_model_are_left_out_of_both(self, folder):
        config = only_questions(
            tasks__question__first_sources=("questions:color",), tasks__question__first_steps=1
        )
        data = open_data(config, folder, answers=["red", "blue"])
        for name in ("question", first_part("question")):
            found = [data.records[name][i] for i in range(len(data.records[name]))]
            assert found and all({"red", "blue"} & {*record.answers} for record in found)
        assert [line.split(":")[0] for line in data.skipped] == ["question", "question first"]


class TestBatches:
    def test_come_from_the_first_sources_then_from_the_others(self, folder):
        config = fine_config(**RELATIONS_FIRST, data__batch_size=4)
        none = {"tasks__grounding__first_sources": (), "tasks__grounding__first_steps": 0}
        plain = fine_config(**RELATIONS_FIRST | none, data__batch_size=4)
        found = keys(opened(config, folder), 5)
        relations = relation_keys(folder)
        assert {*found[0], *found[1]} <= relations
        # The others start at their beginning.
        assert found[2:] == keys(opened(plain, folder), 3)
        assert not {key for batch in found[2:] for key in batch} <= relations

    def test_are_completed_from_their_own_records(self, folder, monkeypatch):
        """What a task adds to a batch is of the records that the batch numbers."""

        def completion(training, records, config, tokenizer):
            def complete(batch):
                return batch.keys, [records[index].key for _, index in batch.samples]

            return complete

        monkeypatch.setattr(GroundingTraining, "completion", completion)
        loaders = opened(fine_config(**RELATIONS_FIRST, data__batch_size=4), folder)
        for _ in range(4):
            keys, added = loaders.next_batch("grounding")
            assert added == list(keys)

    @pytest.mark.parametrize("done", range(1, 4))
    def test_go_on_after_the_consumed_samples(self, folder, done):
        config = fine_config(**RELATIONS_FIRST, data__batch_size=4)
        whole = opened(config, folder)
        expected = keys(whole, done) and keys(whole, 3)
        cut = opened(config, folder)
        keys(cut, done)
        again = opened(config, folder, consumed=cut.consumed)
        assert keys(again, 3) == expected

    @pytest.mark.parametrize("accumulation", [1, 3])
    def test_of_all_ranks_and_micro_batches_change_together(self, folder, accumulation):
        config = fine_config(
            **RELATIONS_FIRST, data__batch_size=6, train__accumulation=accumulation
        )
        alone = keys(opened(config, folder), 4 * accumulation)
        ranks = [
            keys(opened(config, folder, rank=rank, world_size=2), 4 * accumulation)
            for rank in range(2)
        ]
        assert [a + b for a, b in zip(*ranks, strict=True)] == alone
        relations = relation_keys(folder)
        first, later = alone[: 2 * accumulation], alone[2 * accumulation :]
        assert {key for batch in first for key in batch} <= relations
        assert not {key for batch in later for key in batch} <= relations


@pytest.mark.parametrize("stop_at", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_repeats_the_numbers_bit_for_bit(folder, tmp_path, stop_at):
    """Among the first sources, and among the later ones."""
    config = fine_config(**RELATIONS_FIRST, train__steps=5, train__checkpoint_every=1)
    whole = train(config, data=folder, output=tmp_path / "whole", quiet=True)
    cut = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_before(monkeypatch, stop_at)
        with pytest.raises(StopError):
            train(config, data=folder, output=cut, quiet=True)
    resumed = train(config, data=folder, output=cut, quiet=True, resume=True)
    assert numbers(whole.folder) == numbers(resumed.folder)
    assert weights_equal(whole.folder, resumed.folder)


def test_epochs_are_of_the_later_sources(folder, tmp_path):
    changes = {
        "tasks__grounding__sources": ("detection",),
        "tasks__grounding__first_sources": ("referring",),
        "data__batch_size": 4,
        "train__epochs": 1.0,
    }
    done = train(
        fine_config(**RELATIONS_FIRST | changes), data=folder, output=tmp_path / "run", quiet=True
    )
    assert len(sources.referring(folder, "train")) > 20
    assert done.config.train.steps == 20 / 4


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (
                {"first_sources": ("referring",)},
                "tasks.grounding.first_steps must be 1 or more with first_sources, got 0",
            ),
            (
                {"first_steps": 3},
                "tasks.grounding.first_steps must be 0 without first_sources, got 3",
            ),
            (
                {"first_sources": ("refering",), "first_steps": 3},
                "tasks.grounding.first_sources: unknown source 'refering'; did you mean referring",
            ),
        ],
    )
    def test_of_the_config(self, changes, said):
        with pytest.raises(ValueError, match=re.escape(said)):
            fine_config(**{f"tasks__grounding__{name}": value for name, value in changes.items()})

    def test_a_ranking_head_has_none(self):
        with pytest.raises(ValueError, match=r"tasks\.ranking\.first_sources: expected none"):
            coarse_config(
                tasks__ranking__first_sources=("captions",), tasks__ranking__first_steps=1
            )

    def test_an_unknown_group_is_named(self, folder):
        config = fine_config(
            **RELATIONS_FIRST | {"tasks__grounding__first_sources": ("referring:side",)}
        )
        with pytest.raises(ValueError, match="no record of referring has the group 'side'"):
            open_data(config, folder)

    def test_records_have_no_sources(self, pictures):
        config = fine_config(**RELATIONS_FIRST)
        message = r"tasks\.grounding\.first_sources: expected none with records, got referring:rel"
        with pytest.raises(ValueError, match=message):
            open_data(config, all_records(pictures)["grounding"])
