import numpy as np
import pytest

from fiber._core import ImageTransform, RandAugment, apply_transform
from fiber.config import preset
from fiber.config_io import from_dict, replace_fields, to_dict
from fiber.tasks.transform import (
    MAX_MAGNITUDE,
    MOVING_OPERATIONS,
    RAND_AUGMENT_OPERATIONS,
    ColorJitterConfig,
    RandAugmentConfig,
    TransformConfig,
)
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    differences,
    load_recipe,
)
from fiber.training.config.tasks import (
    CaptionTask,
    GroundingTask,
    ImageTextTask,
    QuestionTask,
    ReasoningTask,
    TasksConfig,
)


def coarse(**changes):
    return RunConfig(
        model=preset("micro"), tasks=TasksConfig(image_text=ImageTextTask(share=1)), **changes
    )


def test_tasks_without_a_share_are_refused():
    with pytest.raises(ValueError, match="every share is 0"):
        TasksConfig()


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((1, 0, 0), ("image_text",)),
        ((1, 1, 0), ("image_text", "question")),
        ((2, 1, 0), ("image_text", "question", "image_text")),
        (
            (3, 2, 1),
            ("image_text", "question", "image_text", "reasoning", "question", "image_text"),
        ),
    ],
    ids=["alone", "equal", "two to one", "three two one"],
)
def test_rotation_spreads_turns_evenly(shares, expected):
    tasks = TasksConfig(
        image_text=ImageTextTask(share=shares[0]),
        question=QuestionTask(share=shares[1]),
        reasoning=ReasoningTask(share=shares[2]),
    )
    assert tasks.rotation() == expected


def test_config_survives_json():
    config = coarse(optim=OptimConfig(lr=3e-4, milestones=(0.5,)))
    assert from_dict(RunConfig, to_dict(config)) == config


def test_fields_are_set_by_dotted_name():
    config = replace_fields(
        coarse(), {"tasks.image_text.itm_negatives": "half", "train.steps": "7", "optim.lr": "1e-3"}
    )
    assert config.tasks.image_text.itm_negatives == "half"
    assert config.train.steps == 7
    assert config.optim.lr == 1e-3


def test_a_group_size_is_for_hybrid_sharding():
    changes = {"train.strategy": "hybrid", "train.shard_size": 4}
    assert replace_fields(coarse(), changes).train.shard_size == 4
    for strategy in ("replicate", "shard"):
        with pytest.raises(ValueError, match=rf"shard_size 4 is for.*'hybrid', got '{strategy}'"):
            replace_fields(coarse(), changes | {"train.strategy": strategy})
    with pytest.raises(ValueError, match=r"train\.shard_size must be 0 or more, got -1"):
        replace_fields(coarse(), changes | {"train.shard_size": -1})


@pytest.mark.parametrize(
    ("name", "known"), [("strategy", "shard"), ("reduce_precision", "bfloat16")]
)
def test_an_unknown_strategy_or_precision_is_refused(name, known):
    assert getattr(replace_fields(coarse(), {f"train.{name}": known}).train, name) == known
    with pytest.raises(ValueError, match=rf"train\.{name}.*zero3"):
        replace_fields(coarse(), {f"train.{name}": "zero3"})


def test_changes_take_effect_together_in_any_order():
    # Each alone is refused: a task without its head, no task at all.
    changes = {
        "tasks.image_text.share": 0,
        "tasks.question.share": 0,
        "tasks.reasoning.share": 1,
        "model.image_text.heads": "nlvr2",
    }
    for order in (list(changes), list(reversed(changes))):
        config = replace_fields(coarse(), {name: changes[name] for name in order})
        assert list(config.tasks.active()) == ["reasoning"]
        assert config.model.image_text.heads == ("nlvr2",)
    with pytest.raises(ValueError, match="lacks nlvr2"):
        replace_fields(
            coarse(), {"tasks.reasoning.share": 1, "model.image_text.heads": "itc,itm,mlm,vqa"}
        )


def test_wrong_field_names_the_right_one():
    with pytest.raises(ValueError, match=r"'train.step'.*steps"):
        replace_fields(coarse(), {"train.step": 3})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TasksConfig(question=QuestionTask(share=-1)), "share must be 0 or more, got -1"),
        (
            lambda: TasksConfig(question=QuestionTask(share=1, sources=("question",))),
            r"'question'.*questions",
        ),
        (
            lambda: TasksConfig(question=QuestionTask(share=1, sources=())),
            r"tasks.question.sources: expected at least one source, got none",
        ),
        (
            lambda: TasksConfig(grounding=GroundingTask(share=1, max_classes=0)),
            r"tasks.grounding.max_classes.*1.*0",
        ),
        (
            lambda: TasksConfig(caption=CaptionTask(share=1, cider_samples=0)),
            r"tasks.caption.cider_samples.*1.*0",
        ),
        (
            lambda: TasksConfig(caption=CaptionTask(share=1, cider_share=1.5)),
            r"tasks.caption.cider_share.*\[0, 1\].*1.5",
        ),
        (
            lambda: TasksConfig(
                caption=CaptionTask(share=1, cider_samples=1, cider_baseline="others")
            ),
            r"cider_samples.*2.*cider_baseline 'others'.*1",
        ),
        (lambda: TrainConfig(steps=0), r"train.steps.*1.*0"),
        (lambda: TrainConfig(ema_decay=1.0), "train.ema_decay"),
        (lambda: OptimConfig(warmup_fraction=1.0), "optim.warmup_fraction"),
        (lambda: OptimConfig(lr=float("nan")), r"optim.lr.*0.*nan"),
        (lambda: OptimConfig(lr=float("inf")), "optim.lr"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "optim.betas"),
        (lambda: OptimConfig(weight_decay=-0.1), r"optim.weight_decay.*0.*-0.1"),
        (lambda: DataConfig(batch_size=-2), r"data.batch_size.*1.*-2"),
        (lambda: DataConfig(mlm_probability=1.5), "data.mlm_probability"),
        (
            lambda: RunConfig(
                model=preset("micro"), tasks=TasksConfig(grounding=GroundingTask(share=1))
            ),
            r"tasks.grounding.*coarse",
        ),
        (
            lambda: RunConfig(
                model=preset("small"), tasks=TasksConfig(reasoning=ReasoningTask(share=1))
            ),
            r"reasoning.*lacks nlvr2.*model\.image_text\.heads",
        ),
        (lambda: coarse(train=TrainConfig(accumulation=5)), "not a multiple of train.accumulation"),
        (
            lambda: coarse(data=DataConfig(batch_size=1)),
            r"data.batch_size 1 in 1 micro-batches \(train.accumulation\).*one pair.*tasks",
        ),
        (
            lambda: RunConfig(
                model=preset("micro"),
                tasks=TasksConfig(image_text=ImageTextTask(share=1, itc=0.0, mlm=0.0)),
                data=DataConfig(batch_size=4),
                train=TrainConfig(accumulation=4),
            ),
            r"data.batch_size 4.*4",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_one_pair_a_pass_trains_what_needs_no_negatives():
    for tasks in (
        TasksConfig(image_text=ImageTextTask(share=1, itc=0.0, itm=0.0)),
        TasksConfig(question=QuestionTask(share=1)),
    ):
        config = RunConfig(model=preset("micro"), tasks=tasks, data=DataConfig(batch_size=1))
        assert config.data.batch_size == 1


def test_matching_alone_needs_the_contrastive_head():
    task = ImageTextTask(share=1, itc=0.0, mlm=0.0)
    config = RunConfig(model=preset("micro"), tasks=TasksConfig(image_text=task))
    assert config.needed_heads() == ("itc", "itm")


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match=r"'scene_coarse'.*mean scenes_coarse"):
        load_recipe("scene_coarse")


def test_differences_list_every_changed_field():
    old = coarse()
    new = replace_fields(old, {"optim.lr": 2e-5, "train.seed": 4})
    assert differences(old, old) == []
    assert differences(old, new) == ["optim.lr: 1e-05 -> 2e-05", "train.seed: 0 -> 4"]


def test_matching_with_random_pictures_needs_no_contrast():
    task = ImageTextTask(share=1, itc=0.0, mlm=0.0, itm_negatives="random")
    config = coarse()
    tasks = TasksConfig(image_text=task)
    assert RunConfig(model=config.model, tasks=tasks).needed_heads() == ("itm",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks.image_text.queue_length": 0}, r"queue_length.*1.*0"),
        (
            {"tasks.image_text.itc_form": "queue", "tasks.image_text.queue_length": 9},
            r"queue_length.*64.*got 9",
        ),
        (
            {"tasks.image_text.itc_form": "queue", "data.transform.kind": "shorter_side"},
            r"'queue'.*kind.*shorter_side",
        ),
    ],
    ids=["no place", "too short", "pictures of any size"],
)
def test_a_queue_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace_fields(coarse(), changes)


def test_the_published_coarse_rule_is_no_fine_one():
    with pytest.raises(ValueError, match=r"published_coarse.*coarse-stage"):
        RunConfig(
            model=preset("micro", stage="fine"),
            tasks=TasksConfig(grounding=GroundingTask(share=1)),
            optim=OptimConfig(published_coarse=True),
        )


def test_augmentation_draws_what_the_core_has():
    for policy in ("fiber", "meter"):
        asked = RandAugmentConfig(policy=policy, num_ops=2)
        core = RandAugment(**vars(asked))
        assert core == RandAugment(policy=policy)
        assert core.describe()["operations"] == list(RAND_AUGMENT_OPERATIONS[policy])
        assert asked.moving_operations == list(MOVING_OPERATIONS)
        with pytest.raises(ValueError, match=rf"magnitude: .*0 to {MAX_MAGNITUDE[policy]} "):
            RandAugment(policy=policy, magnitude=MAX_MAGNITUDE[policy] + 1)
    with pytest.raises(ValueError, match=rf"{', '.join(MOVING_OPERATIONS)}.*boxes"):
        apply_transform(
            np.zeros((2, 2, 3), np.uint8),
            ImageTransform.squash(2, rand_augment=RandAugment()),
            [(0, 0, 1, 1)],
        )


def test_augmentation_is_set_by_dotted_name():
    changes = {"num_ops": "1", "magnitude": "5", "operations": "Equalize,Rotate"}
    config = replace_fields(
        coarse(), {f"data.transform.rand_augment.{name}": text for name, text in changes.items()}
    )
    expected = RandAugmentConfig(num_ops=1, magnitude=5.0, operations=("Equalize", "Rotate"))
    assert config.data.transform.rand_augment == expected
    assert from_dict(RunConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ops": -1}, r"rand_augment\.num_ops.*\[0, inf\].*-1"),
        ({"magnitude": 10.5}, r"magnitude must be in \[0, 10\] for policy 'fiber', got 10\.5"),
        ({"policy": "meter", "magnitude": 31.0}, r"\[0, 30\] for policy 'meter', got 31"),
        ({"policy": "metre"}, "policy must be one of 'fiber', 'meter', got 'metre'"),
        ({"policy": "meter", "operations": ("Identity",)}, "'Identity' of policy 'meter'; "),
        ({"operations": ("Posterize",)}, "'Posterize' of policy 'fiber'; "),
        ({"probability": float("nan")}, "probability must be"),
        ({"num_ops": 1, "operations": ()}, "rand_augment.operations is empty"),
        ({"operations": ("Rotat",)}, "unknown operation 'Rotat' .*; did you mean Rotate"),
    ],
)
def test_wrong_augmentation_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RandAugmentConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"brightness": (-0.1, 1.0)}, r"color_jitter\.brightness.*\[0\.0.*\[-0\.1.*1\.0\]"),
        ({"contrast": (1.2, 0.8)}, r"contrast .*got \[1\.2, 0\.8\]"),
        ({"hue": (0.0, 0.6)}, r"hue must be .*\[-0\.5, 0\.5\]"),
        ({"saturation": (float("nan"), 1.0)}, "saturation"),
    ],
)
def test_a_wrong_change_of_colour_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ColorJitterConfig(**settings)


def test_the_policy_alone_chooses_the_published_values():
    changes = {"policy": "meter", "num_ops": "2"}
    config = replace_fields(
        coarse(), {f"data.transform.rand_augment.{name}": text for name, text in changes.items()}
    )
    augment = config.data.transform.rand_augment
    assert RandAugment(**vars(augment)) == RandAugment(policy="meter")
    assert from_dict(RunConfig, to_dict(config)) == config


def test_boxes_refuse_augmentation_that_moves_pixels():
    def fine(*operations, num_ops=1):
        augment = RandAugmentConfig(num_ops=num_ops, operations=operations)
        return RunConfig(
            model=preset("micro", stage="fine"),
            tasks=TasksConfig(grounding=GroundingTask(share=1)),
            data=DataConfig(transform=TransformConfig(rand_augment=augment)),
        )

    fine("Equalize", "Sharpness")
    fine("Rotate", num_ops=0)
    with pytest.raises(ValueError, match=r"ShearX.*tasks\.grounding"):
        fine("Rotate", "Equalize", "ShearX")


def test_a_task_has_a_transform_of_its_own():
    shared = RunConfig(
        model=preset("micro"),
        tasks=TasksConfig(image_text=ImageTextTask(share=1), question=QuestionTask(share=1)),
        data=DataConfig(transform=TransformConfig(kind="crop", crop_scale=(0.2, 1.0))),
    )
    # What is not given is not written, so that files of runs stay as they were.
    assert "transform" not in to_dict(shared)["tasks"]["question"]
    changes = {"tasks.question.transform.kind": "shorter_side"}
    config = replace_fields(shared, changes)
    assert config.transform("image_text") == shared.data.transform
    # A transform that is given starts from the defaults, not from that of the other tasks.
    assert config.transform("question") == TransformConfig(kind="shorter_side")
    assert config.transform_field("question") == "tasks.question.transform"
    assert from_dict(RunConfig, to_dict(config)) == config
    for old, new in ((shared, config), (config, shared)):
        (line, *_) = differences(old, new)
        assert line.startswith("tasks.question.transform.kind: ")
    with pytest.raises(ValueError, match=r"tasks\.question\.transform\.kindd"):
        values = to_dict(config)
        values["tasks"]["question"]["transform"]["kindd"] = "crop"
        from_dict(RunConfig, values)
    with pytest.raises(ValueError, match=r"tasks\.image_text\.transform\.kind must.*shorter_side"):
        changes = {"tasks.image_text.transform.kind": "shorter_side"}
        replace_fields(shared, changes | {"tasks.image_text.itc_form": "queue"})
