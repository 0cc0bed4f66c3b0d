"""Count the instructions that a 64-bit ARM processor executes per image, under emulation.

Command: python benches/arm.py --djpeg DIR FILE... [--sysroot DIR] [--binary FILE]

Instructions are not time, but emulation counts those of every program alike, and scalar loops that
NEON replaces cost instructions. Peer: libjpeg-turbo's own `djpeg` with its NEON code, in the same
run, with its `libjpeg` and C library in DIR (Debian's libjpeg-turbo-progs, libjpeg62-turbo, libc6
and libgcc-s1 for arm64, unpacked by `dpkg -x`, with DIR/lib a link to usr/lib). It also writes its
image to a file. The instructions of a program without any image are subtracted. Pixels are compared
first: NEON, scalar loops and the host must give the same.

Requires qemu-user, a C compiler, and cargo with the target aarch64-unknown-linux-gnu
(CONTRIBUTING.md). --binary is a benches/arm.rs that was built elsewhere.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rows import report

ROOT = Path(__file__).parents[1]
TARGET = "aarch64-unknown-linux-gnu"
SETS = ("neon", "scalar")


class Counter:
    """Programs under emulation, whose instructions are counted."""

    def __init__(self, folder: Path) -> None:
        self.plugin = folder / "count.so"
        source = Path(__file__).with_name("arm_count.c")
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(self.plugin), str(source)]
        subprocess.run(command, check=True)

    def count(self, sysroot: Path, command: Sequence[str]) -> tuple[int, str]:
        """Run a program; its instructions, and what it printed."""
        libraries = sysroot / "usr/lib/aarch64-linux-gnu"
        path = ["-E", f"LD_LIBRARY_PATH={libraries}"] if libraries.exists() else []
        emulator = ["qemu-aarch64", "-plugin", str(self.plugin), "-L", str(sysroot), *path]
        done = subprocess.run([*emulator, *command], capture_output=True, text=True, check=False)
        found = re.search(r"^instructions: (\d+)$", done.stderr, re.MULTILINE)
        if done.returncode or not found:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        return int(found[1]), done.stdout.strip()


def built(*target: str) -> list[str]:
    """Build benches/arm.rs; the command that runs it."""
    command = ["cargo", "bench", "--quiet", "--bench", "arm", *target]
    done = subprocess.run(
        [*command, "--no-run", "--message-format=json"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    (program,) = re.findall(r'"executable":"([^"]*/arm-[^"]*)"', done.stdout)
    return [program]


def main() -> None:
    """Compare pixels, count, and report in millions of instructions an image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", help="two or more JPEG files")
    parser.add_argument(
        "--djpeg", required=True, type=Path, help="root directory of djpeg and its libraries"
    )
    parser.add_argument(
        "--sysroot",
        type=Path,
        default=Path("/usr/aarch64-linux-gnu"),
        help="sysroot of benches/arm.rs (default: %(default)s)",
    )
    parser.add_argument("--binary", help="benches/arm.rs built for ARM (default: built here)")
    options = parser.parse_args()
    ours = [options.binary] if options.binary else built("--target", TARGET)
    files = [str(Path(file).resolve()) for file in options.files]
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(Path(folder))

        def counted(work: str, instructions: str, some: Sequence[str]) -> tuple[int, str]:
            return counter.count(options.sysroot, [*ours, work, instructions, *some])

        here = subprocess.run(
            [*built(), "hash", "scalar", *files], check=True, capture_output=True, text=True
        )
        for instructions in SETS:
            _, pixels = counted("hash", instructions, files)
            if pixels != here.stdout.strip():
                sys.exit(f"{instructions}: pixels differ from those of the host")
        djpeg = str(options.djpeg / "usr/bin/djpeg")
        image = str(Path(folder) / "picture.ppm")
        empty, _ = counter.count(options.djpeg, [djpeg, "-version"])
        decoded = {"djpeg of libjpeg-turbo": [], **{f"fiber, {name}": [] for name in SETS}}
        squashed = {f"fiber, {name}": [] for name in SETS}
        for file in files:
            count, _ = counter.count(options.djpeg, [djpeg, "-outfile", image, file])
            decoded["djpeg of libjpeg-turbo"].append((count - empty) / 1e6)
            for name in SETS:
                read, decode, squash = (
                    counted(work, name, [file])[0] for work in ("read", "decode", "squash")
                )
                decoded[f"fiber, {name}"].append((decode - read) / 1e6)
                squashed[f"fiber, {name}"].append((squash - decode) / 1e6)
    unit = "million instructions per image"
    report("arm_decode", unit, decoded, peer="djpeg of libjpeg-turbo")
    report("arm_resize", unit, squashed, peer="fiber, scalar")


if __name__ == "__main__":
    main()
