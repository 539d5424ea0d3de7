"""What happens in a clip of `sounding_shapes`: which objects, where they move, what sounds when.

`plan_clip` draws a clip's whole story from (seed, subset, split, index) and nothing else, so that
clips can be made in any order and on any machine. A plan knows neither picture size nor frame
rate: `render` draws any instant of it at any size, `record` plays its sound. The frame of second
k shows the scene at k + 0.5 s.

Nothing in a picture tells whether an object sounds: look, size, place, motion and depth are drawn
from the same distributions for silent and sounding ones.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from avs_jax import errors
from avs_jax.data.sounding_shapes import shapes, timbres
from avs_jax.types import Float, UInt8

CLASSES = (
    "background",
    "bell disc",
    "siren triangle",
    "drum square",
    "noise flower",
    "string ellipse",
)
CLASSES += ("organ hexagon", "cricket crescent", "buzzer cross", "whistle ring", "engine star")
SUBSETS = ("s4", "ms3", "avss")
SPLITS = ("train", "validation", "test")
FRAME_OFFSET = 0.5  # where in its second a frame is taken

# How likely 1, 2, 3 objects are. In S4 one of them sounds; held-out scenes of MS3 have two or more.
_COUNTS = {"s4": (0.3, 0.45, 0.25), "ms3": (0.15, 0.5, 0.35), "avss": (0.15, 0.5, 0.35)}
_COUNTS_HELD_OUT = {"ms3": (0.0, 0.6, 0.4)}
_ALWAYS_SILENT = 0.53  # an object other than the first that never sounds in its clip
_ON_ALONE, _ON_TOGETHER = 0.8, 0.62  # a sounding object is heard in a given second
_NEW_VOICE = 0.35  # ... with another pitch and rate than in the second before
_LEAST_VISIBLE = 0.15  # of its own area, for an object in a second in which it sounds
_PLANNING_SIZE = 48  # pixels; visibility is judged here, so that a plan does not depend on the size
_LOUDNESS = 0.09  # RMS of an object at 0 dB


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: look, path and sound.

    Attributes:
      kind: 0..9; its class id is kind + 1. centre, swing, speed, phase: x and y of its path,
      centre + swing * sin(2 pi (speed * time + phase)), in
        sides of the picture and turns a second.
      voices: what is heard of it in each second, None in the silent ones.
    """

    kind: int
    skin: shapes.Skin
    radius: float
    centre: tuple[float, float]
    swing: tuple[float, float]
    speed: tuple[float, float]
    phase: tuple[float, float]
    angle: float
    spin: float
    gain_db: float
    voices: tuple[timbres.Voice | None, ...]

    def pose(self, time: float) -> shapes.Pose:
        x, y = (
            c + a * math.sin(2 * math.pi * (f * time + p))
            for c, a, f, p in zip(self.centre, self.swing, self.speed, self.phase, strict=True)
        )
        return shapes.Pose(x, y, self.radius, self.angle + self.spin * time)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A clip before it is drawn: `things` from back to front; `key` seeds background and noise."""

    key: tuple[int, ...]
    seconds: int
    things: tuple[Thing, ...]
    hiss: float

    def is_on(self, thing: Thing, time: float) -> bool:
        return thing.voices[min(int(time), self.seconds - 1)] is not None


class Clip(NamedTuple):
    """A drawn clip: RGB frames, class id of what sounds / of every visible object, 16 kHz sound."""

    frames: UInt8[np.ndarray, "t h w 3"]
    label: UInt8[np.ndarray, "t h w"]
    objects: UInt8[np.ndarray, "t h w"]
    waveform: np.ndarray  # int16[s]


def _draw_voices(rng: np.random.Generator, seconds: int, chance: float) -> tuple:
    """Voices of an object that is heard in at least one second."""
    heard = rng.random(seconds) < chance
    while not heard.any():
        heard = rng.random(seconds) < chance
    voices, voice = [], timbres.Voice.draw(rng)
    for on in heard:
        if rng.random() < _NEW_VOICE:
            voice = timbres.Voice.draw(rng)
        voices.append(voice if on else None)
    return tuple(voices)


def _draw_thing(rng: np.random.Generator, kind: int, voices: tuple) -> Thing:
    def pair(low, high):
        return rng.uniform(low, high), rng.uniform(low, high)

    return Thing(
        kind=kind,
        skin=shapes.Skin.draw(shapes.LOOKS[kind], rng),
        radius=rng.uniform(0.13, 0.25),
        centre=pair(0.24, 0.76),
        swing=pair(0.03, 0.15),
        speed=pair(0.05, 0.25),
        phase=pair(0.0, 1.0),
        angle=rng.uniform(0, 2 * math.pi),
        spin=rng.uniform(-0.8, 0.8),
        gain_db=rng.uniform(-7, 3),
        voices=voices,
    )


def _draw_plan(key: tuple[int, ...], attempt: int, subset: str, split: str) -> Plan:
    rng = np.random.default_rng((*key, attempt))
    seconds = 10 if subset == "avss" and rng.random() < 0.5 else 5
    chances = _COUNTS[subset] if split == "train" else _COUNTS_HELD_OUT.get(subset, _COUNTS[subset])
    count = 1 + int(np.searchsorted(np.cumsum(chances), rng.random(), side="right"))
    count = min(count, len(chances))
    silent_chance = 1.0 if subset == "s4" else _ALWAYS_SILENT
    sounding = [i == 0 or rng.random() >= silent_chance for i in range(count)]
    chance = _ON_ALONE if sum(sounding) == 1 else _ON_TOGETHER
    kinds = rng.permutation(len(shapes.LOOKS))[:count]
    things = []
    for kind, sounds in zip(kinds, sounding, strict=True):
        voices = _draw_voices(rng, seconds, chance) if sounds else (None,) * seconds
        things.append(_draw_thing(rng, int(kind), voices))
    depth = rng.permutation(count)  # the sounding ones are not always behind
    hiss = 10 ** rng.uniform(-3.5, -2.3)
    return Plan(key, seconds, tuple(things[i] for i in depth), hiss)


def _draw_objects(plan: Plan, time: float, size: int) -> tuple[np.ndarray, list[int]]:
    """Class id of the object in front at each pixel u8[size size], and every object's own area."""
    objects = np.zeros((size, size), np.uint8)
    areas = []
    for thing in plan.things:
        found = shapes.outline(shapes.LOOKS[thing.kind], thing.skin, thing.pose(time), size)
        if found is None:
            areas.append(0)
            continue
        rows, columns, inside = found
        objects[rows, columns][inside] = thing.kind + 1
        areas.append(int(inside.sum()))
    return objects, areas


def _is_fair(plan: Plan) -> bool:
    """No second asks for an object of which only a sliver can be seen."""
    for second in range(plan.seconds):
        time = second + FRAME_OFFSET
        on = [plan.is_on(thing, time) for thing in plan.things]
        if not any(on):
            continue
        objects, areas = _draw_objects(plan, time, _PLANNING_SIZE)
        for thing, is_on, area in zip(plan.things, on, areas, strict=True):
            if is_on and np.count_nonzero(objects == thing.kind + 1) < max(
                1, _LEAST_VISIBLE * area
            ):
                return False
    return True


def plan_clip(subset: str, split: str, index: int, seed: int = 0) -> Plan:
    """The plan of clip `index` of a split; raises UnknownNameError for subset or split."""
    if subset not in SUBSETS:
        raise errors.unknown_name("subset of sounding_shapes", subset, SUBSETS)
    if split not in SPLITS:
        raise errors.unknown_name("split of sounding_shapes", split, SPLITS)
    key = (seed, SUBSETS.index(subset), SPLITS.index(split), index)
    attempt = 0
    while not _is_fair(plan := _draw_plan(key, attempt, subset, split)):
        attempt += 1
    return plan


class Scene:
    """A plan with its background drawn once, ready to be looked at.

    Args:
      plan: the clip.
      size: side of the square pictures, in pixels.
    """

    def __init__(self, plan: Plan, size: int):
        self.plan = plan
        self.size = size
        self._background = shapes.draw_background(size, np.random.default_rng((*plan.key, 1, 0)))

    def show(
        self, time: float
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
        """The frame, its label and all its objects at `time` (seconds into the clip)."""
        picture = self._background.copy()
        for thing in self.plan.things:
            shapes.paint(picture, shapes.LOOKS[thing.kind], thing.skin, thing.pose(time))
        objects, _ = _draw_objects(self.plan, time, self.size)
        heard = np.zeros(len(CLASSES), np.uint8)  # class id -> itself, or 0
        for thing in self.plan.things:
            if self.plan.is_on(thing, time):
                heard[thing.kind + 1] = thing.kind + 1
        rng = np.random.default_rng((*self.plan.key, 2, round(time * 1000)))
        return shapes.to_bytes(picture, rng), heard[objects], objects


def record(plan: Plan) -> Float[np.ndarray, "s"]:
    """The clip's sound, 16 kHz mono in [-1, 1]: all that is heard in each second, and a hiss."""
    rng = np.random.default_rng((*plan.key, 3, 0))
    sound = rng.standard_normal(plan.seconds * timbres.SAMPLE_RATE, dtype=np.float32)
    sound *= np.float32(plan.hiss)
    for thing in plan.things:
        gain = np.float32(_LOUDNESS * 10 ** (thing.gain_db / 20))
        for second, voice in enumerate(thing.voices):
            if voice is not None:
                start = second * timbres.SAMPLE_RATE
                heard = sound[start : start + timbres.SAMPLE_RATE]
                heard += gain * timbres.sing(thing.kind, voice)
    return np.clip(sound, -1, 1)


def render_clip(plan: Plan, size: int) -> Clip:
    """Draws one frame a second, at k + 0.5 s, with labels, and the sound as int16.

    The sound is rounded to 12 bits: that is below its own hiss, and packs better on disk.
    """
    scene = Scene(plan, size)
    shown = [scene.show(second + FRAME_OFFSET) for second in range(plan.seconds)]
    frames, label, objects = (np.stack(part) for part in zip(*shown, strict=True))
    waveform = np.clip(np.round(record(plan) * 2048), -2048, 2047).astype(np.int16) * np.int16(16)
    return Clip(frames, label, objects, waveform)
