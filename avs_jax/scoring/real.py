"""Real films with boxes around what sounds: does a model point at it, and does it listen?

    DIR/boxes.json    {film: {second: [[x0, y0, x1, y1], ...], ...}, ...}
    DIR/FILM.mp4      (or .mkv, .mov, .webm, .avi), with sound
    DIR/sounds/       sounds of things that no picture shows, e.g. speech.wav; may be left out

Boxes are fractions of width and height, drawn around all that sounds in the picture at that second.
A film may also have a "kind": "dog": films of one kind are not held against each other.

What is measured, of every second that has boxes:

    pointing       the most probable pixel lies in a box. A deaf map of what could sound does that,
                   so it does not test hearing; what does is
    side by side   two films beside each other with the sound of one: the most probable pixel lies
                   in that film's half, and in its box; chance 0.5 in the half
    precision      share of a mask's pixels that lie in a box, mean over masks that are not empty
    marked         share of the picture that is marked, with its own sound, those of the other
                   films, silence, noise, and each file of DIR/sounds
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from avs_jax import errors
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.film import VideoInfo
from avs_jax.media.sound import read_sound, read_sound_file
from avs_jax.media.video import probe, read_frames, require_audio
from avs_jax.scoring import report
from avs_jax.types import Bool, Float, UInt8

_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi")
_SIDE = 384  # pixels of each of two films beside each other: a picture of 2:1
_NOISE = 0.1  # root mean square

# (frames u8[t h w 3], when they are on screen f64[t], sound f32[s] of 16 kHz) -> probability that a
# pixel sounds f32[t h w]
Mark = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Film(NamedTuple):
    """The pictures of a film that have boxes, and its sound."""

    name: str
    kind: str
    frames: UInt8[np.ndarray, "t h w 3"]
    times: Float[np.ndarray, "t"]
    boxes: tuple[Float[np.ndarray, "n 4"], ...]
    sound: Float[np.ndarray, "s"]


def read_films(directory: str | os.PathLike) -> list[Film]:
    """The films of a folder that have boxes.

    Raises:
      NotFoundError: no boxes.json, or a film of it is missing.
      BadValueError: boxes that are none, a film without sound, or that ends before its boxes.
    """
    path = Path(directory) / "boxes.json"
    if not path.is_file():
        raise errors.NotFoundError(
            f"no {path}: expected boxes.json, {{film: {{second: [[x0, y0, x1, y1], ...]}}}}, "
            "beside the films."
        )
    try:
        films = json.loads(path.read_text())
    except ValueError as error:
        raise errors.BadValueError(f"{path} is not JSON ({error}).") from error
    if not (isinstance(films, dict) and films):
        raise errors.BadValueError(f"{path} names no films; wanted {{film: {{second: boxes}}}}.")
    return [_read_film(Path(directory), name, entry) for name, entry in films.items()]


def _read_film(directory: Path, name: str, entry: Any) -> Film:
    try:
        kind = str(entry.get("kind", name))
        boxes = {float(second): found for second, found in entry.items() if second != "kind"}
        boxes = {second: np.array(boxes[second], np.float64) for second in sorted(boxes)}
        wrong = [f"{x} at {second}" for second, x in boxes.items() if not _are_boxes(x)]
    except (AttributeError, ValueError, TypeError) as error:
        raise errors.BadValueError(f"boxes of film {name!r} cannot be read: {error}.") from error
    if wrong or not boxes:
        raise errors.BadValueError(
            f"boxes of film {name!r}: {wrong[0] if wrong else 'none'}; wanted one or more a "
            "second, [x0, y0, x1, y1] in fractions of width and height, x0 < x1, y0 < y1."
        )
    places = [directory / f"{name}{suffix}" for suffix in ("", *_SUFFIXES)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise errors.NotFoundError(
            f"no film {name!r} in {directory}: expected {name}{_SUFFIXES[0]} "
            f"({', '.join(_SUFFIXES)})."
        )
    info = probe(path)
    require_audio(info)
    frames = list(_find_frames(info, list(boxes)))
    if len(frames) < len(boxes):
        raise errors.BadValueError(
            f"{path} ends before second {list(boxes)[len(frames)]}, for which it has boxes."
        )
    sound = np.concatenate([*read_sound(info), np.zeros(0, np.float32)])
    times = np.array(list(boxes))
    return Film(name, kind, np.stack(frames), times, tuple(boxes.values()), sound)


def _are_boxes(x: np.ndarray) -> bool:
    if x.ndim != 2 or x.shape[1:] != (4,) or not len(x):
        return False
    return bool((x >= 0).all() and (x <= 1).all() and (x[:, :2] < x[:, 2:]).all())


def _find_frames(info: VideoInfo, times: list[float]) -> Iterator[np.ndarray]:
    """What is on screen at each of the rising times; ends with the film."""
    waiting = list(times)
    for frame in read_frames(info):
        while waiting and waiting[0] < frame.time + frame.duration:
            yield frame.rgb()
            waiting.pop(0)
        if not waiting:
            return


def read_other_sounds(directory: str | os.PathLike) -> dict[str, Float[np.ndarray, "s"]]:
    """{name: 16 kHz mono} of the files in DIR/sounds.

    Raises:
      BadValueError: a file that is no sound.
    """
    folder = Path(directory) / "sounds"
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {path.stem: read_sound_file(str(path)) for path in files}


def count_passes(films: list[Film], other_sounds: dict[str, np.ndarray]) -> int:
    """How often `score` calls `mark`."""
    pairs = sum(film.kind != other.kind for film in films for other in films)
    return len(films) * (3 + len(other_sounds)) + 3 * pairs


def score(
    films: list[Film],
    mark: Mark,
    threshold: float,
    other_sounds: dict[str, np.ndarray] | None = None,
) -> dict[str, float | int]:
    """The figures by name; those of which there is no case are left out.

    Args:
      threshold: of the probability of a marked pixel.
      other_sounds: of things that no picture shows.
    """
    rows: dict[str, list[float]] = {}

    def add(name, values):
        rows.setdefault(name, []).extend(float(value) for value in values)

    noise = np.random.default_rng(0).normal(0, _NOISE, 60 * SAMPLE_RATE).astype(np.float32)
    sounds = {"mute": np.zeros(SAMPLE_RATE, np.float32), "noise": noise} | (other_sounds or {})
    for film in films:
        own = mark(film.frames, film.times, film.sound)
        inside = [fill_boxes(boxes, own.shape[1:]) for boxes in film.boxes]
        add("chance", [x.mean() for x in inside])
        add("pointing", [points_into(p, x) for p, x in zip(own, inside, strict=True)])
        add("marked_own", (own > threshold).mean((1, 2)))
        marked = [(p > threshold, x) for p, x in zip(own, inside, strict=True)]
        add("precision", [x[m].mean() for m, x in marked if m.any()])
        for name, sound in sounds.items():
            sound = np.resize(sound, max(len(film.sound), SAMPLE_RATE))
            found = mark(film.frames, film.times, sound)
            add(f"marked_{name}", (found > threshold).mean((1, 2)))
        for other in films:
            if other.kind != film.kind:
                _score_pair(film, other, mark, threshold, add)
    figures: dict[str, float | int] = {"films": len(films), "seconds": len(rows["pointing"])}
    for name, values in rows.items():
        if values:
            figures[name] = float(np.mean(values))
    figures["masks_not_empty"] = len(rows["precision"])
    figures["side_by_side_cases"] = len(rows.get("side_by_side_half", ()))
    return figures


def _score_pair(film: Film, other: Film, mark: Mark, threshold: float, add: Callable) -> None:
    """`film` with the sound of `other`; and `film` to the left of `other`, with either's sound."""
    count = min(len(film.times), len(other.times))
    found = mark(film.frames[:count], other.times[:count], other.sound)
    add("marked_other", (found > threshold).mean((1, 2)))
    together = np.concatenate([_squash(film.frames[:count]), _squash(other.frames[:count])], axis=2)
    for heard, left in ((film, 0.0), (other, 0.5)):
        found = mark(together, heard.times[:count], heard.sound)
        half = fill_boxes(np.array([[left, 0, left + 0.5, 1]]), found.shape[1:])
        for probability, boxes in zip(found, heard.boxes, strict=False):
            moved = boxes * [0.5, 1, 0.5, 1] + [left, 0, left, 0]
            add("side_by_side_half", [points_into(probability, half)])
            inside = fill_boxes(moved, probability.shape)
            add("side_by_side_box", [points_into(probability, inside)])


def _squash(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(x, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for x in frames])


def fill_boxes(boxes: Float[np.ndarray, "n 4"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """True where the middle of a pixel lies in a box; `size` = (h, w)."""
    y = (np.arange(size[0])[:, None] + 0.5) / size[0]
    x = (np.arange(size[1])[None] + 0.5) / size[1]
    inside = np.zeros(size, bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return inside


def points_into(probability: Float[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the most probable pixel is inside (most of them, of several); where all are equally
    probable, nothing is pointed at."""
    highest = probability.max()
    return bool(highest > probability.min() and inside[probability == highest].mean() > 0.5)


def tabulate(title: str, figures: dict[str, float | int]) -> str:
    """Markdown of `score`: how much, and of how many cases."""
    counted = {
        "pointing": ("seconds", "points into a box (chance {chance:.2f})"),
        "side_by_side_half": ("side_by_side_cases", "side by side: into the film heard (0.50)"),
        "side_by_side_box": ("side_by_side_cases", "side by side: into its box"),
        "precision": ("masks_not_empty", "precision of masks"),
    }
    rows = {
        what.format(**figures): {"value": figures[name], "of": figures[count]}
        for name, (count, what) in counted.items()
        if name in figures
    }
    for name, value in figures.items():
        if name.startswith("marked_"):
            rows[f"share of the picture marked, sound: {name[7:]}"] = {"value": value}
    return report.make_table(title, ["value", "of"], rows)
