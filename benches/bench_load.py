"""Time and memory of loading a published checkpoint of 1 GB.

Command: python benches/bench_load.py
Peer: `torch.load(weights_only=True, mmap=True)`, which maps the file and reads no tensor. Loading a
model also copies every tensor; the second peer adds `load_state_dict` to do the same. Each side is
measured in a new process, whose imports are not counted, with the file in the page cache. Memory is
the increase of the peak RSS over the size of the model's tensors.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import interleave, refuse_debug_build, report

PRELUDE = """
import json, resource, sys, time
import torch
import fiber.inference.model
from fiber.checkpoints.load import read_model
from fiber.checkpoints.torch_file import read_checkpoint
from fiber.config import preset
from fiber.models.registry import build_model
path = __import__("pathlib").Path(sys.argv[1])

def own_state():
    # What load_state_dict copies into: tensors of the same shapes as in the file.
    loaded = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    copies = {name: torch.empty(tensor.shape) for name, tensor in loaded.items()}
    for name, tensor in loaded.items():
        copies[name].copy_(tensor)
    return copies

# Memory and threads that the first use of torch takes.
torch.randn(512, 512) @ torch.randn(512, 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
"""
AFTER = """
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([seconds, peak * 1024]))
"""
SIDES = {
    "torch.load, mapped": "result = torch.load(path, weights_only=True, mmap=True)",
    "torch.load, mapped, and copied": "result = own_state()",
    "read_checkpoint, mapped": "result = read_checkpoint(path)",
    "fiber.load": "result = fiber.load(path, device='cpu')",
}
WRITE = """
import sys, torch
from pathlib import Path
from fiber.checkpoints.export import write_published
from fiber.config import preset
from fiber.models.registry import build_model
model = build_model(preset("base"))
write_published(model, Path(sys.argv[1]))
print(sum(tensor.nbytes for tensor in model.state_dict().values()))
"""


def run(code: str, path: Path) -> str:
    """Run code in a new interpreter; return what it prints."""
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    refuse_debug_build()
    memory: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.ckpt"
        kept_bytes = int(run(WRITE, path))
        print(f"{path.stat().st_size} bytes; {kept_bytes} bytes of tensors")

        def measure(name: str) -> float:
            seconds, peak_bytes = json.loads(run(PRELUDE + SIDES[name] + AFTER, path))
            memory[name].append(peak_bytes / kept_bytes)
            return 1000 * seconds

        sides = {name: lambda name=name: measure(name) for name in SIDES}
        times = interleave(sides, options.rounds)
    report("load", "ms", times, peer="torch.load, mapped")
    report("load_memory", "x tensors", memory, peer="torch.load, mapped, and copied")


if __name__ == "__main__":
    main()
