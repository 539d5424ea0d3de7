"""How the ten classes of `sounding_shapes` sound: one second of 16 kHz mono each.

A timbre is a function of a `Voice` (what varies within the class: pitch, rate, a generator for
its noise) and returns one second at RMS 1, unfaded. Pitches overlap between classes on purpose:
what names a class is the kind of sound, not its height.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from avs_jax.types import Float

SAMPLE_RATE = 16_000
_TIME = np.arange(SAMPLE_RATE, dtype=np.float32) / np.float32(SAMPLE_RATE)
_TURN = np.float32(2 * np.pi)


@dataclasses.dataclass(frozen=True)
class Voice:
    """What varies between two sounds of a class; `pitch` and `rate` in 0..1."""

    pitch: float
    rate: float
    seed: int

    @staticmethod
    def draw(rng: np.random.Generator) -> "Voice":
        return Voice(rng.random(), rng.random(), int(rng.integers(2**31)))


def _between(low, high, where):
    """Equal steps of `where` sound like equal steps: geometric."""
    return low * (high / low) ** where


def _sine(frequency, phase=0.0):
    return np.sin(_TURN * (np.float32(frequency) * _TIME + np.float32(phase)))


def _since_strike(rate, phase):
    """Seconds since the last of `rate` strikes a second."""
    return ((_TIME * np.float32(rate) + np.float32(phase)) % 1) / np.float32(rate)


def _slow_noise(rng, frequency):
    """Noise without much above `frequency`: white noise at a lower rate, joined by lines."""
    count = int(2 * frequency) + 2
    points = rng.standard_normal(count, dtype=np.float32)
    return np.interp(_TIME * np.float32(2 * frequency), np.arange(count), points).astype(np.float32)


def _bell(voice: Voice, rng: np.random.Generator):
    base = _between(350, 800, voice.pitch)
    age = _since_strike(_between(1.0, 3.0, voice.rate), rng.random())
    sound = np.zeros_like(_TIME)
    # Partials of a struck free bar: inharmonic, the high ones die first.
    for ratio, strength, decay in (
        (1.0, 1.0, 3.0),
        (2.76, 0.7, 5.0),
        (5.40, 0.5, 8.0),
        (8.93, 0.3, 12.0),
    ):
        sound += np.float32(strength) * np.exp(np.float32(-decay) * age) * _sine(base * ratio)
    return sound


def _siren(voice: Voice, rng: np.random.Generator):
    low = _between(450, 800, voice.pitch)
    rate = _between(1.0, 3.0, voice.rate)
    swing = np.abs(2 * ((_TIME * np.float32(rate) + np.float32(rng.random())) % 1) - 1)
    frequency = np.float32(low) * (1 + np.float32(1.2) * swing)
    phase = _TURN * np.cumsum(frequency, dtype=np.float64).astype(np.float32) / SAMPLE_RATE
    return np.sin(phase) + np.float32(0.4) * np.sin(2 * phase) + np.float32(0.2) * np.sin(3 * phase)


def _drums(voice: Voice, rng: np.random.Generator):
    base = _between(80, 160, voice.pitch)
    age = _since_strike(_between(3.0, 7.0, voice.rate), rng.random())
    skin = np.exp(-18 * age) * np.sin(_TURN * np.float32(base) * age * (1 + np.exp(-30 * age)))
    click = np.exp(-220 * age) * rng.standard_normal(SAMPLE_RATE, dtype=np.float32)
    return skin + np.float32(0.5) * click


def _bursts(voice: Voice, rng: np.random.Generator):
    age = _since_strike(_between(2.0, 5.0, voice.rate), rng.random())
    noise = rng.standard_normal(SAMPLE_RATE, dtype=np.float32)
    # The difference of neighbours brightens the hiss; pitch mixes dull and bright.
    bright = np.diff(noise, prepend=np.float32(0))
    hiss = np.float32(1 - voice.pitch) * noise + np.float32(0.2 + voice.pitch) * bright
    return hiss * np.exp(-9 * age) * np.minimum(1, age * 100)


def _string(voice: Voice, rng: np.random.Generator):
    base = _between(140, 400, voice.pitch)
    age = _since_strike(_between(1.5, 4.0, voice.rate), rng.random())
    sound = np.zeros_like(_TIME)
    for k in range(1, 9):
        sound += np.exp(np.float32(-2.0 - 1.6 * k) * age) * _sine(base * k) / np.float32(k)
    return sound


def _organ(voice: Voice, rng: np.random.Generator):
    base = _between(180, 480, voice.pitch)
    sound = np.zeros_like(_TIME)
    for k, strength in ((1, 1.0), (2, 0.8), (3, 0.5), (4, 0.45), (6, 0.3), (8, 0.25)):
        sound += np.float32(strength) * _sine(base * k, rng.random())
    return sound * (1 + np.float32(0.1) * _sine(_between(3, 6, voice.rate)))


def _cricket(voice: Voice, rng: np.random.Generator):
    tone = _sine(_between(4000, 5000, voice.pitch), rng.random())
    pulses = np.maximum(_sine(_between(22, 40, voice.rate), rng.random()), 0)
    chirps = np.clip(4 * _sine(_between(2, 4, voice.rate), rng.random()) + 2, 0, 1)
    return tone * pulses * chirps


def _buzzer(voice: Voice, rng: np.random.Generator):
    base = _between(85, 150, voice.pitch)
    saw = 2 * ((_TIME * np.float32(base) + np.float32(rng.random())) % 1) - 1
    return saw * (1 + np.float32(0.3) * np.sign(_sine(_between(6, 12, voice.rate))))


def _whistle(voice: Voice, rng: np.random.Generator):
    base = _between(1400, 2800, voice.pitch)
    rate = _between(4, 7, voice.rate)
    depth = 0.035 * base / rate  # of the phase: a swing of 3.5 % in frequency
    vibrato = np.float32(depth) * _sine(rate, rng.random())
    tone = np.sin(_TURN * np.float32(base) * _TIME + vibrato)
    return tone + np.float32(0.08) * rng.standard_normal(SAMPLE_RATE, dtype=np.float32)


def _engine(voice: Voice, rng: np.random.Generator):
    rumble = _slow_noise(rng, _between(250, 600, voice.pitch))
    return rumble * (1 + np.float32(0.9) * _sine(_between(13, 28, voice.rate), rng.random()))


TIMBRES: tuple[Callable[[Voice, np.random.Generator], np.ndarray], ...] = (
    _bell,
    _siren,
    _drums,
    _bursts,
    _string,
    _organ,
    _cricket,
    _buzzer,
    _whistle,
    _engine,
)

_FADE = np.minimum(1, np.minimum(_TIME, 1 - _TIME) / np.float32(0.02)).astype(np.float32)


def sing(timbre: int, voice: Voice) -> Float[np.ndarray, "16000"]:
    """One second of class `timbre` (0..9) at RMS 1, faded in and out over 20 ms."""
    sound = TIMBRES[timbre](voice, np.random.default_rng(voice.seed)).astype(np.float32)
    return sound * (_FADE / np.float32(np.sqrt(np.mean(sound * sound)) + 1e-6))
