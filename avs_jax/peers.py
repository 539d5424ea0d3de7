"""Notices that one of several processes died, so that the others end at once and say so.

Left alone they would wait for it in a sum over all devices, until jax aborts them after a minute or
two with a stack trace (`heartbeat_timeout_seconds`). So every process keeps a connection to process
0 on which both give signs of life. The kernel closes that of a killed process at once; a host that
is gone, or hangs, is silent.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from avs_jax import errors
from avs_jax.hosts import receive, send

BEAT = 5.0  # seconds between two signs of life
PATIENCE = 30.0  # seconds without one until a process is taken for dead
_GRACE = 3.0  # seconds in which a process may tell an error of its own, or one that all have


class Peers:
    """The connections of this process; a thread looks after them.

    Attributes:
      saved_step: gives the last step saved, or None: what a run goes on from.
      clean_up: called before this process ends for another one's sake.
    """

    def __init__(self, beat: float = BEAT, patience: float = PATIENCE):
        self.saved_step: Callable[[], int | None] | None = None
        self.clean_up: Callable[[], None] = lambda: None
        self._beat, self._patience = beat, patience
        self._closing = False
        _delay_aborts()
        self._others = _connect_all() if jax.process_index() == 0 else _connect_to_first()
        self._thread = threading.Thread(target=self._look, name="peers", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        heard = dict.fromkeys(self._others, time.monotonic())
        told = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for number, other in self._others.items():
                selector.register(other, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select(self._beat / 5):
                    heard[key.data] = time.monotonic()
                    if not self._hear(key.data, key.fileobj):
                        selector.unregister(key.fileobj)
                        heard.pop(key.data)
                now = time.monotonic()
                for number, last in heard.items():
                    if now - last > self._patience:
                        silence = f"gave no sign of life for {self._patience:.0f} s"
                        self._end(number, silence)
                if now - told > self._beat:
                    told = now
                    self._tell({"lives": True})

    def _hear(self, number: int, other: socket.socket) -> bool:
        """Whether there is more to come from a process."""
        try:
            message = receive(other)
        except OSError:
            message = {}
        if message.get("lives"):
            return True
        if message.get("ends"):  # in order: all others will, or have
            return False
        if "reason" in message:
            time.sleep(_GRACE)
        if not self._closing:
            self._end(message.get("number", number), message.get("reason", "went silent"))
        return False

    def _tell(self, message: dict) -> None:
        for other in self._others.values():
            with contextlib.suppress(OSError):
                send(other, message)

    def _end(self, number: int, reason: str) -> None:
        """Ends this process, as process `number` is gone."""
        self._tell({"number": number, "reason": reason})
        saved = None
        with contextlib.suppress(Exception):  # of a storage that may be gone too
            saved = self.saved_step() if self.saved_step else None
        cure = "start all again with the same command"
        if self.saved_step:
            cure += f"; it goes on from step {saved}" if saved else "; nothing was saved yet"
        line = f"process {number} {reason}: this one ends. {cure.capitalize()}."
        with tqdm.external_write_mode(sys.stderr):  # to the end: no bar comes after the reason
            print(line, file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                self.clean_up()
            self._let_others_go_first()
            _exit(1)

    def _let_others_go_first(self) -> None:
        """Process 0 is the last: jax aborts the others, with a stack trace, where it is gone."""
        until = time.monotonic() + 2 * _GRACE
        for other in self._others.values() if jax.process_index() == 0 else ():
            with contextlib.suppress(OSError):
                while (left := until - time.monotonic()) > 0:
                    other.settimeout(left)
                    if not other.recv(1000):
                        break

    def close(self) -> None:
        """This process ends in order; nobody need end for it."""
        self._closing = True
        self._tell({"ends": True})

    def leave(self, reason: str, code: int) -> None:
        """Ends this process, and with it all, for an error that may be its own alone."""
        self._closing = True
        self._tell({"number": jax.process_index(), "reason": f"failed ({reason})"})
        with contextlib.suppress(Exception):
            self.clean_up()
        self._let_others_go_first()
        _exit(code)


@contextlib.contextmanager
def watched(beat: float = BEAT, patience: float = PATIENCE) -> Iterator[Peers | None]:
    """In its body all processes live, or all end; None: there is but one.

    beat: seconds between two signs of life. patience: seconds without one until a process is taken
      for dead.
    """
    if jax.process_count() == 1:
        yield None
        return
    peers = Peers(beat, patience)
    try:
        yield peers
    except errors.InputError as error:
        print(errors.to_line(error), file=sys.stderr)
        peers.leave(str(error), 2)
    except Exception as error:
        time.sleep(_GRACE)  # where another's death is the reason, the thread ends this process
        traceback.print_exc()
        peers.leave(f"{type(error).__name__}, see its log", 1)
    peers.close()


def _delay_aborts() -> None:
    """Where process 0 dies jax aborts the others in the same moment, with a stack trace and status
    134. The thread that aborts is put to sleep (for as many seconds as SIGABRT has for a number,
    6), so that the one that looks after the connections has its say."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no POSIX
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))  # POSIX: may be


def _exit(code: int) -> None:
    """At once: jax's own way out waits for all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ----------------------------------------------------------------------------------- connections


def _connect_all() -> dict[int, socket.socket]:
    """Process 0: {process: connection} of all that can reach it."""
    listener = socket.create_server(("", 0))
    word = uuid.uuid4().hex
    _share(f"{word} {listener.getsockname()[1]} {' '.join(_own_addresses())}")
    others: dict[int, socket.socket] = {}
    until = time.monotonic() + PATIENCE
    with listener:
        while len(others) < jax.process_count() - 1:
            listener.settimeout(max(until - time.monotonic(), 0.01))
            try:
                other = listener.accept()[0]
                other.settimeout(PATIENCE)
                message = receive(other)
            except OSError:
                if time.monotonic() > until:
                    break
                continue
            if message.get("word") == word:
                others[message["number"]] = other
    return others


def _connect_to_first() -> dict[int, socket.socket]:
    """Another process: {0: connection}, or nothing where process 0 cannot be reached."""
    word, port, *addresses = _share("").split()
    for address in addresses:
        try:
            first = socket.create_connection((address, int(port)), timeout=5)
            first.settimeout(PATIENCE)
            send(first, {"word": word, "number": jax.process_index()})
        except OSError:
            continue
        return {0: first}
    return {}


def _share(text: str) -> str:
    """Process 0's text, on all."""
    padded = np.frombuffer(text.encode().ljust(1024), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded).astype(np.uint8)).decode().strip()


def _own_addresses() -> list[str]:
    """By which others may reach this host: the likeliest first."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # nothing is sent: asks which way out would be taken
        found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)]
    return list(dict.fromkeys([*found, socket.gethostname(), "127.0.0.1"]))[:20]
