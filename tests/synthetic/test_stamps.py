"""Stamps on photographs: nouns from captions, exact boxes, nothing held out in training.

The cut-outs are made here, so that the tests run without Debian's packages.
"""

import collections
import json
import os
import re
import stat

import numpy as np
import pytest
from PIL import Image

from fiber.data import sources
from fiber.data.rng import Rng
from fiber.synthetic import generator
from fiber.synthetic.captions import plural, with_article
from fiber.synthetic.rendering import bounds
from fiber.synthetic.scene_graph import SPLITS, Scene, relation
from fiber.synthetic.stamp_assets import (
    STAMPS_PACKAGE,
    Cutout,
    debian_stamps,
    family_of,
    noun_of,
    one_of_each,
    read_collection,
    unpacked,
)
from fiber.synthetic.stamps import StampRecipe, draw_stamps, generate, stamps_world
from tests.synthetic.cutouts import NOUNS, write_pictures, write_stamp

RELATION = re.compile(r" (left of|right of|above|below) ")
NUM_PICTURES = 300


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with stamps and one with photographs."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def recipe(pictures):
    return StampRecipe(0, 96, 4, pictures["stamps"], pictures["backgrounds"])


@pytest.fixture(scope="module")
def world(recipe):
    return stamps_world(recipe.collection, 0)


@pytest.fixture(scope="module")
def described(recipe):
    return {
        split: [(recipe.describe(split, i), recipe.scene(split, i)) for i in range(NUM_PICTURES)]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("stamps") / "data"
    return generate(output, train=24, val=8, novel=8, image_size=96, **pictures)


# ---- words


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("", None),
        ("A", None),
        ("A frog.", "frog"),
        ("An  Owl", "owl"),
        ("A peacock (a male peafowl).", "peacock"),
        ("A knight\u2019s helmet!", "knight's helmet"),
        ("A big eared rabbit.", "big eared rabbit"),
        ("A double-decker bus.", "double-decker bus"),
        ("Some flowers.", None),
        ("Queen. Can move in any direction.", None),
        ("A spider dancing with a fly.", None),
        ("A US 1 cent piece ($.01) called a penny.", None),
        ("A candy cane is a traditional Christmas treat in the United States.", None),
        ("A very very long winded noun phrase.", None),
    ],
)
def test_nouns_of_captions(caption, noun):
    assert noun_of(caption) == noun


@pytest.mark.parametrize(
    ("noun", "family"),
    [
        ("ball", "ball"),
        ("tennis ball", "ball"),
        ("brown hen", "chicken"),
        ("grave marker", "grave"),
    ],
)
def test_families(noun, family):
    assert family_of(noun) == family


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("star", "stars"),
        ("cross", "crosses"),
        ("red box", "red boxes"),
        ("butterfly", "butterflies"),
        ("key", "keys"),
        ("mouse", "mice"),
        ("fireman", "firemen"),
        ("coral trout", "coral trout"),
        ("sea lion", "sea lions"),
        ("wolf", "wolves"),
    ],
)
def test_plurals(noun, many):
    assert plural(noun) == many


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("owl", "an owl"),
        ("mug", "a mug"),
        ("unicorn", "a unicorn"),
        ("european bear", "a european bear"),
        ("hourglass", "an hourglass"),
        ("umbrella", "an umbrella"),
    ],
)
def test_articles(noun, phrase):
    assert with_article(noun) == phrase


# ---- finding pictures


def test_a_folder_without_stamps_says_what_it_needs(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder"):
        read_collection(tmp_path / "nowhere", [pictures["backgrounds"]])
    with pytest.raises(FileNotFoundError, match="PNG files"):
        read_collection(tmp_path, [pictures["backgrounds"]])
    with pytest.raises(FileNotFoundError, match=r"no photograph.*expected.*\.bmp"):
        read_collection(pictures["stamps"], [tmp_path])


def test_what_cannot_be_used_is_counted(tmp_path, pictures):
    write_stamp(tmp_path / "good.png", "A mug.")
    write_stamp(tmp_path / "silent.png", None)
    write_stamp(tmp_path / "rook.png", "Rook. Can only move forward.")
    write_stamp(tmp_path / "grey.png", "A grey thing.", mode="LA")
    write_stamp(tmp_path / "icon.png", "An icon.", (20, 39))
    write_stamp(tmp_path / "line.png", "A drawing.", colors=1)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "broken.txt").write_text("A broken thing.")
    (tmp_path / "mute.png").write_bytes(b"")
    (tmp_path / "mute.txt").write_text("")
    found = read_collection(tmp_path, [pictures["backgrounds"]])
    assert found.nouns == ("mug",) and found.cutouts[0].size == (60, 60)
    assert dict(found.skipped) == {
        "no caption": 1,
        "caption is no noun phrase": 2,
        "grey or without transparency": 1,
        "small": 1,
        "few colours": 1,
        "cannot be decoded": 1,
    }


def test_one_of_each_kind_is_chosen_the_largest_of_a_draw():
    def cutout(noun, height, width=90):
        return Cutout(f"{noun}.png", noun, (height, width))

    kinds = [cutout(f"thing{number}", 40 + number) for number in range(20)]
    # Of one kind the first counts, however large the other one is.
    cutouts = [*kinds, cutout("thing0", 80), cutout("red thing1", 85)]
    chosen = one_of_each(cutouts, 5, seed=3)
    sides = [found.size[0] for found in chosen]
    assert sides == sorted(sides, reverse=True) and len({c.noun for c in chosen}) == 5
    assert set(chosen) <= set(kinds)
    assert chosen == one_of_each(cutouts, 5, seed=3) != one_of_each(cutouts, 5, seed=4)
    assert one_of_each(kinds, 20) == kinds[::-1]
    with pytest.raises(ValueError, match="show 20 kinds of objects; expected 21 or more"):
        one_of_each(cutouts, 21)


def test_too_few_kinds_of_things(tmp_path, pictures):
    for number in range(3):
        write_stamp(tmp_path / "stamps" / f"{number}.png", f"A {NOUNS[number]}.")
    where = {**pictures, "stamps": tmp_path / "stamps"}
    with pytest.raises(ValueError, match=r"3.*objects \(ball, frog, owl\).*4"):
        generate(tmp_path / "data", train=1, val=0, novel=0, **where)
    assert not (tmp_path / "data").exists()


def fake_tools(tmp_path, monkeypatch, **scripts):
    """Let only these commands exist, with an empty cache and no installed stamps."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, script in scripts.items():
        path = bin_folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\nPATH={os.environ['PATH']}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_without_apt_the_packages_and_commands_are_named(tmp_path, monkeypatch):
    fake_tools(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError) as error:
        unpacked(STAMPS_PACKAGE)
    text = str(error.value)
    assert "apt-get is not installed" in text
    assert f"apt-get download {STAMPS_PACKAGE}" in text and "dpkg-deb -x" in text
    assert str(tmp_path / "cache" / "fiber" / "debian" / STAMPS_PACKAGE) in text
    assert list((tmp_path / "cache" / "fiber" / "debian").iterdir()) == []


def test_what_apt_says_is_passed_on(tmp_path, monkeypatch):
    message = "E: Unable to locate package tuxpaint-stamps-default"
    fake_tools(tmp_path, monkeypatch, apt_get=f"echo '{message}' >&2; exit 100")
    with pytest.raises(FileNotFoundError, match=f"apt-get failed: {message}. On a Debian"):
        unpacked(STAMPS_PACKAGE)
    assert list((tmp_path / "cache" / "fiber" / "debian").iterdir()) == []


def test_packages_are_fetched_once(tmp_path, monkeypatch):
    fake_tools(
        tmp_path,
        monkeypatch,
        apt_get=f'echo "$2" >> {tmp_path}/calls; touch "$2_1_all.deb"',
        dpkg_deb='test "$1" = -x && test -f "$2" && mkdir -p "$3/usr/share/thing"',
    )
    for _ in range(2):
        folder = unpacked("some-package")
        assert (folder / "usr" / "share" / "thing").is_dir()
    assert (tmp_path / "calls").read_text() == "some-package\n"
    assert [path.name for path in folder.parent.iterdir()] == ["some-package"]


def test_installed_stamps_are_used(tmp_path, monkeypatch):
    fake_tools(tmp_path, monkeypatch)
    monkeypatch.setattr("fiber.synthetic.stamp_assets._STAMPS_FOLDER", str(tmp_path / "installed"))
    (tmp_path / "installed").mkdir()
    assert debian_stamps() == tmp_path / "installed"


# ---- data folders


def test_every_reader_reads_the_folder(folder, world):
    description = json.loads((folder / "dataset.json").read_text())
    assert description["found"]["stamps"] == 10 and description["found"]["nouns"] == 9
    assert description["held_out"]["nouns"] == sorted(noun for _, noun in world.held_out_pairs)
    for split, count in (("train", 24), ("val", 8), ("novel", 8)):
        detection = sources.detection(folder, split)
        assert len(detection) == count
        assert detection[0].labels == tuple(sorted(NOUNS))
        captions = sources.captions(folder, split)
        assert [r.text for r in captions] == [r.text for r in sources.phrases(folder, split)]
        for read in (sources.questions, sources.referring, sources.swapped):
            assert len(read(folder, split)) > 0
        # With one held-out family there is hardly anything to state about it.
        assert len(sources.reasoning(folder, split)) > 0 or split == "novel"
    with Image.open(detection[0].images[0]) as picture:
        assert (picture.size, picture.format) == ((96, 96), "JPEG")


def test_the_same_bytes_with_worker_processes(folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "_IMAGES_PER_JOB", 8)
    again = generate(
        tmp_path / "again", train=24, val=8, novel=8, image_size=96, workers=2, **pictures
    )
    names = sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert len(names) == 2 * 40 + 26 + 6
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_folder_of_other_pictures_is_not_reused(folder, pictures, tmp_path):
    same = {"train": 24, "val": 8, "novel": 8, "image_size": 96}
    assert generate(folder, **same, **pictures) == folder
    Image.new("RGB", (60, 60)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"pictures.*'\w+'.*'\w+'"):
        generate(folder, **same, **{**pictures, "backgrounds": tmp_path})


@pytest.mark.parametrize("image_size", [48, 75, 160])
def test_boxes_are_the_bounds_of_what_was_pasted(image_size, pictures):
    recipe = StampRecipe(3, image_size, 4, pictures["stamps"], pictures["backgrounds"])
    for index in range(12):
        shown = recipe.scene("train", index)
        with_stamps, boxes, *_ = draw_stamps(recipe, shown, Rng(3, 1, index))
        without, none, *_ = draw_stamps(recipe, Scene(()), Rng(3, 1, index))
        assert none == [] and with_stamps.shape == (image_size, image_size, 3)
        changed = (with_stamps != without).any(2)
        inside = np.zeros_like(changed)
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= image_size and 0 <= y0 < y1 <= image_size
            inside[y0:y1, x0:x1] = True
            # The stamps are opaque rectangles: every row and column of a box has changed.
            assert changed[y0:y1, x0:x1].any(1).all() and changed[y0:y1, x0:x1].any(0).all()
        # Outside only the half-transparent edge, one pixel wide, may differ.
        wider = inside.copy()
        wider[1:] |= inside[:-1]
        wider[:-1] |= inside[1:]
        wider[:, 1:] |= wider[:, :-1].copy()
        wider[:, :-1] |= wider[:, 1:].copy()
        assert not (changed & ~wider).any()


def test_the_opaque_box():
    alpha = np.zeros((5, 7), dtype=np.uint8)
    assert bounds(alpha > 127) is None
    alpha[1, 6] = 128
    alpha[3, 2] = 127
    assert bounds(alpha > 127) == (6, 1, 7, 2)


# ---- what is shown and said


def texts_of(picture):
    entries = picture.captions + picture.expressions + picture.questions + picture.statements
    return [entry.text for entry in entries] + list((picture.swapped_captions or ("", ""))[:2])


def test_held_out_nouns_are_in_novel_pictures_only(described, world):
    held_out = {noun for _, noun in world.held_out_pairs}
    assert held_out and len({family_of(noun) for noun in held_out}) == 1
    pattern = re.compile("|".join(rf"\b({noun}|{plural(noun)})\b" for noun in held_out))
    for split in ("train", "val"):
        for picture, shown in described[split]:
            assert not held_out & {thing.noun for thing in shown.things}
            assert not any(pattern.search(text) for text in texts_of(picture))
            assert not any(question.answer in held_out for question in picture.questions)
    for picture, shown in described["novel"]:
        assert held_out & {thing.noun for thing in shown.things}
        assert all(pattern.search(caption.text) for caption in picture.captions)
        assert all(pattern.search(question.text) for question in picture.questions)
        # Nobody can know a held-out noun as an answer.
        assert not any(question.answer in held_out for question in picture.questions)


def test_no_two_nouns_of_one_family_are_shown_together(described):
    for split in SPLITS:
        for _, shown in described[split]:
            nouns = {thing.noun for thing in shown.things}
            assert len({family_of(noun) for noun in nouns}) == len(nouns)


def test_cutouts_show_what_the_things_are_called(described, recipe):
    collection = recipe.collection
    for split in SPLITS:
        for _, shown in described[split]:
            names = [collection.cutouts[thing.cutout].noun for thing in shown.things]
            assert names == [thing.noun for thing in shown.things]


def answer(things, question):
    text = question.removesuffix("?")
    nouns = [thing.noun for thing in things]

    def only(phrase):
        (thing,) = [t for t in things if t.noun == phrase.removeprefix("the ")]
        return thing

    if text == "what does the picture show":
        return nouns[0] if len(set(nouns)) == 1 else None
    if text.startswith("is there a"):
        return "yes" if re.sub("^is there an? ", "", text) in nouns else "no"
    if text.startswith("how many "):
        many = text.removeprefix("how many ").removesuffix(" are there")
        return str(sum(plural(noun) == many for noun in nouns))
    if text.startswith("is "):
        first, found, second = RELATION.split(text[3:])
        return "yes" if relation(only(first), only(second)) == found else "no"
    found, landmark = re.fullmatch(r"what is (left of|right of|above|below) (.*)", text).groups()
    mark = only(landmark)
    (target,) = [t for t in things if t is not mark and relation(t, mark) == found]
    return target.noun


def test_answers_are_right_and_balanced(described):
    groups, replies = collections.Counter(), collections.Counter()
    for split in SPLITS:
        for picture, shown in described[split]:
            for question in picture.questions:
                groups[question.group] += 1
                replies[question.answer] += 1
                found = answer(shown.things, question.text)
                assert question.answer == found, (question, shown)
    assert all(groups[kind] > 20 for kind in ("exists", "relation", "count", "shape")), groups
    assert 0.8 < replies["yes"] / replies["no"] < 1.25


def test_expressions_and_captions_are_true(described):
    relations = 0
    for split in SPLITS:
        for picture, shown in described[split]:
            things = shown.things
            for expression in picture.expressions:
                head, *rest = RELATION.split(expression.text)
                found = [t for t in things if f"the {t.noun}" == head]
                if rest:
                    relations += 1
                    assert len(found) > 1
                    (mark,) = [t for t in things if f"the {t.noun}" == rest[1]]
                    found = [t for t in found if relation(t, mark) in (rest[0], None)]
                assert found == [things[expression.things[0][0]]]
            listed = picture.captions[0]
            counts = collections.Counter(thing.noun for thing in things)
            assert sorted(i for indices in listed.things for i in indices) == list(
                range(len(things))
            )
            for (start, end), indices in zip(listed.spans, listed.things, strict=True):
                (noun,) = {things[i].noun for i in indices}
                phrase = listed.text[start:end]
                assert counts[noun] == len(indices)
                assert phrase == with_article(noun) or phrase.endswith(f" {plural(noun)}")
    assert relations > 20


def test_swapped_pairs_show_the_same_things_the_other_way_round(described):
    pairs = 0
    for number, (picture, shown) in enumerate(described["train"]):
        if picture.swapped_captions is None:
            continue
        pairs += 1
        first, second, _ = picture.swapped_captions
        assert first != second and sorted(first.split()) == sorted(second.split())
        before = described["train"][number - 1][1].things
        for caption, things in ((first, before), (second, shown.things)):
            one, found, two = RELATION.split(caption)
            assert (one, two) == tuple(with_article(t.noun) for t in things[:2])
            assert relation(things[0], things[1]) == found
    assert pairs == NUM_PICTURES // 8 + 1
