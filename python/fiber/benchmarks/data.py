"""`fiber bench data`: throughput of the data path beside every peer that is installed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from fiber import _core
from fiber.benchmarks import report
from fiber.benchmarks.corpus import PLANS, Corpus, make_corpus, own_corpus
from fiber.benchmarks.lines import CORPORA, GATES, KINDS, LINES, OWN_KINDS, Gate, Line
from fiber.benchmarks.measure import Result, load_average, measure_line
from fiber.benchmarks.peers import BY_NAME, OURS, PEERS, Peer
from fiber.benchmarks.peers.task import Task
from fiber.benchmarks.photos import find_photographs
from fiber.benchmarks.processes import PeerError, installed
from fiber.benchmarks.texts import class_prompt, draw_boxes, draw_captions
from fiber.checkpoints.vocabulary import open_tokenizer
from fiber.data import Tokenizer
from fiber.env import describe_machine, usable_cores

#: Captions that are drawn where none are given.
CAPTIONS, QUICK_CAPTIONS = 1000, 200
#: Pictures of a user's folder that are taken.
OWN_PICTURES = 512
#: Rounds that count.
ROUNDS, QUICK_ROUNDS = 5, 2
#: A peer that waited for the others is slower in its first tenths of a second, which must not weigh
#: more the faster it is: a turn lasts so long, or one pass.
TURN_SECONDS = 3.0
#: Boxes of the line `boxes`, and its pictures.
MANY_BOXES, BOX_PICTURES = 64, 100
PROMPT_BOXES = 16
#: Size of the tokenizer that is trained where none is given.
TRAINED_TOKENS = 4000


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, on what, with whom."""

    #: Folder for rows, table and chart.
    output: Path
    #: File that rows are added to; None: data.csv in `output`.
    rows: Path | None = None
    #: Folder for corpora; None: in `output`.
    cache: Path | None = None
    #: Kinds of work, corpora and peers; empty: all.
    kinds: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    #: The user's own JPEG files instead of corpora.
    images: Path | None = None
    #: Folders with photographs, or the word "debian"; empty: those that are found.
    photos: tuple[str, ...] = ()
    #: A caption a line, instead of drawn ones.
    captions: Path | None = None
    #: tokenizer.json or a folder with one or with vocab.json and merges.txt.
    tokenizer: Path | None = None
    #: Interpreter of a peer that lives in an environment of its own, by its name.
    pythons: Mapping[str, str] = field(default_factory=dict)
    #: Threads or processes of every peer; 0: one for each core.
    threads: int = 0
    #: Rounds that count, and pictures of a corpus; 0: as many as usual.
    rounds: int = 0
    pictures: int = 0
    quick: bool = False
    #: Whether the gates decide the exit code.
    check: bool = False

    def __post_init__(self) -> None:
        _check_names("kind of work", self.kinds, KINDS)
        _check_names("corpus", self.corpora, CORPORA)
        _check_names("peer", self.peers, BY_NAME)
        _check_names("peer", self.pythons, BY_NAME)
        for name, python in self.pythons.items():
            if shutil.which(python) is None:
                raise FileNotFoundError(f"{python}: no such interpreter (--python {name}=...)")
        if self.images is not None and (self.corpora or self.photos):
            raise ValueError("own pictures are measured as they are; no corpus is made beside them")

    @property
    def used_threads(self) -> int:
        """Threads of every peer."""
        return self.threads or usable_cores()

    @property
    def rows_file(self) -> Path:
        """File that rows are added to."""
        return self.rows or self.output / "data.csv"

    @property
    def used_rounds(self) -> int:
        """Rounds that count."""
        return self.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)


def _check_names(what: str, given: Sequence[str] | Mapping[str, str], known: object) -> None:
    names = list(known)  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in names:
            raise ValueError(f"{name!r} is no {what}; expected one of {', '.join(names)}")


def run(options: Options) -> int:
    """Measure, print, and save; gives the exit code: 1 if a gate is missed that was to be checked.

    Raises:
        FileNotFoundError: if photographs, pictures, captions or an interpreter are missing.
        ValueError: for a debug build, unknown names, files of the wrong kind, and where nothing
            that was chosen can be checked.
    """
    if _core.build_profile != "release":
        raise ValueError(
            f"the extension is a {_core.build_profile} build, whose times mean nothing;"
            " build it with `maturin develop --release`"
        )
    lines = _lines(options)
    if options.check and not any(gate.least is not None for gate in _gates(options)):
        raise ValueError("no ratio that a release must reach belongs to what was chosen to check")
    peers = [OURS, *(p for p in PEERS if not options.peers or p.name in options.peers)]
    _tell_unable(options, lines)
    options.output.mkdir(parents=True, exist_ok=True)
    report.check_columns(options.rows_file)
    absent = installed(peers, options.pythons)
    material = _Material(options)
    print(_machine())
    results: list[Result] = []
    try:
        for line in lines:
            results.append(_measured(line, options, peers, absent, material))
            print(report.table(results[-1]), flush=True)
            report.append_rows(options.rows_file, report.rows(results[-1:]))
    except PeerError as error:
        print(f"fiber: error: {error}", file=sys.stderr)
        return 1
    return _finish(options, results, absent)


def list_all(options: Options) -> int:
    """Print works and peers, with what is missing and how it is installed."""
    for line in LINES:
        print(f"{line.name:<26} {line.title}")
    absent = installed((OURS, *PEERS), options.pythons)
    print()
    for peer in (OURS, *PEERS):
        print(f"{peer.name:<22} {absent.get(peer.name, peer.title)}")
    return 0


def _gates(options: Options) -> list[Gate]:
    """Find the gates of what was chosen, whether it can be measured or not."""
    lines = {(line.kind, line.corpus, line.output) for line in _lines(options)}
    chosen = set(options.peers or BY_NAME)
    return [
        gate
        for gate in GATES
        if (gate.kind, gate.corpus, gate.output) in lines and chosen.intersection(gate.rivals)
    ]


def _lines(options: Options) -> list[Line]:
    """Choose lines; a user's own pictures take the place of the first corpus of a kind."""
    lines = [line for line in LINES if not options.kinds or line.kind in options.kinds]
    if options.images is None:
        if options.corpora:
            # Work without pictures stays where it was asked for by name.
            kept = (*options.corpora, "") if options.kinds else options.corpora
            lines = [line for line in lines if line.corpus in kept]
        if not lines:
            raise ValueError(
                f"no line measures {', '.join(options.kinds)} on {', '.join(options.corpora)};"
                " `fiber bench data --list` names them all"
            )
        return lines
    own = [
        replace(line, corpus="images")
        for line in lines
        if line.kind in OWN_KINDS and line.corpus == CORPORA[0]
    ]
    if not own:
        raise ValueError(
            f"own pictures are measured with {', '.join(OWN_KINDS)}; got {', '.join(options.kinds)}"
        )
    # Work without pictures stays where it was asked for by name.
    return own + [line for line in lines if options.kinds and not line.corpus]


def _tell_unable(options: Options, lines: Sequence[Line]) -> None:
    """Say which chosen work is not measured, and which chosen peers do none of the rest.

    Raises:
        ValueError: if that is true of all peers.
    """
    for kind in options.kinds:
        if not any(line.kind == kind for line in lines):
            where = "own pictures" if options.images is not None else ", ".join(options.corpora)
            print(f"not measured: {kind} is not measured on {where}", file=sys.stderr)
    does = {
        name: any(BY_NAME[name].can(line.work, line.output) for line in lines)
        for name in options.peers
    }
    unable = [name for name, able in does.items() if not able]
    if not unable:
        return
    works = ", ".join(dict.fromkeys(line.kind for line in lines))
    if len(unable) == len(does):
        raise ValueError(
            f"none of the chosen peers ({', '.join(unable)}) can do {works}; `fiber bench data"
            " --list` names all"
        )
    for name in unable:
        print(f"not measured: {name} can do none of {works}", file=sys.stderr)


def _measured(
    line: Line,
    options: Options,
    peers: Sequence[Peer],
    absent: Mapping[str, str],
    material: _Material,
) -> Result:
    print(f"{line.name}: {line.title}", file=sys.stderr)
    able = [peer for peer in peers if peer.can(line.work, line.output)]
    task, described = material.task(line)
    folder = options.output / "work" / line.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sides = measure_line(
            line,
            task,
            [peer for peer in able if peer.name not in absent],
            rounds=options.used_rounds,
            turn_seconds=0.0 if options.quick else TURN_SECONDS,
            pythons=options.pythons,
            folder=folder,
        )
    finally:
        # Large, and made anew by the next run.
        shutil.rmtree(folder / "converted", ignore_errors=True)
    return Result(
        line=line,
        material=described,
        sides=tuple(sides),
        absent=tuple(peer.name for peer in able if peer.name in absent),
        load=load_average(),
    )


def _finish(options: Options, results: Sequence[Result], absent: Mapping[str, str]) -> int:
    """Print who is missing and what was reached; write table and chart."""
    asked = {peer.name for result in results for peer in PEERS if peer.name in result.absent}
    for name in sorted(asked):
        print(f"\nnot measured: {name}: {absent[name]}", end="")
    verdicts = report.judge(results, _gates(options))
    print("\n")
    for verdict in verdicts:
        print(verdict)
    text = "\n".join([_machine(), *(report.table(result) for result in results)])
    (options.output / "data.txt").write_text(text + "\n", encoding="utf-8")
    saved = [options.rows_file, options.output / "data.txt"]
    if importlib.util.find_spec("matplotlib") is None:
        print("no chart: pip install matplotlib", file=sys.stderr)
    else:
        report.draw_chart(options.output / "data.png", results)
        saved.append(options.output / "data.png")
    print(f"\nsaved: {', '.join(map(str, saved))}")
    asked_for = [verdict for verdict in verdicts if verdict.gate.least is not None]
    return int(options.check and not all(verdict.holds for verdict in asked_for))


def _machine() -> str:
    machine = describe_machine()
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python"
        f" {machine['python']}, torch {machine['torch']}, fiber {machine['fiber']}"
        f" {machine['commit'][:12]}"
    )


class _Material:
    """Pictures, texts and boxes of the lines, each made once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cache = options.cache or options.output / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        self._photographs: list[Path] | None = None
        self._corpora: dict[str, Corpus] = {}
        # What a user named is read before anything is measured.
        if options.images is not None:
            self.corpus("images")
        self.captions = self._captions()
        self.tokenizer = self._tokenizer()

    def task(self, line: Line) -> tuple[Task, str]:
        """Make a line's task for all peers; also says what it is of."""
        options = self.options
        task = Task(
            work=line.work,
            output=line.output,
            variant="",
            batch_size=line.batch_size,
            threads=options.used_threads,
            texts=tuple(self.captions),
            tokenizer=str(self.tokenizer),
            repeats=line.repeats,
            scaled=line.scaled,
        )
        if line.corpus:
            return self._with_pictures(task, line)
        if line.work == "boxes":
            sizes = [(480, 640), (640, 480)] * (BOX_PICTURES // 2)
            boxes = draw_boxes(sizes, MANY_BOXES, MANY_BOXES)
            return replace(task, sizes=tuple(sizes), boxes=tuple(boxes)), (
                f"{len(sizes)} pictures of {MANY_BOXES} boxes"
            )
        if line.work == "prompt":
            text, spans = class_prompt(PROMPT_BOXES)
            described = f"one prompt of {len(text)} characters again and again"
            return replace(task, texts=(text,), char_spans=(tuple(spans),)), described
        distinct, total = len(set(self.captions)), len(self.captions)
        return task, f"{total} captions, {distinct} distinct, again and again"

    def corpus(self, name: str) -> Corpus:
        """Find or make a corpus."""
        if name not in self._corpora:
            options = self.options
            if options.images is not None:
                most = options.pictures or OWN_PICTURES
                self._corpora[name] = own_corpus(options.images, most)
            else:
                plan = PLANS[name]
                usual = plan.quick_count if options.quick else plan.count
                if self._photographs is None:
                    self._photographs = find_photographs(options.photos)
                count = min(options.pictures or usual, plan.count)
                print(f"corpus {name}: {count} pictures", file=sys.stderr)
                self._corpora[name] = make_corpus(
                    plan, count, self._photographs, self.cache, usable_cores()
                )
        return self._corpora[name]

    def _with_pictures(self, task: Task, line: Line) -> tuple[Task, str]:
        corpus = self.corpus(line.corpus).first(line.most)
        # Every batch is whole: some peers drop a last one that is short, or fill it up.
        batch_size = min(line.batch_size, len(corpus.files))
        corpus = corpus.first(len(corpus.files) // batch_size * batch_size)
        sizes = []
        for path in corpus.files:
            with Image.open(path) as picture:
                sizes.append((picture.height, picture.width))
        boxes = draw_boxes(sizes, 3, 20) if line.work == "fine" else []
        files = tuple(str(path.resolve()) for path in corpus.files)
        task = replace(
            task, files=files, boxes=tuple(boxes), sizes=tuple(sizes), batch_size=batch_size
        )
        return task, f"{corpus}, batches of {batch_size}"

    def _captions(self) -> list[str]:
        file = self.options.captions
        if file is None:
            return draw_captions(QUICK_CAPTIONS if self.options.quick else CAPTIONS)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text in UTF-8: {error}") from None
        captions = [line.strip() for line in lines if line.strip()]
        if not captions:
            raise ValueError(f"{file} holds no caption; expected one a line")
        return captions

    def _tokenizer(self) -> Path:
        """Give a tokenizer.json that every peer reads."""
        given = self.options.tokenizer
        if given is not None:
            try:
                tokenizer = open_tokenizer(given)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{given} (--tokenizer) does not exist or holds none; expected a"
                    " tokenizer.json, or a folder with one or with vocab.json and merges.txt"
                ) from None
        else:
            texts = [*draw_captions(CAPTIONS), class_prompt(PROMPT_BOXES)[0]]
            # A pair of letters must occur often enough to become a token.
            tokenizer = Tokenizer.train(texts * 5, TRAINED_TOKENS)
        path = self.cache / "tokenizer.json"
        tokenizer.save(path)
        return path
