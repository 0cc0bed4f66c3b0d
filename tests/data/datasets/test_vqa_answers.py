"""The published list of VQAv2 answers, on questions counted by hand."""

import json

import pytest

from fiber.data.datasets import vqa_answers as module
from fiber.data.datasets.vqa_answers import frequent_answers, published_answers

TRAIN, VAL = "v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json"


def annotations(*majority):
    """A file of VQAv2; the vote of one person who says something else is not looked at."""
    return {
        "annotations": [
            {
                "question_id": number,
                "multiple_choice_answer": answer,
                "answers": [{"answer": "else", "answer_id": 1}],
            }
            for number, answer in enumerate(majority)
        ]
    }


@pytest.fixture
def write(tmp_path):
    def save(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return save


class TestFrequentAnswers:
    def test_none(self):
        assert frequent_answers([]) == ()

    def test_nine_questions_are_enough_and_eight_are_not(self):
        assert frequent_answers(["yes"] * 8 + ["no"] * 9 + ["red"] * 10) == ("no", "red")

    def test_the_order_is_that_of_first_appearance_whatever_the_counts(self):
        majority = ["no", "rare", "yes", "2", *["yes"] * 20, *["2"] * 8, *["no"] * 8]
        assert frequent_answers(majority) == ("no", "yes", "2")

    def test_what_normalises_to_the_same_is_counted_together(self):
        # "Two" and "2", "the dog" and "dog", "dont" and "don't", "T-Shirt" and "t shirt".
        majority = ["Two", *["dog"] * 5, *["2"] * 8, *["the dog"] * 4, "don't", *["dont"] * 8]
        majority += ["T-Shirt"] * 4 + ["t shirt"] * 5
        assert frequent_answers(majority) == ("2", "dog", "don't", "t shirt")

    def test_of_an_article_nothing_is_left(self):
        assert frequent_answers(["a"] * 5 + ["the"] * 4 + ["b"] * 9) == ("", "b")


class TestOriginals:
    def test_train_comes_before_val_and_both_are_counted(self, write):
        write(VAL, annotations(*["blue"] * 9, *["yes"] * 5))
        folder = write(TRAIN, annotations(*["yes"] * 4, *["red"] * 8))
        found = published_answers(folder)
        assert found.answers == ("yes", "blue")
        assert found.notes[0] == "2 answers, from 26 questions"
        assert (
            "not the published list: the complete train and val splits have 658111 questions"
            in found.notes[1]
        )

    def test_another_number_of_answers_is_told_of_whole_files(self, write, monkeypatch):
        write(VAL, annotations(*["no"] * 9))
        folder = write(TRAIN, annotations(*["yes"] * 9))
        monkeypatch.setattr(module, "WHOLE_QUESTIONS", 18)
        told = published_answers(folder).notes
        assert told[1:] == ("this is not the published list, which has 3129 answers",)
        monkeypatch.setattr(module, "PUBLISHED_COUNT", 2)
        assert published_answers(folder).notes == ("2 answers, from 18 questions",)

    def test_what_is_missing_is_named(self, write, tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"{TRAIN}.*{VAL}.*//visualqa.o"):
            published_answers(tmp_path)
        write(TRAIN, annotations("yes"))
        with pytest.raises(
            FileNotFoundError, match=f"{VAL} does not exist; .*https://visualqa.org$"
        ):
            published_answers(tmp_path)
        write(VAL, annotations("yes"))
        with pytest.raises(ValueError, match=r"no answer.*9 of the 2 questions"):
            published_answers(tmp_path)
        write(VAL, {"annotations": [{"question_id": 7}]})
        with pytest.raises(ValueError, match=r"annotations\[0\].*'multiple_choice_answer'"):
            published_answers(tmp_path)


class TestArrow:
    @pytest.fixture
    def arrow(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

        def save(name, **columns):
            table = pyarrow.table(columns)
            with pyarrow.RecordBatchFileWriter(str(tmp_path / name), table.schema) as writer:
                writer.write_table(table)
            return tmp_path

        return save

    def test_numbers_and_texts_are_put_together(self, arrow, monkeypatch):
        monkeypatch.setattr(module, "PUBLISHED_COUNT", 5)
        arrow(
            "vqav2_train.arrow",
            answers=[[["red", "no"], ["red"]], [["dog"]]],
            answer_labels=[[[2, 0], [2]], [[1]]],
        )
        folder = arrow("vqav2_val.arrow", answers=[[["cat"]]], answer_labels=[[[4]]])
        found = published_answers(folder)
        assert found.answers == ("no", "dog", "red", "unknown 3", "cat")
        assert found.notes[0] == "5 answers, from vqav2_train.arrow and vqav2_val.arrow"
        assert found.notes[1].startswith("1 of them do not occur in these files")
        assert len(found.notes) == 2

    def test_what_does_not_fit(self, arrow):
        folder = arrow("vqav2_train.arrow", answers=[[["red"]]], answer_labels=[[[0]]])
        with pytest.raises(FileNotFoundError, match=r"vqav2_val\.arrow.*exist"):
            published_answers(folder)
        arrow("vqav2_val.arrow", answers=[[["blue"]]], answer_labels=[[[0]]])
        with pytest.raises(ValueError, match=r"row 0.*'blue'.*answer label 0.*'red'"):
            published_answers(folder)
        arrow("vqav2_val.arrow", answers=[[["blue"]]])
        with pytest.raises(ValueError, match=r"val\.arrow.*column 'answer_labels'"):
            published_answers(folder)

    def test_originals_come_first(self, arrow, write):
        arrow("vqav2_train.arrow", answers=[[["red"]]], answer_labels=[[[0]]])
        write(TRAIN, annotations(*["yes"] * 9))
        assert published_answers(write(VAL, annotations())).answers == ("yes",)
