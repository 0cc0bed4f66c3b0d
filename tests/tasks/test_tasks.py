"""The list of tasks, what never changes about them, and tasks of other packages."""

import dataclasses
import warnings
from typing import ClassVar

import pytest

from fiber import tasks
from fiber.tasks import all_evaluations, all_tasks, find_evaluation, find_task, installed_tasks
from fiber.tasks.fields import TaskConfig
from fiber.tasks.lazy import load
from fiber.tasks.question.fields import QuestionTask
from fiber.tasks.task import Evaluation, Task
from fiber.training.config.tasks import TasksConfig
from fiber.training.objectives.draw import Place
from fiber.training.task_training import TaskTraining

#: Numbers that are part of every run: the order of the data, and of its random numbers.
STREAMS = {
    "image_text": 0,
    "question": 1,
    "reasoning": 2,
    "entailment": 3,
    "caption": 4,
    "grounding": 5,
    "ranking": 6,
    "segmentation": 7,
}
PLACES = {
    "IMAGE": 1,
    "TEXT": 2,
    "IMAGE_ALONE": 3,
    "TEXT_ALONE": 4,
    "MLM": 5,
    "ITM": 6,
    "QUEUED_IMAGE": 7,
    "QUEUED_TEXT": 8,
    "PAIR": 9,
    "CAPTION": 10,
    "SAMPLES": 11,
    "LOG_PROBS": 12,
    "RANKING": 13,
}


def task(name: str, **changes) -> Task:
    values = {"config": OwnTask, "layout": "question", "training": "none:None"}
    return Task(name=name, **{**values, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTask(TaskConfig):
    sources: tuple[str, ...] = ("questions",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnweightedTask(OwnTask):
    losses: ClassVar[tuple[str, ...]] = ("depth",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActiveTask(OwnTask):
    share: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongTask(OwnTask):
    sources: tuple[str, ...] = ("no such source",)


class Loud:
    def __repr__(self):
        return "\x1b[31m" + "x" * 10_000


METRIC = Evaluation(heads=("vqa",), source="questions", chosen_by=("accuracy",), run="none:None")
GOOD = task("good", evaluations={"good": METRIC}, methods={"is_callable": "builtins:callable"})
LOUD = Loud()
QUESTION = task("question")
RENAMED = task("another")
ACTIVE = task("active")
IDLE = task("idle", config=ActiveTask)
SOURCELESS = task("sourceless", config=WrongTask)
OPTIONLESS = task("optionless", config=dict)
UNWEIGHTED = task("unweighted", config=UnweightedTask)
MISPRINTED = task("misprinted", layout="groundin")
SECOND_VQA = task("second_vqa", evaluations={"vqa": METRIC})
#: Entries that cannot be used, and what the warning says.
UNUSABLE = {
    "absent": ("no_such_package.of_a_task:TASK", "no_such_package"),
    "later": (f"{__name__}:NO_SUCH_NAME", "NO_SUCH_NAME"),
    "loud": (f"{__name__}:LOUD", "expected a fiber.tasks.task.Task, got"),
    "question": (f"{__name__}:QUESTION", "'question' exists already"),
    "renamed": (f"{__name__}:RENAMED", "'another'; expected 'renamed'"),
    "active": (f"{__name__}:ACTIVE", "got 'active'"),
    "idle": (f"{__name__}:IDLE", "share of 0"),
    "sourceless": (f"{__name__}:SOURCELESS", "tasks.sourceless.sources"),
    "optionless": (f"{__name__}:OPTIONLESS", "TaskConfig"),
    "unweighted": (f"{__name__}:UNWEIGHTED", "field of UnweightedTask for the loss 'depth'"),
    "misprinted": (f"{__name__}:MISPRINTED", "'groundin' does not exist; did you mean grounding"),
    "second_vqa": (f"{__name__}:SECOND_VQA", "'vqa' exists already"),
}


def forget() -> None:
    for each in (all_tasks, installed_tasks, all_evaluations, tasks.methods_of_others):
        each.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with entry points, as (name, target) pairs, for the time of a test."""

    def put(**targets):
        folder = tmp_path / "other_package-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Name: other_package\nVersion: 1.5\n")
        lines = [f"[{tasks.GROUP}]", *(f"{name} = {target}" for name, target in targets.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        forget()

    yield put
    monkeypatch.undo()
    forget()


def test_the_list_of_tasks():
    assert list(tasks.TASKS) == [
        *("image_text", "question", "reasoning", "entailment", "ranking", "caption", "grounding"),
        "segmentation",
    ]
    assert list(all_tasks())[: len(tasks.TASKS)] == list(tasks.TASKS)
    for name in tasks.TASKS:
        found = find_task(name)
        assert found.name == name
        assert isinstance(getattr(TasksConfig(question=QuestionTask(share=1)), name), found.config)
        assert set(found.config().weights()) == set(found.config.losses)
        assert issubclass(load(found.training), TaskTraining)
        for evaluation in found.evaluations.values():
            assert callable(load(evaluation.run))


def test_numbers_of_random_streams_never_change():
    assert {name: find_task(name).stream for name in tasks.TASKS} == STREAMS
    assert {place.name: place.value for place in Place} == PLACES


def test_other_tasks_get_a_stream_of_their_name():
    streams = [task(name).stream for name in ("good", "better", "good")]
    assert streams[0] == streams[2] != streams[1]
    assert streams[0] == 0x6C844E92
    assert not {*streams} & {*STREAMS.values()}
    assert task("good", stream=3).stream == 3


def test_names_of_metrics_are_a_tuple():
    with pytest.raises(TypeError, match=r"chosen_by.*tuple.*'accuracy'"):
        dataclasses.replace(METRIC, chosen_by="accuracy")


def test_similar_names_are_suggested():
    with pytest.raises(ValueError, match=r"'questions'.*question"):
        find_task("questions")
    with pytest.raises(ValueError, match=r"'retrival'.*retrieval"):
        find_evaluation("retrival")


def test_a_task_of_another_package_is_found(install):
    install(good=f"{__name__}:GOOD")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(all_tasks()) == [*tasks.TASKS, "good"]
    assert find_task("good") is GOOD
    assert find_evaluation("good") is METRIC
    (found,) = installed_tasks()
    assert (found.package, found.target, found.error) == (
        "other_package 1.5",
        f"{__name__}:GOOD",
        "",
    )
    assert tasks.methods_of_others() == {"is_callable": GOOD}


def test_tasks_that_cannot_be_used_are_named_and_break_nothing(install):
    install(**{name: target for name, (target, _) in UNUSABLE.items()}, good=f"{__name__}:GOOD")
    with pytest.warns(RuntimeWarning) as record:
        assert list(all_tasks()) == [*tasks.TASKS, "good"]
    lines = sorted(str(each.message) for each in record)
    assert len(lines) == len(UNUSABLE)
    for line, (name, (target, why)) in zip(lines, sorted(UNUSABLE.items()), strict=True):
        assert f"{name!r} of other_package 1.5 ({target})" in line
        assert why in line
        assert line.isprintable()
        assert len(line) < 500
    assert find_task("question").config is QuestionTask
    # Once only.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_tasks()


def test_names_that_are_no_tasks_are_those_of_the_config():
    names = {name for name in vars(TasksConfig) if not name.startswith("_")}
    assert {*tasks.RESERVED} == names - {*all_tasks()}
