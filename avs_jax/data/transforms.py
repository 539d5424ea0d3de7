"""What happens to a clip between disk and batch: augmentation in training, resizing everywhere.

All work on examples of `open_split` (uint8 frames, integer masks, float waveform), in numpy and
OpenCV, on the host. One random draw per clip is shared by its frames and its masks, so that they
stay aligned and motion stays motion. Class ids survive: masks are only ever moved by nearest
neighbour.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import grain
import numpy as np

from avs_jax import errors
from avs_jax.types import Float, UInt8

Number = float | int
Range = Sequence[Number]  # (low, high), both included
MASKS = ("label", "objects", "instances")
# The mean colour of ImageNet: what lies outside of a picture is 0 after normalisation.
_OUTSIDE = (124, 116, 104)
_LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


def resize_frames(frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int) -> np.ndarray:
    """Frames u8[t height width 3]: by area where they shrink (no aliasing), else bilinear."""
    if frames.shape[1:3] == (height, width):
        return frames
    shrinks = height <= frames.shape[1] and width <= frames.shape[2]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in frames])


def resize_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Class ids [t height width] of the same dtype, each that of the nearest pixel centre."""
    if masks.shape[1:3] == (height, width):
        return masks
    rows = _nearest(masks.shape[1], height)
    columns = _nearest(masks.shape[2], width)
    return masks[:, rows[:, None], columns[None, :]]


def _nearest(length: int, wanted: int) -> np.ndarray:
    """Index of the old pixel in which each new pixel's centre lies."""
    return ((2 * np.arange(wanted) + 1) * length) // (2 * wanted)


def _check_size(size: int) -> None:
    if size < 1:
        raise errors.BadValueError(f"size={size}: wanted a number of pixels, at least 1.")


def _check_range(name: str, low_high: Range, least: Number) -> None:
    if not (len(low_high) == 2 and least <= low_high[0] <= low_high[1]):
        raise errors.BadValueError(
            f"{name}={low_high}: wanted (low, high), {least} <= low <= high."
        )


def _check_share(name: str, value: Number) -> None:
    if not 0 <= value <= 1:
        raise errors.BadValueError(f"{name}={value}: wanted 0 to 1.")


@dataclasses.dataclass(frozen=True)
class Resize(grain.transforms.Map):
    """To `size` x `size`, as AVSBench evaluates: the whole picture, its aspect ratio given up.

    masks: False leaves them at their size on disk.
    """

    size: int
    masks: bool = True

    def __post_init__(self):
        _check_size(self.size)

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        out = dict(element)
        out["frames"] = resize_frames(element["frames"], self.size, self.size)
        for key in MASKS if self.masks else ():
            if key in element:
                out[key] = resize_masks(element[key], self.size, self.size)
        return out


@dataclasses.dataclass(frozen=True)
class CentreCrop(grain.transforms.Map):
    """Scales the short side to `size` and keeps the middle of the long one: AVSBench on AVSS."""

    size: int

    def __post_init__(self):
        _check_size(self.size)

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        height, width = element["frames"].shape[1:3]
        short = min(height, width)
        sides = (self.size * height // short, self.size * width // short)
        top, left = (round((side - self.size) / 2) for side in sides)
        out = dict(element)
        for key in ("frames", *MASKS):
            if key in element:
                resize = resize_frames if key == "frames" else resize_masks
                scaled = resize(element[key], *sides)
                out[key] = scaled[:, top : top + self.size, left : left + self.size]
        return out


@dataclasses.dataclass(frozen=True)
class Drop(grain.transforms.Map):
    """Leaves out entries, e.g. `objects`, which training must not see."""

    keys: tuple[str, ...]

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in element.items() if key not in self.keys}


@dataclasses.dataclass(frozen=True)
class ScaleCrop(grain.transforms.RandomMap):
    """Scales the picture and cuts a `size` x `size` piece out of it.

    At scale 1 the piece is the largest square of the picture; at 2 a quarter of its area; below 1
    the picture gets a border (mean colour, background). The aspect ratio stays. Where the piece
    lies is random.

    Attributes:
      size: side of the result in pixels.
      scale: (low, high) of the scale, drawn uniformly in its logarithm.
    """

    size: int
    scale: Range = (1.0, 1.0)

    def __post_init__(self):
        _check_size(self.size)
        _check_range("scale", self.scale, 0.05)

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        height, width = element["frames"].shape[1:3]
        scale = np.exp(rng.uniform(*np.log(self.scale)))
        side = max(1, round(min(height, width) / scale))
        # Negative where the piece is larger than the picture: then the picture lies within it.
        top = round(rng.random() * (height - side))
        left = round(rng.random() * (width - side))
        out = dict(element)
        frames = _cut(element["frames"], top, left, side, _OUTSIDE)
        out["frames"] = resize_frames(frames, self.size, self.size)
        for key in MASKS:
            if key in element:
                masks = _cut(element[key], top, left, side, 0)
                out[key] = resize_masks(masks, self.size, self.size)
        return out


def _cut(pictures: np.ndarray, top: int, left: int, side: int, outside) -> np.ndarray:
    """The square [t side side ...] at (top, left), which may reach beyond the pictures."""
    height, width = pictures.shape[1:3]
    y, x = max(top, 0), max(left, 0)
    inside = pictures[:, y : min(top + side, height), x : min(left + side, width)]
    if inside.shape[1:3] == (side, side):
        return inside
    piece = np.empty((len(pictures), side, side, *pictures.shape[3:]), pictures.dtype)
    piece[...] = outside
    piece[:, y - top : y - top + inside.shape[1], x - left : x - left + inside.shape[2]] = inside
    return piece


@dataclasses.dataclass(frozen=True)
class Affine(grain.transforms.RandomMap):
    """Turns, zooms and shears the picture about its middle, as torchvision's RandomAffine.

    Frames and masks take the nearest pixel; what lies outside is black, and background.

    Attributes:
      rotate: the angle in degrees is drawn from -rotate to rotate.
      zoom: (low, high) of the scale, drawn uniformly.
      shear: along x; the angle in degrees is drawn from -shear to shear.
    """

    rotate: Number = 0.0
    zoom: Range = (1.0, 1.0)
    shear: Number = 0.0

    def __post_init__(self):
        _check_range("zoom", self.zoom, 0.05)
        for name, most in (("rotate", 180), ("shear", 80)):
            if not 0 <= getattr(self, name) <= most:
                raise errors.BadValueError(
                    f"{name}={getattr(self, name)}: wanted 0 to {most} degrees."
                )

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        angle, shear = np.deg2rad([self.rotate, self.shear]) * rng.uniform(-1, 1, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = rng.uniform(*self.zoom) * turn @ np.array([[1, -np.tan(shear)], [0, 1]])
        out = dict(element)
        for key in ("frames", *MASKS):
            if key in element:
                out[key] = warp(element[key], matrix)
        return out


def warp(pictures: np.ndarray, matrix: Float[np.ndarray, "2 2"]) -> np.ndarray:
    """[t h w ...] with (x, y) about the middle moved to matrix @ (x, y); 0 where nothing was."""
    height, width = pictures.shape[1:3]
    middle = np.array([width, height]) / 2
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    back = (np.stack([x, y], axis=-1) - middle) @ np.linalg.inv(matrix).T + middle
    columns, rows = np.moveaxis(np.floor(back).astype(int), -1, 0)
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    warped = pictures[:, rows.clip(0, height - 1), columns.clip(0, width - 1)]
    warped[:, outside] = 0
    return warped


@dataclasses.dataclass(frozen=True)
class Flip(grain.transforms.RandomMap):
    """Mirrors left and right, with a chance of `chance`."""

    chance: Number = 0.5

    def __post_init__(self):
        _check_share("chance", self.chance)

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.chance:
            return element
        out = dict(element)
        for key in ("frames", *MASKS):
            if key in element:
                out[key] = mirror(element[key])
        return out


def mirror(pictures: np.ndarray) -> np.ndarray:
    """[t h w ...] with left and right swapped: by OpenCV, 30 times as fast as a reversed view."""
    rows = pictures.reshape(-1, *pictures.shape[2:])
    return cv2.flip(rows, 1).reshape(pictures.shape)


@dataclasses.dataclass(frozen=True)
class ColourJitter(grain.transforms.RandomMap):
    """Brightness, contrast and saturation of a whole clip, each times a factor 1 - x to 1 + x.

    The three are linear in the colour, so that one 3x3 matrix and an offset do all of them at once.
    Contrast turns about the clip's mean grey, saturation about each pixel's own.
    """

    brightness: Number = 0.0
    contrast: Number = 0.0
    saturation: Number = 0.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            _check_share(name, getattr(self, name))

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        jitter = np.array([self.brightness, self.contrast, self.saturation])
        factors = 1 + jitter * rng.uniform(-1, 1, 3)
        if not jitter.any():
            return element
        out = dict(element)
        out["frames"] = jitter_colour(element["frames"], *factors)
        return out


def jitter_colour(
    frames: UInt8[np.ndarray, "t h w 3"], brightness: Number, contrast: Number, saturation: Number
) -> UInt8[np.ndarray, "t h w 3"]:
    """RGB times the three factors, rounded and held within 0..255."""
    count, height, width, _ = frames.shape
    flat = np.ascontiguousarray(frames).reshape(count * height, width, 3)
    grey = float(_LUMA @ cv2.mean(flat)[:3])  # numpy takes a hundred times as long
    matrix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    offset = np.full((3, 1), (1 - contrast) * grey)
    affine = brightness * np.concatenate([contrast * matrix, offset], axis=1)
    return cv2.transform(flat, affine).reshape(frames.shape)


@dataclasses.dataclass(frozen=True)
class Gain(grain.transforms.RandomMap):
    """Makes the sound louder or softer by (low, high) decibels, with a chance of `chance`."""

    decibels: Range = (0.0, 0.0)
    chance: Number = 0.5

    def __post_init__(self):
        _check_range("decibels", self.decibels, -100.0)
        _check_share("chance", self.chance)

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        gain, applies = rng.uniform(*self.decibels), rng.random() < self.chance
        if not applies or gain == 0:
            return element
        return element | {"waveform": amplify(element["waveform"], gain)}


def amplify(waveform: Float[np.ndarray, "s"], decibels: Number) -> Float[np.ndarray, "s"]:
    """The waveform louder by so many decibels, held within [-1, 1]."""
    return np.clip(waveform * np.float32(10 ** (decibels / 20)), -1, 1)


def train_transforms(
    size: int,
    *,
    flip: Number = 0.5,
    scale: Range = (1.0, 1.0),
    centre: bool = False,
    rotate: Number = 0.0,
    zoom: Range = (1.0, 1.0),
    shear: Number = 0.0,
    brightness: Number = 0.0,
    contrast: Number = 0.0,
    saturation: Number = 0.0,
    gain_db: Range = (0.0, 0.0),
    gain_chance: Number = 0.5,
) -> list:
    """The transforms of training in their order; arguments as in `config.data.augment`.

    `centre`: the middle of the picture rather than a random piece of it, as AVSBench trains.

    Raises BadValueError if a number is out of its range, or `scale` is given with `centre`.
    """
    if centre and tuple(scale) != (1, 1):
        raise errors.BadValueError(
            f"scale={tuple(scale)} needs a random piece; leave it at (1, 1) or centre at False."
        )
    affine = Affine(rotate, tuple(zoom), shear)
    return [
        Drop(("objects", "num_objects", "instances")),
        *([] if affine == Affine() else [affine]),
        CentreCrop(size) if centre else ScaleCrop(size, tuple(scale)),
        Flip(flip),
        ColourJitter(brightness, contrast, saturation),
        Gain(tuple(gain_db), gain_chance),
    ]


def eval_transforms(size: int | None, masks: bool = True) -> list:
    """The transforms of evaluation: to `size`, or none (None: pictures as they are on disk).

    masks: False leaves them at their size on disk.
    """
    return [] if size is None else [Resize(size, masks)]
