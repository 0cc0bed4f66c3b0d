"""Free memory as Linux reports it, and runs that do not fit into it."""

import warnings

import pytest
import torch

from fiber.config_io import replace_fields
from fiber.models.registry import build_model
from fiber.training import trainer
from fiber.training.config.run import load_recipe
from fiber.training.distributed.processes import Processes
from fiber.training.machine_memory import check_memory, free_bytes, needed_bytes
from tests.training.micro_runs import coarse_config, run

MEMINFO = "MemTotal:        4000 kB\nMemFree:     100 kB\nMemAvailable:    {} kB\nSwapFree: 7 kB\n"


class Machine:
    """The system files of a machine that report its memory."""

    def __init__(self, root):
        self.root = root

    def __call__(self, files):
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self.root

    def with_free(self, number):
        """Give the machine at least this many bytes, less than a kB more."""
        return self({"proc/meminfo": MEMINFO.format(-(-number // 1024))})


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


#: The patch embedding and the first two stages.
FROZEN = tuple(f"backbone.image.{part}" for part in ("patch_embedding", "stages.0", "stages.1"))


def processes(kind="cpu", rank=0):
    return Processes(rank=rank, world_size=2, device=torch.device(kind))


# ---- what is free


def test_a_machine_that_does_not_tell(machine):
    assert free_bytes(machine.root) is None
    check_memory(load_recipe("vqav2"), processes(), machine.root)
    machine({"proc/meminfo": "MemTotal: 4 kB\n", "proc/self/cgroup": "3:cpu:/\n0::/\n"})
    assert free_bytes(machine.root) is None


def test_memory_of_a_machine(machine):
    machine({"proc/meminfo": MEMINFO.format(3000)})
    assert free_bytes(machine.root) == 3000 * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max\n"}, 3_072_000),
        ({"memory.max": "1000000\n"}, 1_000_000),
        ({"memory.max": "9000000\n"}, 3_072_000),
        # A cache of files makes room, what processes wrote does not.
        (
            {"memory.max": "1000000\n", "memory.stat": "anon 300000\nfile 600000\n"},
            700_000,
        ),
        ({"memory.max": "1000000\n", "memory.stat": "anon 1300000\nfile 0\n"}, 0),
        # The group, one above it and the highest of all count.
        ({"a/memory.max": "500000\n", "a/b/memory.max": "max\n"}, 500_000),
        ({"a/memory.max": "500000\n", "a/b/memory.max": "400000\n"}, 400_000),
        ({"a/other/memory.max": "500000\n"}, 3_072_000),
    ],
)
def test_limits_of_control_groups(files, expected, machine):
    machine({f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    machine({"proc/meminfo": MEMINFO.format(3000), "proc/self/cgroup": "0::/a/b\n"})
    assert free_bytes(machine.root) == expected


def test_limits_of_the_first_version_of_control_groups(machine):
    memory = "sys/fs/cgroup/memory/a"
    machine(
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n",
            f"{memory}/memory.limit_in_bytes": "2000000\n",
            f"{memory}/memory.stat": "rss 1\ntotal_cache 900000\ntotal_rss 500000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )
    assert free_bytes(machine.root) == 1_500_000


# ---- what is needed


def test_bytes_of_a_run_by_hand():
    config = coarse_config()
    count = sum(parameter.numel() for parameter in build_model(config.model).parameters())
    assert needed_bytes(config) == (count, 16 * count)
    frozen = replace_fields(config, {"optim.frozen": FROZEN})
    image = build_model(config.model).backbone.image
    still = [image.patch_embedding, *image.stages[:2]]
    fixed = sum(p.numel() for part in still for p in part.parameters())
    assert fixed > 0
    assert needed_bytes(frozen) == (count, 16 * (count - fixed) + 4 * fixed)


def test_published_sizes_need_gigabytes():
    count, needed = needed_bytes(load_recipe("vqav2"))
    assert 240e6 < count < 260e6 and needed == 16 * count


# ---- what is said


def test_a_run_that_cannot_fit_is_refused(machine):
    config = load_recipe("vqav2")
    count, needed = needed_bytes(config)
    root = machine.with_free(needed - 1024)
    with pytest.raises(MemoryError) as error:
        check_memory(config, processes(), root)
    gib = f"{needed / 2**30:.2f} GiB"
    assert f"{count / 1e6:.1f} million parameters need {gib} (weights" in str(error.value)
    assert f"{gib} of memory is free; use a GPU" in str(error.value)
    for way_out in ("preset small", "train.gradient_checkpointing", "train.samples_per_pass"):
        assert way_out in str(error.value)
    # A GPU has its own memory, and its own error.
    check_memory(config, processes("cuda"), root)


def test_a_run_that_may_not_fit_is_warned_of_once(machine):
    config = coarse_config()
    _, needed = needed_bytes(config)
    for free in (needed, 2 * needed - 2048):
        with pytest.warns(
            RuntimeWarning, match="Activations need additional memory and may not fit"
        ):
            check_memory(config, processes(), machine.with_free(free))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_memory(config, processes(rank=1), machine.with_free(needed))
        check_memory(config, processes(), machine.with_free(2 * needed))


def test_training_looks_before_it_begins(pictures, tmp_path, monkeypatch, machine):
    root = machine.with_free(1024)
    monkeypatch.setattr(trainer, "check_memory", lambda *given: check_memory(*given, root))
    with pytest.raises(MemoryError, match="million parameters need"):
        run(coarse_config(), pictures, tmp_path / "r")
    assert not (tmp_path / "r").exists()
