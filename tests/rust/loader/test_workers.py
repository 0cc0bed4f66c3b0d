"""The loader's threads: bounded, prompt to end, and out of the interpreter's way."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fiber import _core
from fiber.data import ImageTransform, Tokenizer
from tests.data.loader_records import RECORDS, TEXT, make, png, record, samples


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


class Counting(list):
    """A record set that notes what was asked for."""

    def __init__(self, records):
        super().__init__(records)
        self.asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return super().__getitem__(index)


def test_no_more_than_prefetch_is_made_ahead(tokenizer):
    records = Counting(RECORDS)
    batches = make(tokenizer, records, prefetch=3).stream()
    next(batches)
    time.sleep(0.2)
    assert records.asked <= 4 * (1 + 3)
    batches.close()


def feeders():
    return {thread for thread in threading.enumerate() if thread.name == "fiber-prefetch"}


def test_closing_early_ends_the_feeder(tokenizer):
    before = feeders()
    begun = set()
    for _ in range(5):
        batches = make(tokenizer, RECORDS * 50, prefetch=2).stream()
        next(batches)
        # Until it waits for room.
        time.sleep(0.1)
        begun |= feeders() - before
        batches.close()
    abandoned = make(tokenizer, RECORDS * 50, prefetch=2).stream()
    next(abandoned)
    time.sleep(0.1)
    begun |= feeders() - before
    del abandoned
    gc.collect()
    assert len(begun) == 6
    for thread in begun:
        thread.join(60)
    assert not any(thread.is_alive() for thread in begun)


def test_a_pass_whose_loader_was_closed_says_so(tokenizer):
    with make(tokenizer, RECORDS * 50, prefetch=2) as loader:
        batches = loader.epoch()
        next(batches)
    # In a thread that can be left behind: one that is not refused waits for ever.
    ended = []

    def go_on():
        try:
            list(batches)
        except RuntimeError as error:
            ended.append(str(error))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(60)
    assert len(ended) == 1 and "the loader was closed" in ended[0]
    assert samples(loader.epoch()) == samples(make(tokenizer, RECORDS * 50).epoch())


def test_two_passes_at_once(tokenizer):
    loader = make(tokenizer)
    alone = samples(loader.epoch())
    first, second = loader.epoch(), loader.epoch()
    pairs = list(zip(first, second, strict=True))
    assert samples(a for a, _ in pairs) == samples(b for _, b in pairs) == alone


@pytest.mark.parametrize("wait", ["batch", "decode", "transform"])
def test_the_interpreter_lock_is_free_meanwhile(tokenizer, wait):
    """Another Python thread runs while Rust works on a large picture."""
    picture = png(0, 1500, 1500)
    array = np.asarray(_core.decode_image(picture))
    large = [record(i, images=(picture,)) for i in range(8)]
    squash = ImageTransform.squash(1400)

    def prepare():
        if wait == "decode":
            return lambda: _core.decode_image(picture)
        if wait == "transform":
            return lambda: _core.apply_transform(array, squash)
        batches = make(tokenizer, large, threads=1, transform=squash).epoch()
        next(batches)
        # Time for the other batch to be fed, so that Rust alone is waited for.
        time.sleep(0.01)
        return lambda: next(batches)

    # A busy machine may give the other thread no time during one call, but not during each of many.
    assert any(another_thread_runs_within(prepare()) for _ in range(20))


def another_thread_runs_within(call) -> bool:
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.perf_counter()
    call()
    ended = time.perf_counter()
    done.set()
    thread.join()
    # Well inside: a thread that was waiting may run right at the start and end of any call.
    margin = 0.2 * (ended - started)
    return any(started + margin < tick < ended - margin for tick in ticks)


def run_python(program: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


SLOW = """
import io, sys, time
from PIL import Image
from fiber.data import DataLoader, ImageTransform, Record, Tokenizer
stream = io.BytesIO()
Image.new("RGB", (8, 8)).save(stream, "png")
class Slow:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        if index >= 4:
            time.sleep(10_000)
        return Record(key=str(index), images=(stream.getvalue(),), text="a")
loader = DataLoader(Slow(), "image_text", tokenizer=Tokenizer.train([], 261),
                    transform=ImageTransform.squash(8), batch_size=4, max_tokens=8)
batches = loader.stream()
next(batches)
print("waiting", flush=True)
"""


def test_ctrl_c_comes_through_at_once():
    process = run_python(SLOW + "next(batches)")
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    # Long before the record that it waits for.
    _, errors = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt")


INTERRUPTED = """
import faulthandler, io, random, signal
from PIL import Image
from fiber.data import DataLoader, ImageTransform, Record, Tokenizer
stream = io.BytesIO()
Image.new("RGB", (8, 8)).save(stream, "png")
records = [Record(key=str(i), images=(stream.getvalue(),), text="a") for i in range(8)]
loader = DataLoader(records, "image_text", tokenizer=Tokenizer.train([], 261), threads=1,
                    transform=ImageTransform.squash(8), batch_size=2, max_tokens=8)
list(loader)
signal.signal(signal.SIGALRM, signal.default_int_handler)
random.seed(0)
faulthandler.dump_traceback_later(100)
interrupts = 0
while interrupts < 300:
    try:
        try:
            # Again and again: Python drops what is raised while it takes a weak reference away.
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.01), 0.1)
            while True:
                for batch in loader:
                    pass
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        # On a busy machine the next one may come before the timer has been stopped.
        signal.setitimer(signal.ITIMER_REAL, 0)
    interrupts += 1
assert len(list(loader)) == 4
print("done")
"""


def test_ctrl_c_at_any_moment_is_a_keyboard_interrupt():
    process = run_python(INTERRUPTED)
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, output) == (0, "done\n"), errors


def test_the_interpreter_ends_with_an_open_stream():
    process = run_python(SLOW)
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, output, errors) == (0, "waiting\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_starts_its_own_threads(tokenizer):
    loader = make(tokenizer)
    expected = samples(loader.epoch())
    child = os.fork()
    if child == 0:
        os._exit(0 if samples(loader.epoch()) == expected else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_cannot_go_on_with_a_pass(tokenizer):
    batches = make(tokenizer, RECORDS * 50, prefetch=2).epoch()
    next(batches)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            list(batches)
        except RuntimeError as error:
            os._exit(0 if "opened in another process" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(list(batches)) > 1


#: A megabyte a batch; the pages that the process holds after a few epochs, and after many more.
EPOCHS = """
import io, resource
from PIL import Image
from fiber.data import DataLoader, ImageTransform, Record, Tokenizer

stream = io.BytesIO()
Image.new("RGB", (64, 48)).save(stream, "PNG")
records = [
    Record(key=str(at), images=(stream.getvalue(),), text="a cup of tea") for at in range(8)
]
loader = DataLoader(
    records,
    "image_text",
    batch_size=8,
    tokenizer=Tokenizer.train(["a cup"], 270),
    transform=ImageTransform.squash(102),
    max_tokens=8,
    threads=2,
)

def mebibytes_after(epochs):
    for number in epochs:
        list(loader.epoch(number))
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

before = mebibytes_after(range(30))
print(mebibytes_after(range(100)) - before)
"""


def test_memory_does_not_grow():
    """A hundred epochs of one-megabyte batches leave no more behind than thirty of them."""
    output, errors = run_python(EPOCHS).communicate(timeout=600)
    assert output and float(output) < 10, errors
