"""Where numbers go: the console, JSON lines, TensorBoard. Only the first process writes.

Logs of a run in a bucket are written to a temporary folder here and copied up, whole files at a
time: every half a minute, before each checkpoint, and at the end. So whatever comes after the last
checkpoint may be lost with a machine, and is written again by the run that goes on from there.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from avs_jax import paths
from avs_jax.media.partial import write_whole
from avs_jax.types import UInt8


@contextlib.contextmanager
def _missing(*names: str) -> Iterator[None]:
    """Modules that cannot be imported for a while, though they may be installed."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# tensorboardX imports PyTorch and clients of buckets wherever they are installed, for what is not
# used here: three seconds of every start, and 190 MB.
with _missing("torch", "boto3", "google.cloud.storage"):
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

_COPY_EVERY = 30.0  # seconds; Google allows one write of an object a second
_SHOW_EVERY = 10.0  # seconds; what TensorBoard may be behind


class Logs:
    """Writes figures of a run to `workdir/metrics.jsonl`, `workdir/tensorboard/` and stderr."""

    def __init__(self, workdir: os.PathLike | str):
        self.path = epath.Path(workdir) / "metrics.jsonl"
        self.main = jax.process_index() == 0
        self._board = None
        self._mirror = None
        self.folder = Path(workdir)  # where files are written
        if paths.in_bucket(workdir) and self.main:
            self._mirror = Mirror(epath.Path(workdir))
            self.folder = self._mirror.folder
            if self.path.exists():
                self._here.write_bytes(self.path.read_bytes())

    @property
    def _here(self) -> Path:
        return self.folder / self.path.name

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One JSON line {"step", "time", name: value, ...} and one point per name."""
        if not self.main:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        with self._here.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | scalars) + "\n")
        self._open_board()
        for name, value in scalars.items():
            self._board.add(step, summary.scalar(name, value))

    def draw(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture in TensorBoard."""
        if self.main:
            self._open_board()
            self._board.add(step, summary.image(name, picture, dataformats="HWC"))

    def _open_board(self, purge_step: int | None = None) -> None:
        if self._board is None:
            self._board = _Board(self.folder / "tensorboard", purge_step)

    def say(self, text: str) -> None:
        """A line for whoever watches, above any progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def rewind(self, step: int, owed: str | None = None) -> None:
        """Drops what was written after `step`: a resumed run writes it again.

        owed: a figure of `step` itself that is written again too.
        """
        if self.main and self._here.exists():
            self._open_board(purge_step=step + 1)
            lines = self._here.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= step]
            if owed:
                again = f'"{owed}": '
                kept = [line for line in kept if _step_of(line) < step or again not in line]
            if len(kept) < len(lines):
                write_whole(self._here, "".join(kept))

    def flush(self) -> None:
        """Returns when all that was written is where it belongs."""
        if self._board is not None:
            self._board.flush()
        if self._mirror is not None:
            self._mirror.copy()

    def close(self) -> None:
        """Flushes and ends."""
        if self._board is not None:
            self._board.close()
        if self._mirror is not None:
            self._mirror.close()


class _Board:
    """An event file of TensorBoard, written where it is called.

    tensorboardX's SummaryWriter leaves it to a thread, which ends at a full disk without a word;
    then whoever writes, or ends, waits for it for good.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        if purge_step is not None:  # later points, of a run that was cut off, are not shown
            started = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=started))

    def add(self, step: int, points: summary.Summary) -> None:
        """Raises OSError where the disk is full; from then on nothing is written any more."""
        self._write(Event(wall_time=time.time(), step=step, summary=points))

    def _write(self, event: Event) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_event(event)
        except OSError:
            self._give_up()
            raise
        if time.monotonic() - self._flushed > _SHOW_EVERY:
            self.flush()

    def flush(self) -> None:
        """Raises as `add` does."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError:
            self._give_up()
            raise
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Raises as `add` does."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _give_up(self) -> None:
        # Else Python tries again when the file is collected, and prints what it meets.
        with contextlib.suppress(OSError):
            self._writer.close()
        self._writer = None


class Mirror:
    """A temporary folder whose files are copied to a bucket by a thread of its own."""

    def __init__(self, target: epath.Path):
        self._target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="avs_jax_")
        self.folder = Path(self._temporary.name)
        self._copied: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copy logs", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_COPY_EVERY):
            try:
                self.copy()
            except Exception as error:  # the network, for a while: the next time does it
                tqdm.write(f"logs are not copied to {self._target}: {error}", file=sys.stderr)

    def copy(self) -> None:
        """Copies what changed since it was copied last."""
        with self._lock:
            for path in sorted(self.folder.rglob("*")):
                if not path.is_file():
                    continue
                name, status = path.relative_to(self.folder).as_posix(), path.stat()
                stamp = (status.st_size, status.st_mtime_ns)
                if self._copied.get(name) != stamp:
                    (self._target / name).write_bytes(path.read_bytes())
                    self._copied[name] = stamp

    def close(self) -> None:
        """Copies what is left, and deletes the folder."""
        self._ended.set()
        self._thread.join()
        self.copy()
        self._temporary.cleanup()


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return float("inf")
