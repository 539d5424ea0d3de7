"""Errors that a user can act on, and the way a program ends on one.

A message says what was wanted, what came, what is allowed and the cure. The classes inherit from
the builtin ones, so that library users catch them as usual, while programs print one line and exit
2 instead of a stack trace (`AVS_JAX_TRACEBACK=1` shows it all the same).
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator


class InputError(Exception):
    """What the user gave cannot be used; the message is the whole story."""

    def __str__(self):  # KeyError would show the repr of its message
        return str(self.args[0]) if self.args else ""


class UnknownNameError(InputError, KeyError):
    """A name that is not in a dict of known names."""


class BadValueError(InputError, ValueError):
    """A value outside of what is allowed, or data that cannot be read."""


class NotFoundError(InputError, FileNotFoundError):
    """A file or folder that should be there and is not."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a `name` that is not one of the `known` of a `kind`, e.g. of model."""
    return UnknownNameError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}.")


def not_writable(option: str, folder: os.PathLike, error: Exception) -> BadValueError:
    """The error for the folder of a program's `option`, e.g. --workdir."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return BadValueError(f"{option} {folder} is not writable ({reason}); name a folder that is.")


def check_writable(option: str, folder: os.PathLike) -> None:
    """Makes the folder and writes to it once, so that hours of work are not lost at their end.

    Args:
      option: that names it on the command line, e.g. --workdir. folder: of pathlib or epath.

    Raises:
      BadValueError: it cannot be made or written.
    """
    # Of a local folder OSError; of a bucket whatever its client raises.
    failures = Exception if "://" in os.fspath(folder) else OSError
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process's probe has the same name
    except failures as error:
        raise not_writable(option, folder, error) from error


_FULL = {errno.ENOSPC: "no space left on device", errno.EDQUOT: "disk quota exceeded"}


@contextlib.contextmanager
def told_of_full_disk(option: str, folder: os.PathLike, cure: str) -> Iterator[None]:
    """In its body a full disk, whatever a library makes of it, becomes an error of one line.

    Args:
      option, folder: see `not_writable`. cure: what to do once there is room.

    Raises:
      BadValueError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if reason := _find_full_disk(error):
            raise BadValueError(f"{option} {folder}: {reason}; make room. {cure}") from error
        raise


def _find_full_disk(error: BaseException | None) -> str | None:
    """What a full disk is called, if an error or one that led to it is of that; or None."""
    if error is None:
        return None
    for number, reason in _FULL.items():
        if getattr(error, "errno", None) == number or reason in str(error).lower():
            return reason
    led = (error.__cause__, error.__context__, *getattr(error, "exceptions", ()))
    return next(filter(None, map(_find_full_disk, led)), None)


def to_line(error: InputError) -> str:
    """The builtin error's name and the message: `ValueError: batch_size=6 is not divisible ...`."""
    builtin = next(c for c in type(error).__mro__ if c.__module__ == "builtins")
    return f"{builtin.__name__}: {error}"


def run_program(main: Callable, *args) -> None:
    """Runs a program's `main`; an InputError becomes one line on stderr and exit code 2."""
    try:
        main(*args)
    except InputError as error:
        if os.environ.get("AVS_JAX_TRACEBACK"):
            raise
        print(to_line(error), file=sys.stderr)
        sys.exit(2)
