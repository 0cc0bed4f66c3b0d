"""`FiberVLPreTrainedModel`: loading and saving networks of fiber with transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from fiber.checkpoints.vocabulary.files import read_strings
from fiber.checkpoints.weights import list_problems
from fiber.hf.config import FiberVLConfig
from fiber.messages import shown
from fiber.models.heads import MissingHeadError, need_head
from fiber.models.registry import Network, build_model

#: Arguments of `from_pretrained` that say where a file is.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
#: Bytes at whose multiples tensors start.
_ALIGNMENT = 64


class FiberVLPreTrainedModel(PreTrainedModel):
    """Base class: a network of fiber in `network`.

    Files have the names of tensors that fiber's model.safetensors has, without "network." before
    them.
    """

    config_class = FiberVLConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # Losses are means over the batch: `Trainer` divides them by the number of micro-batches.
    accepts_loss_kwargs = False

    def __init__(self, config: FiberVLConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        network = config.network
        self.check_heads(network.heads)
        if config.head is not None:
            need_head(network, config.head, f"head={shown(config.head)}")
        self.network: Network = build_model(network)
        # Kernels read the weights of several modules at once, so a network is not split.
        self._no_split_modules = [type(self.network).__name__]
        self.post_init()

    @classmethod
    def check_heads(cls, heads: tuple[str, ...]) -> None:
        """Raise MissingHeadError unless the class can run a network with these heads."""
        raise NotImplementedError

    @classmethod
    def _check_head(cls, head: str, heads: tuple[str, ...]) -> None:
        """Raise MissingHeadError unless a head is among those of a network."""
        if head not in heads:
            raise MissingHeadError(
                f"{cls.__name__} needs the head {head!r}; this model has {', '.join(heads)}."
                " AutoModel takes models with any heads"
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model folder. See `PreTrainedModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: folder that `Model.save`, a run or transformers wrote.
            model_args: see `PreTrainedModel`.
            ignore_mismatched_sizes: initialize tensors whose shape is not that of the file, such as
                those of a VQA head that gets other answers (`answers=[...]`).
            output_loading_info: also return which tensors did not fit.
            kwargs: see `PreTrainedModel`, or attributes of the config.

        Raises:
            OSError: if a file is missing.
            ValueError: if tensors are missing, unexpected or have other shapes. They are named.
            MissingHeadError: if the model lacks the head that the class needs.
        """
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
        model, info = loaded
        where = pretrained_model_name_or_path
        model._check_loaded(info, where, ignore_mismatched_sizes=ignore_mismatched_sizes)
        model._align()
        if where is not None and not model.config.answers and not model.config.classes:
            options = {name: kwargs[name] for name in _WHERE if name in kwargs}
            model._read_lists(where, options)
        return (model, info) if output_loading_info else model

    def _check_loaded(self, info: Any, where: Any, *, ignore_mismatched_sizes: bool) -> None:
        """Raise ValueError for tensors that did not fit, and initialize those that may be new."""
        missing, unexpected, mismatched = (
            sorted(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        faults = [f"missing {_own(name)}" for name in missing]
        faults += [f"unexpected {_own(name)}" for name in unexpected]
        if not ignore_mismatched_sizes:
            faults += [
                f"{_own(name)} has shape {tuple(found)}, expected {tuple(expected)}"
                for name, found, expected in mismatched
            ]
        if faults:
            raise ValueError(f"{where} does not fit the model:\n  {list_problems(faults)}")
        if mismatched:
            fresh = build_model(self.config.network).state_dict()
            state = self.network.state_dict()
            with torch.no_grad():
                for name, _, _ in mismatched:
                    state[_own(name)].copy_(fresh[_own(name)])

    def _align(self) -> None:
        """Copy weights that transformers reads where they are in the file, at any address.

        Sums over those are in another order on a CPU, so that outputs would differ in the last bit
        from those of `fiber.load`.
        """
        for parameter in self.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % _ALIGNMENT:
                parameter.data = parameter.data.clone()

    def _read_lists(self, where: Any, options: Mapping[str, Any]) -> None:
        """Read the answers and classes of the folder, if it has them."""
        for name in ("answers", "classes"):
            path = cached_file(
                str(where),
                f"{name}.json",
                _raise_exceptions_for_missing_entries=False,
                **options,
            )
            if path is None:
                continue
            texts = read_strings(Path(path), name)
            network = self.config.network
            if name == "answers" and "vqa" not in network.heads:
                continue
            if name == "answers" and len(texts) != network.num_answers:
                raise ValueError(
                    f"{where}: answers.json has {len(texts)} answers, expected"
                    f" {network.num_answers}, the number of outputs of the VQA head"
                )
            setattr(self.config, name, texts)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any
    ) -> None:
        """Write a folder that `fiber.load` reads, too. See `PreTrainedModel.save_pretrained`.

        A processor writes the tokenizer that `fiber.load` needs to read texts.
        """
        state = self.state_dict() if state_dict is None else state_dict
        own = {_own(name): tensor for name, tensor in state.items()}
        super().save_pretrained(save_directory, *args, state_dict=own, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Load tensors with the names of `state_dict`, or with those of files.

        `Trainer` loads the files of its checkpoints in this way, with `strict=False`.
        """
        prefix = f"{self.base_model_prefix}."
        if not any(name.startswith(prefix) for name in state_dict):
            state_dict = {prefix + name: tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word embeddings, which PEFT and gradient checkpointing ask for.

        Raises:
            NotImplementedError: if the network's text encoder has none of that name.
        """
        try:
            return self.network.backbone.text.embeddings.word
        except AttributeError as error:
            raise NotImplementedError(f"{type(self.network).__name__}: {error}") from error

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what `build_model` has initialized; `_check_loaded` allows no other."""


def _own(name: str) -> str:
    """Return the name of a tensor in files."""
    return name.removeprefix(f"{FiberVLPreTrainedModel.base_model_prefix}.")
