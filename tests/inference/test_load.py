import builtins
import json
import shutil

import pytest
import torch

import fiber
from fiber.checkpoints.convert import convert
from fiber.checkpoints.model_dir import MODEL_FILES, write_weights
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.inference import Model
from fiber.training.config.run import load_recipe
from fiber.training.run_dir import RunFolder

from ..conftest import ANSWERS
from ..published_keys import coarse_keys, fine_keys, small_state

pytestmark = pytest.mark.oldest


class Harm:
    """Its pickle asks to write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return builtins.open, (self.path, "w")


class TestLoadAndSave:
    def test_round_trip(self, coarse, pictures, tmp_path):
        coarse.save(tmp_path / "copy")
        files = sorted(path.name for path in (tmp_path / "copy").iterdir())
        assert files == sorted({*MODEL_FILES} - {"classes.json"})
        again = fiber.load(tmp_path / "copy", device="cpu")
        assert again.heads == coarse.heads
        assert again.answer(pictures[0], "why?") == coarse.answer(pictures[0], "why?")

    def test_classes_are_remembered(self, fine, pictures, tmp_path):
        names = ("red circle", "blue square")
        with pytest.raises(ValueError, match="not trained on a fixed set of classes"):
            fine.detect(pictures[0])
        knowing = Model(fine.network, fine.tokenizer, classes=names)
        knowing.save(tmp_path / "copy")
        convert(tmp_path / "copy", tmp_path / "again", to="fiber")
        expected = fine.detect(pictures, names, score_threshold=0, max_detections=5)
        for folder in ("copy", "again"):
            model = fiber.load(tmp_path / folder, device="cpu")
            assert model.classes == names
            found = model.detect(pictures, score_threshold=0, max_detections=5)
            assert [f.to_dict() for f in found] == [f.to_dict() for f in expected]
            assert {label for f in found for label in f.labels} <= set(names)

    def test_only_a_free_folder_takes_a_model(self, micro_models, coarse, tmp_path):
        (tmp_path / "photo.jpg").write_bytes(b"")
        with pytest.raises(NotADirectoryError, match=r"photo\.jpg.*file.*folder"):
            coarse.save(str(tmp_path / "photo.jpg"))
        with pytest.raises(FileExistsError, match=r"fine.*config\.json"):
            coarse.save(micro_models["fine"])

    def test_a_run_folder(self, fine, tmp_path):
        run = load_recipe("scenes_fine")
        run = type(run)(**(run.__dict__ | {"model": fine.config}))
        RunFolder(path=tmp_path / "run").open(run, Vocabulary(fine.tokenizer))
        write_weights(tmp_path / "run", fine.network.state_dict())
        assert "tasks" in json.loads((tmp_path / "run" / "config.json").read_text())
        assert fiber.load(tmp_path / "run", device="cpu").config == fine.config

    def test_parts_can_be_given(self, micro_models, coarse, pictures, tmp_path):
        bare = tmp_path / "bare"
        shutil.copytree(micro_models["coarse"], bare)
        (bare / "tokenizer.json").unlink()
        (bare / "answers.json").unlink()
        model = fiber.load(bare, device="cpu")
        with pytest.raises(ValueError, match=r"answers.*FILE"):
            model.answer(pictures[0], "why?")
        with pytest.raises(ValueError, match="no tokenizer"):
            model.match(pictures[0], "why?")
        with pytest.raises(ValueError, match="no tokenizer"):
            model.caption(pictures[0])
        assert model.embed_images(pictures[0]).shape == (32,)
        whole = micro_models["coarse"]
        expected = coarse.answer(pictures[0], "why?")
        for tokenizer in (whole, whole / "tokenizer.json", coarse.tokenizer):
            for answers in (ANSWERS, whole / "answers.json"):
                model = fiber.load(bare, tokenizer, answers, device="cpu")
                assert model.answer(pictures[0], "why?") == expected

    def test_parts_that_do_not_fit(self, micro_models, tmp_path):
        small = Tokenizer.train(["a"], 262)
        with pytest.raises(ValueError, match=r"tokenizer.*\d+ tokens.*\d+"):
            fiber.load(micro_models["fine"], tokenizer=small)
        with pytest.raises(ValueError, match=r"2 answers.*12.*VQA head"):
            fiber.load(micro_models["coarse"], answers=["yes", "no"])
        (tmp_path / "answers.json").write_text('{"yes": 1}')
        with pytest.raises(ValueError, match=r"answers.*head 'vqa'.*grounding"):
            fiber.load(micro_models["fine"], answers=ANSWERS)
        with pytest.raises(ValueError, match="expected a list of strings"):
            fiber.load(micro_models["coarse"], answers=tmp_path / "answers.json")
        with pytest.raises(FileNotFoundError, match="tokenizer"):
            fiber.load(micro_models["coarse"], tokenizer=tmp_path)

    def test_nothing_to_load(self, micro_models, tmp_path):
        with pytest.raises(FileNotFoundError, match="none does not exist"):
            fiber.load(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match="contains no model"):
            fiber.load(tmp_path)
        with pytest.raises(ValueError, match=r"model.safetensors.*config.json"):
            fiber.load(micro_models["fine"] / "model.safetensors")
        (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04")
        with pytest.raises(ValueError, match=r"cut.ckpt.*truncated"):
            fiber.load(tmp_path / "cut.ckpt")

    @pytest.mark.parametrize("read", ["load", "init"])
    def test_files_that_are_no_model_of_ours(self, read, tmp_path):
        """Whatever takes a checkpoint refuses it by name, and runs nothing of it."""
        trace = tmp_path / "trace"
        torch.save(
            {"state_dict": {"w": torch.zeros(2)}, "a": Harm(str(trace))}, tmp_path / "harm.pt"
        )
        names = {"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.weight": torch.zeros(9, 4)}
        torch.save({"state_dict": names}, tmp_path / "resnet.pth")
        torch.save({"state_dict": {"w": torch.zeros(999)}}, tmp_path / "cut.ckpt")
        whole = (tmp_path / "cut.ckpt").read_bytes()
        (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
        record = Record(key="a", images=(b"",), text="a")
        for name, message in (
            ("harm.pt", r"harm.pt tries to run code .* it calls (builtins|_?io)\.open"),
            (
                "resnet.pth",
                "resnet.pth: the file contains no published model.*got conv1.weight, fc",
            ),
            ("cut.ckpt", "cut.ckpt is truncated"),
        ):
            with pytest.raises(ValueError, match=message):
                if read == "load":
                    fiber.load(tmp_path / name, device="cpu")
                else:
                    fiber.train(
                        "scenes_coarse",
                        data=[record],
                        output=tmp_path / "run",
                        init=tmp_path / name,
                        device="cpu",
                    )
        assert not trace.exists() and not (tmp_path / "run").exists()

    def test_published_coarse_file(self, micro_models, coarse, pictures, tmp_path):
        state = small_state(coarse_keys(), coarse.config.roberta.vocab_size, len(ANSWERS))
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
        words = micro_models["coarse"]
        # Small pictures are quick; the tables are resized.
        model = fiber.load(
            tmp_path / "a.ckpt", words, words / "answers.json", device="cpu", image_size=96
        )
        assert model.heads == ("itc", "itm", "mlm", "vqa", "nlvr2", "caption")
        assert model.config.swin.window_size == 3
        assert model.answer(pictures[0], "why?")[0].answer in ANSWERS
        assert 0 <= model.match(pictures[0], "a red circle") <= 1
        bare = fiber.load(tmp_path / "a.ckpt", device="cpu", image_size=96)
        with pytest.raises(ValueError, match="no tokenizer"):
            bare.match(pictures[0], "a red circle")
        with pytest.raises(ValueError, match=r"2 answers.*12.*VQA head"):
            fiber.load(tmp_path / "a.ckpt", words, ["yes", "no"], device="cpu")

    @pytest.mark.parametrize("version", ["v2", "v3"])
    def test_published_fine_file(self, micro_models, fine, pictures, tmp_path, version):
        state = small_state(fine_keys(version), fine.config.roberta.vocab_size)
        torch.save({"model": state}, tmp_path / "a.pth")
        model = fiber.load(tmp_path / "a.pth", micro_models["fine"], device="cpu")
        assert model.heads == ("grounding",)
        assert model.config.fusion.normalize_query == (version == "v3")
        assert model.config.channel_order == "bgr"
        assert (model.config.detector.shorter_side, model.config.detector.max_size) == (800, 1333)

    @pytest.mark.parametrize("device", ["toaster", "cuda:99"])
    def test_no_such_device(self, micro_models, device):
        with pytest.raises(ValueError, match=device):
            fiber.load(micro_models["fine"], device=device)

    def test_weights_of_another_model(self, micro_models, tmp_path):
        shutil.copytree(micro_models["fine"], tmp_path / "mixed")
        shutil.copy(micro_models["coarse"] / "model.safetensors", tmp_path / "mixed")
        with pytest.raises(ValueError, match=r"(?s)does not fit the model.*missing.*unexpected"):
            fiber.load(tmp_path / "mixed")


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:0"])
def test_other_devices_are_refused(micro_models, device):
    expected = rf"device '{device}'.*expected 'cpu', 'cuda'"
    with pytest.raises(ValueError, match=expected):
        fiber.load(micro_models["coarse"], device=device)
    model = fiber.load(micro_models["coarse"], device="cpu")
    with pytest.raises(ValueError, match=expected):
        model.to(device)
