"""`Trainer` trains models of `fiber.hf`, and `fiber.load` reads the result."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)

import fiber
from fiber.data import ImageTransform, Record
from tests.hf.conftest import BOXES

pytestmark = pytest.mark.oldest


def rows_of(head, drawing):
    """Rows of the data for a head, which no model knows yet."""
    circle, square = BOXES
    if head == "grounding":
        rows = [
            ("the star", circle, "star"),
            ("a green triangle", square, "triangle"),
        ]
        return [
            {
                "image": drawing,
                "text": text,
                "boxes_xyxy": [box],
                "char_spans": [[(text.index(noun), len(text))]],
            }
            for text, box, noun in rows
        ]
    if head == "vqa":
        return [
            {"image": drawing, "text": "what color is the circle?", "answers": "blue"},
            {"image": drawing, "text": "is there a star?", "answers": {"yes": 1.0, "no": 0.3}},
        ]
    if head == "snli":
        labels = ("entailment", "contradiction")
        texts = ("a red circle", "a green star")
        return [
            {"image": drawing, "text": text, "answers": label}
            for text, label in zip(texts, labels, strict=True)
        ]
    pair = [drawing, drawing.rotate(90)]
    texts = {"a red circle": True, "a green star to the left of it": False}
    if head == "nlvr2":
        return [{"images": pair, "text": text, "truth": each} for text, each in texts.items()]
    if head == "itm":
        return [{"image": drawing, "text": text, "truth": each} for text, each in texts.items()]
    return [{"image": drawing, "text": text} for text in texts]


def train(model, processor, head, rows, folder, steps=20, **options):
    """Train a model, save it with its processor, and return the trainer."""
    with warnings.catch_warnings():
        # Of options that have other names in the newest version.
        warnings.simplefilter("ignore", FutureWarning)
        arguments = TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            **{
                "max_steps": steps,
                "per_device_train_batch_size": len(rows),
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                "report_to": [],
                "save_strategy": "no",
                "use_cpu": True,
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "remove_unused_columns": False,
                "seed": 0,
                **options,
            },
        )
    answers = model.config.answers if head == "vqa" else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=processor,
            data_collator=fiber.hf.TrainingCollator(
                # Of few tokens, one must be masked in each step.
                processor,
                head,
                answers=answers,
                mlm_probability=0.7,
            ),
        )
        trainer.train(resume_from_checkpoint=options.get("resume_from_checkpoint"))
    trainer.save_model(str(folder / "trained"))
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("fine", "grounding"),
        ("coarse", "vqa"),
        ("METER", "vqa"),
        *(("METER", head) for head in ("nlvr2", "snli", "mlm")),
        *(("coarse", head) for head in ("itm", "caption")),
    ],
)
def test_twenty_steps_lower_the_loss(folders, drawing, tmp_path, name, head):
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(folders[name], **({} if name == "fine" else {"head": head}))
    processor = AutoProcessor.from_pretrained(folders[name])
    before = {key: each.clone() for key, each in model.network.state_dict().items()}
    trainer = train(model, processor, head, rows_of(head, drawing), tmp_path)
    found = losses(trainer)
    assert len(found) == 20 and np.isfinite(found).all()
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3]), found
    # fiber reads the result: the trained weights, and the vocabulary.
    stored = fiber.load(tmp_path / "trained", device="cpu")
    state = model.network.state_dict()
    assert any(not torch.equal(each, before[key]) for key, each in state.items())
    for key, each in stored.network.state_dict().items():
        assert torch.equal(each, state[key]), key
    assert stored.tokenizer is not None
    original = fiber.load(folders[name], device="cpu")
    assert (stored.answers, stored.classes) == (original.answers, original.classes)
    if head == "grounding":
        assert len(stored.ground(drawing, ["the star"])) == 1
    elif head == "vqa":
        assert stored.answer(drawing, "what color is the circle?")[0].answer == "blue"
    elif head == "nlvr2":
        assert stored.reason((drawing, drawing.rotate(90)), "a red circle") is True
    elif head == "snli":
        assert stored.entail(drawing, "a green star").label == "contradiction"
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(found[-1], rel=2) and metrics["eval_loss"] > 0


def test_the_class_for_questions(folders, drawing, tmp_path):
    """As the issue of a user reads: the Auto class, new answers, a saved model."""
    model = AutoModelForVisualQuestionAnswering.from_pretrained(
        folders["METER"], answers=["blue", "yes"], ignore_mismatched_sizes=True
    )
    processor = AutoProcessor.from_pretrained(folders["METER"])
    rows = [
        {**row, "answers": answer}
        for row, answer in zip(rows_of("vqa", drawing), ("blue", "yes"), strict=True)
    ]
    found = losses(train(model, processor, "vqa", rows, tmp_path))
    assert found[-1] < 0.5 * found[0]
    again = fiber.load(tmp_path / "trained", device="cpu")
    assert again.answers == ("blue", "yes")
    assert again.answer(drawing, "is there a star?")[0].answer == "yes"


def test_a_run_resumes_from_its_checkpoint(folders, drawing, tmp_path):
    """`Trainer` loads the weights of a checkpoint with `strict=False`, under the names of files."""
    processor = AutoProcessor.from_pretrained(folders["coarse"])
    rows = rows_of("vqa", drawing)

    def run(folder, **options):
        model = AutoModel.from_pretrained(folders["coarse"], head="vqa")
        train(model, processor, "vqa", rows, folder, **options)
        return model.state_dict()

    whole = run(tmp_path / "whole", steps=4)
    run(tmp_path / "cut", steps=2, save_strategy="steps", save_steps=2)
    newest = str(tmp_path / "cut" / "checkpoints" / "checkpoint-2")
    resumed = run(tmp_path / "resumed", steps=4, resume_from_checkpoint=newest)
    for key, each in whole.items():
        assert torch.equal(each, resumed[key]), key
    assert fiber.load(newest, device="cpu").tokenizer is not None


def test_accumulated_micro_batches_have_the_gradient_of_the_whole(folders, drawing, tmp_path):
    processor = AutoProcessor.from_pretrained(folders["coarse"])
    rows = rows_of("vqa", drawing)
    after = []
    for options in (
        {"per_device_train_batch_size": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    ):
        model = AutoModel.from_pretrained(folders["coarse"], head="vqa")
        trainer = train(
            model,
            processor,
            "vqa",
            rows,
            tmp_path,
            steps=1,
            optim="sgd",
            max_grad_norm=0,
            **options,
        )
        after.append((model.state_dict(), losses(trainer)[0]))
    start = AutoModel.from_pretrained(folders["coarse"]).state_dict()
    (whole, loss), (parts, loss_of_parts) = after
    assert loss == pytest.approx(loss_of_parts, rel=1e-5)
    key = "network.vqa_head.output.weight"
    step, other = whole[key] - start[key], parts[key] - start[key]
    assert step.abs().max() > 0
    torch.testing.assert_close(other, step, rtol=1e-3, atol=step.abs().max().item() * 1e-3)


def test_gradient_checkpointing_and_bfloat16(folders, drawing, tmp_path):
    model = AutoModel.from_pretrained(folders["fine"])
    processor = AutoProcessor.from_pretrained(folders["fine"])
    trainer = train(
        model,
        processor,
        "grounding",
        rows_of("grounding", drawing),
        tmp_path,
        steps=6,
        gradient_checkpointing=True,
        bf16=True,
    )
    assert model.network.backbone.gradient_checkpointing
    assert np.isfinite(losses(trainer)).all() and losses(trainer)[-1] < losses(trainer)[0]


def test_predictions(folders, drawing, tmp_path):
    """Those of a detector have other sizes in each batch, so these are not joined."""
    rows = rows_of("grounding", drawing)
    options = {"per_device_eval_batch_size": 1, "eval_do_concat_batches": False}
    for name, head in (("fine", "grounding"), ("coarse", "vqa")):
        model = AutoModel.from_pretrained(folders[name])
        if head == "vqa":
            rows, model.config.head = rows_of(head, drawing), head
        processor = AutoProcessor.from_pretrained(folders[name])
        trainer = train(model, processor, head, rows, tmp_path, steps=1, **options)
        found = trainer.predict(rows).predictions
        assert len(found) == 2
        with torch.no_grad():
            output = model.eval()(**trainer.data_collator(rows[1:]))
        if head == "vqa":
            np.testing.assert_allclose(found[1], output.logits, rtol=0, atol=1e-5)
            continue
        token_logits, deltas, centerness, mask, sizes = found[1]
        for own, expected in ((token_logits, output.token_logits), (deltas, output.box_deltas)):
            for level, tensor in zip(own, expected, strict=True):
                np.testing.assert_allclose(level, tensor, rtol=0, atol=1e-4)
        assert len(centerness) == 5 and mask.shape == output.attention_mask.shape
        assert sizes.tolist() == output.image_sizes.tolist()


@pytest.fixture(scope="module")
def processors(folders):
    return {name: AutoProcessor.from_pretrained(folders[name]) for name in ("fine", "METER")}


class TestCollator:
    def test_boxes_are_those_of_the_resized_image(self, processors, drawing):
        collate = fiber.hf.TrainingCollator(processors["fine"], "grounding")
        batch = collate(rows_of("grounding", drawing))
        prepared = processors["fine"](images=[drawing] * 2, text=["the star", "a green triangle"])
        for name, tensor in prepared.items():
            assert torch.equal(batch[name], tensor), name
        assert set(batch) == {*prepared, "labels"}
        scale = batch["image_sizes"][0, 0].item() / 360
        for label, box in zip(batch["labels"], BOXES, strict=True):
            torch.testing.assert_close(
                label["boxes"], torch.tensor([box]) * scale, rtol=0, atol=0.1
            )
        # The tokens of "star" and of "triangle" only.
        words = [
            processors["fine"].tokenizer.decode(ids[label["positive_map"][0]]).strip()
            for ids, label in zip(batch["input_ids"], batch["labels"], strict=True)
        ]
        assert words == ["star", "triangle"]

    def test_an_image_without_boxes(self, processors, drawing, folders):
        collate = fiber.hf.TrainingCollator(processors["fine"], "grounding")
        batch = collate([{"image": drawing, "text": "a"}, *rows_of("grounding", drawing)])
        assert batch["labels"][0]["boxes"].shape == (0, 4)
        loss = AutoModel.from_pretrained(folders["fine"])(**batch).loss
        assert loss.ndim == 0 and loss.isfinite()

    def test_records_and_mappings(self, processors, drawing, tmp_path):
        drawing.save(tmp_path / "drawing.png")
        collate = fiber.hf.TrainingCollator(processors["METER"], "vqa", answers=["no", "yes"])
        encoded = (tmp_path / "drawing.png").read_bytes()
        rows = [
            Record(key="a", images=(encoded,), text="a?", answers={"yes": 0.5}),
            {"image": drawing, "text": "a?", "answers": {"yes": 0.5}},
            {"image": np.asarray(drawing), "text": "a?", "answers": {"yes": 0.5}},
            {"image": str(tmp_path / "drawing.png"), "text": "a?", "answers": {"yes": 0.5}},
            {"image": {"bytes": encoded, "path": None}, "text": "a?", "answers": {"yes": 0.5}},
            {
                "image": {"bytes": None, "path": str(tmp_path / "drawing.png")},
                "text": "a?",
                "answers": {"yes": 0.5},
            },
        ]
        batch = collate(rows)
        assert all(torch.equal(each, batch["pixel_values"][0]) for each in batch["pixel_values"])
        assert batch["labels"].tolist() == [[0, 0.5]] * len(rows)

    def test_a_worker_of_the_data_loader_gets_a_copy(self, processors, drawing):
        collate = fiber.hf.TrainingCollator(processors["METER"], "vqa", answers=["no", "yes"])
        rows = [{"image": drawing, "text": "a?", "answers": "yes"}]
        made, copied = collate(rows), pickle.loads(pickle.dumps(collate))(rows)
        assert all(torch.equal(copied[name], tensor) for name, tensor in made.items())

    def test_labels_of_each_head(self, processors, drawing):
        for head, expected in (("nlvr2", [1, 0]), ("itm", [1, 0]), ("snli", [2, 0])):
            collate = fiber.hf.TrainingCollator(processors["METER"], head)
            assert collate(rows_of(head, drawing))["labels"].tolist() == expected, head
        rows = rows_of("caption", drawing)
        batch = fiber.hf.TrainingCollator(processors["METER"], "caption")(rows)
        kept = batch["labels"] != -100
        assert torch.equal(kept, batch["attention_mask"].bool())
        assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
        masked = fiber.hf.TrainingCollator(processors["METER"], "mlm", mlm_probability=0.5)(rows)
        chosen = masked["labels"] != -100
        assert 0 < chosen.sum() < kept.sum()
        original = torch.where(chosen, masked["labels"], masked["input_ids"])
        assert torch.equal(original, batch["input_ids"])

    def test_a_transform_of_training(self, processors, drawing):
        mirrored = ImageTransform.shorter_side([96], 168, flip_probability=1.0)
        collate = fiber.hf.TrainingCollator(processors["fine"], "grounding", transform=mirrored)
        plain = fiber.hf.TrainingCollator(processors["fine"], "grounding")
        rows = rows_of("grounding", drawing)
        flipped, upright = collate(rows), plain(rows)
        width = upright["image_sizes"][0, 1].item()
        x0, _, x1, _ = upright["labels"][0]["boxes"][0].tolist()
        own = flipped["labels"][0]["boxes"][0].tolist()
        assert own[0] == pytest.approx(width - x1, abs=0.5)
        assert own[2] == pytest.approx(width - x0, abs=0.5)
