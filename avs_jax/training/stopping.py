"""SIGTERM, by which machines announce their end: a step is finished, an evaluation is left."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_PATIENCE = 3.0  # seconds for what is to be left until it is left behind (XLA that compiles)
T = TypeVar("T")


class StoppedError(Exception):
    """A stop came in between."""


class Stop(threading.Event):
    """Set once the run is to end; by SIGTERM after `listen`."""

    def __init__(self):
        super().__init__()
        self._leaving = threading.Event()
        self._finish: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """From now on SIGTERM sets it. For a program's main thread."""
        signal.signal(signal.SIGTERM, lambda *_: self.set())
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # Python's handlers wait for the main thread to come back from C++; a byte arrives at once.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="stop", daemon=True).start()

    def until_set(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises StoppedError in their place once it is set."""
        for item in items:
            if self.is_set():
                raise StoppedError
            yield item

    @contextlib.contextmanager
    def leave_within_seconds(self, finish: Callable[[], None]) -> Iterator[None]:
        """In its body SIGTERM ends the process soon even where the main thread does not react.

        By another thread, with exit code 0, after it called `finish`, which writes what is to be
        written. Once SIGTERM came this holds to the end of the process: leaving takes time too.
        """
        self._finish = finish
        self._leaving.set()
        try:
            yield
        finally:
            if not self.is_set():
                self._leaving.clear()

    def _watch(self, reader: int) -> None:
        while os.read(reader, 1)[0] != signal.SIGTERM:
            pass
        self.set()
        self._leaving.wait()
        time.sleep(_PATIENCE)
        code = 0
        try:
            self._finish()
        except Exception as error:  # whatever writing raises: nobody waits for it any more
            print(f"SIGTERM: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = 1
        os._exit(code)
