"""Films of people one does not know, marked within limits; what is left of them is kept track of.

with kept_folder() as folder:
    marker = Marker(avs_jax.load("lite"), 4, Limits(), folder)
    result = marker.mark("film.mp4", 0.45, threading.Event(), print)
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from avs_jax import errors
from avs_jax.media import partial
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.video import VideoInfo, probe, read_sound
from avs_jax.prediction.films import predict_video
from avs_jax.prediction.model import Model
from avs_jax.prediction.timeline import Timeline

_TOLD_EVERY = 0.25  # seconds between two words on progress


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one visitor may ask for."""

    max_seconds: int | float = 60.0  # of film
    max_megapixels: int | float = 2.1  # of a picture: 1920 x 1080
    max_megabytes: int | float = 200.0  # of a file that is sent
    max_minutes: int | float = 10.0  # of work on a film
    max_gigabytes: int | float = 4.0  # of all that is kept
    keep_minutes: int | float = 60.0  # until it is removed
    at_once: int = 2  # films that are worked on

    def __str__(self) -> str:
        return (
            f"Films with sound, up to {self.max_seconds:g} s, {self.max_megapixels:g} megapixels "
            f"and {self.max_megabytes:g} MB; {self.at_once} at a time, {self.max_minutes:g} minutes"
            f" each. All stays on this server and is removed after {self.keep_minutes:g} minutes."
        )


@contextlib.contextmanager
def kept_folder() -> Iterator[pathlib.Path]:
    """A folder for what visitors send and get, removed with all that is in it."""
    top = tempfile.mkdtemp(prefix="avs-jax-demo-")
    partial.begin(top)  # a signal removes it as well
    folder = pathlib.Path(top).resolve() / "kept"
    folder.mkdir()
    try:
        yield folder
    finally:
        partial.remove(top)


class StoppedError(Exception):
    """The visitor does not want it any more."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Files for the visitor, and what they say."""

    overlay: str
    masks: str  # .zip of PNG files
    timeline: str  # .json
    described: dict[str, Any]
    took: float  # seconds


class Marker:
    """Marks visitors' films, within limits, in a folder of their own each."""

    def __init__(self, model: Model, fps: int, limits: Limits, folder: pathlib.Path):
        """folder: of all files that visitors send and get; others in it are theirs too."""
        self.limits = limits
        self._model, self._fps, self._folder = model, fps, folder

    def check(self, path: str) -> VideoInfo:
        """Looks at a film before any work.

        Raises:
          NotFoundError, BadValueError: it cannot be read, has no sound, or is beyond the limits.
        """
        info = probe(path)
        name = os.path.basename(path)
        if not info.has_audio:
            raise errors.BadValueError(
                f"{name!r} has {info.silent_because}; wanted a film with sound, because what "
                "sounds is what is marked."
            )
        megapixels = info.width * info.height / 1e6
        if megapixels > self.limits.max_megapixels:
            raise errors.BadValueError(
                f"{name!r} is {info.width} x {info.height}, {megapixels:.1f} megapixels; "
                f"{self.limits.max_megapixels:g} are allowed here: scale it down."
            )
        if info.duration is not None:
            self._check_length(name, info.duration)
        return info

    def _check_length(self, name: str, seconds: int | float) -> None:
        if seconds > self.limits.max_seconds:
            raise errors.BadValueError(
                f"{name!r} is {seconds:.1f} s long; {self.limits.max_seconds:g} s are allowed here:"
                " cut it."
            )

    def mark(
        self, path: str, alpha: float, stop: threading.Event, tell: Callable[[float, str], None]
    ) -> Result:
        """Marks what sounds in a film.

        Args:
          alpha: weight of the overlay's colour, 0..1.
          stop: once it is set the work ends.
          tell: is told the part that is done, 0..1, and in words what is left.

        Raises:
          StoppedError: `stop` was set.
          NotFoundError, BadValueError: see `check`; or there is no room, or no time is left.
          Nothing is left of a film that was not finished.
        """
        info = self.check(path)
        self._check_room()
        folder = tempfile.mkdtemp(prefix="result-", dir=self._folder)
        try:
            return self._mark(info, pathlib.Path(folder), alpha, stop, tell)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _mark(self, info, folder: pathlib.Path, alpha: float, stop, tell) -> Result:
        started = time.monotonic()
        stem = pathlib.Path(info.path).stem[:60]
        watch = _Watch(info, self.limits, stop, tell)
        loaded = self._model.loaded
        timeline = Timeline(info, loaded.class_names)
        predict_video(
            info,
            self._model.forward,
            size=loaded.config.data.size,
            seconds=loaded.config.data.seconds,
            frame_offset=float(loaded.config.data.frame_offset),
            fps=self._fps,
            threshold=loaded.threshold,
            class_names=loaded.class_names,
            output=folder / f"{stem}_overlay.mp4",
            masks_dir=folder / "masks",
            alpha=alpha,
            report=watch.reach,
            see=timeline.add,
        )
        tell(1.0, "listening")
        sound = np.concatenate([np.zeros(0, np.float32), *read_sound(info)])
        heard = []
        if self._model.names_sounds:
            heard = self._model.listen(sound, SAMPLE_RATE, top=10)
        described = timeline.describe(sound, heard)
        masks, written = folder / f"{stem}_masks.zip", folder / f"{stem}_timeline.json"
        _pack(folder / "masks", masks)
        written.write_text(json.dumps(described))
        took = time.monotonic() - started
        overlay = folder / f"{stem}_overlay.mp4"
        return Result(str(overlay), str(masks), str(written), described, took)

    def _check_room(self) -> None:
        self.sweep()
        kept = sum(file.stat().st_size for file in _files(self._folder))
        free = shutil.disk_usage(self._folder).free
        if kept > self.limits.max_gigabytes * 1e9 or free < self.limits.max_megabytes * 2e6:
            raise errors.BadValueError(
                "no room for another film on this server; come back in "
                f"{self.limits.keep_minutes:g} minutes, when older ones are gone."
            )

    def forget(self, path: str | None) -> None:
        """Removes a file of this folder, with the folder that is its own."""
        if path is None:
            return
        place = pathlib.Path(path).resolve()
        if self._folder in place.parents:
            own = self._folder / place.relative_to(self._folder).parts[0]
            partial.remove(str(own))

    def sweep(self) -> None:
        """Removes what has been here for longer than it may."""
        oldest = time.time() - 60 * self.limits.keep_minutes
        for own in self._folder.iterdir():
            with contextlib.suppress(OSError):  # another visitor's request removed it
                if own.stat().st_mtime < oldest:
                    partial.remove(str(own))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _pack(folder: pathlib.Path, path: pathlib.Path) -> None:
    """A folder of PNG files as one file, in its place."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:  # PNG is packed already
        for file in sorted(folder.iterdir()):
            packed.write(file, file.name)
    shutil.rmtree(folder)


class _Watch:
    """Sees to limits, to the wish to stop, and to what the visitor is told on the way."""

    def __init__(self, info: VideoInfo, limits: Limits, stop: threading.Event, tell: Callable):
        self._info, self._limits, self._stop, self._tell = info, limits, stop, tell
        self._started = self._told = time.monotonic()
        self._first: tuple[float, float] | None = None  # the first picture: until then it compiles

    def reach(self, seconds: int | float) -> None:
        """Raises StoppedError, or BadValueError beyond a limit."""
        if self._stop.is_set():
            raise StoppedError
        now, limits = time.monotonic(), self._limits
        if seconds > limits.max_seconds + 1:  # the header promised less
            raise errors.BadValueError(
                f"the film is longer than the {limits.max_seconds:g} s that are allowed here, and "
                "than it says: cut it."
            )
        if now - self._started > 60 * limits.max_minutes:
            raise errors.BadValueError(
                f"the {limits.max_minutes:g} minutes that are allowed here were over after "
                f"{seconds:.0f} s of film: cut it, or scale it down."
            )
        self._first = self._first or (now, seconds)
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            self._tell(*self._describe(now, seconds))

    def _describe(self, now: float, seconds: int | float) -> tuple[float, str]:
        total = self._info.duration
        if not total:
            return 0.0, f"{seconds:.0f} s of film are marked"
        begun, first = self._first
        pace = (now - begun) / max(seconds - first, 1e-6)
        left = f", about {max(total - seconds, 0) * pace:.0f} s left" if seconds > first else ""
        return min(seconds / total, 1.0), f"{seconds:.0f} of {total:.0f} s of film{left}"
