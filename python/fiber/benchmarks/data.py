"""`fiber bench data`: measure data pipeline throughput of fiber and every installed peer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fiber import _core
from fiber.benchmarks import report
from fiber.benchmarks.corpus import PLANS, Corpus, make_corpus, own_corpus
from fiber.benchmarks.csv_rows import append_rows, check_columns
from fiber.benchmarks.measure import Result, measure_workload
from fiber.benchmarks.peers import BY_NAME, OURS, PEERS, Peer
from fiber.benchmarks.peers.task import PeerTask
from fiber.benchmarks.photos import find_photographs
from fiber.benchmarks.processes import PeerError, not_installed
from fiber.benchmarks.texts import class_prompt, generate_boxes, generate_captions
from fiber.benchmarks.workloads import CORPORA, GATES, KINDS, OWN_KINDS, WORKLOADS, Gate, Workload
from fiber.checkpoints.vocabulary.sources import open_tokenizer
from fiber.data import Tokenizer
from fiber.env import describe_machine, usable_cores

#: Number of generated captions.
CAPTIONS, QUICK_CAPTIONS = 1000, 200
#: Maximum number of images read from `--images`.
OWN_IMAGES = 512
#: Number of measured rounds.
ROUNDS, QUICK_ROUNDS = 5, 2
#: Minimum duration of a turn, which always lasts at least one epoch. Peers are slower for a few
#: tenths of a second after being idle; without a minimum, this would penalize fast peers more.
TURN_SECONDS = 3.0
#: Boxes per image, and number of images, in the `boxes` workload.
MANY_BOXES, BOX_IMAGES = 64, 100
PROMPT_BOXES = 16
#: Vocabulary size of the tokenizer that is trained if none is given.
TRAINED_TOKENS = 4000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `fiber bench data`. An empty value or 0 selects the default."""

    output: Path
    #: CSV file to append to; default: data.csv in `output`.
    rows: Path | None = None
    #: Folder for generated corpora; default: cache in `output`.
    cache: Path | None = None
    kinds: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    images: Path | None = None
    photos: tuple[str, ...] = ()
    captions: Path | None = None
    tokenizer: Path | None = None
    #: Python interpreters by peer name.
    pythons: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    rounds: int = 0
    max_images: int = 0
    quick: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        for what, names, known in (
            ("kind of work", self.kinds, KINDS),
            ("corpus", self.corpora, CORPORA),
            ("peer", (*self.peers, *self.pythons), tuple(BY_NAME)),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(known)}")
        for name, python in self.pythons.items():
            if shutil.which(python) is None:
                raise FileNotFoundError(
                    f"--python {name}={python}: no such interpreter; expected a Python executable"
                )
        if self.images is not None and (self.corpora or self.photos):
            raise ValueError(
                "--images cannot be combined with --corpora or --photos, because it uses the given"
                " images unchanged"
            )

    @property
    def rows_file(self) -> Path:
        """CSV file to append rows to."""
        return self.rows or self.output / "data.csv"


def run(options: Options) -> int:
    """Run the benchmark, print and save the results, and return 1 if a checked gate fails, else 0.

    Raises:
        FileNotFoundError: if photographs, images, captions or an interpreter are missing.
        ValueError: if the build is not a release build, a name is unknown, a file has the wrong
            type, or `check` is set and no required ratio applies to the chosen work and peers.
    """
    if _core.build_profile != "release":
        raise ValueError(
            f"fiber._core is a {_core.build_profile} build; expected a release build"
            " (`maturin develop --release`)"
        )
    workloads = _workloads(options)
    if options.check and not any(gate.least is not None for gate in _gates(options)):
        raise ValueError("--check: no required ratio applies to the chosen work, corpora and peers")
    peers = [OURS, *(p for p in PEERS if not options.peers or p.name in options.peers)]
    _report_unsupported(options, workloads)
    options.output.mkdir(parents=True, exist_ok=True)
    check_columns(options.rows_file, report.columns())
    absent = not_installed(peers, options.pythons)
    inputs = _Inputs(options)
    print(_machine())
    results: list[Result] = []
    try:
        for workload in workloads:
            results.append(_measure(workload, inputs, peers, absent))
            print(report.table(results[-1]), flush=True)
            append_rows(options.rows_file, report.columns(), report.rows(results[-1:]))
    except PeerError as error:
        print(f"fiber: error: {error}", file=sys.stderr)
        return 1
    return _finish(options, results, absent)


def list_all(options: Options) -> int:
    """Print the workloads and peers, and how to install missing peers."""
    for workload in WORKLOADS:
        print(f"{workload.name:<26} {workload.title}")
    absent = not_installed((OURS, *PEERS), options.pythons)
    print()
    for peer in (OURS, *PEERS):
        print(f"{peer.name:<22} {absent.get(peer.name, peer.title)}")
    return 0


def _gates(options: Options) -> list[Gate]:
    """Return the gates of the chosen workloads and peers, even those that cannot be measured."""
    keys = {workload.key for workload in _workloads(options)}
    peers = set(options.peers or BY_NAME)
    return [gate for gate in GATES if gate.key in keys and peers.intersection(gate.rivals)]


def _workloads(options: Options) -> list[Workload]:
    """Select workloads. The user's own images replace the first corpus of each kind."""
    workloads = [w for w in WORKLOADS if not options.kinds or w.kind in options.kinds]
    # Keep work without images if it was explicitly requested.
    without_images = [w for w in workloads if options.kinds and not w.corpus]
    if options.images is None:
        if options.corpora:
            kept = (*options.corpora, "") if options.kinds else options.corpora
            workloads = [w for w in workloads if w.corpus in kept]
        if not workloads:
            raise ValueError(
                f"no workload has kind {', '.join(options.kinds)} and corpus"
                f" {', '.join(options.corpora)}; see `fiber bench data --list`"
            )
        return workloads
    own = [
        replace(w, corpus="images")
        for w in workloads
        if w.kind in OWN_KINDS and w.corpus == CORPORA[0]
    ]
    if not own:
        raise ValueError(
            f"--images can only be used with --work {'; '.join(OWN_KINDS)},"
            f" got {'; '.join(options.kinds)}"
        )
    return own + without_images


def _report_unsupported(options: Options, workloads: Sequence[Workload]) -> None:
    """Report the chosen work and peers that cannot be measured.

    Raises:
        ValueError: if no chosen peer supports any of the work.
    """
    for kind in options.kinds:
        if not any(workload.kind == kind for workload in workloads):
            where = "own images" if options.images is not None else ", ".join(options.corpora)
            print(f"not measured: {kind} on {where}", file=sys.stderr)
    unable = [
        name
        for name in dict.fromkeys(options.peers)
        if not any(BY_NAME[name].can(workload.work, workload.output) for workload in workloads)
    ]
    works = ", ".join(dict.fromkeys(workload.kind for workload in workloads))
    if unable and len(unable) == len(set(options.peers)):
        raise ValueError(
            f"no chosen peer ({', '.join(unable)}) supports {works}; see `fiber bench data --list`"
        )
    for name in unable:
        print(f"not measured: {name} does not support {works}", file=sys.stderr)


def _measure(
    workload: Workload, inputs: _Inputs, peers: Sequence[Peer], absent: Mapping[str, str]
) -> Result:
    options = inputs.options
    print(f"{workload.name}: {workload.title}", file=sys.stderr)
    able = [peer for peer in peers if peer.can(workload.work, workload.output)]
    task, description = inputs.task(workload)
    folder = options.output / "work" / workload.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sides = measure_workload(
            workload,
            task,
            [peer for peer in able if peer.name not in absent],
            rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
            turn_seconds=0.0 if options.quick else TURN_SECONDS,
            pythons=options.pythons,
            folder=folder,
        )
    finally:
        # Converted files are large, and the next run recreates them.
        shutil.rmtree(folder / "converted", ignore_errors=True)
    return Result(
        workload=workload,
        material=description,
        sides=tuple(sides),
        absent=tuple(peer.name for peer in able if peer.name in absent),
        load=os.getloadavg()[0],
    )


def _finish(options: Options, results: Sequence[Result], absent: Mapping[str, str]) -> int:
    """Print the missing peers and the result of each gate; write the table and the chart."""
    for name in sorted({name for result in results for name in result.absent} - {OURS.name}):
        print(f"\nnot measured: {name}: {absent[name]}", end="")
    verdicts = report.judge(results, _gates(options))
    print("\n")
    for verdict in verdicts:
        print(verdict)
    text = "\n".join([_machine(), *(report.table(result) for result in results)])
    (options.output / "data.txt").write_text(text + "\n", encoding="utf-8")
    saved = [options.rows_file, options.output / "data.txt"]
    if importlib.util.find_spec("matplotlib") is None:
        print("no chart: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    else:
        report.draw_chart(options.output / "data.png", results)
        saved.append(options.output / "data.png")
    print(f"\nsaved: {', '.join(map(str, saved))}")
    passed = all(verdict.holds for verdict in verdicts if verdict.gate.least is not None)
    return int(options.check and not passed)


def _machine() -> str:
    machine = describe_machine()
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python"
        f" {machine['python']}, torch {machine['torch']}, fiber {machine['fiber']}"
        f" {machine['commit'][:12]}"
    )


class _Inputs:
    """Images, texts and boxes of the workloads; each is created only once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cache = options.cache or options.output / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        self._photographs: list[Path] | None = None
        self._corpora: dict[str, Corpus] = {}
        # Fail on bad user input before anything is measured.
        if options.images is not None:
            self.corpus("images")
        self.captions = self._captions()
        self.tokenizer = self._tokenizer()

    def task(self, workload: Workload) -> tuple[PeerTask, str]:
        """Return a workload's task and a description of its inputs."""
        options = self.options
        task = PeerTask(
            work=workload.work,
            output=workload.output,
            variant="",
            batch_size=workload.batch_size,
            threads=options.threads or usable_cores(),
            texts=tuple(self.captions),
            tokenizer=str(self.tokenizer),
            repeats=workload.repeats,
            scaled=workload.scaled,
        )
        if workload.corpus:
            return self._with_images(task, workload)
        if workload.work == "boxes":
            sizes = [(480, 640), (640, 480)] * (BOX_IMAGES // 2)
            boxes = generate_boxes(sizes, MANY_BOXES, MANY_BOXES)
            task = replace(task, sizes=tuple(sizes), boxes=tuple(boxes))
            return task, f"{len(sizes)} images of {MANY_BOXES} boxes"
        if workload.work == "prompt":
            text, spans = class_prompt(PROMPT_BOXES)
            task = replace(task, texts=(text,), char_spans=(tuple(spans),))
            return task, f"one prompt of {len(text)} characters, repeated"
        distinct, total = len(set(self.captions)), len(self.captions)
        return task, f"{total} captions, {distinct} distinct, repeated"

    def corpus(self, name: str) -> Corpus:
        """Return a corpus, from the cache if available."""
        if name in self._corpora:
            return self._corpora[name]
        options = self.options
        if options.images is not None:
            corpus = own_corpus(options.images, options.max_images or OWN_IMAGES)
        else:
            plan = PLANS[name]
            default = plan.quick_count if options.quick else plan.count
            count = min(options.max_images or default, plan.count)
            self._photographs = self._photographs or find_photographs(options.photos)
            print(f"corpus {name}: {count} images", file=sys.stderr)
            corpus = make_corpus(plan, count, self._photographs, self.cache, usable_cores())
        self._corpora[name] = corpus
        return corpus

    def _with_images(self, task: PeerTask, workload: Workload) -> tuple[PeerTask, str]:
        corpus = self.corpus(workload.corpus).first(workload.most)
        # Use full batches only, since some peers drop or pad a short last one.
        batch_size = min(workload.batch_size, len(corpus.files))
        corpus = corpus.first(len(corpus.files) // batch_size * batch_size)
        boxes = generate_boxes(corpus.sizes, 3, 20) if workload.work == "fine" else []
        task = replace(
            task,
            files=tuple(str(path.resolve()) for path in corpus.files),
            boxes=tuple(boxes),
            sizes=corpus.sizes,
            batch_size=batch_size,
        )
        return task, f"{corpus}, batches of {batch_size}"

    def _captions(self) -> list[str]:
        file = self.options.captions
        if file is None:
            return generate_captions(QUICK_CAPTIONS if self.options.quick else CAPTIONS)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 text ({error}); expected one caption per line"
            ) from None
        captions = [line.strip() for line in lines if line.strip()]
        if not captions:
            raise ValueError(f"{file} has no captions; expected one per line")
        return captions

    def _tokenizer(self) -> Path:
        """Write a tokenizer.json for all peers and return its path."""
        given = self.options.tokenizer
        if given is not None:
            try:
                tokenizer = open_tokenizer(given)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{given} (--tokenizer): no tokenizer found; expected tokenizer.json, or a"
                    " folder that contains it or vocab.json and merges.txt"
                ) from None
        else:
            texts = [*generate_captions(CAPTIONS), class_prompt(PROMPT_BOXES)[0]]
            # Repeat the texts, since BPE merges only pairs that occur often enough.
            tokenizer = Tokenizer.train(texts * 5, TRAINED_TOKENS)
        path = self.cache / "tokenizer.json"
        tokenizer.save(path)
        return path
