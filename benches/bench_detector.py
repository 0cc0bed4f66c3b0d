"""Detection on one image with one prompt, from tensors to boxes.

Command: python benches/bench_detector.py
Peer: `eager_detector.py` and `eager_detections.py`, the published fine model in plain PyTorch. Both
are preset base with the same random weights, float32, without gradients, on an image of 800 x 1344
pixels; logits and deltas are compared before anything is timed. Measured: the backbone; the whole
detector with COCO's 80 classes and with three; the peak memory of a new process above the weights;
and options: bfloat16, torch.compile, the next prompt on the same image, the same prompt on the next
image.
"""

from __future__ import annotations

import argparse
import copy
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

# The eager models import each other from the repository root, like the tests.
sys.path.append(str(Path(__file__).parents[1]))
from bench_model import kibibytes
from eager_detections import Found, detect
from eager_detector import EagerDetector, Features, Predictions
from rows import RESULTS, interleave, refuse_debug_build, report
from torch import Tensor

from fiber.checkpoints.published import load_published, published_state
from fiber.config import FiberConfig, preset
from fiber.models.features import BackboneOutput
from fiber.models.fiber.detector import DetectorOutput, FiberDetector
from fiber.postprocess import FoundBoxes, detect_boxes

PEER = "eager, published passes"
OURS = "fiber"
PARTS = ("backbone", "picture", "short", "options", "compiled", "memory")
#: Number of RoBERTa tokens of each of COCO's 80 class names in a prompt, by class id: person,
#: bicycle, ... traffic light, fire hydrant, ... toothbrush.
COCO_TOKENS = (
    *(1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 2, 1, 1, 3),
    *(2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 3, 1),
    *(2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 2, 1, 3, 3, 2),
)
#: A prompt of three classes, "person. traffic light. dog".
SHORT_TOKENS = (1, 2, 1)
#: Tolerance of logits and deltas.
TOLERANCE = 1e-3
#: Number of processes per side that measure memory.
MEMORY_ROUNDS = 5
PAD_ID = 1


class Case(NamedTuple):
    """What goes through both models."""

    #: (1, 3, H, W) and (1, L) ids of real tokens.
    images: Tensor
    ids: Tensor
    #: For each class the indices of its tokens.
    token_map: list[list[int]]

    @property
    def size(self) -> list[list[int]]:
        """(height, width) of the image, which has no padding."""
        return [[self.images.shape[-2], self.images.shape[-1]]]


def draw_case(config: FiberConfig, size: tuple[int, int], lengths: tuple[int, ...]) -> Case:
    """Draw an image and a prompt of classes of so many tokens each, with a dot between two."""
    random = torch.Generator().manual_seed(0)
    token_map, start = [], 1
    for length in lengths:
        token_map.append(list(range(start, start + length)))
        start += length + 1
    ids = torch.randint(5, config.roberta.vocab_size - 1, (1, start), generator=random)
    ids[0, 0], ids[0, -1] = 0, 2
    return Case(torch.randn(1, 3, *size, generator=random), ids, token_map)


def draw_models(config: FiberConfig) -> tuple[EagerDetector, FiberDetector]:
    """Build both models with the same weights, gates open and logits far enough apart.

    A new model's gates are shut, so that fusion would not show, and its logits lie below every
    threshold, so that there would be no box to choose.
    """
    torch.manual_seed(0)
    ours = FiberDetector(config).eval()
    state = published_state(ours)
    for name, value in state.items():
        if name.endswith(("alpha_i2t", "alpha_t2i")):
            state[name] = torch.full_like(value, 0.5)
        elif name.endswith("dot_product_projection_text.weight"):
            state[name] = 20 * value
    load_published(ours, state)
    eager = EagerDetector(config).eval()
    known = set(eager.state_dict())
    eager.load_state_dict({name: value for name, value in state.items() if name in known})
    return eager, ours


def run_eager(model: EagerDetector, case: Case) -> tuple[Features, Predictions, list[Found]]:
    """Run the peer; its text is padded to the full length."""
    ids, mask = padded(model.config, case)
    features = model.fuse(case.images, ids, mask)
    predictions = model.predict(features, mask)
    label_tokens = dict(enumerate(case.token_map, 1))
    return features, predictions, detect(predictions, model.config, label_tokens, case.size)


def padded(config: FiberConfig, case: Case) -> tuple[Tensor, Tensor]:
    """Pad the ids as published: ids and bool mask, (1, longest text) each."""
    ids = torch.full((1, config.max_tokens), PAD_ID)
    ids[:, : case.ids.shape[1]] = case.ids
    return ids, ids != PAD_ID


def run_ours(model: FiberDetector, case: Case) -> tuple[DetectorOutput, list[FoundBoxes]]:
    """Run the package's model."""
    return boxes_of(model(case.images, case.ids, torch.ones_like(case.ids, dtype=torch.bool)), case)


def boxes_of(output: DetectorOutput, case: Case) -> tuple[DetectorOutput, list[FoundBoxes]]:
    """Add the boxes to what the package's model predicts."""
    return output, detect_boxes(output, [case.token_map], case.size, case.size)


def check_alike(eager: EagerDetector, ours: FiberDetector, case: Case) -> None:
    """Stop if the models do not compute the same; say how many boxes there are."""
    _, predictions, found = run_eager(eager, case)
    output, boxes = run_ours(ours, case)
    length, worst = case.ids.shape[1], 0.0
    for level, tokens in enumerate(output.token_logits):
        theirs = (
            (tokens, predictions.tokens[level][..., :length]),
            (output.box_deltas[level], predictions.deltas[level].flatten(2).transpose(1, 2)),
            (output.centerness_logits[level], predictions.centerness[level].flatten(1)),
        )
        worst = max(worst, *((mine - other).abs().max().item() for mine, other in theirs))
    print(
        f"largest difference of logits and deltas {worst:.1e};"
        f" {len(found[0].scores)} and {len(boxes[0].scores)} boxes"
    )
    if not worst <= TOLERANCE:
        sys.exit(f"the models differ by {worst:.1e}; expected at most {TOLERANCE:.0e}")


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """Make what runs once and returns its seconds."""

    def measure() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return measure


def backbone_sides(
    eager: EagerDetector, ours: FiberDetector, case: Case
) -> dict[str, Callable[[], float]]:
    """Both towers and the norms of the maps that leave them."""
    ids, mask = padded(eager.config, case)
    real = torch.ones_like(case.ids, dtype=torch.bool)

    def run() -> list[Tensor]:
        features: BackboneOutput = ours.backbone.encode_pair(case.images, case.ids, real)
        return ours.stage_maps(features)

    return {PEER: timed(lambda: eager.fuse(case.images, ids, mask)), OURS: timed(run)}


def image_sides(
    eager: EagerDetector, ours: FiberDetector, case: Case
) -> dict[str, Callable[[], float]]:
    """From tensors to boxes."""
    return {
        PEER: timed(lambda: run_eager(eager, case)),
        OURS: timed(lambda: run_ours(ours, case)),
    }


def option_sides(
    eager: EagerDetector, ours: FiberDetector, case: Case
) -> dict[str, Callable[[], float]]:
    """What may be kept from an earlier image or prompt, or computed in bfloat16."""
    backbone, real = ours.backbone, torch.ones_like(case.ids, dtype=torch.bool)
    image, text = backbone.image_prefix(case.images), backbone.text_prefix(case.ids, real)

    def next_prompt() -> object:
        prompt = backbone.text_prefix(case.ids, real)
        return boxes_of(ours.predict(backbone.fuse(image, prompt, real)), case)

    def next_image() -> object:
        image = backbone.image_prefix(case.images)
        return boxes_of(ours.predict(backbone.fuse(image, text, real)), case)

    sides = {
        PEER: lambda: run_eager(eager, case),
        OURS: lambda: run_ours(ours, case),
        f"{OURS}, another prompt on a picture": next_prompt,
        f"{OURS}, a prompt on another picture": next_image,
    }
    if has_bfloat16():
        half = copy.deepcopy(ours).bfloat16()

        def autocast() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                output = ours(case.images, case.ids, real)
            return boxes_of(output, case)

        sides[f"{OURS}, bfloat16 autocast"] = autocast
        sides[f"{OURS}, bfloat16 weights"] = lambda: boxes_of(
            half(case.images.bfloat16(), case.ids, real), case
        )
    else:
        print("bfloat16 is skipped: the processor does not support it")
    return {name: timed(run) for name, run in sides.items()}


def compiled_sides(
    eager: EagerDetector, ours: FiberDetector, case: Case
) -> dict[str, Callable[[], float]]:
    """The whole image with the model compiled; compiling itself falls into the round before."""
    compiled, real = torch.compile(ours), torch.ones_like(case.ids, dtype=torch.bool)
    return {
        **image_sides(eager, ours, case),
        f"{OURS}, torch.compile": timed(
            lambda: boxes_of(compiled(case.images, case.ids, real), case)
        ),
    }


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 (Linux)."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def peak_mebibytes(model: Path, *, quick: bool) -> float:
    """Measure in a new process how far an image's peak lies above the loaded model."""
    command = [sys.executable, __file__, "--peak-of", str(model), *(["--quick"] if quick else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _print_peak(path: str, case: Case) -> None:
    """Print the peak of the first image of a process that has held nothing but one model.

    What was freed before would be used again, and not be counted.
    """
    model = torch.load(path, weights_only=False)
    run = run_eager if isinstance(model, EagerDetector) else run_ours
    # Linux: reset the peak to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    run(model, case)
    print((kibibytes("VmHWM") - before) / 1024)


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at least 2")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: every part")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and image; rows are not saved"
    )
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config, size = preset("base", stage="fine"), (800, 1344)
    lengths, results = COCO_TOKENS, RESULTS
    if options.quick:
        config, size = preset("micro").fine(max_tokens=32), (96, 160)
        lengths, results = SHORT_TOKENS * 2, Path(tempfile.mkdtemp())
    case = draw_case(config, size, lengths)
    with torch.no_grad():
        if options.peak_of:
            _print_peak(options.peak_of, case)
            return
        refuse_debug_build()
        _measure(config, case, options, results)


def _measure(config: FiberConfig, case: Case, options: argparse.Namespace, results: Path) -> None:
    """Run the parts that were asked for."""
    parts = options.part or PARTS
    if set(parts) != {"memory"}:
        eager, ours = draw_models(config)
        check_alike(eager, ours, case)
        short = draw_case(config, (case.size[0][0], case.size[0][1]), SHORT_TOKENS)
        for part, bench, make, inputs in (
            ("backbone", "detector_backbone", backbone_sides, case),
            ("picture", "detector", image_sides, case),
            ("short", "detector_short", image_sides, short),
            ("options", "detector_options", option_sides, case),
            ("compiled", "detector_compiled", compiled_sides, case),
        ):
            if part in parts:
                values = interleave(make(eager, ours, inputs), options.rounds)
                report(bench, "s", values, peer=PEER, results=results)
        # Free memory for the processes that are measured next.
        del eager, ours
    if "memory" in parts:
        with tempfile.TemporaryDirectory() as folder:
            paths = {
                name: Path(folder) / f"{number}.pt" for number, name in enumerate((PEER, OURS))
            }
            for path, model in zip(paths.values(), draw_models(config), strict=True):
                torch.save(model, path)
            del model
            sides = {
                name: functools.partial(peak_mebibytes, path, quick=options.quick)
                for name, path in paths.items()
            }
            peaks = interleave(sides, MEMORY_ROUNDS)
        report("detector_memory", "MiB", peaks, peer=PEER, results=results)


if __name__ == "__main__":
    main()
