"""Compilation of a `Launch` for a chip that is not present, as if launched on it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature

from fiber.kernels.runtime.launch import Launch


@dataclass(frozen=True)
class Chip:
    """GPU architecture that kernels are compiled for."""

    #: Name as in `tiles.architecture`.
    name: str
    #: Triton's names of backend and architecture, and threads of a warp.
    backend: str
    architecture: int | str
    threads: int
    #: Maximum shared memory of one program in bytes.
    shared_bytes: int


# Shared memory: "Maximum amount of shared memory per thread block" of the CUDA programming guide's
# table of compute capabilities; for gfx942 the local data share of AMD's CDNA 3 guide.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("sm_80", "cuda", 80, 32, 163 * 1024),
        Chip("sm_89", "cuda", 89, 32, 99 * 1024),
        Chip("sm_90", "cuda", 90, 32, 227 * 1024),
        Chip("sm_100", "cuda", 100, 32, 227 * 1024),
        Chip("sm_120", "cuda", 120, 32, 99 * 1024),
        Chip("gfx942", "hip", "gfx942", 64, 64 * 1024),
    )
}


@dataclass(frozen=True)
class Compiled:
    """Result of compiling a launch."""

    launch: Launch
    chip: Chip
    #: Name of the kernel.
    name: str
    #: Text of each stage by its name (ttir, ttgir, llir, ptx or amdgcn) and the binary (cubin,
    #: hsaco).
    stages: dict[str, Any]
    #: Shared memory of one program in bytes, static and dynamic.
    shared_bytes: int
    #: Parameters that were compiled as constants, by name, `Launch.constants` included.
    constants: dict[str, Any]
    #: Names of the remaining parameters, in order.
    parameters: tuple[str, ...]


def compile_launch(launch: Launch, chip: Chip) -> Compiled:
    """Compile one launch, or read the result from the cache.

    Args:
        launch: its tensors may be meta tensors; only dtype, alignment and storage size matter.
        chip: chip to compile for.

    Raises:
        TypeError: if the kernel was decorated for the interpreter.
    """
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise TypeError(
            f"cannot compile {kernel!r}: expected a function under triton.jit in a process without"
            " TRITON_INTERPRET"
        )
    target = GPUTarget(chip.backend, chip.architecture, chip.threads)
    backend = _backend(chip)(target)
    # Triton's own launcher uses the same two functions, so specialization is the same.
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialised, options = bind(**launch.arguments, **launch.constants, **_options(launch))
    options, signature, constants, attributes = kernel._pack_args(
        backend, _options(launch), bound, specialised, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache_folder() / "triton")
        compiled = triton.compile(source, target=target, options=options.__dict__)
        stages = {stage: compiled.asm[stage] for stage in compiled.asm}
    names = list(signature)
    return Compiled(
        launch=launch,
        chip=chip,
        name=kernel.__name__,
        stages=stages,
        shared_bytes=compiled.metadata.shared,
        constants={names[path[0]]: value for path, value in constants.items()},
        parameters=tuple(name for name, kind in signature.items() if kind != "constexpr"),
    )


def _options(launch: Launch) -> dict[str, Any]:
    return {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": True,
    }


@cache
def _backend(chip: Chip) -> Any:
    target = GPUTarget(chip.backend, chip.architecture, chip.threads)
    (found,) = (
        each.compiler for each in backends.values() if each.compiler.supports_target(target)
    )
    return found


@cache
def cache_folder() -> Path:
    """Return the cache of this version of Triton, in target/, which git ignores."""
    folder = Path(__file__).parents[3] / "target" / "kernels-aot" / f"triton-{triton.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remembered(kind: str, made_from: bytes, make: Any) -> Any:
    """Return `make()`, cached as JSON by a hash of its inputs.

    Args:
        kind: folder of the cache; change it when `make` changes.
        made_from: all inputs that determine the result.
        make: returns a JSON-serializable value.
    """
    path = cache_folder() / kind / f"{hashlib.sha256(made_from).hexdigest()}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    value = make()
    path.parent.mkdir(exist_ok=True)
    # Atomic: another process may write the same file.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(value, file)
    Path(file.name).replace(path)
    return value
