"""What the transformers library reads in a model folder, beside the files that fiber reads.

`fiber.hf` registers the classes that these files name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiber.atomic_io import write_json
from fiber.data import Tokenizer
from fiber.models.model_config import text_cleaning
from fiber.models.registry import ModelConfig, inference_transform, own_transforms

#: Files with the settings of the tokenizer and of the image processor.
TRANSFORMERS_FILES = ("tokenizer_config.json", "preprocessor_config.json")

#: Value of `model_type` for models of all families, which the field `model` of config.json tells.
MODEL_TYPE = "fiber"
#: Names of classes of `fiber.hf`.
DETECTOR = "FiberVLForZeroShotObjectDetection"
IMAGE_TEXT = "FiberVLForImageText"
SEGMENTER = "FiberVLForUniversalSegmentation"
#: Class of models with a head, if it is not that of image-text models.
_CLASSES = {"grounding": DETECTOR, "mask": SEGMENTER}
IMAGE_PROCESSOR = "FiberVLImageProcessor"

#: Field of config.json that transformers adds when it writes the file.
WRITTEN_BY_TRANSFORMERS = "transformers_version"
#: Fields of fiber's config.json that describe a model; the others are of the run that trained it.
MODEL_FIELDS = ("fiber_version", "commit", "model", "model_type", "architectures", "dtype")
#: Fields of `config_fields`.
CONFIG_FIELDS = ("model_type", "architectures", "dtype")


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of config.json that transformers needs.

    Without `dtype`, transformers would compute in the dtype of the stored weights.
    """
    name = next((_CLASSES[head] for head in config.heads if head in _CLASSES), IMAGE_TEXT)
    return {"model_type": MODEL_TYPE, "architectures": [name], "dtype": "float32"}


def write_transformers_files(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer | None = None
) -> None:
    """Write preprocessor_config.json and, with a tokenizer, tokenizer_config.json."""
    if tokenizer is not None:
        settings = tokenizer_settings(tokenizer, config.max_tokens)
        write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "preprocessor_config.json", preprocessor_settings(config))


def tokenizer_settings(tokenizer: Tokenizer, max_tokens: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json, for the tokenizer.json next to it.

    Special tokens are those that the file itself cannot tell: which token pads, starts, ends.
    """
    names = _token_names(tokenizer)
    ids = {
        "bos_token": next(iter(tokenizer.start_ids), None),
        "eos_token": next(reversed(tokenizer.end_ids), None),
        "cls_token": next(iter(tokenizer.start_ids), None),
        "sep_token": next(reversed(tokenizer.end_ids), None),
        "pad_token": tokenizer.pad_id,
        "unk_token": tokenizer.unknown_id,
        "mask_token": tokenizer.mask_id,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{name: names[number] for name, number in ids.items() if number in names},
    }


def _token_names(tokenizer: Tokenizer) -> dict[int | None, str]:
    """Return the text of each token of a tokenizer.json by its id."""
    content = json.loads(tokenizer.to_json())
    vocabulary = content["model"].get("vocab")
    names: dict[int | None, str] = {}
    if isinstance(vocabulary, Mapping):
        names.update((number, name) for name, number in vocabulary.items())
    elif isinstance(vocabulary, list):
        # Unigram models have a list of tokens and their scores.
        names.update((number, entry[0]) for number, entry in enumerate(vocabulary))
    names.update((token["id"], token["content"]) for token in content["added_tokens"])
    return names


def preprocessor_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of preprocessor_config.json: the model's transforms at inference.

    Transforms of single tasks, and the cleaning of texts, are only there if a family has them.
    """
    settings: dict[str, Any] = {
        "image_processor_type": IMAGE_PROCESSOR,
        "transform": inference_transform(config).describe(),
    }
    if tasks := own_transforms(config):
        settings["tasks"] = {task: each.describe() for task, each in tasks.items()}
    if cleaning := text_cleaning(config):
        settings["text_cleaning"] = cleaning
    return settings
