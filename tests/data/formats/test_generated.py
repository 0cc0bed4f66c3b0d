"""Folders of another version of the generator say so, whoever reads them."""

import json
import warnings

import pytest

from fiber.data.datasets.resolve import existing_data
from fiber.data.formats.generated import VERSIONS, other_version
from fiber.synthetic.scenes import generate


def write(folder, text):
    (folder / "dataset.json").write_text(text)
    return folder


def described(folder, **parameters):
    return write(folder, json.dumps({"parameters": parameters}))


@pytest.mark.parametrize("generator", list(VERSIONS))
def test_an_older_version_is_named(generator, tmp_path):
    own = VERSIONS[generator]
    described(tmp_path, generator=generator, version=own - 1)
    said = f"{tmp_path} was made by version {own - 1} of the generator; this is version {own}"
    assert other_version(tmp_path) == said
    with pytest.warns(UserWarning, match="results are not comparable") as caught:
        assert existing_data(tmp_path) == tmp_path
    assert said in str(caught[0].message)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"parameters": {"generator": "other", "version": 1}}']
)
def test_other_folders_are_read_without_a_word(text, tmp_path):
    assert other_version(tmp_path / "absent") is None
    assert other_version(tmp_path) is None
    assert other_version(write(tmp_path, text)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert existing_data(tmp_path) == tmp_path


def test_a_broken_description_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.json is not valid JSON"):
        other_version(write(tmp_path, "{"))


def test_the_generator_does_not_take_an_older_folder_for_its_own(scenes_folder, tmp_path):
    sizes = {"train": 0, "val": 0, "novel": 0, "tokenizer": scenes_folder}
    folder = generate(tmp_path / "data", **sizes)
    assert other_version(folder) is None
    assert generate(folder, **sizes) == folder
    found = json.loads((folder / "dataset.json").read_text())
    found["parameters"]["version"] -= 1
    write(folder, json.dumps(found))
    with pytest.raises(ValueError, match="of the generator; this is version"):
        generate(folder, **sizes)
