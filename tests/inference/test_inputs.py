import re

import numpy as np
import pytest
from PIL import Image

from fiber.inference.inputs import as_list, one_for_each, one_list_for_each


class TestInputs:
    def test_no_picture(self):
        assert as_list([]) == ([], False)

    @pytest.mark.parametrize(
        "picture",
        ["a.jpg", b"bytes", np.zeros((1, 1, 3), np.uint8), Image.new("RGB", (1, 1))],
        ids=["path", "bytes", "array", "pil"],
    )
    def test_one_and_many(self, picture):
        assert as_list(picture) == ([picture], True)
        many, single = as_list((picture, picture))
        assert (len(many), single) == (2, False)

    def test_a_stack_of_arrays_is_a_list(self):
        many, single = as_list(np.zeros((4, 2, 2, 3), np.uint8))
        assert (len(many), single) == (4, False)

    def test_no_picture_at_all(self):
        with pytest.raises(TypeError, match=r"image is a int; expected a path.*list"):
            as_list(3)

    @pytest.mark.parametrize("shape", [(), (6,), (50, 60), (2, 2, 5, 6, 3)])
    def test_arrays_of_no_picture_name_their_own_shape(self, shape):
        message = f"array of shape {shape} and dtype uint8; expected shape (H, W, 3)"
        with pytest.raises(ValueError, match=re.escape(message)):
            as_list(np.zeros(shape, np.uint8))

    def test_an_array_of_paths_is_a_list(self):
        assert as_list(np.array(["a.jpg", "b.jpg"])) == (["a.jpg", "b.jpg"], False)

    @pytest.mark.parametrize("texts", [3, None, b"a"])
    def test_neither_a_text_nor_a_list(self, texts):
        for give in (one_for_each, one_list_for_each):
            with pytest.raises(TypeError, match=r"what.*str.*list of str.*got"):
                give(texts, 2, "what")

    def test_texts(self):
        assert one_for_each("a", 2, "question") == ["a", "a"]
        assert one_for_each(["a", " b "], 2, "question") == ["a", "b"]
        with pytest.raises(ValueError, match="question: got 1 for 2 images"):
            one_for_each(["a"], 2, "question")
        with pytest.raises(ValueError, match=r"question 1.*empty"):
            one_for_each(["a", "\n"], 2, "question")
        with pytest.raises(TypeError, match="question 0"):
            one_for_each([1, "a"], 2, "question")
        with pytest.raises(ValueError, match=r"question 0.*'\\ud83d dog'"):
            one_for_each(["\ud83d dog", "a"], 2, "question")

    def test_lists_of_texts(self):
        assert one_list_for_each("a", 2, "phrase") == [["a"], ["a"]]
        assert one_list_for_each(["a", "b"], 2, "phrase") == [["a", "b"], ["a", "b"]]
        assert one_list_for_each([["a"], ["b", "c"]], 2, "phrase") == [["a"], ["b", "c"]]
        for empty in ([], [["a"], []], [["a"], "b"], [3, ["a"]]):
            with pytest.raises(ValueError, match="expected a list of one or more"):
                one_list_for_each(empty, 2, "phrase")
        with pytest.raises(ValueError, match=r"1.*2 (picture|image)s"):
            one_list_for_each([["a"]], 2, "phrase")
