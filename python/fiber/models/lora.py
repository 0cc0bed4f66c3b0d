"""LoRA adapters of PEFT in a network: which layers have them, their tensors, and merging.

PEFT wraps a layer in place: `qkv.weight` becomes `qkv.base_layer.weight`, beside
`qkv.lora_A.default.weight` and `qkv.lora_B.default.weight`. A module that is trained in whole
becomes `original_module` and `modules_to_save.default`. Files have neither the name of the adapter
nor the tensors of the base.

Source: Hu et al. 2021, as implemented in PEFT, which this module imports when it is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fiber.config_io import nearest
from fiber.messages import shown, shown_names
from fiber.models.registry import ModelConfig, Network, architecture_of, build_empty
from fiber.terminal import without_log_lines

if TYPE_CHECKING:
    import peft

#: Name of the adapter within a network.
_NAME = "default"
#: Start of the names of all tensors in an adapter file.
PREFIX = "base_model.model."
#: Part of the names of tensors of a module that is trained in whole.
_SAVED = f".modules_to_save.{_NAME}."


def import_peft() -> Any:
    """Import PEFT.

    Raises:
        ModuleNotFoundError: if it is not installed; the message names the extra.
    """
    try:
        # PEFT imports torchao, whose versions differ in what torch warns of.
        with without_log_lines():
            import peft
    except ImportError as error:
        raise ModuleNotFoundError(
            f"LoRA needs the package peft ({error}); install it with pip install 'fiber-vl[lora]'"
        ) from error
    return peft


def find_targets(network: Network, patterns: Sequence[str] = ()) -> list[str]:
    """List the linear layers that patterns name.

    Args:
        network: network without adapters.
        patterns: full names of layers; * matches anything. Default: `Architecture.lora_targets`.

    Raises:
        ValueError: if a pattern matches no module (the message suggests the nearest names) or no
            linear layer, or if the family has no default.
    """
    architecture = architecture_of(network.config)
    asked = tuple(patterns) or architecture.lora_targets
    if not asked:
        raise ValueError(
            f"lora.targets: {architecture.title} has no default; expected names of linear layers"
        )
    modules = {name: module for name, module in network.named_modules() if name}
    # The default lists the layers of all kinds of encoders and fusion, of which a model has some.
    if patterns:
        for pattern in asked:
            _check_pattern(pattern, modules)
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and any(fnmatchcase(name, each) for each in asked)
    ]


def _check_pattern(pattern: str, modules: Mapping[str, nn.Module]) -> None:
    found = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError(
            f"lora.targets: no module is called {shown(pattern)}; {nearest(pattern, linear)}"
        )
    if not any(isinstance(module, nn.Linear) for module in found.values()):
        kinds = {type(module).__name__ for module in found.values()}
        raise ValueError(
            f"lora.targets: {shown(pattern)} is a {' or '.join(sorted(kinds))}; expected names of"
            " linear layers, such as"
            f" {shown_names([name for name in linear if name.startswith(f'{pattern}.')] or linear)}"
        )


def find_new_modules(network: Network, created: Collection[str]) -> list[str]:
    """List the modules of tensors that the base lacks, which are therefore trained in whole.

    Args:
        network: network without adapters.
        created: names of these tensors.

    Raises:
        ValueError: if a tensor belongs to no layer of PyTorch, such as a gate.
    """
    names = []
    for name in created:
        owner = name.rpartition(".")[0]
        module = network.get_submodule(owner)
        if not owner or not type(module).__module__.startswith("torch.nn."):
            raise ValueError(
                f"the initial model lacks {shown(name)}, which an adapter cannot hold; start LoRA"
                " from a model that has it, such as one that was trained on the same tasks"
            )
        names.append(owner)
    return list(dict.fromkeys(names))


def lora_config(
    targets: Sequence[str],
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    trained: Sequence[str] = (),
) -> peft.LoraConfig:
    """Make PEFT's config of an adapter.

    Args:
        targets: full names of linear layers.
        r: rank of each adapter.
        alpha: adapters are scaled by `alpha / r`.
        dropout: dropout of the inputs of adapters.
        trained: full names of modules that are trained in whole.
    """
    return import_peft().LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=list(trained) or None,
        bias="none",
    )


def add_adapters(network: nn.Module, config: peft.LoraConfig, *, empty: bool = False) -> Any:
    """Add adapters in place, and freeze all other parameters.

    Args:
        network: network without adapters.
        config: config of the adapters. PEFT may change it.
        empty: leave the tensors of adapters on the meta device.

    Returns:
        PEFT's wrapper of the network.
    """
    return import_peft().PeftModel(network, config, _NAME, low_cpu_mem_usage=empty)


def adapters_of(network: nn.Module) -> peft.LoraConfig | None:
    """Return the config of the adapters of a network, or None if it has none."""
    configs: Any = getattr(network, "peft_config", None)
    return configs[_NAME] if configs else None


def build_empty_like(network: Network) -> Network:
    """Build a network with the same tensors on the meta device, adapters included."""
    empty, config = build_empty(network.config), adapters_of(network)
    if config is not None:
        add_adapters(empty, config, empty=True)
    return empty


def file_name_of(name: str) -> str | None:
    """Return the name in an adapter file of a tensor of a network, or None if it is of the base."""
    if _SAVED in name:
        return PREFIX + name.replace(_SAVED, ".")
    if ".lora_" in name and f".{_NAME}." in name:
        return PREFIX + name.replace(f".{_NAME}.", ".")
    return None


def adapter_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the tensors of an adapter file from the state dict of a network with adapters."""
    names = {name: file_name_of(name) for name in state}
    return {file: state[name] for name, file in names.items() if file is not None}


def config_of_state(names: Iterable[str], *, r: int, alpha: float) -> peft.LoraConfig:
    """Make PEFT's config of the adapters in a state dict, by the names of its tensors."""
    names, suffix = list(names), ".base_layer.weight"
    saved = dict.fromkeys(name.partition(_SAVED)[0] for name in names if _SAVED in name)
    targets = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return lora_config(targets, r=r, alpha=alpha, trained=list(saved))


def merged_state(
    config: ModelConfig, state: Mapping[str, Tensor], *, r: int, alpha: float
) -> dict[str, Tensor]:
    """Merge the adapters of a state dict into its weights.

    Args:
        config: config of the network.
        state: state dict of the network with adapters, which is not changed.
        r: rank of the adapters.
        alpha: as for `lora_config`.

    Returns:
        State dict of a network without adapters.
    """
    network = build_empty(config)
    wrapped = add_adapters(network, config_of_state(state, r=r, alpha=alpha), empty=True)
    network.load_state_dict(state, assign=True)
    return merge(wrapped).state_dict()


def merge(wrapped: Any) -> Any:
    """Merge the adapters of what `add_adapters` returned, into new tensors.

    Raises:
        ValueError: if a merged weight is not finite.
    """
    return wrapped.merge_and_unload(safe_merge=True)
