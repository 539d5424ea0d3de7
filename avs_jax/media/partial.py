"""Files and folders under a hidden name until they are complete, and gone if they never are.

with removed_on_signals():  # a program's main
    hidden = hidden_name(path)
    begin(hidden)
    ...  # write to it, then rename it to `path`
    remove(hidden)  # if it is still there
"""

import contextlib
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator

from etils import epath

from avs_jax import paths

_PATIENCE = 3.0  # seconds until what does not react to a signal (XLA that compiles) is left behind
_hidden: set[str] = set()


def hidden_name(path: str) -> str:
    """Where the data of `path` are until they are complete: beside it, to be renamed at once."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f".partial-{os.getpid()}-{name}")


def begin(hidden: str) -> None:
    """From now on `hidden` is removed by a signal."""
    _hidden.add(hidden)


def remove(hidden: str) -> None:
    """Removes what is left of a file or folder; nothing happens where there is none."""
    _hidden.discard(hidden)
    if os.path.isdir(hidden):
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(hidden)


def write_whole(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a file of which never a part is seen: `path` is as it was, or holds all of `data`."""
    data = data.encode() if isinstance(data, str) else data
    if paths.in_bucket(path):  # there objects are written whole
        epath.Path(path).write_bytes(data)
        return
    hidden = hidden_name(os.fspath(path))
    begin(hidden)
    try:
        pathlib.Path(hidden).write_bytes(data)
        os.replace(hidden, path)
    finally:
        remove(hidden)


@contextlib.contextmanager
def removed_on_signals() -> Iterator[None]:
    """In its body SIGTERM and Ctrl-C end the process within seconds, and nothing unfinished stays.

    The process ends by the signal, as it would without, after the body was left as by an exception;
    or with 128 + its number where the body does not react. For a program's main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    caught: list[int] = []

    def interrupt(number, _frame):
        caught.append(number)
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python's handlers wait for the main thread to come back from C++; a byte arrives at once.
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        for hidden in list(_hidden):
            remove(hidden)
        if not caught:
            raise
    finally:
        signal.set_wakeup_fd(old_writer)
        os.write(writer, b"\0")  # lets the watcher go
        watcher.join()
        os.close(reader)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.signal(caught[0], signal.SIG_DFL)
        os.kill(os.getpid(), caught[0])


def _watch(reader: int) -> None:
    timer = None
    while number := os.read(reader, 1)[0]:
        if timer is None and number in (signal.SIGTERM, signal.SIGINT):
            timer = threading.Timer(_PATIENCE, _leave, (number,))
            timer.daemon = True
            timer.start()
    if timer is not None:
        timer.cancel()


def _leave(number: int) -> None:
    for hidden in list(_hidden):
        remove(hidden)
    os._exit(128 + number)
