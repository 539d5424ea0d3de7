"""Marks what sounds in a stream, as it comes: the newest picture, with what was heard before it.

A source's thread writes its sound to a ring and its newest picture to a place for one. Two workers
take pictures from there, so that one is painted and written while the next is in the network; both
may be in a network that is too small to keep two cores busy. A picture that is still there when a
newer one comes is dropped: latency does not grow. The memory is that of the ring, of the pictures
in hand and, of models that see clips, of some small pictures.

Which sound a mask has heard: the model's window (`lite`: 0.975 s, one log-mel patch) that ends with
its picture, or up to 0.1 s earlier: windows end at full tenths of a second, where features of the
sound are computed once for all pictures until the next. Sound that is late by up to a second is
not waited for: the window ends where it does. What is missing beyond that is silence. Nothing is
from after the picture.
"""

import collections
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import errors
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.drawing import Overlay
from avs_jax.media.live_reading import Picture
from avs_jax.media.live_sink import Sink
from avs_jax.media.live_source import Source
from avs_jax.media.video import fit_picture
from avs_jax.prediction.live_buffers import Newest, SoundRing
from avs_jax.prediction.live_figures import Latencies, Reports, Summary
from avs_jax.prediction.masks import Decision
from avs_jax.types import Float, UInt8

HOP = SAMPLE_RATE // 10  # samples: how often the sound is listened to anew
_LATE = SAMPLE_RATE  # samples by which sound may come behind its picture
_SPARE = 12  # seconds of a film's sound that may be read ahead of its pictures
_MEMORY_STEP = 0.2  # seconds between the pictures that are kept for models that see clips
_WORKERS = 2
# Seconds: PyAV's containers and pictures hold each other, and Python counts no bytes of theirs.
_COLLECT = 5.0
_PATIENCE = 1.5  # seconds that the workers are waited for at the end


@runtime_checkable
class Network(Protocol):
    """What the engine runs, see `live_network.LiveNetwork`."""

    size: int
    num_pictures: int
    window: int
    is_small: bool

    def hear(self, sound: np.ndarray) -> Any: ...

    def mark(self, pictures: np.ndarray, exists: np.ndarray, heard: Any) -> Any: ...


class Engine:
    """Runs a network on a source, and gives a sink what it marked. It is the source's receiver."""

    def __init__(
        self,
        network: Network,
        sink: Sink,
        *,
        threshold: float = 0.5,
        class_names: Sequence[str] | None = None,
        say: Callable[[str], None] = print,
    ):
        """See `run_live`."""
        self._network, self._sink, self._say = network, sink, say
        self._threshold, self._class_names = threshold, class_names
        self._ring = SoundRing(network.window / SAMPLE_RATE + _SPARE)
        self._newest, self.latencies = Newest(), Latencies()
        length = round(network.num_pictures / _MEMORY_STEP) + 1
        self._memory: collections.deque = collections.deque(maxlen=length)
        self._heard: tuple[Any, Any] = (None, None)
        self._hearing = threading.Lock()
        self._running = threading.Semaphore(_WORKERS if network.is_small else 1)
        self._turn = threading.Condition()
        self._written = 0
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.size: tuple[int, int] | None = None  # height, width of the last picture
        self.last_shown: float | None = None  # on time.monotonic
        self.last_time = 0.0  # of the source

    # What a source calls, from its thread.

    def show(self, picture: Picture) -> None:
        if self._network.num_pictures > 1:
            before = self._memory[-1][0] if self._memory else -np.inf
            if picture.time >= before + _MEMORY_STEP:
                fitted = fit_picture(picture.rgb(), self._network.size)
                self._memory.append((picture.time, fitted))
        self.last_shown, self.last_time = time.monotonic(), picture.time
        self._newest.put(picture)

    def hear(self, moment: int | float, samples: Float[np.ndarray, "s"]) -> None:
        self._ring.write(moment, samples)

    def tell(self, text: str) -> None:
        self._say(text)

    # What `run_live` does with it.

    @property
    def dropped(self) -> int:
        return self._newest.dropped

    @property
    def sound_end(self) -> float:
        """Until when sound came, in seconds of the source."""
        return self._ring.end / SAMPLE_RATE

    def start(self, source: Source) -> list[threading.Thread]:
        """The source's thread and the workers. They end when the source does, or by `stop`."""
        reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(_WORKERS)]
        for thread in (reader, *workers):
            thread.start()
        return workers

    def end(self) -> None:
        """Lets the threads go."""
        self.stop.set()
        self._newest.end()
        with self._turn:
            self._turn.notify_all()

    def close(self) -> None:
        """Completes what the sink has, unless a worker hangs in it: a pipe that nobody reads."""
        if self._turn.acquire(timeout=_PATIENCE):
            try:
                self._sink.close()
            finally:
                self._turn.release()

    def _read(self, source: Source) -> None:
        try:
            source.run(self, self.stop)
        except BaseException as error:
            self._fail(error)
        self._newest.end()

    def _work(self) -> None:
        try:
            while not self.stop.is_set() and (job := self._newest.take()) is not None:
                number, picture = job
                rgb = picture.rgb()
                overlay = self._mark(picture.time, rgb)
                picture_out = overlay(rgb)
                with self._turn:
                    while self._written != number:
                        if self.stop.is_set():
                            return
                        self._turn.wait()
                    self._sink.write(picture.time, picture_out)
                    self.size = rgb.shape[:2]
                    self.latencies.add(time.monotonic() - picture.due)
                    self._written += 1
                    self._turn.notify_all()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.end()

    def _mark(self, moment: int | float, rgb: UInt8[np.ndarray, "h w 3"]) -> Overlay:
        pictures, exists = self._gather(moment, fit_picture(rgb, self._network.size))
        heard = self._listen(moment)
        with self._running:
            logits = jnp.asarray(self._network.mark(pictures, exists, heard))
            jax.block_until_ready(logits)
        height, width = rgb.shape[:2]
        decision = Decision(height, width, threshold=self._threshold)
        is_binary = logits.shape[-1] == 1
        begun = decision.begin(logits)
        is_finite = np.isfinite(begun).all() if is_binary else jnp.isfinite(logits).all()
        if not is_finite:
            raise errors.BadValueError(
                f"logits are NaN or infinite at {moment:.3f} s; no mask can be made of them. Take "
                "an earlier checkpoint (--which), or compute in float32 (model.dtype)."
            )
        mask = decision.finish(np.asarray(begun)[0], is_binary)[0]
        if is_binary:
            return Overlay(mask.view(bool))
        return Overlay(mask, class_names=self._class_names)

    def _gather(self, moment: int | float, newest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pictures of a clip that ends with the newest, and which of them there are."""
        t = self._network.num_pictures
        pictures = np.zeros((t, *newest.shape), np.uint8)
        exists = np.zeros(t, bool)
        pictures[-1], exists[-1] = newest, True
        before = [(when, kept) for when, kept in list(self._memory) if when < moment]
        for i in range(t - 1):
            wanted = moment - (t - 1 - i)
            when, kept = min(before, key=lambda seen: abs(seen[0] - wanted), default=(-9.0, None))
            if abs(when - wanted) <= 0.5:
                pictures[i], exists[i] = kept, True
        return pictures, exists

    def _listen(self, moment: int | float) -> Any:
        """What the network makes of the sound before a moment, once for each tenth of a second."""
        end, is_late = int(moment * SAMPLE_RATE), False
        there = self._ring.end
        if there < end:
            is_late = end - there <= _LATE
            end = there if is_late else end
        end -= end % HOP
        key = (end, is_late or there >= end)
        with self._hearing:
            if self._heard[0] != key:
                window = self._ring.window(end, self._network.window)
                self._heard = (key, self._network.hear(window))
            return self._heard[1]


def run_live(
    source: Source,
    network: Network,
    sink: Sink,
    *,
    threshold: float = 0.5,
    class_names: Sequence[str] | None = None,
    seconds: int | float | None = None,
    output: str | None = None,
    log: io.TextIOBase | None = None,
    say: Callable[[str], None] = print,
) -> Summary:
    """Marks what sounds in a source until it ends, SIGINT or SIGTERM comes, or time is over.

    Every second a line is said, and a JSON object written to `log`: `second`, `time` (of the
    source), `frames`, `dropped` (pictures), `dropped_share`, `latency_ms` (median, p95; from when
    a picture was due to when the sink had it; null without a picture), `stalled` and `silent`
    (seconds since a picture or a sound came), `height`, `width`, `cpu_seconds` (of the process, all
    in all), `memory_mb`. The last object has `summary` in place of `second`.

    Args:
      threshold: probability above which a pixel sounds (models of one class).
      class_names: by class id, for the legend.
      seconds: to run; None: until the end.
      output: the sink's name, for the summary.

    Raises:
      InputError: the source cannot be read at all, the sink takes no more, logits are no numbers.
    """
    engine = Engine(network, sink, threshold=threshold, class_names=class_names, say=say)
    gc.collect()
    gc.freeze()  # what is there stays: from here on collecting takes a millisecond
    started = collected = time.monotonic()
    with _set_by_signals(engine.stop):
        workers = engine.start(source)
        reports = Reports(engine, log, say, started)
        while any(worker.is_alive() for worker in workers) and not engine.stop.is_set():
            engine.stop.wait(0.05)
            passed = time.monotonic() - started
            reports.reach(passed)
            if time.monotonic() - collected > _COLLECT:
                collected = time.monotonic()
                gc.collect()
            if seconds is not None and passed >= seconds:
                break
        engine.end()
        gc.unfreeze()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        engine.close()
        if engine.failure is not None:
            raise engine.failure
        return reports.close(output)


@contextlib.contextmanager
def open_log(path: str) -> Iterator[io.TextIOBase]:
    """A file for JSON lines; - is stdout.

    Raises:
      BadValueError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if path != "-":
            try:
                file = stack.enter_context(open(path, "w", encoding="utf-8"))
            except OSError as error:
                raise errors.BadValueError(f"cannot write {path!r}: {error.strerror}.") from error
        yield file


def leave_hanging_threads() -> None:
    """Ends the process where a thread cannot be ended: it waits for bytes that may never come."""
    if any(thread.daemon for thread in threading.enumerate() if thread.is_alive()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def _set_by_signals(stop: threading.Event) -> Iterator[None]:
    """In its body SIGINT and SIGTERM set an event; the second of them ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def handle(number, _frame):
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
