"""The unpacked media of `stamps`: what there is, what each split may use, and its contents.

A picture and a recording belong to one split where a class has two of them; the only recording of a
class is cut in time. `cross` is tuxpaint's alone, of classes that learned from gcompris only. See
`classes.py` for which is which.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import wave
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from avs_jax import errors
from avs_jax.data.stamps import classes
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.types import UInt8

SPLITS = ("train", "validation", "test", "cross")
MANIFEST = "media.json"
FORMAT = 1  # of media.json; raised whenever what `unpack` writes changes
COMMAND = "launch/fetch_media.sh"

# Of the only recording of a class; validation has a part of its own where there is enough.
_PARTS = {"train": (0.0, 0.6), "validation": (0.6, 0.75), "test": (0.75, 1.0)}
_TWO_PARTS = {"train": (0.0, 0.6), "validation": (0.0, 0.6), "test": (0.6, 1.0)}
_ENOUGH = 4.0  # seconds
_LEAST_ALPHA = 8  # of 255: what is fainter does not count as part of a cut-out


class Excerpt(NamedTuple):
    """A part of a recording; start and stop in samples."""

    file: str
    start: int
    stop: int


class Pools(NamedTuple):
    """What one split may show and sound; files relative to the media folder."""

    pictures: dict[str, tuple[str, ...]]  # class -> cut-outs
    sounds: dict[str, tuple[Excerpt, ...]]  # the same classes
    backgrounds: tuple[str, ...]
    silent: tuple[str, ...]  # cut-outs of what never sounds
    noises: tuple[Excerpt, ...]
    speech: tuple[Excerpt, ...]


def divide(files: Iterable[str], split: str) -> tuple[str, ...]:
    """A split's share of things that are all alike: a quarter is for test, a twelfth validation.

    By the hash of their names, so that one more moves none of the others by much. Of less than
    three each split has all.
    """
    files = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(files) < 3:
        return tuple(files)
    test = max(1, round(len(files) / 4))
    validation = test + max(1, round(len(files) / 12))
    parts = {"train": files[validation:], "validation": files[test:validation]}
    return tuple(sorted(parts.get(split, files[:test])))


class Media:
    """A folder that `unpack` has filled. Contents are read once and kept.

    Raises:
      NotFoundError: no media there. BadValueError: of another version, or files are gone.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        path = self.folder / MANIFEST
        cure = f"fetch them with: {COMMAND} {self.folder}"
        if not path.is_file():
            raise errors.NotFoundError(f"no media under {self.folder}: expected {MANIFEST}; {cure}")
        try:
            self.manifest = json.loads(path.read_text())
            found, files = self.manifest["format"], list(self.manifest["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise errors.BadValueError(f"{path} is damaged; delete it and {cure}") from error
        if found != FORMAT:
            raise errors.BadValueError(
                f"{path} is of format {found}, wanted {FORMAT}; delete it and {cure}"
            )
        if missing := [file for file in files if not (self.folder / file).is_file()]:
            raise errors.BadValueError(
                f"{self.folder} lacks {len(missing)} files, e.g. {missing[0]}; {cure}"
            )

    def __reduce__(self):  # for reader processes: they read what they need themselves
        return Media, (self.folder,)

    def digest(self) -> str:
        """Tells media apart whose clips would differ."""
        return hashlib.sha256(json.dumps(self.manifest["sha256"]).encode()).hexdigest()[:16]

    @functools.cache  # noqa: B019 - a process has one, for good
    def cutout(self, file: str) -> UInt8[np.ndarray, "h w 4"]:
        """RGBA, cut to what is not transparent."""
        rgba = np.asarray(self._open(file).convert("RGBA"))
        rows, columns = (np.flatnonzero((rgba[..., 3] > _LEAST_ALPHA).any(axis)) for axis in (1, 0))
        if not len(rows):
            raise errors.BadValueError(f"{self.folder / file} is transparent everywhere.")
        return np.ascontiguousarray(rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    @functools.cache  # noqa: B019
    def background(self, file: str) -> UInt8[np.ndarray, "h w 3"]:
        return np.asarray(self._open(file).convert("RGB"))

    def _open(self, file: str) -> Image.Image:
        try:
            return Image.open(io.BytesIO((self.folder / file).read_bytes()))
        except OSError as error:
            raise errors.BadValueError(
                f"{self.folder / file} is no picture ({error}); fetch it again with: "
                f"{COMMAND} {self.folder}"
            ) from error

    @functools.cache  # noqa: B019
    def sound(self, file: str) -> np.ndarray:
        """int16[s], 16 kHz mono."""
        try:
            with wave.open(str(self.folder / file)) as content:
                rate = content.getframerate()
                samples = np.frombuffer(content.readframes(-1), "<i2").astype(np.int16)
        except (OSError, EOFError, wave.Error) as error:
            raise errors.BadValueError(
                f"{self.folder / file} is no WAV file ({error}); fetch it again with: "
                f"{COMMAND} {self.folder}"
            ) from error
        if rate != SAMPLE_RATE or not len(samples):
            raise errors.BadValueError(
                f"{self.folder / file}: wanted sound at {SAMPLE_RATE} Hz, got {len(samples)} "
                f"samples at {rate} Hz."
            )
        return samples

    # ------------------------------------------------------------ what a split may use

    def pools(self, split: str, weak: bool = False, drawings: bool = False) -> Pools:
        """What a split may use.

        Args:
          split: of SPLITS.
          weak: also the classes and recordings that a tagger does not recognise.
          drawings: also the word pictures, in which ImageNet sees comic books.

        Raises:
          UnknownNameError: for the split.
        """
        if split not in SPLITS:
            raise errors.unknown_name("split of stamps", split, SPLITS)
        pictures, sounds = {}, {}
        for name in classes.SOURCES:
            if name in classes.WEAK_CLASSES and not weak:
                continue
            shown = self._pictures(name, split, drawings)
            heard = self._sounds(name, split, weak)
            if shown and heard:
                pictures[name], sounds[name] = shown, heard
        return Pools(
            pictures,
            sounds,
            divide(self.manifest["backgrounds"], split),
            divide(self.manifest["silent"], split),
            tuple(self._whole(file) for file in divide(self.manifest["noises"], split)),
            self._speech(split),
        )

    def _entries(self, kind: str, name: str) -> tuple[list[dict], list[dict]]:
        """Files of a class: those of `CROSS_PACKAGE`, and the others."""
        found = [entry for entry in self.manifest[kind] if entry["class"] == name]
        is_ours = [entry["source"].startswith(classes.CROSS_PACKAGE) for entry in found]
        first = [entry for entry, ours in zip(found, is_ours, strict=True) if ours]
        return first, [entry for entry in found if entry not in first]

    def _is_cross(self, name: str) -> bool:
        return name in classes.CROSS_CLASSES and all(self._entries("pictures", name))

    def _pictures(self, name: str, split: str, drawings: bool) -> tuple[str, ...]:
        first, others = self._entries("pictures", name)
        if not drawings:
            others = [e for e in others if not e["source"].startswith(classes.DRAWINGS)]
        if self._is_cross(name):
            chosen = first if split == "cross" else _share(others, split)
        else:
            chosen = [] if split == "cross" else _share(first + others, split)
        return tuple(entry["file"] for entry in chosen)

    def _sounds(self, name: str, split: str, weak: bool) -> tuple[Excerpt, ...]:
        first, others = self._entries("sounds", name)
        if not weak and any(e["source"] not in classes.WEAK_SOUNDS for e in first + others):
            first = [e for e in first if e["source"] not in classes.WEAK_SOUNDS]
        if self._is_cross(name) and first and others:
            if split == "cross":
                return tuple(self._whole(entry["file"]) for entry in first)
            first = []
        found = first + others
        if not found:
            return ()
        if len(found) > 1:
            return tuple(self._whole(entry["file"]) for entry in _share(found, split))
        file = found[0]["file"]
        length = len(self.sound(file))
        parts = _PARTS if length >= _ENOUGH * SAMPLE_RATE else _TWO_PARTS
        start, stop = parts.get(split, parts["test"])
        return (Excerpt(file, round(start * length), round(stop * length)),)

    def _whole(self, file: str) -> Excerpt:
        return Excerpt(file, 0, len(self.sound(file)))

    def _speech(self, split: str) -> tuple[Excerpt, ...]:
        """By language, and so by speaker: those last in `SPEECH_LANGUAGES` are not for training."""
        spoken = {entry["language"] for entry in self.manifest["speech"]}
        order = [name.strip("_") or "en" for name in classes.SPEECH_LANGUAGES]
        languages = [name for name in order if name in spoken]
        if len(languages) < 3:
            files = divide([entry["file"] for entry in self.manifest["speech"]], split)
            return tuple(map(self._whole, files))
        shares = {"train": languages[:-2], "validation": languages[-2:-1]}
        chosen = shares.get(split, languages[-1:])
        return tuple(
            self._whole(e["file"]) for e in self.manifest["speech"] if e["language"] in chosen
        )


def _share(entries: Sequence[dict], split: str) -> list[dict]:
    """Of several the last is for test, of three or more the one before for validation."""
    if len(entries) < 2:
        return list(entries)
    rest, test = list(entries[:-1]), list(entries[-1:])
    if split in ("test", "cross"):
        return test
    if len(rest) < 2:
        return rest
    return rest[-1:] if split == "validation" else rest[:-1]
