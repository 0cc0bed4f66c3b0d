"""Class prompts in a training run: which are drawn, when, and what is counted."""

import dataclasses
import json
import re

import pytest
import torch

from fiber.config_io import to_dict
from fiber.data import Tokenizer, sources
from fiber.data.datasets import resolve
from fiber.data.prompts.absent import AbsentPhrases
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, record_in_epoch
from fiber.synthetic.scenes import generate
from fiber.tasks.fields import first_part
from fiber.training.data import fingerprint, open_data
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders
from tests.training.micro_runs import fine_config

PROCESSES = Processes(rank=0, world_size=1, device=torch.device("cpu"))


def class_config(**changes):
    """A run on classes, whose texts hold all eight of them."""
    whole = {"tasks__grounding__sources": ("detection",), "model__max_tokens": 40}
    return fine_config(**whole | changes)


def test_training_prompts_have_as_many_classes_as_asked_for(tmp_path):
    folder = generate(tmp_path / "data", train=6, val=1, novel=1)

    def prompts(**changes):
        records = open_data(class_config(**changes), folder).records["grounding"]
        return [records[index].labels for index in range(len(records))]

    every = prompts(tasks__grounding__shuffle_classes=False)
    assert [len(labels) for labels in every] == [8] * 6 and len(set(every)) == 1
    assert {tuple(sorted(labels)) for labels in prompts()} == {tuple(sorted(every[0]))}
    assert len(set(prompts())) > 1
    few = prompts(tasks__grounding__max_classes=5)
    assert [len(labels) for labels in few] == [5] * 6
    assert few == prompts(tasks__grounding__max_classes=5)
    assert few != prompts(tasks__grounding__max_classes=5, train__seed=1)


def test_a_source_that_is_listed_twice_is_read_once(tmp_path):
    folder = generate(tmp_path / "data", train=6, val=1, novel=1)
    config = class_config(tasks__grounding__sources=("referring", "detection", "referring"))
    parts = open_data(config, folder).records["grounding"].parts
    assert parts[0] is parts[2]
    assert parts[0] is not parts[1]
    twice = ConcatRecords([parts[0], parts[0]])
    again = open_data(config, folder).records["grounding"].parts[0]
    assert fingerprint(twice) == fingerprint(ConcatRecords([parts[0], again]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("groups") / "data", train=6, val=1, novel=1)


class TestAbsentPhrases:
    def test_they_are_drawn_for_phrases_and_not_for_classes_or_first_steps(self, folder):
        config = class_config(
            tasks__grounding__sources=("referring", "detection"),
            tasks__grounding__first_sources=("referring",),
            tasks__grounding__first_steps=1,
            tasks__grounding__absent_phrase_chance=0.5,
        )
        read = open_data(config, folder).records
        drawn, classes = read["grounding"].parts
        assert isinstance(drawn, AbsentPhrases) and drawn.chance == 0.5
        assert isinstance(classes, SampledPrompts)
        assert read[first_part("grounding")] is drawn.records

    def test_without_them_no_run_and_no_stored_config_changes(self, folder):
        config = class_config(tasks__grounding__sources=("referring", "detection"))
        read = open_data(config, folder).records["grounding"].parts[0]
        assert not isinstance(read, AbsentPhrases)
        assert "absent_phrase_chance" not in to_dict(config)["tasks"]["grounding"]
        with_them = class_config(tasks__grounding__absent_phrase_chance=0.25)
        assert to_dict(with_them)["tasks"]["grounding"]["absent_phrase_chance"] == 0.25

    @pytest.mark.parametrize("chance", [-0.1, 1.0, float("nan")])
    def test_the_chance_is_below_one(self, chance):
        with pytest.raises(ValueError, match="absent_phrase_chance must be at least 0"):
            class_config(tasks__grounding__absent_phrase_chance=chance)


class TestGroups:
    def test_a_source_may_be_one_group(self, folder):
        names = ("referring:relation", "detection", "referring", "referring:relation")
        config = class_config(tasks__grounding__sources=names)
        parts = open_data(config, folder).records["grounding"].parts
        everything = sources.referring(folder, "train")
        relations = [record for record in everything if record.group == "relation"]
        assert 0 < len(relations) < len(everything)
        assert [parts[0][i] for i in range(len(parts[0]))] == relations
        assert parts[3] is parts[0] and parts[2] is parts[0].records
        fingerprint(ConcatRecords(parts))

    def test_classes_of_a_group_are_sampled(self, folder, monkeypatch):
        plain = resolve.open_source

        def grouped(*arguments, **options):
            read = plain(*arguments, **options)
            return [dataclasses.replace(read[i], group=f"{i % 2}") for i in range(len(read))]

        monkeypatch.setattr("fiber.training.data.open_source", grouped)
        config = class_config(tasks__grounding__sources=("detection:1",))
        records = open_data(config, folder).records["grounding"]
        assert len(records) == 3
        assert len({record_in_epoch(records, epoch, 0).text for epoch in range(5)}) > 1

    def test_an_unknown_group_is_named_with_the_known_ones(self, folder):
        config = class_config(tasks__grounding__sources=("referring:relations",))
        message = "no record of referring has the group 'relations'; expected one of: .*, relation"
        with pytest.raises(ValueError, match=message):
            open_data(config, folder)

    def test_an_unknown_source_is_named_without_its_group(self):
        with pytest.raises(ValueError, match="unknown source 'refering'; did you mean referring"):
            class_config(tasks__grounding__sources=("refering:relation",))


def test_only_class_sources_are_drawn_and_anew_in_every_epoch(tmp_path):
    folder = generate(tmp_path / "data", train=6, val=1, novel=1)
    whole = open_data(class_config(tasks__grounding__sources=("detection", "referring")), folder)
    records = whole.records["grounding"]
    texts = [
        [record_in_epoch(records, epoch, i).text for i in range(len(records))] for epoch in (0, 1)
    ]
    changed = [i for i, (one, other) in enumerate(zip(*texts, strict=True)) if one != other]
    assert changed and max(changed) < 6 < len(records)
    others = sources.referring(folder, "train")
    assert [records[6 + index] for index in range(len(others))] == others
    # A stream goes through the epochs: one batch of all six pictures each.
    config = class_config(data__batch_size=6)

    def epochs(consumed=0):
        data = open_data(config, folder)
        stream = TaskLoaders(config, data, PROCESSES, consumed={"grounding": consumed}, threads=1)
        batches = [stream.next_batch("grounding") for _ in range(2)]
        decode = data.vocabulary.tokenizer.decode
        return [
            {key: decode(ids.tolist()) for key, ids in zip(b.keys, b.token_ids, strict=True)}
            for b in batches
        ]

    first, second = epochs()
    assert first.keys() == second.keys() and first != second
    # A run that is resumed goes on with the same texts.
    assert epochs(consumed=6)[0] == second


def test_boxes_of_classes_that_are_not_drawn_are_counted(tmp_path):
    folder = generate(tmp_path / "data", train=6, val=1, novel=1)
    chances = {"tasks__grounding__negative_chances": (0.0, 0.0, 0.0, 1.0)}
    config = class_config(data__batch_size=6, **chances)
    data = open_data(config, folder)
    stream = TaskLoaders(config, data, PROCESSES, consumed={}, threads=1)
    boxes = sum(len(r.boxes_xyxy) for r in sources.detection(folder, "train"))
    kept = sum(stream.next_batch("grounding").boxes_per_image.sum().item() for _ in range(3))
    (line,) = stream.skipped()
    # The loader reads ahead, so that more may have been left out than was seen.
    lost = int(
        re.fullmatch(r"grounding: (\d+) boxes were skipped, since the sampled prompt.*", line)[1]
    )
    assert 0 < 3 * boxes - kept <= lost


def test_words_of_a_vocabulary_that_no_text_holds(tmp_path):
    """Three hundred classes: every picture's own are asked for, and others as far as they fit."""
    folder = generate(tmp_path / "data", train=6, val=1, novel=1)
    path = folder / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"] += [{"id": 1000 + i, "name": f"thing {i}"} for i in range(300)]
    path.write_text(json.dumps(content))
    config = class_config(data__batch_size=6)
    stream = TaskLoaders(config, open_data(config, folder), PROCESSES, consumed={}, threads=1)
    boxes = sum(len(r.boxes_xyxy) for r in sources.detection(folder, "train"))
    # A prompt ends where the next name, with its separator, does not fit.
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    longest = max(len(tokenizer.encode(f"thing {i}. ")[0]) for i in range(300))
    for _ in range(3):
        batch = stream.next_batch("grounding")
        assert batch.boxes_per_image.sum().item() == boxes and batch.positive_map.any(1).all()
        limit = config.model.max_tokens
        assert limit - longest < batch.text_mask.sum(1).min()
        assert batch.text_mask.sum(1).max() <= limit
    assert stream.skipped() == []
