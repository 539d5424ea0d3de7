"""One run to a folder: WORKDIR/lock.json says which one, as long as it lives.

The file's time is written anew every few seconds. So a lock dies with its process wherever the
folder is: on a disk, over NFS, in a bucket. No clocks are compared, which differ between hosts: who
finds a lock looks whether its time changes. Where holder and finder run on one machine, the process
itself is looked for, so that a run that was killed can be started again at once.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from avs_jax import errors, paths

_BEAT = 15.0  # seconds between two writes; a day of them costs 3 cents in Google's buckets
_PATIENCE = 60.0  # seconds without a new time until a lock is taken for dead: several beats
# Seconds until one who wrote at the same time would be seen: the last one to write has the lock.
_SETTLE = {False: 0.2, True: 1.0}  # in a bucket


def _say_on_stderr(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


class Lock:
    """A folder's lock, held by this process and kept alive by a thread until `release`."""

    def __init__(
        self,
        workdir: os.PathLike,
        say: Callable[[str], None] = _say_on_stderr,
        *,
        beat: float = _BEAT,
        patience: float = _PATIENCE,
    ):
        """Takes the lock; that of a dead process is taken over, and `say` is told.

        Args:
          beat: seconds between two signs of life. patience: seconds without one until a process of
            another machine is taken for dead.

        Raises:
          BadValueError: a run that lives holds it.
        """
        self.path = epath.Path(workdir) / "lock.json"
        self._say, self._beat, self._patience = say, beat, patience
        self._own = _describe_process() | {"id": uuid.uuid4().hex}
        self._ended = threading.Event()
        self._taken_by: dict | None = None
        if found := _read(self.path):
            self._wait_for_the_end_of(found)
        self._write()
        time.sleep(_SETTLE[paths.in_bucket(self.path)])
        if found := self._find_other():
            raise self._held_by(found)
        self._thread = threading.Thread(target=self._keep_alive, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises BadValueError once another run took this lock for dead and has it now."""
        if self._taken_by:
            raise errors.BadValueError(
                f"{self.path.parent} was taken over by {_name(self._taken_by)}: this run gave no "
                f"sign of life for {self._patience:.0f} s. That one goes on, this one ends here."
            )

    def release(self) -> None:
        """Gives the folder free."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the network: a later run finds that this one is dead
            if _read(self.path).get("id") == self._own["id"]:
                self.path.unlink(missing_ok=True)

    def _wait_for_the_end_of(self, found: dict) -> None:
        """Returns when the holder of the lock is known to be dead."""
        lives = _lives(found)
        if lives:
            raise self._held_by(found)
        if lives is None:
            self._say(f"{self.path}: looking whether {_name(found)} lives ...")
            until = time.monotonic() + self._patience
            while time.monotonic() < until:
                time.sleep(min(self._beat / 10, 1))
                now = _read(self.path)
                if not now:  # it ended
                    return
                if now != found:
                    raise self._held_by(now)
        self._say(f"{self.path}: {_name(found)} is dead; going on in its place.")

    def _held_by(self, found: dict) -> errors.BadValueError:
        return errors.BadValueError(
            f"--workdir {self.path.parent} is in use by {_name(found)}; wait for its end, stop it, "
            "or use another --workdir."
        )

    def _find_other(self) -> dict:
        found = _read(self.path)
        return found if found.get("id") != self._own["id"] else {}

    def _write(self) -> None:
        text = json.dumps(self._own | {"time": f"{time.time():.3f}"}) + "\n"
        if paths.in_bucket(self.path):  # there files are written whole
            self.path.write_text(text)
            return
        hidden = self.path.parent / f".lock-{self._own['id']}"
        try:
            hidden.write_text(text)
            os.replace(hidden, self.path)
        except OSError as error:
            hidden.unlink(missing_ok=True)
            raise errors.not_writable("--workdir", self.path.parent, error) from error

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                if found := self._find_other():
                    self._taken_by = found
                    return
                self._write()
            except Exception:  # the network or a full disk, for a while: the next beat does it
                continue


@contextlib.contextmanager
def hold(workdir: os.PathLike) -> Iterator[Lock | None]:
    """In its body this run alone writes to the folder; the first of its processes sees to it.

    Raises:
      BadValueError: another run does, on every process.
    """
    lock, error = None, None
    if jax.process_index() == 0:
        try:
            lock = Lock(workdir)
        except errors.BadValueError as refused:
            error = refused
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.asarray(error is not None))
        if failed and error is None:
            error = errors.BadValueError(f"--workdir {workdir} is in use, see process 0.")
    if error:
        raise error
    try:
        yield lock
    finally:
        if lock:
            lock.release()


def _describe_process() -> dict[str, Any]:
    """Who this is; `machine`: where process numbers mean the same (not in two containers)."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        since = _started_at(os.getpid())
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": machine,
            "since": since,
        }
    return {"host": socket.gethostname(), "pid": os.getpid()}  # no Linux


def _started_at(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is none that runs."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # man 5 proc: state, ..., starttime


def _lives(holder: dict) -> bool | None:
    """Whether a lock's process lives; None if that cannot be told from here."""
    here = _describe_process()
    if "machine" not in here or holder.get("machine") != here["machine"]:
        return None
    return _started_at(holder["pid"]) == holder.get("since")


def _read(path: epath.Path) -> dict:
    """What the lock says; {} where there is none."""
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in ("host", "pid", "id")} | found
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):  # cut off, or not ours
        return {"host": "an unknown host", "pid": "?"}


def _name(holder: dict) -> str:
    return f"process {holder['pid']} on {holder['host']}"
