"""Bad input of `fiber.hf` ends in an error that names the thing and what was expected."""

import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)

import fiber
from fiber.models.heads import MissingHeadError
from tests.models.small_networks import inputs

pytestmark = pytest.mark.oldest


@pytest.fixture
def copied(folders, tmp_path):
    """Copy a folder, change the values of its config.json, and return it."""

    def copy(name, change=lambda values: None):
        folder = tmp_path / name
        shutil.copytree(folders[name], folder)
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return copy


@pytest.fixture(scope="module")
def models(folders):
    return {name: AutoModel.from_pretrained(folders[name]) for name in ("coarse", "fine", "METER")}


@pytest.fixture(scope="module")
def processor(folders):
    return AutoProcessor.from_pretrained(folders["METER"])


def drop(*names):
    return lambda values: [values.pop(name) for name in names]


class TestFolders:
    def test_without_a_model_type(self, copied, fiber_hf):
        folder = copied("coarse", drop("model_type"))
        with pytest.raises(ValueError, match=r"coarse.*model_type.*'fiber'.*none.*fiber convert"):
            fiber_hf.FiberVLConfig.from_pretrained(folder)
        # fiber reads it as ever.
        assert fiber.load(folder, device="cpu").heads

    def test_without_a_model_type_in_the_auto_class(self, copied):
        folder = copied("coarse", drop("model_type"))
        # Older versions look for the type in the path, too, which has that of "fiber" or of others.
        try:
            model = AutoModel.from_pretrained(folder)
        except ValueError as error:
            assert "model_type" in str(error)
        else:
            assert model.config.model_type == "fiber" and model.network.config.heads

    def test_of_another_model_type(self, copied, fiber_hf):
        folder = copied("coarse", lambda values: values.update(model_type="roberta"))
        with pytest.raises(ValueError, match=r"model_type: expected 'fiber', got 'roberta'"):
            fiber_hf.FiberVLConfig.from_pretrained(folder)

    @pytest.mark.parametrize("name", ["coarse", "METER"])
    def test_of_a_newer_version(self, copied, name):
        def newer(values):
            values["fiber_version"] = "99.1.0"
            values["model"]["depth_of_thought"] = 3

        folder = copied(name, newer)
        expected = r"depth_of_thought.*written by fiber '99\.1\.0'.*newer.*0\.1\.0"
        for load in (AutoModel.from_pretrained, fiber.load):
            with pytest.raises(ValueError, match=expected):
                load(folder)

    def test_of_this_version_with_an_unknown_field(self, copied):
        folder = copied("coarse", lambda values: values["model"].update(image_sise=96))
        with pytest.raises(
            ValueError, match=r"coarse.config\.json: model: .*image_sise.*image_size"
        ) as error:
            AutoModel.from_pretrained(folder)
        assert "newer" not in str(error.value)

    def test_of_an_unknown_family(self, copied):
        folder = copied("METER", lambda values: values["model"].update(family="xyz"))
        with pytest.raises(ValueError, match=r"family: unknown family 'xyz'.*'meter' or 'fiber'"):
            AutoModel.from_pretrained(folder)

    def test_with_a_model_that_is_no_object(self, copied):
        folder = copied("coarse", lambda values: values.update(model=[1]))
        with pytest.raises(
            ValueError, match=r"coarse.config\.json: model: expected an object, got \[1\]"
        ):
            AutoModel.from_pretrained(folder)

    def test_with_other_keys(self, copied):
        folder = copied("coarse")
        file = folder / "model.safetensors"
        state = safetensors.torch.load_file(file)
        state["extra.weight"] = state.pop("itm_head.weight")
        safetensors.torch.save_file(state, file, {"format": "pt"})
        for load in (AutoModel.from_pretrained, fiber.load):
            with pytest.raises(ValueError) as error:
                load(folder)
            message = str(error.value)
            assert "coarse" in message
            assert "missing itm_head.weight" in message and "unexpected extra.weight" in message

    def test_with_a_tensor_of_another_shape(self, copied):
        folder = copied("coarse")
        file = folder / "model.safetensors"
        state = safetensors.torch.load_file(file)
        state["itm_head.bias"] = torch.zeros(3)
        safetensors.torch.save_file(state, file, {"format": "pt"})
        for load in (AutoModel.from_pretrained, fiber.load):
            with pytest.raises(
                ValueError, match=r"itm_head\.bias has shape \(3,\), expected \(2,\)"
            ):
                load(folder)

    def test_with_other_answers_than_outputs(self, copied):
        folder = copied("coarse")
        (folder / "answers.json").write_text('["yes", "no"]')
        with pytest.raises(ValueError, match=r"coarse.*answers\.json has 2 answers, expected 25"):
            AutoModel.from_pretrained(folder)

    def test_without_weights(self, copied):
        folder = copied("coarse")
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match=r"model\.safetensors"):
            AutoModel.from_pretrained(folder)

    def test_in_several_files(self, models, tmp_path):
        models["coarse"].save_pretrained(tmp_path, max_shard_size="1MB")
        assert AutoModel.from_pretrained(tmp_path).config.answers == models["coarse"].config.answers
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors\.index\.json.*max_shard"):
            fiber.load(tmp_path)

    def test_with_a_damaged_transform(self, copied):
        folder = copied("coarse")
        file = folder / "preprocessor_config.json"
        settings = json.loads(file.read_text())
        for transform, named in (
            ({**settings["transform"], "kind": "explode"}, "explode"),
            ({**settings["transform"], "filter": "round"}, "round"),
            (None, "transform: expected the settings"),
        ):
            file.write_text(json.dumps({**settings, "transform": transform}))
            with pytest.raises(ValueError, match=named):
                AutoProcessor.from_pretrained(folder).image_processor.preprocess(None)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(OSError, match="absent"):
            AutoModel.from_pretrained(tmp_path / "absent", local_files_only=True)


class TestClasses:
    @pytest.mark.parametrize("name", ["coarse", "METER"])
    def test_detection_without_its_head(self, folders, name):
        with pytest.raises(
            MissingHeadError, match=r"needs the head 'grounding'; this model has .*vqa"
        ):
            AutoModelForZeroShotObjectDetection.from_pretrained(folders[name])

    def test_questions_without_their_head(self, folders):
        with pytest.raises(
            MissingHeadError, match=r"needs the head 'vqa'; this model has grounding"
        ):
            AutoModelForVisualQuestionAnswering.from_pretrained(folders["fine"])

    def test_the_class_of_the_other_stage(self, folders, fiber_hf):
        with pytest.raises(MissingHeadError, match=r"has grounding.*AutoModelForZeroShotObject"):
            fiber_hf.FiberVLForImageText.from_pretrained(folders["fine"])

    def test_a_class_of_no_family(self, folders):
        with pytest.raises(ValueError, match=r"FiberVLConfig.*AutoModelForCausalLM"):
            AutoModelForCausalLM.from_pretrained(folders["coarse"])

    @pytest.mark.parametrize(("name", "head"), [("METER", "caption"), ("coarse", "snli")])
    def test_a_head_that_the_family_lacks(self, models, folders, name, head):
        given = inputs(models[name].network.config)
        with pytest.raises(
            MissingHeadError, match=rf"needs the head '{head}'; this model has itc?"
        ):
            models[name](*given, head=head)
        with pytest.raises(MissingHeadError, match=rf"head='{head}' needs the head '{head}'"):
            AutoModel.from_pretrained(folders[name], head=head)

    def test_a_head_of_a_detector(self, folders):
        with pytest.raises(MissingHeadError, match=r"'vqa'; this model has grounding"):
            AutoModel.from_pretrained(folders["fine"], head="vqa")

    def test_answers_of_a_detector(self, folders):
        with pytest.raises(MissingHeadError, match=r"a list of answers needs the head 'vqa'"):
            AutoConfig.from_pretrained(folders["fine"], answers=["yes"])

    def test_answers_that_are_no_list(self, folders):
        with pytest.raises(ValueError, match=r"answers: expected a list of strings, got str 'yes'"):
            AutoConfig.from_pretrained(folders["coarse"], answers="yes")

    def test_other_answers_without_leave(self, folders):
        with pytest.raises(
            ValueError, match=r"vqa_head\.output\.weight has shape \(25.*expected \(1"
        ):
            AutoModel.from_pretrained(folders["coarse"], answers=["yes"])

    def test_a_number_of_labels(self, folders):
        with pytest.raises(ValueError, match=r"num_labels is 7.*answers=\["):
            AutoModelForVisualQuestionAnswering.from_pretrained(folders["coarse"], num_labels=7)


class TestLabels:
    def given(self, model):
        images, ids, mask = inputs(model.network.config)
        return {"pixel_values": images, "input_ids": ids, "attention_mask": mask}

    @pytest.mark.parametrize(
        ("labels", "named"),
        [
            (torch.zeros(2, 4), r"labels: expected a list .* got a tensor of shape \(2, 4\)"),
            ([], r"labels has 0 entries, expected 2"),
            ([{"boxes": torch.zeros(0, 4)}] * 2, r"labels\[0\]: .*'positive_map', got 'boxes'"),
            ([torch.zeros(1, 4)] * 2, r"labels\[0\]: .* got a tensor of shape \(1, 4\)"),
            (
                [{"boxes": torch.zeros(4), "positive_map": torch.zeros(1, 9)}] * 2,
                r"labels\[0\]\['boxes'\] has shape \(4,\); expected \(G, 4\)",
            ),
            (
                [
                    {"boxes": torch.zeros(0, 4), "positive_map": torch.zeros(0, 9)},
                    {"boxes": torch.zeros(2, 4), "positive_map": torch.zeros(2, 5)},
                ],
                r"labels\[1\]\['positive_map'\] has shape \(2, 5\); expected \(2, 9\)",
            ),
        ],
    )
    def test_of_boxes(self, models, labels, named):
        with pytest.raises((TypeError, ValueError), match=named):
            models["fine"](**self.given(models["fine"]), labels=labels)

    @pytest.mark.parametrize(
        ("head", "labels", "named"),
        [
            ("vqa", torch.zeros(2, 3), r"\(2, 12\).*\(2, 3\)"),
            ("itm", torch.zeros(2, 2), r"labels \(2, 2\); expected \(B, 2\) and \(B,\)"),
            ("itm", torch.zeros(2), r"labels have dtype torch\.float32; expected torch\.int64"),
            ("nlvr2", torch.zeros(3, dtype=torch.int64), r"labels \(3,\)"),
            ("snli", torch.zeros(1, dtype=torch.int64), r"labels \(1,\); expected \(B, 3\)"),
            ("mlm", torch.zeros(2, 4, dtype=torch.int64), r"\(2, 9, \d+\), labels \(2, 4\)"),
            ("rank", torch.zeros(2), r"the head 'rank' has no loss.*'vqa'.*fiber train"),
        ],
    )
    def test_of_heads_of_meter(self, models, head, labels, named):
        given = self.given(models["METER"])
        if head == "nlvr2":
            given["pixel_values"] = torch.stack([given["pixel_values"]] * 2, 1)
        with pytest.raises(ValueError, match=named):
            models["METER"](**given, labels=labels, head=head)

    @pytest.mark.parametrize(
        ("head", "labels", "named"),
        [
            (
                "caption",
                torch.zeros(2, 4, dtype=torch.int64),
                r"labels have shape \(2, 4\), caption",
            ),
            ("itc", torch.zeros(2, dtype=torch.int64), r"the head 'itc' has no loss"),
        ],
    )
    def test_of_heads_of_the_coarse_stage(self, models, head, labels, named):
        with pytest.raises(ValueError, match=named):
            models["coarse"](**self.given(models["coarse"]), labels=labels, head=head)

    def test_sizes_of_images(self, models):
        given = self.given(models["fine"])
        with pytest.raises(ValueError, match=r"image_sizes\[1\].*\(97, 96\)"):
            models["fine"](**given, image_sizes=torch.tensor([[96, 96], [97, 96]]))


class TestProcessors:
    def test_nothing(self, processor):
        with pytest.raises(ValueError, match="expected images, text or both"):
            processor()
        with pytest.raises(ValueError, match="images is an empty list"):
            processor(images=[])

    def test_images_and_pairs(self, processor, drawing):
        with pytest.raises(ValueError, match=r"images\[1\] is no pair"):
            processor(images=[(drawing, drawing), drawing])
        with pytest.raises(ValueError, match=r"images\[0\] is no pair"):
            processor(images=[(drawing,), (drawing, drawing)])

    def test_an_image_of_no_kind(self, processor):
        with pytest.raises(TypeError, match=r"image is a Tensor.*permute"):
            processor(images=[torch.zeros(3, 8, 8)])
        with pytest.raises(ValueError, match="URL"):
            processor(images=["http://example.com/a.jpg"])

    def test_a_text_of_no_kind(self, processor):
        with pytest.raises(TypeError, match=r"text\[1\] is 5; expected a str"):
            processor(text=["a", 5])

    def test_an_argument_of_other_processors(self, processor, drawing):
        with pytest.raises(TypeError, match="do_resize"):
            processor(images=drawing, do_resize=False)

    def test_a_long_text_is_truncated_with_a_warning(self, processor):
        limit = processor.tokenizer.model_max_length
        with pytest.warns(UserWarning, match=rf"'a a a.*truncated.*{limit} tokens"):
            found = processor(text=["a " * 300, "a"])
        assert found["input_ids"].shape == (2, limit)

    def test_output_without_sizes(self, models, folders):
        processor = AutoProcessor.from_pretrained(folders["fine"]).image_processor
        with torch.no_grad():
            output = models["fine"](*inputs(models["fine"].network.config))
        with pytest.raises(ValueError, match="image_sizes is missing"):
            processor.post_process_object_detection(output)


class TestCollator:
    @pytest.mark.parametrize(
        ("head", "options", "named"),
        [
            ("vqa", {}, r"answers: the head 'vqa' needs the answers.*got none"),
            ("rank", {}, r"head: expected one of 'grounding', .*got 'rank'"),
            (3, {}, r"head: expected one of .*got 3"),
        ],
    )
    def test_arguments(self, processor, fiber_hf, head, options, named):
        with pytest.raises(ValueError, match=named):
            fiber_hf.TrainingCollator(processor, head, **options)

    @pytest.mark.parametrize(
        ("head", "row", "named"),
        [
            ("vqa", 7, r"row 0 is a int; expected a fiber\.data\.Record"),
            ("vqa", {}, r"row 0 lacks images and text; it has none\..*remove_unused_columns=False"),
            ("vqa", {"text": "a"}, r"row 0 lacks images"),
            ("vqa", {"text": "a", "label": 1}, r"row 0 .*unknown fields label; expected.*answers"),
            ("vqa", {"text": "a"}, r"row '#0' has no answers"),
            ("vqa", {"text": "a", "answers": "maybe"}, r"none of maybe is among the 2 answers"),
            ("snli", {"text": "a", "answers": "true"}, r"none of true is among the 3 answers"),
            ("itm", {"text": "a"}, r"row '#0' has no truth.*'itm'"),
            ("grounding", {"text": "a", "boxes_xyxy": [(0, 0, 9, 9)]}, r"'#0' has no char_spans"),
            (
                "grounding",
                {"text": "a", "boxes_xyxy": [(9, 0, 0, 9)], "char_spans": [[(0, 1)]]},
                r"'#0': box 0",
            ),
            (
                "grounding",
                {"text": "a", "boxes_xyxy": [(0, 0, 9, 9)], "char_spans": [[(0, 4)]]},
                r"'#0': invalid span \[0, 4\)",
            ),
            ("nlvr2", {"text": "a", "truth": True}, r"#0"),
        ],
    )
    def test_rows(self, processor, folders, fiber_hf, drawing, head, row, named):
        if head == "grounding":
            processor = AutoProcessor.from_pretrained(folders["fine"])
        if isinstance(row, dict) and row and "lacks images" not in named:
            row = {"image": drawing, **row}
        collate = fiber_hf.TrainingCollator(processor, head, answers=["no", "yes"])
        with pytest.raises((TypeError, ValueError), match=named):
            collate([row])

    def test_a_slow_tokenizer(self, processor, fiber_hf):
        from fiber.hf.processing import fiber_tokenizer

        with pytest.raises(TypeError, match=r"tokenizer is a str; expected a fast tokenizer"):
            fiber_tokenizer("roberta")


@pytest.mark.parametrize(
    ("version", "named"),
    [(None, "fiber-vl[hf]"), ("4.57.0", "needs transformers 5.0 or newer, but 4.57.0")],
)
def test_no_transformers_or_an_old_one(version, named):
    code = (
        "import sys, types\n"
        f"version = {version!r}\n"
        "fake = types.ModuleType('transformers')\n"
        "fake.__version__ = version\n"
        "sys.modules['transformers'] = None if version is None else fake\n"
        "try:\n"
        "    import fiber.hf\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert named in done.stdout
