"""What a clip sounds like: excerpts of recordings by the second, a room, noise, one level.

Loudness is taken from whole numbers, sums are element by element in float64: every machine mixes
the same samples.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from avs_jax.data.stamps.media import Excerpt
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.types import Float

LEAST_ENERGY = 0.15  # of an excerpt's loudest second, for a second that is used
_LEVEL = 0.1  # RMS of a voice at 0 dB
_FADE = 128  # samples, 8 ms: an excerpt's end must not click
_GRID = 2.0**20  # gains are rounded to 1 / this


class Voice(NamedTuple):
    """One second of a recording: samples start .. stop of a file, heard from `offset` on.

    gain_db: 0 is an RMS of 0.1 over what is heard.
    """

    file: str
    start: int
    stop: int
    offset: int
    gain_db: float


@dataclasses.dataclass(frozen=True)
class Room:
    """Sparse echoes of decaying level ("velvet noise", Jarvelainen and Karjalainen, 2007).

    delays: in samples; gains: of each.
    """

    delays: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Room":
        """A small one: 20 to 50 echoes within 0.15 s, 6 to 18 dB below the voice in all."""
        count, reach = int(rng.integers(20, 51)), int(rng.integers(800, 2400))
        delays = np.sort(rng.integers(16, reach, count))
        level = 10 ** (-rng.uniform(6, 18) / 20) / math.sqrt(count / 3)
        gains = level * np.exp(-2 * delays / reach) * rng.choice([-1.0, 1.0], count)
        return cls(tuple(delays.tolist()), tuple((np.round(gains * _GRID) / _GRID).tolist()))

    def apply(self, sound: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
        out = sound.copy()
        for delay, gain in zip(self.delays, self.gains, strict=True):
            out[delay:] += gain * sound[:-delay]
        return out


def _energy(samples: np.ndarray) -> int:
    """Exact sum of squares of int16."""
    wide = samples.astype(np.int64)
    return int((wide * wide).sum())


def find_starts(sound: np.ndarray, excerpt: Excerpt, step: int = SAMPLE_RATE // 20) -> list[int]:
    """Where a second of an excerpt may start: where it is loud enough.

    What is shorter than a second starts at its start.
    """
    last = excerpt.stop - SAMPLE_RATE
    if last <= excerpt.start:
        return [excerpt.start]
    starts = range(excerpt.start, last + 1, step)
    wide = sound[excerpt.start : excerpt.stop].astype(np.int64)
    total = np.concatenate([[0], np.cumsum(wide * wide)])
    energies = [
        int(total[s - excerpt.start + SAMPLE_RATE] - total[s - excerpt.start]) for s in starts
    ]
    return [s for s, e in zip(starts, energies, strict=True) if e >= LEAST_ENERGY * max(energies)]


def gain(decibels: float) -> float:
    return round(10 ** (decibels / 20) * _GRID) / _GRID


def sing(voice: Voice, sound: np.ndarray) -> Float[np.ndarray, "s"]:
    """A voice's second: f64[16000]; `sound`: the whole recording, int16."""
    samples = sound[voice.start : voice.stop]
    out = np.zeros(SAMPLE_RATE)
    if not (energy := _energy(samples)):
        return out
    rms = math.sqrt(energy / len(samples)) / 32768
    scale = round(gain(voice.gain_db) * _LEVEL / rms * _GRID) / _GRID
    heard = samples * (scale / 32768)
    fade = min(_FADE, len(heard) // 2)
    ramp = (np.arange(fade) + 0.5) / max(1, fade)
    heard[:fade] *= ramp
    heard[len(heard) - fade :] *= ramp[::-1]
    out[voice.offset : voice.offset + len(heard)] = heard
    return out


def finish(
    sound: Float[np.ndarray, "s"], hiss: Float[np.ndarray, "s"], master: float
) -> np.ndarray:
    """Level, hiss, and int16; what is too loud is scaled down, not clipped."""
    mixed = sound * master + hiss
    loudest = float(np.abs(mixed).max(initial=0.0))
    if loudest > 1:
        mixed = mixed * (1 / loudest)
    return np.clip(np.round(mixed * 32768), -32768, 32767).astype(np.int16)
