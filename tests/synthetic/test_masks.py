"""Masks of generated images, and that they change neither images nor texts."""

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from fiber.data import decode_masks, open_source
from fiber.synthetic.panoptic import MIN_PIXELS
from fiber.synthetic.scene_graph import SHAPES, SPLITS
from fiber.synthetic.scenes import SceneRecipe, generate
from fiber.synthetic.stuff import STUFF

#: Hashes of the pixels and of all files but images that `generate` wrote before it wrote masks, for
#: plain and varied scenes.
BEFORE = {
    False: (
        "909ce0d2891b41fad6fa4bb2dc4205a89de4526af52cbf877196b891c4006eeb",
        "03725fb3317c081560975d82cad3d291a393790e552dfd2a812baea809c83444",
    ),
    True: (
        "4b34282a7655a23d2dfeee8c35cb60125f9efa89d6e7fb52ed3d1b8cf2d449cb",
        "e13f3cd2d7ff46b2c9bd9d7b3d0a6249214fe65c1d987c788b50b15913d66b6f",
    ),
}
NEW = ("panoptic_", "expression_masks_")


def hash_of_files(folder):
    """Hash all files but images, without masks."""
    others = {}
    for path in sorted(folder.glob("*.json*")):
        content = path.read_bytes()
        if path.name.startswith(NEW):
            continue
        if path.name.startswith(("instances", "refcoco")):
            found = json.loads(content)
            for entry in found["annotations"]:
                entry.pop("segmentation", None)
            content = json.dumps(found).encode()
        if path.name.startswith("flickr"):
            content = re.sub(rb', "segmentation": {[^}]*}', b"", content)
        others[path.name] = hashlib.sha256(content).hexdigest()
    text = json.dumps(others, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("varied", [False, True])
def test_images_texts_and_random_streams_are_as_before(tmp_path, varied):
    counts = {"train": 16, "val": 6, "novel": 6}
    folder = generate(tmp_path / "s", **counts, seed=3, max_objects=4, varied=varied)
    pixels, recipe = hashlib.sha256(), SceneRecipe(3, max_objects=4, varied=varied)
    for split, count in counts.items():
        for index in range(count):
            pixels.update(recipe.render(split, index).pixels.tobytes())
    assert (pixels.hexdigest(), hash_of_files(folder)) == BEFORE[varied]


@pytest.fixture(scope="module")
def stuff_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stuff") / "data"
    return generate(folder, train=44, val=4, novel=4, stuff=True, max_objects=4)


@pytest.mark.parametrize("stuff", [False, True])
def test_masks_are_what_is_drawn(scenes_folder, stuff_folder, stuff):
    folder = stuff_folder if stuff else scenes_folder
    recipe = SceneRecipe(max_objects=4 if stuff else 3, stuff=stuff)
    classes = (*SHAPES, *(STUFF if stuff else ("canvas",)))
    for split in SPLITS:
        found = open_source("panoptic", folder, split)
        assert set(found.classes) == set(classes)
        for index, record in enumerate(found):
            drawn, scene = recipe.render(split, index), recipe.scene(split, index)
            masks = decode_masks(record.masks, *drawn.things.shape)
            names = [record.labels[label] for label in record.mask_labels]
            groups = [record.label_groups[label] for label in record.mask_labels]
            for mask, number, name, group in zip(
                masks, record.masks.ids, names, groups, strict=True
            ):
                if group == "thing":
                    thing = scene.things[number - 1]
                    assert thing.noun == name and mask.sum() >= MIN_PIXELS
                    assert np.array_equal(mask, drawn.things == number)
                    x0, y0, x1, y1 = drawn.boxes[number - 1]
                    assert not mask[:y0].any() and not mask[y1:].any()
                    assert not mask[:, :x0].any() and not mask[:, x1:].any()
                else:
                    kind = classes.index(name) - len(SHAPES)
                    assert np.array_equal(mask, (drawn.things == 0) & (drawn.stuff == kind))
            # Everything belongs to a segment, but for objects of a few pixels.
            assert (masks.sum(0) == 1).mean() > 0.99
            with Image.open(record.images[0]) as image:
                assert image.size == drawn.things.shape[::-1]


def test_every_phrase_has_the_mask_of_its_objects(scenes_folder, stuff_folder):
    seen = set()
    for folder, recipe in (
        (scenes_folder, SceneRecipe()),
        (stuff_folder, SceneRecipe(max_objects=4, stuff=True)),
    ):
        for index, record in enumerate(open_source("expression_masks", folder, "train")):
            drawn, image = recipe.render("train", index), recipe.describe("train", index)
            expected = {text.text: text.things[0] for text in image.expressions}
            for text, spans, things, _ in image.captions:
                for (start, end), named in zip(spans, things, strict=True):
                    expected.setdefault(text[start:end], named)
            masks = decode_masks(record.masks, *drawn.things.shape)
            for phrase, own in zip(record.phrases, record.phrase_masks, strict=True):
                union = masks[list(own)].any(0)
                if phrase in expected:
                    named = [thing + 1 for thing in expected[phrase]]
                    assert np.array_equal(union, np.isin(drawn.things, named)), phrase
                    seen.add(len(named))
                else:
                    kind = STUFF.index(phrase.removeprefix("the "))
                    assert np.array_equal(union, (drawn.things == 0) & (drawn.stuff == kind))
                    seen.add("stuff")
            assert len(set(record.phrases)) == len(record.phrases)
    assert {1, 2, "stuff"} <= seen


def test_stuff_changes_no_texts_of_objects(stuff_folder, tmp_path):
    plain = generate(tmp_path / "plain", train=44, val=4, novel=4, max_objects=4)
    for name in ("captions", "instances", "refcoco", "flickr"):
        for split in SPLITS:
            own, other = (folder / f"{name}_{split}.json" for folder in (stuff_folder, plain))
            assert own.read_bytes() == other.read_bytes()
    images = [
        open_source("captions", folder, "val")[0].images[0] for folder in (stuff_folder, plain)
    ]
    assert np.asarray(Image.open(images[0])).std() > np.asarray(Image.open(images[1])).std()
    with pytest.raises(ValueError, match="different dataset: stuff is"):
        generate(plain, train=44, val=4, novel=4, max_objects=4, stuff=True)


def test_instances_have_the_masks_of_the_visible_objects(scenes_folder):
    recipe = SceneRecipe()
    found = open_source("instances", scenes_folder, "val")
    for index, record in enumerate(found):
        things = recipe.render("val", index).things
        visible = [
            number for number in np.unique(things)[1:] if (things == number).sum() >= MIN_PIXELS
        ]
        masks = decode_masks(record.masks, *things.shape)
        assert np.array_equal(masks, np.array([things == number for number in visible]))
        nouns = [recipe.scene("val", index).things[number - 1].noun for number in visible]
        assert [record.labels[label] for label in record.mask_labels] == nouns
