"""LoRA in a training run (`RunConfig.lora`): adapters of the initial model, and their files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fiber.checkpoints.adapters.files import About, is_adapter, weights_sha256, write_adapter
from fiber.checkpoints.adapters.load import base_name
from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.model_dir import StoredModel, write_weights
from fiber.checkpoints.provenance import TrainedOn
from fiber.messages import shown_names
from fiber.models.lora import (
    add_adapters,
    config_of_state,
    find_new_modules,
    find_targets,
    import_peft,
    lora_config,
    merged_state,
)
from fiber.models.registry import Network, architecture_of, build_empty
from fiber.training.config.lora import LoraConfig
from fiber.training.config.run import RunConfig
from fiber.training.optim import freeze
from fiber.training.run_dir import RunFolder
from fiber.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class RunAdapters:
    """Adapters of a run and their base."""

    config: RunConfig
    options: LoraConfig
    #: How the files name the base, and its fingerprint.
    base: str
    base_sha256: str

    @classmethod
    def of(
        cls, config: RunConfig, init: StoredModel | EncoderStates | None, folder: RunFolder
    ) -> RunAdapters | None:
        """Check the base of a run with LoRA; return None for any other run.

        Raises:
            ModuleNotFoundError: if PEFT is not installed.
            ValueError: if the initial weights are not those of a whole model of the same kind, have
                changed since the run in `folder` started, or lack the layers to adapt.
        """
        if config.lora is None:
            return None
        import_peft()
        expected = architecture_of(config.model)
        if not isinstance(init, StoredModel) or init.path is None:
            found = "random weights" if init is None else f"encoders alone ({init.path})"
            raise ValueError(
                "lora: adapters need the weights of a trained model as their base (--init MODEL,"
                f" init=...); this run starts from {found}"
            )
        if init.path.is_dir() and is_adapter(init.path):
            raise ValueError(
                f"lora: {init.path} is an adapter; merge it first (fiber convert --merge), or start"
                " from the model of its run"
            )
        if architecture_of(init.config) is not expected:
            raise ValueError(
                f"lora: adapters of a {expected.title} model need one as their base;"
                f" {init.path} is a {architecture_of(init.config).title} model"
            )
        # Before the run has a folder.
        find_targets(build_empty(config.model), config.lora.targets)
        base, sha256 = base_name(init.path), weights_sha256(init.network.state_dict())
        folder.check_base(base, sha256)
        return cls(config=config, options=config.lora, base=base, base_sha256=sha256)

    def add(self, model: Network, created: Collection[str], frozen: Collection[str]) -> str:
        """Add the adapters to a model that has the weights of the base; all others are frozen.

        Args:
            model: model of the run, without adapters.
            created: names of its tensors that the base lacks.
            frozen: names of parameters that `optim.frozen` names; their layers train nothing.

        Returns:
            What is trained, in a line.

        Raises:
            ValueError: if an adapter cannot hold a tensor that the base lacks, or all is frozen.
        """
        torch.manual_seed(self.config.train.seed)
        trained = find_new_modules(model, created)
        add_run_adapters(model, self.options, frozen, trained)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        count = sum(name.endswith(".lora_B.default.weight") for name in names)
        numbers = [p.numel() for p in model.parameters() if p.requires_grad]
        whole = f"; new layers, trained in whole: {shown_names(trained)}" if trained else ""
        return (
            f"LoRA: {count} adapters of rank {self.options.r} of {self.base},"
            f" {sum(numbers):,} trained parameters{whole}"
        )

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge the adapters of a state dict of the run's model."""
        options = {"r": self.options.r, "alpha": self.options.alpha}
        return merged_state(self.config.model, state, **options)

    def write(self, folder: RunFolder, state: Mapping[str, Tensor]) -> None:
        """Write the adapters of a run from a state dict of its model.

        Raises:
            OSError: if a file cannot be written.
        """
        data, split = folder.data_path(), self.config.data.split
        about = About(
            base=self.base,
            base_sha256=self.base_sha256,
            model=self.config.model,
            trained_on=TrainedOn(data, split) if data is not None else None,
        )
        config = config_of_state(state, r=self.options.r, alpha=self.options.alpha)
        config.lora_dropout = self.options.dropout
        write_adapter(folder.adapter, config, state, about, folder.vocabulary())


def write_finished(
    folder: RunFolder,
    weights: dict[str, Tensor],
    validation: Validation | None,
    best_step: int,
    adapters: RunAdapters | None,
) -> None:
    """Write the finished model of a run, and its adapters if it has any.

    Args:
        folder: folder of the run.
        weights: those of the last step, which are kept without validation.
        validation: what selected the best weights, if anything.
        best_step: step of these.
        adapters: adapters of the run, which are merged into the model.
    """
    if adapters is None and validation is not None:
        validation.finish(best_step, folder.model_file)
        return
    if adapters is not None:
        weights = weights if validation is None else validation.weights(best_step)
        # A run is finished when it has a model, which therefore comes last.
        adapters.write(folder, weights)
        weights = adapters.merged(weights)
    write_weights(folder.path, weights)
    if validation is not None:
        validation.forget_others(())


def build_empty_trained(config: RunConfig) -> Network:
    """Build the model of a run on the meta device, with its frozen parameters and adapters."""
    model = build_empty(config.model)
    frozen = freeze(model, config.optim.frozen)
    if config.lora is not None:
        add_run_adapters(model, config.lora, frozen)
    return model


def add_run_adapters(
    model: Network,
    options: LoraConfig,
    frozen: Collection[str],
    trained: Collection[str] = (),
) -> None:
    """Add adapters by the options of a run; arguments as for `RunAdapters.add`.

    `trained` are modules that are trained in whole.
    """
    config = lora_config(
        find_targets(model, options.targets),
        r=options.r,
        alpha=options.alpha,
        dropout=options.dropout,
        trained=list(trained),
    )
    is_empty = next(model.parameters()).is_meta
    add_adapters(model, config, empty=is_empty)
    layers = {name.rpartition(".")[0] for name in frozen}
    is_trained = False
    for name, parameter in model.named_parameters():
        if layers & _owners(name):
            parameter.requires_grad_(False)
        is_trained |= parameter.requires_grad
    if not is_trained:
        raise ValueError(
            "optim.frozen freezes all layers that have adapters (lora.targets); expected at least"
            " one trainable parameter"
        )


def _owners(name: str) -> set[str]:
    """Return the layer, without adapters, of a parameter of adapters; empty if it is no such."""
    ends = (".lora_A.", ".lora_B.", ".modules_to_save.")
    return {name.partition(end)[0] for end in ends if end in name}
