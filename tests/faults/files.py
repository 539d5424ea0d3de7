"""What may happen to files and disks, and whether a program ended on it in one line."""

import contextlib
import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path


def meta(step: Path) -> dict:
    """What a checkpoint says of itself."""
    return json.loads((step / "meta" / "metadata").read_text())


def _truncate(path: Path, _dice) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path, _dice) -> None:
    path.write_bytes(b"")


def _flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def _delete(path: Path, _dice) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _truncate,
    "emptied": _empty,
    "with one bit flipped": _flip,
    "deleted": _delete,
}


def _kind(name: str) -> str:
    return re.sub(r"[0-9a-f]{32}", "*", name)  # data files have random names


def kinds(step: Path) -> list[str]:
    """The files of a checkpoint, those alike as one: model/d/*."""
    names = (p.relative_to(step).as_posix() for p in step.rglob("*") if p.is_file())
    return sorted({_kind(name) for name in names})


def damage(step: Path, kind: str, how: str, dice: random.Random) -> None:
    """Damages one of the files of a kind."""
    alike = [p for p in step.rglob("*") if p.is_file()]
    alike = [p for p in sorted(alike) if _kind(p.relative_to(step).as_posix()) == kind]
    DAMAGES[how](dice.choice(alike), dice)


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """In its body `folder` is a disk of that many bytes; the function given makes room on it.

    None where none can be mounted: that needs root.
    """
    folder.mkdir()
    if os.geteuid() != 0 or not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        yield None
        return
    try:
        yield lambda: _mount("-o", "remount,size=100m", str(folder))
    finally:
        subprocess.run(["umount", folder], capture_output=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """In its body nothing can be written to `folder`."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    # Nothing is forbidden to root but what is mounted so.
    assert _mount("--bind", str(folder), str(folder)), "mounting is not allowed here"
    try:
        assert _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", folder], capture_output=True)


def wrong_end(process: subprocess.Popen, output: str, said: str) -> str:
    """What is wrong with how a program ended that is to refuse: code 2, the reason last."""
    last = output.strip().splitlines()[-1]
    if process.returncode == 2 and said in last and "Traceback" not in output:
        return ""
    return f"ended with {process.returncode}: {last}"
