"""What a network can do is asked for once, and what it lacks is named."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import pytest
import torch

from fiber.config import preset
from fiber.evaluation.context import EvalContext
from fiber.inference import Model
from fiber.models.abilities import (
    ClassifiesEntailment,
    EmbedsAlone,
    FindsBoxes,
    MissingAbilityError,
    RanksCaptions,
    ScoresPairs,
    WritesCaptions,
    need_ability,
)
from fiber.models.heads import MissingHeadError
from fiber.models.meter.config import METER_HEADS
from fiber.models.registry import Network, build_empty
from fiber.tasks.question.evaluate import vqa
from fiber.training.config.run import load_recipe

FIBER = build_empty(preset("micro"))
DETECTOR = build_empty(preset("micro", stage="fine"))
METER_CONFIG = load_recipe("small_meter").model
METER = build_empty(
    replace(METER_CONFIG, image_text=replace(METER_CONFIG.image_text, heads=METER_HEADS))
)


@pytest.mark.parametrize(
    ("network", "abilities"),
    [
        (FIBER, {ScoresPairs, EmbedsAlone, WritesCaptions}),
        (DETECTOR, {FindsBoxes}),
        (METER, {ScoresPairs, RanksCaptions, ClassifiesEntailment}),
    ],
    ids=["FIBER", "detector", "METER"],
)
def test_networks_have_the_abilities_of_their_heads(network, abilities):
    every = {
        ScoresPairs,
        EmbedsAlone,
        WritesCaptions,
        FindsBoxes,
        RanksCaptions,
        ClassifiesEntailment,
    }
    for ability in abilities:
        assert need_ability(network, ability, "a test") is network
    for ability in every - abilities:
        with pytest.raises(MissingHeadError, match="a test needs the head") as error:
            need_ability(network, ability, "a test")
        assert not isinstance(error.value, MissingAbilityError)


class Guesser(Network):
    """Has the head "vqa", which is not used as those of other families are."""

    def __init__(self):
        super().__init__()
        self.config = preset("micro")
        self.vqa_head = torch.nn.Linear(2, 3)
        self.backbone = torch.nn.Identity()

    pooled_width = property(lambda self: 1 / 0)

    def pooled(self, output):
        raise NotImplementedError


def test_a_head_without_its_methods_is_named_with_recipes():
    model = Model(Guesser(), answers=("a", "b"))
    image = np.zeros((4, 4, 3), np.uint8)
    lacking = r"'vqa', but lacks image_prefix, .*vqa_logits.*`fiber train vqav2`.*meter_vqav2"
    asked = f"answer .*ScoresPairs; Guesser .*{lacking}"
    with pytest.raises(MissingAbilityError, match=asked) as error:
        model.answer(image, "what?")
    assert "pooled" not in str(error.value)
    with pytest.raises(MissingAbilityError, match=r"embed_images .*Embeds; .*embed_images"):
        model.embed_images(image)
    with pytest.raises(MissingAbilityError, match=r"caption .*WritesCaptions.*start_decoding"):
        model.caption(image)
    with pytest.raises(MissingAbilityError, match=r"search .*EmbedsAlone.*text_vectors"):
        model.search("a dog", [image], rerank=False)
    context = EvalContext(network=model.network, tokenizer=None, answers=("a", "b"))
    with pytest.raises(MissingAbilityError, match=f"task 'vqa' .*{lacking}"):
        vqa(context, [])


class Counts(ScoresPairs, Protocol):
    """An ability of another package."""

    def count_logits(self, images): ...


def test_abilities_of_other_packages_are_checked():
    with pytest.raises(MissingAbilityError, match=r"Counts;.* the head 'vqa', but lacks count_l"):
        need_ability(FIBER, Counts, "a test", "vqa")
    with pytest.raises(MissingHeadError, match="a test needs the head 'count'"):
        need_ability(FIBER, Counts, "a test", "count")
