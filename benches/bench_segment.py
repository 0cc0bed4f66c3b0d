"""X-Decoder at the published size (Focal-T): segments, class vectors, captions, phrases, memory.

Command: python benches/bench_segment.py
Peer: `eager_xdecoder.py`, X-Decoder in plain PyTorch with the published computation. Both sides
have the same random weights, in float32, and are compared before anything is reported. Measured:
seconds on two threads for one image, and how far the peak memory of a new process exceeds what it
held with the model. The peer is given normalized pixels and token ids; fiber reads an array and
texts, as its users do, but in captions and memory.

Random weights are sure of no class, so vectors of classes are random, too, and the score threshold
is set so that some twenty masks pass. Names and templates are those of COCO and of the published
evaluation. The tokenizer has a token for each of their words, as CLIP's has for most. The peer
encodes name after name at all positions, so its time is that of some names, multiplied.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from bench_model import kibibytes
from rows import RESULTS, interleave, refuse_debug_build, report
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from benches import eager_segments
from benches.eager_xdecoder import EagerXDecoder
from fiber.checkpoints.published import unstack
from fiber.data import Tokenizer
from fiber.inference.inputs import ArrayInputs
from fiber.inference.masks.class_vectors import ClassVectors, encode_classes
from fiber.inference.model import Model
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.models.xdecoder.captioner import CAPTION_STEPS, CaptionDecoding, greedy_captions
from fiber.models.xdecoder.class_texts import TEMPLATES, class_texts, with_background
from fiber.models.xdecoder.config import DecoderConfig, XDecoderConfig
from fiber.models.xdecoder.keys import xdecoder_keys
from fiber.models.xdecoder.segmenter import XDecoder
from fiber.postprocess.masks import MaskSizes, final_panoptic

PEER, OURS = "eager, published passes", "fiber"
THREADS = 2
CLASSES = Path(__file__).parents[1] / "tests/golden/xdecoder/classes.json"
LIST = "coco_panoptic_133"
PHRASES = ("the person left of the car", "a zebra in the grass", "the blue sky")
#: Ranks between which the score threshold is, where scores are farthest apart.
KEPT = (15, 25)
#: Exponential of this is the scale of similarities of classes.
LOGIT_SCALE = 4.0
#: Allowed difference of both sides: the share of pixels that differ, where masks are thresholds
#: that rounding may flip, and the error of vectors and logits, relative to the largest.
PIXELS, VALUES = 1e-3, 1e-3


class Size(NamedTuple):
    """Size of the models and their inputs."""

    config: XDecoderConfig
    #: (height, width) in pixels of images, and of the output of the memory's measurement.
    image: tuple[int, int]
    large: tuple[int, int]
    #: Number of classes, and of those that the peer encodes.
    names: int
    peer_names: int


def size_of(micro: bool) -> Size:
    """Return the published size, or a tiny one."""
    if not micro:
        return Size(XDecoderConfig(), (512, 672), (1280, 1680), 133, 4)
    config = XDecoderConfig(
        image_size=64,
        segment_size=64,
        focalnet=FocalNetConfig(embed_dim=8, depths=(1, 1, 1, 1)),
        clip_text=ClipTextConfig(
            vocab_size=2048, width=32, num_blocks=2, num_heads=2, max_positions=24
        ),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=2, ffn_width=48),
        decoder=DecoderConfig(
            num_queries=40, num_layers=4, num_heads=2, ffn_width=48, mask_width=24
        ),
    )
    return Size(config, (64, 96), (160, 240), 4, 2)


class Case(NamedTuple):
    """Both models with the same weights, and what they are asked."""

    size: Size
    model: Model
    peer: EagerXDecoder
    #: Names without the background; the last ones of the list are stuff.
    names: tuple[str, ...]
    is_thing: list[bool]
    #: (H, W, 3) bytes, and normalized pixels (1, 3, H, W).
    image: np.ndarray
    pixels: Tensor
    #: Pixels of an image to caption.
    small: Tensor
    vectors: ClassVectors
    score_threshold: float

    @property
    def network(self) -> XDecoder:
        """fiber's network."""
        return cast(XDecoder, self.model.network)

    @property
    def stuff(self) -> list[str]:
        """Names of stuff."""
        return [name for name, thing in zip(self.names, self.is_thing, strict=True) if not thing]


@torch.no_grad()
def draw_case(size: Size) -> Case:
    """Draw both models and their inputs."""
    listed = json.loads(CLASSES.read_text())
    things = listed["things"][LIST]
    # Of few names, some are stuff, too.
    every = len(listed["classes"][LIST]) / size.names
    chosen = [int(number * every) for number in range(size.names)]
    names = tuple(listed["classes"][LIST][number] for number in chosen)
    texts = [text for name in with_background(names) for text in class_texts(name)]
    tokenizer = Tokenizer.train([*texts, *PHRASES], size.config.vocab_size - 1)
    torch.manual_seed(0)
    network = XDecoder(size.config)
    for name, parameter in network.named_parameters():
        if name.endswith(("modulation_scale", "mlp_scale")):
            parameter.fill_(0.5)
        elif name.startswith("decoder") and name.endswith("attention.output.weight"):
            # Otherwise attention makes all queries alike.
            parameter.mul_(0.1)
    network.logit_scale.fill_(LOGIT_SCALE)
    # The peer reads a text at its largest id, which is the end in CLIP's vocabulary.
    table = network.backbone.text.word_embedding.weight
    table[-1] = table[tokenizer.end_ids[0]]
    with torch.device("meta"):
        peer = EagerXDecoder(size.config)
    peer.load_state_dict(unstack(network.state_dict(), xdecoder_keys(size.config)), assign=True)
    model = Model(network, tokenizer)
    image = np.random.default_rng(0).integers(0, 256, (*size.image, 3), dtype=np.uint8)
    pixels = eager_segments.normalize(torch.from_numpy(image), size.config.size_step)
    side = size.config.image_size
    drawn = torch.nn.functional.normalize(torch.randn(len(names) + 1, size.config.width), dim=-1)
    checksum = model.class_vectors(names[:1]).checksum
    logits = peer.eval().segment(pixels, drawn)[-1].classes
    assert logits is not None
    return Case(
        size,
        model,
        peer,
        names,
        [number in set(things) for number in chosen],
        image,
        pixels,
        torch.randn(1, 3, side, side),
        ClassVectors(names, drawn.numpy(), checksum),
        score_threshold(logits[0]),
    )


def score_threshold(class_logits: Tensor) -> float:
    """Return a score that some masks exceed, where scores are farthest apart: (Q, K + 1)."""
    scores, labels = class_logits.softmax(-1).max(-1)
    ranked = scores[labels != class_logits.shape[1] - 1].sort(descending=True).values
    first, last = KEPT
    gaps = ranked[first:last] - ranked[first + 1 : last + 1]
    rank = first + int(gaps.argmax())
    return float(ranked[rank : rank + 2].mean())


def padded_ids(case: Case, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask of texts at all positions, with the largest id as end: (n, L)."""
    batch = case.model.inputs.texts(texts)
    length, last = case.size.config.max_tokens, case.size.config.vocab_size - 1
    missing = length - batch.token_ids.shape[1]
    mask = torch.nn.functional.pad(batch.text_mask, (0, missing))
    ids = torch.nn.functional.pad(batch.token_ids, (0, missing), value=last)
    ends = mask.sum(1) - 1
    return torch.where(torch.arange(length) >= ends[:, None], last, ids), mask


class Work(NamedTuple):
    """A work of both sides, and how far their results are from each other."""

    title: str
    runs: dict[str, Callable[[], object]]
    #: Difference of the results of both sides, and what is allowed.
    difference: Callable[[], float]
    allowed: float
    #: Factor from the measured time of the peer to that of the whole work.
    peer_factor: float = 1.0


def panoptic_work(case: Case) -> Work:
    """Panoptic segments with known class vectors."""
    height, width = case.size.image
    padded = case.pixels.shape[-2:]

    def peer() -> tuple[np.ndarray, list[str]]:
        vectors = torch.from_numpy(case.vectors.vectors)
        last = case.peer.segment(case.pixels, vectors)[-1]
        assert last.classes is not None
        masks = eager_segments.final_masks(last.masks[0], padded, (height, width), (height, width))
        ids, segments = eager_segments.panoptic(
            last.classes[0], masks, case.is_thing, case.score_threshold, 0.0
        )
        return ids.numpy(), [case.names[each.label] for each in segments]

    def ours() -> tuple[np.ndarray, list[str]]:
        found = case.model.segment(
            case.image,
            case.vectors,
            stuff=case.stuff,
            score_threshold=case.score_threshold,
            overlap_threshold=0.0,
        )
        return found.ids, [each.label for each in found.segments]

    def difference() -> float:
        (their_ids, their_labels), (ids, labels) = peer(), ours()
        return float((their_ids != ids).mean()) if their_labels == labels and labels else math.inf

    title = f"panoptic, {height} x {width}, {len(case.names)} classes"
    return Work(title, {PEER: peer, OURS: ours}, difference, PIXELS)


def phrase_work(case: Case) -> Work:
    """Masks of phrases that are asked together."""
    ids, mask = padded_ids(case, list(PHRASES))
    (height, width), padded = case.size.image, case.pixels.shape[-2:]

    def peer() -> np.ndarray:
        found, similarity = case.peer.refer(case.pixels, ids, mask)
        masks = found[-1].masks[0, case.size.config.decoder.num_queries :]
        sizes = (padded, (height, width), (height, width))
        return (eager_segments.phrase_masks(similarity[0], masks, *sizes) > 0).numpy()

    def ours() -> np.ndarray:
        return case.model.segment(case.image, phrases=list(PHRASES)).masks

    title = f"{len(PHRASES)} phrases, {height} x {width}"
    return Work(
        title,
        {PEER: peer, OURS: ours},
        lambda: float((peer() != ours()).mean()),
        PIXELS,
    )


def class_work(case: Case) -> Work:
    """Vectors of classes from all templates."""
    names = with_background(case.names)
    every = len(names) / case.size.peer_names
    chosen = [int(number * every) for number in range(case.size.peer_names)]
    texts = [padded_ids(case, list(class_texts(names[number])))[0] for number in chosen]

    def peer() -> Tensor:
        return case.peer.class_vectors(texts)

    def ours() -> Tensor:
        inputs = cast(ArrayInputs, case.model.inputs)
        return torch.from_numpy(encode_classes(case.network, inputs, case.names))

    title = f"class vectors, {len(case.names)} names by {len(TEMPLATES)} templates"
    return Work(
        title,
        {PEER: peer, OURS: ours},
        lambda: relative(peer(), ours()[chosen]),
        VALUES,
        peer_factor=every,
    )


def caption_work(case: Case) -> Work:
    """A caption of all steps."""
    steps = min(CAPTION_STEPS, case.size.config.max_tokens - 1)
    (start_id,) = case.model.inputs.needed_tokenizer().start_ids

    def ours() -> Tensor:
        memory = case.network.read_image(case.small)
        return greedy_captions(case.network, memory, start_id=start_id, steps=steps)

    def difference() -> float:
        ids, logits, _ = case.peer.caption(case.small, start_id, steps)
        decoding = CaptionDecoding(case.network, case.network.read_image(case.small))
        own = [decoding.append(ids[:, step]) for step in range(steps)]
        return relative(torch.stack(logits), torch.stack(own))

    side = case.size.config.image_size
    runs = {PEER: lambda: case.peer.caption(case.small, start_id, steps)[0], OURS: ours}
    return Work(f"caption, {side} x {side}, {steps} steps", runs, difference, VALUES)


def relative(theirs: Tensor, ours: Tensor) -> float:
    """Return the largest error, relative to the largest value."""
    return float((theirs - ours).abs().max() / theirs.abs().max())


WORKS: dict[str, Callable[[Case], Work]] = {
    "panoptic": panoptic_work,
    "classes": class_work,
    "caption": caption_work,
    "phrases": phrase_work,
}


def check_agreement(work: Work) -> None:
    """Compare both sides; end the bench if they differ."""
    difference = work.difference()
    print(f"{OURS}, {work.title}: differs from the peer by {difference:.1e}")
    if not difference <= work.allowed:
        sys.exit(f"{OURS}, {work.title}: expected at most {work.allowed:.0e}")


def time_work(work: Work, rounds: int, results: Path) -> None:
    """Check that both sides agree, then time them and append rows."""
    check_agreement(work)

    def seconds(side: str) -> float:
        began = time.perf_counter()
        work.runs[side]()
        took = time.perf_counter() - began
        return took * work.peer_factor if side == PEER else took

    values = interleave({side: lambda s=side: seconds(s) for side in work.runs}, rounds)
    named = {f"{side}, {work.title}": own for side, own in values.items()}
    report("segment", "s", named, f"{PEER}, {work.title}", results)


class MemoryCase(NamedTuple):
    """What a process that measures its peak reads from a file: one model and its inputs."""

    network: XDecoder | EagerXDecoder
    pixels: Tensor
    vectors: Tensor
    is_thing: list[bool]
    score_threshold: float
    sizes: MaskSizes


def run_large(case: MemoryCase) -> int:
    """Compute panoptic segments of a large image; return their number."""
    if isinstance(case.network, EagerXDecoder):
        last = case.network.segment(case.pixels, case.vectors)[-1]
        assert last.classes is not None
        masks = eager_segments.final_masks(last.masks[0], *case.sizes)
        found = eager_segments.panoptic(
            last.classes[0], masks, case.is_thing, case.score_threshold, 0.0
        )
        return len(found[1])
    classes, masks = case.network.class_masks(case.network.read_image(case.pixels), case.vectors)
    panoptic = final_panoptic(
        masks[0],
        classes[0],
        case.sizes,
        case.is_thing,
        score_threshold=case.score_threshold,
        overlap_threshold=0.0,
    )
    return len(panoptic.segments)


def print_peak(path: str) -> None:
    """Print the peak of the first image of a process that has held nothing but one model.

    What was freed before would be used again, and not be counted.
    """
    case = torch.load(path, weights_only=False)
    # Linux: reset the peak to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    segments = run_large(case)
    print((kibibytes("VmHWM") - before) / 1024, segments)


def compare_memory(case: Case, results: Path, rounds: int = 2) -> None:
    """Measure the peaks of both sides in new processes and append rows."""
    padded = (case.pixels.shape[-2], case.pixels.shape[-1])
    sizes = MaskSizes(padded, case.size.image, case.size.large)
    title = f"panoptic, output of {case.size.large[0]} x {case.size.large[1]}"
    peaks: dict[str, list[float]] = {}
    segments = set()
    with tempfile.TemporaryDirectory() as folder:
        for side, network in ((PEER, case.peer), (OURS, case.network)):
            file = Path(folder) / "case.pt"
            asked = torch.from_numpy(case.vectors.vectors), case.is_thing, case.score_threshold
            torch.save(MemoryCase(network, case.pixels, *asked, sizes), file)
            command = [sys.executable, __file__, "--peak-of", str(file)]
            for _ in range(rounds):
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peak, count = done.stdout.split()
                peaks.setdefault(f"{side}, {title}", []).append(float(peak))
                segments.add(int(count))
    if len(segments) != 1 or 0 in segments:
        sys.exit(f"{title}: the sides found {sorted(segments)} segments; expected the same number")
    report("segment_memory", "MiB", peaks, f"{PEER}, {title}", results)


@torch.no_grad()
def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", choices=WORKS, action="append", help="(default: all)")
    parser.add_argument("--part", choices=("time", "memory"), help="(default: both)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, at least 2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of CSV files")
    parser.add_argument("--micro", action="store_true", help="a tiny model, to try the bench")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.peak_of:
        print_peak(options.peak_of)
        return
    if options.micro and options.results == RESULTS:
        parser.error("--micro: expected --results, since rows of a tiny model are no results")
    refuse_debug_build()
    case = draw_case(size_of(options.micro))
    if options.part != "memory":
        for name in options.work or WORKS:
            time_work(WORKS[name](case), options.rounds, options.results)
    if options.part != "time":
        compare_memory(case, options.results)


if __name__ == "__main__":
    main()
