"""What sounds when in a film: the probabilities of its masks, what is heard, and its sound, drawn.

    timeline = Timeline(info, class_names)
    predict_video(info, ..., see=timeline.add)
    described = timeline.describe(sound, heard)      plain lists and numbers, for JSON

`described`:

    film       {"name", "seconds", "width", "height"}
    classes    [{"id", "name", "colour"}] of what was marked at some time; colour is "#rrggbb"
    marks      [{"time", "marked": [{"id", "probability", "share"}]}], one for each mask: the
               probability of the likeliest pixel, and the share of the picture that is marked
    seconds    [{"second", "marked": [{"name", "probability", "share"}], "heard": [{"name",
               "probability"}]}]: the greatest of the second's masks, and what is heard in it
    waveform   {"per_second", "low", "high"}: the least and greatest sample of each column
    log_mel    {"per_second", "hertz", "columns"}: means of what the models hear, 64 bands a column
"""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.media import audio
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.media.drawing import BINARY_COLOURS, palette
from avs_jax.media.video import VideoInfo
from avs_jax.prediction.films import Mask
from avs_jax.prediction.model import Heard
from avs_jax.types import Array, Float

SOUNDING = "sounding"  # what a mask that says whether, not what, marks
WAVEFORM_COLUMNS, MEL_COLUMNS = 40, 8  # a second; both divide what a second has
_BLOCK = 10  # seconds of log-mel at a time: one compiled program for films of any length
_LEAST_HEARD = 0.05  # probability; below it a name is noise


class _Mark(NamedTuple):
    time: float
    peaks: np.ndarray  # f32[k] without the background
    shares: np.ndarray  # f64[k], as peaks


class Timeline:
    """Collects the masks of a film as they come, in the order of time."""

    def __init__(self, info: VideoInfo, class_names: Sequence[str] | None = None):
        """class_names: by the ids of masks, 0 being background; None: masks say whether only."""
        self._info = info
        self._names = ("", SOUNDING) if class_names is None else tuple(class_names)
        self._colours = BINARY_COLOURS if class_names is None else palette(len(class_names))
        self._marks: list[_Mark] = []

    def add(self, mask: Mask) -> None:
        """Keeps what a mask says, without its pixels. `mask.peaks` has to be there."""
        k = len(self._names)
        counts = np.bincount(mask.pixels.ravel(), minlength=k)[:k]
        peaks = mask.peaks if mask.binary else mask.peaks[1:]
        self._marks.append(_Mark(mask.time, peaks, counts[1:] / mask.pixels.size))

    def describe(
        self, sound: Float[np.ndarray, "s"], heard: Sequence[Sequence[Heard]] = ()
    ) -> dict[str, Any]:
        """All of it, ready for JSON (see this file's head).

        Args:
          sound: the film's, 16 kHz mono from its first picture on.
          heard: by second, see `Model.listen`; empty for a model without names for sounds.
        """
        marked = [k for k in range(len(self._names) - 1) if any(m.shares[k] for m in self._marks)]
        if len(self._names) == 2:
            marked = [0]  # its probability is told even if nothing is marked
        classes = [
            {"id": k + 1, "name": self._names[k + 1], "colour": _to_hex(self._colours[k + 1])}
            for k in marked
        ]
        low, high = waveform_envelope(sound)
        return {
            "film": {
                "name": os.path.basename(self._info.path),
                "seconds": round(self._find_end(sound), 3),
                "width": self._info.width,
                "height": self._info.height,
            },
            "classes": classes,
            "marks": [_describe_mark(mark, marked) for mark in self._marks],
            "seconds": self._describe_seconds(marked, heard),
            "waveform": {
                "per_second": WAVEFORM_COLUMNS,
                "low": _round(low),
                "high": _round(high),
            },
            "log_mel": {
                "per_second": MEL_COLUMNS,
                "hertz": list(audio.BAND_LIMITS),
                "columns": [_round(column, 2) for column in mel_envelope(sound)],
            },
        }

    def _find_end(self, sound: np.ndarray) -> float:
        last = self._marks[-1].time if self._marks else 0.0
        return max(self._info.duration or len(sound) / SAMPLE_RATE, last)

    def _describe_seconds(self, marked: list[int], heard: Sequence) -> list[dict[str, Any]]:
        count = max([int(mark.time) + 1 for mark in self._marks] + [len(heard)])
        seconds = []
        for second in range(count):
            within = [mark for mark in self._marks if int(mark.time) == second]
            found = [
                {
                    "name": self._names[k + 1],
                    "probability": _round(max(mark.peaks[k] for mark in within)),
                    "share": _round(max(mark.shares[k] for mark in within)),
                }
                for k in marked
                if within
            ]
            names = [
                {"name": one.name, "probability": _round(one.probability)}
                for one in (heard[second] if second < len(heard) else ())
                if one.probability >= _LEAST_HEARD
            ]
            seconds.append({"second": second, "marked": found, "heard": names})
        return seconds


def _describe_mark(mark: _Mark, marked: list[int]) -> dict[str, Any]:
    found = [
        {"id": k + 1, "probability": _round(mark.peaks[k]), "share": _round(mark.shares[k])}
        for k in marked
    ]
    return {"time": round(mark.time, 3), "marked": found}


def _round(number, digits: int = 4):
    """Floats of Python with few digits: what numpy has, JSON would not take or write at length."""
    return np.round(np.asarray(number, np.float64), digits).tolist()


def _to_hex(colour: np.ndarray) -> str:
    return "#" + bytes(colour.tolist()).hex()


def waveform_envelope(
    sound: Float[np.ndarray, "s"], per_second: int = WAVEFORM_COLUMNS
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The least and the greatest sample of each column, `per_second` of them, to draw a waveform.

    The last column is filled up with silence.
    """
    step = SAMPLE_RATE // per_second
    columns = np.pad(sound, (0, -len(sound) % step)).reshape(-1, step)
    return columns.min(axis=1), columns.max(axis=1)


def mel_envelope(sound: Float[np.ndarray, "s"]) -> Float[np.ndarray, "n 64"]:
    """Log-mel as the models hear it, the mean of each of `MEL_COLUMNS` parts of a second.

    Of a second the first 0.96 s, as a model takes them; of the last one what is there.
    """
    seconds = math.ceil(len(sound) / SAMPLE_RATE)
    whole = np.pad(sound, (0, -len(sound) % (_BLOCK * SAMPLE_RATE)))
    blocks = whole.reshape(-1, _BLOCK * SAMPLE_RATE)
    parts = [np.asarray(_mel_block(block)) for block in blocks]
    columns = np.concatenate([*parts, np.zeros((0, audio.NUM_BANDS), np.float32)])
    return columns[: seconds * MEL_COLUMNS]


@jax.jit
def _mel_block(sound: Float[Array, "s"]) -> Float[Array, "n 64"]:
    patches = audio.log_mel(sound, _BLOCK, "second")
    parts = patches.reshape(_BLOCK * MEL_COLUMNS, -1, audio.NUM_BANDS)
    return jnp.mean(parts, axis=1)
