"""Flickr30k Entities in the authors' format, made up here."""

import json

import pytest

from fiber.data.datasets.flickr30k_entities import Phrase, flickr_entities, read_sentence
from fiber.data.datasets.resolve import open_source
from fiber.data.sources import label_boxes

XML = """<annotation>
  <filename>12.jpg</filename>
  <size><width>333</width><height>500</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>105</xmax><ymax>206</ymax></bndbox></object>
  <object><name>2</name><name>3</name>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object>
  <object><name>2</name><bndbox><xmin>50</xmin><ymin>20</ymin><xmax>90</xmax><ymax>60</ymax></bndbox></object>
  <object><name>4</name><scene>1</scene><nobndbox>0</nobndbox></object>
  <object><name>9</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>
"""
SENTENCES = (
    "[/EN#1/people A man] and [/EN#2/animals two dogs] sit near [/EN#4/scene the water] .\n"
    "[/EN#3/animals/other The small dog] barks .\n"
    "Nothing named here , only [/EN#0/notvisual it] .\n"
    "\n"
)


@pytest.fixture
def folder(tmp_path):
    for name in ("Annotations", "Sentences", "flickr30k-images"):
        (tmp_path / name).mkdir()
    (tmp_path / "val.txt").write_text("12\n")
    (tmp_path / "Annotations" / "12.xml").write_text(XML)
    (tmp_path / "Sentences" / "12.txt").write_text(SENTENCES)
    return tmp_path


def read(folder, split="val", **options):
    return flickr_entities(folder, split, annotations=folder / f"{split}.txt", **options)


def test_an_empty_list_has_no_records(folder):
    (folder / "val.txt").write_text("\n")
    assert read(folder) == []


def test_sentences():
    text, phrases = read_sentence("In [/EN#7/bodyparts/other his left hand] .", "here")
    assert text == "In his left hand ."
    assert phrases == [Phrase((3, 16), "7", "bodyparts/other")]
    assert read_sentence("[/EN#7/people He] , [/EN#8/people she]", "")[1] == [
        Phrase((0, 2), "7", "people"),
        Phrase((5, 8), "8", "people"),
    ]
    assert read_sentence("", "") == ("", [])
    with pytest.raises(ValueError, match="here has an unclosed phrase"):
        read_sentence("[/EN#7/people He runs", "here")
    with pytest.raises(ValueError, match=r"'\[/X/people'.*phrase"):
        read_sentence("[/X/people He]", "here")
    with pytest.raises(ValueError, match="here has an empty phrase"):
        read_sentence("[/EN#7/people ]", "here")


def test_captions_with_their_boxes(folder):
    first, second = records = read(folder)
    assert [record.key for record in records] == ["val/12_0", "val/12_1"]
    assert first.images == (str(folder / "flickr30k-images" / "12.jpg"),)
    assert first.text == "A man and two dogs sit near the water ."
    # The water has no box, so that it is no phrase; boxes of no phrase here are left out.
    assert first.labels == ("A man", "two dogs") and first.label_groups == ("people", "animals")
    assert first.boxes_xyxy == ((5, 6, 105, 206), (10, 20, 40, 60), (50, 20, 90, 60))
    assert label_boxes(first) == [[0], [1, 2]] and first.box_labels == (0, 1, 1)
    assert second.labels == ("The small dog",) and second.label_groups == ("animals/other",)
    assert second.boxes_xyxy == ((10, 20, 40, 60),)
    assert records.counts == {"phrases without a box": 2, "captions without a box": 1}


def test_folders_and_lists_are_found(folder, tmp_path):
    assert len(open_source("phrases", folder, "val")) == 2
    assert len(open_source("phrases", folder / "val.txt", "val")) == 2
    below = tmp_path / "all"
    below.mkdir()
    for name in ("Annotations", "Sentences", "val.txt"):
        target = below / "flickr30k_entities" / name
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)
    with pytest.raises(FileNotFoundError, match="flickr30k-images"):
        open_source("phrases", below, "val")
    pictures = below / "flickr30k_images" / "val"
    pictures.mkdir(parents=True)
    first = open_source("phrases", below, "val")[0]
    assert first.images == (str(pictures / "12.jpg"),)


def test_any_other_form_comes_before_a_list(folder):
    """A file called "val.txt" may be anything."""
    other = folder / "mdetr_annotations"
    other.mkdir()
    (folder / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    (other / "final_flickr_separateGT_val.json").write_text(json.dumps(content))
    assert open_source("phrases", folder, "val") == []


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Annotations/12.xml", ("</annotation>", ""), "12.xml is not valid XML"),
        ("Annotations/12.xml", ("<xmax>105</xmax>", ""), r"object 0.*\['5', '6', '', '206'\]"),
        (
            "Annotations/12.xml",
            ("<xmax>105<", "<xmax>1<"),
            r"object 0 has names 1 and corners",
        ),
        (
            "Sentences/12.txt",
            ("barks", "[/EN#1/people barks"),
            "12.txt: caption 1 has an unclosed phrase",
        ),
    ],
)
def test_broken_files_are_named(folder, name, change, message):
    path = folder / name
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=message):
        read(folder)
    if "object 0" in message:
        records = read(folder, on_error="skip")
        assert records.counts["objects whose box is none"] == 1
        assert records[0].labels == ("two dogs",)


def test_missing_files_are_named(folder):
    (folder / "Sentences" / "12.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"12\.txt.*/BryanPlummer/"):
        read(folder)
    with pytest.raises(FileNotFoundError, match=r"train\.txt.*exist"):
        read(folder, "train")
