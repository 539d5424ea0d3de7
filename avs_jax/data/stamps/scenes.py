"""What happens in a clip of `stamps`: what is there, where it moves, what sounds when.

`Scenes(media, split).plan(i)` draws clip i's story from (seed, split, i) and the media alone;
`render` draws it, `record` plays it. The frame of second k shows the scene at k + 0.5 s.

Nothing in a picture tells whether a thing sounds: look, size, place, motion and depth are drawn
alike for silent and sounding ones, and every thing is pasted, lit and blurred in the same way.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from avs_jax import errors
from avs_jax.data.stamps import classes, mixing, painting
from avs_jax.data.stamps.media import SPLITS, Excerpt, Media, Pools
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.types import Int, UInt8

SECONDS = 5
FRAME_OFFSET = 0.5  # where in its second a frame is taken

# How likely 1, 2, 3, 4 things are; a single one that sounds would not need to be found.
_COUNTS, _COUNTS_HELD_OUT = (0.15, 0.35, 0.3, 0.2), (0.0, 0.45, 0.35, 0.2)
_SILENT_THING = 0.12  # another than the first: a person, a plant, a chair, ...
_VOICED, _ON = 0.68, 0.8  # a thing ever sounds in its clip; and then in a given second
_GOES_ON = 0.6  # a recording that sounded in the second before goes on where it was
# Kinds of clips: of the others things in the picture sound less often.
_KINDS = {"plain": 0.8, "absent": 0.08, "speech": 0.06, "quiet": 0.06}
_VOICED_BESIDE = 0.3  # a thing sounds beside what is heard from outside the picture
# ... where the same pictures are met by other sounds: that nothing in view sounds is learnt last.
_KINDS_RETAKEN = {"plain": 0.66, "absent": 0.16, "speech": 0.08, "quiet": 0.1}
# Of near clips, as films are: one thing or two that fill the picture, and sounds of others.
_COUNTS_NEAR = (0.5, 0.5)
_KINDS_NEAR = {"plain": 0.58, "absent": 0.28, "speech": 0.07, "quiet": 0.07}
_BESIDE = 0.6  # of two: each in its half, as in a picture of two films
_LOUD_HISS = 0.4  # of these quiet ones: noise as loud as a voice
_NOISE = 0.2  # there are off-screen noises
_ROOM = 0.35
_LEAST_VISIBLE = 0.35  # of its own area, for every thing in every second
_PLANNING_SIZE = 56  # pixels; visibility is judged here, so that a plan hangs on no picture size
_ATTEMPTS = 60  # after these the last try is taken without its hindmost thing


@dataclasses.dataclass(frozen=True)
class Thing:
    """A cut-out, its path and its sound.

    swing, speed, phase: x and y of its path about the middle of its pose, centre + swing *
    sin(2 pi (speed * time + phase)); growth and spin: of size (factor) and angle over the clip.
    voices: what is heard of it in each second, or None.
    """

    name: str  # of CLASSES
    file: str
    pose: painting.Pose
    swing: tuple[float, float]
    speed: tuple[float, float]
    phase: tuple[float, float]
    growth: float
    spin: float
    colours: painting.Colours
    blur: float
    voices: tuple[mixing.Voice | None, ...]

    def at(self, time: float) -> painting.Pose:
        x, y = (
            c + a * math.sin(2 * math.pi * (f * time + p))
            for c, a, f, p in zip(
                (self.pose.x, self.pose.y), self.swing, self.speed, self.phase, strict=True
            )
        )
        part = time / SECONDS - 0.5
        return dataclasses.replace(
            self.pose,
            x=x,
            y=y,
            size=self.pose.size * self.growth**part,
            angle=self.pose.angle + self.spin * part,
        )


@dataclasses.dataclass(frozen=True)
class Camera:
    """Background and all that happens to the whole picture.

    crop: where in the background, from 0 to 1 each way, and the side of what is seen, in its
    shorter sides; pan: how far that moves over the clip, in sides of the picture.
    """

    file: str
    crop: tuple[float, float, float]
    pan: tuple[float, float]
    flip: bool
    colours: painting.Colours
    background_blur: float
    blur: float
    light: tuple[float, float]  # angle, strength
    noise: float  # standard deviation, of 255
    quality: int  # of the JPEG


@dataclasses.dataclass(frozen=True)
class Plan:
    """A clip before it is made: `things` from back to front; `key` seeds noise and hiss.

    near: its things fill the picture. offscreen: in each second what is heard and not seen.
    """

    key: tuple[int, ...]
    kind: str
    things: tuple[Thing, ...]
    offscreen: tuple[tuple[mixing.Voice, ...], ...]
    camera: Camera
    room: mixing.Room
    level: float  # of all voices
    hiss: float
    near: bool = False


class Clip(NamedTuple):
    """A made clip. `instances`: 1.. from back to front; the others: ids of classes."""

    jpegs: list[bytes]
    label: UInt8[np.ndarray, "t h w"]
    objects: UInt8[np.ndarray, "t h w"]
    instances: UInt8[np.ndarray, "t h w"]
    waveform: Int[np.ndarray, "s"]  # int16


class Scenes:
    """The clips of one split, by number.

    Args:
      media: the unpacked packages.
      split: of `media.SPLITS`.
      size: side of the square pictures, in pixels.
      seed: of everything that is drawn.
      weak, drawings: see `Media.pools`.

    Raises:
      UnknownNameError: for the split. BadValueError: there is too little in the media for clips.
    """

    def __init__(
        self,
        media: Media,
        split: str,
        size: int = 224,
        seed: int = 0,
        weak: bool = False,
        drawings: bool = False,
    ):
        self.media, self.split, self.size, self.seed = media, split, size, seed
        self.pools: Pools = media.pools(split, weak, drawings)
        if len(self.pools.pictures) < 2 or not self.pools.backgrounds:
            raise errors.BadValueError(
                f"split {split} of the media under {media.folder} has "
                f"{len(self.pools.pictures)} classes and {len(self.pools.backgrounds)} "
                "backgrounds; clips need 2 and 1 at least."
            )

    # ------------------------------------------------------------ plans

    def plan(self, index: int, near: float = 0.0) -> Plan:
        """The story of clip `index`, the same on every machine.

        near: share of clips whose things fill the picture.
        """
        key = (self.seed, SPLITS.index(self.split), index)
        is_near = bool(np.random.default_rng((*key, 4_000_000)).random() < near)
        for attempt in range(_ATTEMPTS):
            plan = self._draw(key, attempt, is_near)
            if self._is_fair(plan):
                return plan
        while not self._is_fair(plan):
            plan = dataclasses.replace(plan, things=plan.things[1:])
        return plan

    def _draw(self, key: tuple[int, ...], attempt: int, near: bool) -> Plan:
        rng = np.random.default_rng((*key, attempt))
        kinds = _KINDS_NEAR if near else _KINDS
        kind = list(kinds)[_choose(rng, tuple(kinds.values()))]
        strong = bool(rng.random() < 0.5)
        names = sorted(self.pools.pictures)
        chances = _COUNTS if self.split == "train" else _COUNTS_HELD_OUT
        chances = _COUNTS_NEAR if near else chances
        count = min(1 + _choose(rng, chances), len(names))
        order = [names[i] for i in rng.permutation(len(names))]
        voiced = _chance_to_sound(kind)
        things = []
        beside = near and count == 2 and rng.random() < _BESIDE
        for i, name in enumerate(order[:count]):
            if i and self.pools.silent and rng.random() < _SILENT_THING:
                name = classes.SILENT
            voices = (None,) * SECONDS
            if name != classes.SILENT and rng.random() < voiced:
                voices = self._draw_voices(rng, self.pools.sounds[name], _ON)
            thing = self._draw_thing(rng, name, voices, strong)
            if near:
                thing = _bring_near(rng, thing, i if beside else None)
            things.append(thing)
        offscreen = self._draw_outside(rng, kind, order[count] if count < len(order) else None)
        room = mixing.Room.draw(rng) if rng.random() < _ROOM else mixing.Room()
        return Plan(
            key=key,
            kind=kind,
            things=tuple(things),
            near=near,
            offscreen=offscreen,
            camera=self._draw_camera(rng, strong),
            room=room,
            level=mixing.gain(rng.uniform(-10, 6)),
            hiss=mixing.gain(20 * rng.uniform(-4.5, -2.6)),
        )

    def retake(self, plan: Plan, take: int) -> Plan:
        """The same pictures with other sounds; take 0 is the plan's own.

        A picture met with several sounds does not tell which of its things sound.
        """
        if not take:
            return plan
        rng = np.random.default_rng((*plan.key, 3_000_000 + take))
        kinds = _KINDS_NEAR if plan.near else _KINDS_RETAKEN
        kind = list(kinds)[_choose(rng, tuple(kinds.values()))]
        loud = kind == "quiet" and rng.random() < _LOUD_HISS
        things = []
        for thing in plan.things:
            voices = (None,) * SECONDS
            if thing.name != classes.SILENT and rng.random() < _chance_to_sound(kind):
                voices = self._draw_voices(rng, self.pools.sounds[thing.name], _ON)
            things.append(dataclasses.replace(thing, voices=voices))
        seen = {thing.name for thing in plan.things}
        absent = [name for name in sorted(self.pools.pictures) if name not in seen]
        heard = absent[int(rng.integers(len(absent)))] if absent else None
        return dataclasses.replace(
            plan,
            kind=kind,
            things=tuple(things),
            offscreen=self._draw_outside(rng, kind, heard),
            room=mixing.Room.draw(rng) if rng.random() < _ROOM else mixing.Room(),
            level=mixing.gain(rng.uniform(-10, 6)),
            hiss=mixing.gain(20 * rng.uniform(*((-2.6, -0.8) if loud else (-4.5, -2.6)))),
        )

    def _draw_outside(self, rng, kind: str, absent: str | None) -> tuple:
        """What is heard in each second of a clip and not seen; `absent`: a class to be heard."""
        outside = []
        if kind == "absent" and absent is not None:
            outside.append(self._draw_voices(rng, self.pools.sounds[absent], 0.9))
        if kind == "speech" and self.pools.speech:
            outside.append(self._draw_voices(rng, self.pools.speech, 0.9))
        if self.pools.noises and rng.random() < _NOISE:
            outside.append(self._draw_voices(rng, self.pools.noises, 0.8))
        seconds = zip(*outside, strict=True)
        return tuple(tuple(filter(None, second)) for second in seconds) or ((),) * SECONDS

    def _draw_thing(self, rng, name: str, voices: tuple, strong: bool) -> Thing:
        files = self.pools.silent if name == classes.SILENT else self.pools.pictures[name]
        low, high, turn, aspect = (0.12, 0.8, 0.26, 0.3) if strong else (0.28, 0.65, 0.14, 0.16)
        size = math.exp(rng.uniform(math.log(low), math.log(high)))
        reach = max(0.12, size * 0.35)

        def pair(first, last):
            return float(rng.uniform(first, last)), float(rng.uniform(first, last))

        x, y = pair(reach, 1 - reach)
        return Thing(
            name=name,
            file=files[int(rng.integers(len(files)))],
            pose=painting.Pose(
                x=x,
                y=y,
                size=size,
                angle=float(rng.normal(0, turn)),
                aspect=float(2 ** rng.uniform(-aspect, aspect)),
                flip=bool(rng.random() < 0.5),
            ),
            swing=pair(0.0, 0.14),
            speed=pair(0.05, 0.22),
            phase=pair(0.0, 1.0),
            growth=float(2 ** rng.normal(0, 0.3)),
            spin=float(rng.normal(0, turn)),
            colours=painting.Colours.draw(rng, 1.0 if strong else 0.5),
            blur=float(max(0.0, rng.normal(0, 0.8))),
            voices=voices,
        )

    def _draw_camera(self, rng, strong: bool) -> Camera:
        files = self.pools.backgrounds
        side = float(rng.uniform(0.5, 1.0))
        pan = (0.0, 0.0)
        if rng.random() < 0.3:
            pan = tuple(rng.uniform(-0.2, 0.2, 2).tolist())
        return Camera(
            file=files[int(rng.integers(len(files)))],
            crop=(*rng.uniform(0, 1, 2).tolist(), side),
            pan=pan,
            flip=bool(rng.random() < 0.5),
            colours=painting.Colours.draw(rng, 1.0 if strong else 0.5),
            background_blur=float(max(0.0, rng.normal(0, 1.2))),
            blur=float(max(0.0, rng.normal(0, 0.8 if strong else 0.5))),
            light=(float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0, 0.35))),
            noise=float(max(0.0, rng.normal(0, 5 if strong else 3))),
            quality=int(rng.integers(35, 93)),
        )

    def _draw_voices(self, rng, excerpts: tuple[Excerpt, ...], chance: float) -> tuple:
        """Of one recording, in at least one second."""
        excerpt = excerpts[int(rng.integers(len(excerpts)))]
        starts = self._starts(excerpt)
        heard = rng.random(SECONDS) < chance
        while not heard.any():
            heard = rng.random(SECONDS) < chance
        level, voices, last = float(rng.uniform(-7, 0)), [], None
        for on in heard:
            if not on:
                voices.append(None)
                last = None
                continue
            start = starts[int(rng.integers(len(starts)))]
            if last is not None and last + SAMPLE_RATE in starts and rng.random() < _GOES_ON:
                start = last + SAMPLE_RATE
            stop = min(start + SAMPLE_RATE, excerpt.stop)
            offset = int(rng.integers(SAMPLE_RATE - (stop - start) + 1))
            voices.append(mixing.Voice(excerpt.file, start, stop, offset, level))
            last = start
        return tuple(voices)

    @functools.cache  # noqa: B019 - a process has few
    def _starts(self, excerpt: Excerpt) -> list[int]:
        return mixing.find_starts(self.media.sound(excerpt.file), excerpt)

    def _is_fair(self, plan: Plan) -> bool:
        """Nothing is hidden, or out of the picture, for the most part."""
        for second in range(SECONDS):
            instances, areas = self._masks(plan, second + FRAME_OFFSET, _PLANNING_SIZE)
            for i, area in enumerate(areas, start=1):
                if np.count_nonzero(instances == i) < max(4, _LEAST_VISIBLE * area):
                    return False
        return True

    def _masks(self, plan: Plan, time: float, size: int):
        """Number of the thing in front u8[size size], and the area of each, outside counted."""
        instances, areas = np.zeros((size, size), np.uint8), []
        for i, thing in enumerate(plan.things, start=1):
            alpha = _alpha(self.media, thing.file)
            pose = thing.at(time)
            scale = pose.size * size / max(alpha.shape[:2])
            areas.append(np.count_nonzero(alpha >= 128) * scale**2)
            if (found := painting.place(alpha, pose, size)) is not None:
                rows, columns, pixels = found
                instances[rows, columns][pixels[..., 0] >= 128] = i
        return instances, areas

    # ------------------------------------------------------------ pictures and sound

    def render(self, plan: Plan) -> Clip:
        """Makes a clip: frames as JPEG, masks, sound."""
        things = [
            painting.premultiply(
                painting.blur(thing.colours.apply(self._cutout(thing)), thing.blur)
            )
            for thing in plan.things
        ]
        background = self._background(plan.camera)
        jpegs, instances = [], []
        for second in range(SECONDS):
            jpeg, mask = self._show(plan, things, background, second + FRAME_OFFSET)
            jpegs.append(jpeg)
            instances.append(mask)
        instances = np.stack(instances)
        label = self.label(plan, instances)
        return Clip(jpegs, label, _ids(plan)[instances], instances, self.record(plan))

    def label(
        self, plan: Plan, instances: UInt8[np.ndarray, "t h w"]
    ) -> UInt8[np.ndarray, "t h w"]:
        """The classes of what sounds, where it is seen."""
        label = np.zeros_like(instances)
        for second in range(SECONDS):
            on = [0, *(i * (t.voices[second] is not None) for i, t in enumerate(plan.things, 1))]
            label[second] = _ids(plan)[np.array(on)][instances[second]]
        return label

    def _cutout(self, thing: Thing) -> UInt8[np.ndarray, "h w 4"]:
        largest = thing.pose.size * math.sqrt(max(thing.growth, 1 / thing.growth)) * self.size
        return painting.shrink_to(self.media.cutout(thing.file), largest * 1.3)

    def _background(self, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
        """All that the camera sees while it pans; `_look` cuts a frame out of it."""
        shift = [math.ceil(abs(pan) * self.size / 2) for pan in camera.pan]
        columns, rows = (self.size + 2 * more for more in shift)
        whole = self.media.background(camera.file)
        side = min(whole.shape[:2])
        # what is needed must be there: else nearer
        seen = min(camera.crop[2] * side, side * self.size / max(rows, columns))
        small = painting.shrink_to(whole, max(whole.shape[:2]) * self.size / seen)
        scale = seen / self.size * small.shape[1] / whole.shape[1]
        height, width = small.shape[:2]
        left = (width - scale * columns) * camera.crop[0]
        top = (height - scale * rows) * camera.crop[1]
        across = (-scale, 0.0, left + scale * columns) if camera.flip else (scale, 0.0, left)
        found = painting.sample(small, (across, (0.0, scale, top)), range(rows), range(columns))
        return painting.blur(camera.colours.apply(found), camera.background_blur)

    def _look(self, background: np.ndarray, camera: Camera, time: float) -> np.ndarray:
        """The part of the background that is seen at `time`: a copy, u8[size size 3]."""
        part, start = time / SECONDS - 0.5, []
        for pan, length in zip(camera.pan[::-1], background.shape[:2], strict=True):
            start.append((length - self.size) // 2 + round(pan * self.size * part))
        rows, columns = (slice(first, first + self.size) for first in start)
        return background[rows, columns].copy()

    def _show(self, plan: Plan, things: list, background: np.ndarray, time: float):
        """The frame at `time` as JPEG, and the number of the thing in front at each pixel."""
        camera, size = plan.camera, self.size
        picture = self._look(background, camera, time)
        mask = np.zeros((size, size), np.uint8)
        for i, (thing, cutout) in enumerate(zip(plan.things, things, strict=True), start=1):
            found = painting.place(cutout, thing.at(time), size)
            if found is None:
                continue
            rows, columns, pixels = found
            painting.paste(picture[rows, columns], pixels)
            mask[rows, columns][pixels[..., 3] >= 128] = i
        lit = painting.blur(picture, camera.blur).astype(np.float32)
        lit *= painting.light_field(size, *camera.light)[..., None]
        rng = np.random.default_rng((*plan.key, 1_000_000 + round(time * 1000)))
        lit += np.float32(camera.noise) * rng.standard_normal(lit.shape, np.float32)
        seen = np.clip(np.round(lit), 0, 255).astype(np.uint8)
        return painting.encode_jpeg(seen, camera.quality), mask

    def record(self, plan: Plan) -> Int[np.ndarray, "s"]:
        """The clip's sound: int16, 16 kHz mono."""
        sound = np.zeros(SECONDS * SAMPLE_RATE)
        for second in range(SECONDS):
            here = sound[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]
            voices = [thing.voices[second] for thing in plan.things]
            for voice in (*filter(None, voices), *plan.offscreen[second]):
                here += mixing.sing(voice, self.media.sound(voice.file))
        rng = np.random.default_rng((*plan.key, 2_000_000))
        hiss = plan.hiss * rng.standard_normal(len(sound))
        return mixing.finish(plan.room.apply(sound), hiss, plan.level)


def _bring_near(rng: np.random.Generator, thing: Thing, half: int | None) -> Thing:
    """The thing, as large as the picture; `half`: 0 or 1, what it fills of the picture, or None."""
    size = math.exp(rng.uniform(math.log(0.6), math.log(1.3)))
    x, y = (float(v) for v in rng.uniform(0.36, 0.64, 2))
    aspect, swing = thing.pose.aspect, tuple(0.5 * v for v in thing.swing)
    if half is not None:  # two films beside each other are squeezed
        size *= 0.6
        x = 0.25 + 0.5 * half + float(rng.uniform(-0.05, 0.05))
        aspect *= float(2 ** rng.uniform(-1.1, -0.4))
        swing = (0.3 * swing[0], swing[1])
    pose = dataclasses.replace(thing.pose, x=x, y=y, size=size, aspect=aspect)
    return dataclasses.replace(thing, pose=pose, swing=swing)


def _chance_to_sound(kind: str) -> float:
    """Of a thing in a clip of that kind."""
    return {"quiet": 0.0, "plain": _VOICED}.get(kind, _VOICED_BESIDE)


def _ids(plan: Plan) -> UInt8[np.ndarray, "n"]:
    """Class of each thing by its number; 0 is the background."""
    return np.array([0, *(classes.CLASSES.index(thing.name) for thing in plan.things)], np.uint8)


def _choose(rng: np.random.Generator, chances: tuple[float, ...]) -> int:
    """A number 0.. by its chance."""
    found = int(np.searchsorted(np.cumsum(chances), rng.random(), side="right"))
    return min(found, len(chances) - 1)


@functools.lru_cache(maxsize=1024)
def _alpha(media: Media, file: str) -> UInt8[np.ndarray, "h w 1"]:
    """A cut-out's alpha, small: for planning."""
    alpha = media.cutout(file)[..., 3:]
    return painting.shrink_to(np.ascontiguousarray(alpha), _PLANNING_SIZE)
