"""Cut-outs on photographs: sampling, colours, light, blur, noise, and what JPEG does to them.

All in whole numbers, or element by element in float32, so that every machine draws the same pixels:
reductions and library filters round by the width of the machine's vectors.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from avs_jax.types import Float, UInt8

_BITS = 16  # of the fractions of coordinates
_ONE = 1 << _BITS


@dataclasses.dataclass(frozen=True)
class Colours:
    """A change of colours: gains of R, G, B, contrast about middle grey, saturation, gamma."""

    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    saturation: float = 1.0
    gamma: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: float) -> "Colours":
        """strength 0 changes nothing, 1 a lot."""
        light = 2 ** rng.normal(0, 0.25 * strength)
        tint = 2 ** rng.normal(0, 0.1 * strength, 3)
        contrast, saturation, gamma = 2 ** rng.normal(0, np.array([0.25, 0.4, 0.25]) * strength)
        return cls(tuple((light * tint).tolist()), float(contrast), float(saturation), float(gamma))

    def apply(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """RGB or RGBA; alpha stays."""
        levels = np.arange(256) / 255
        rgb = np.empty_like(pixels[..., :3])
        for i, gain in enumerate(self.gains):
            table = (np.power(levels, self.gamma) - 0.5) * self.contrast + 0.5
            table = np.clip(np.round(table * gain * 255), 0, 255).astype(np.uint8)
            rgb[..., i] = table[pixels[..., i]]
        wide = rgb.astype(np.int32)
        grey = (77 * wide[..., 0] + 150 * wide[..., 1] + 29 * wide[..., 2]) >> 8  # BT.601
        amount = round(self.saturation * 256)
        wide = grey[..., None] + (((wide - grey[..., None]) * amount) >> 8)
        out = pixels.copy()
        out[..., :3] = np.clip(wide, 0, 255)
        return out


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where a cut-out is: centre, and the longer side, in sides of the picture; angle in radians;
    aspect: by how much it is wider, and flatter, than it was."""

    x: float
    y: float
    size: float
    angle: float
    aspect: float = 1.0
    flip: bool = False


def premultiply(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    """Colours times alpha: so transparent pixels lend no colour to the edge."""
    out = rgba.copy()
    alpha = rgba[..., 3:].astype(np.uint32)
    out[..., :3] = (rgba[..., :3] * alpha + 127) // 255
    return out


def halve(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Half the size by the mean of 2 x 2; an odd last row or column is repeated."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    wide = pixels.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def shrink_to(
    pixels: UInt8[np.ndarray, "h w c"], longest: int | float
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Halved until sampling it at `longest` pixels skips none."""
    while max(pixels.shape[:2]) >= 2 * longest and min(pixels.shape[:2]) > 1:
        pixels = halve(pixels)
    return pixels


def _fixed(value: float) -> int:
    return round(value * _ONE)


def sample(
    pixels: UInt8[np.ndarray, "h w c"],
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]],
    rows: range,
    columns: range,
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Bilinear: out[i, j] = pixels at matrix @ (j + 0.5, i + 0.5, 1), in pixels; outside zeros."""
    j = 2 * np.arange(columns.start, columns.stop, dtype=np.int64) + 1
    i = 2 * np.arange(rows.start, rows.stop, dtype=np.int64)[:, None] + 1
    (a, b, c), (d, e, f) = [[_fixed(value) for value in row] for row in matrix]
    x = ((a * j + b * i) >> 1) + c - _ONE // 2
    y = ((d * j + e * i) >> 1) + f - _ONE // 2
    height, width = pixels.shape[:2]
    # A frame of zeros, to which all that lies outside is moved.
    padded = np.pad(pixels, ((1, 2), (1, 2), (0, 0))).reshape(-1, pixels.shape[2])
    x = np.clip(x, -_ONE, width << _BITS)
    y = np.clip(y, -_ONE, height << _BITS)
    at = ((y >> _BITS) + 1) * (width + 3) + (x >> _BITS) + 1
    right = ((x >> (_BITS - 8)) & 255).astype(np.uint16)[..., None]
    down = ((y >> (_BITS - 8)) & 255).astype(np.uint32)[..., None]
    left = 256 - right  # sums stay below 255 * 256
    top = padded[at] * left + padded[at + 1] * right
    at += width + 3
    bottom = padded[at] * left + padded[at + 1] * right
    return ((top * (256 - down) + bottom * down + (1 << 15)) >> 16).astype(np.uint8)


def place(
    cutout: UInt8[np.ndarray, "h w c"], pose: Pose, side: int
) -> tuple[slice, slice, UInt8[np.ndarray, "h2 w2 c"]] | None:
    """A cut-out in a pose -> rows, columns and pixels of its box in a picture of `side` pixels.

    None where nothing of it is inside.
    """
    cutout = shrink_to(cutout, pose.size * side)
    height, width = cutout.shape[:2]
    longest = pose.size * side / max(height * 1.0, width * 1.0)
    stretch = math.sqrt(pose.aspect)
    out_width, out_height = width * longest * stretch, height * longest / stretch
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    centre_x, centre_y = pose.x * side, pose.y * side
    reach_x = (abs(cos) * out_width + abs(sin) * out_height) / 2 + 1
    reach_y = (abs(sin) * out_width + abs(cos) * out_height) / 2 + 1
    # math.floor of a rounded number: a last bit of cos or sin must not move the box
    rows = _box(centre_y, reach_y, side)
    columns = _box(centre_x, reach_x, side)
    if not len(rows) or not len(columns):
        return None
    across, along = width / out_width, height / out_height
    sign = -1 if pose.flip else 1
    a, b = sign * cos * across, sign * sin * across
    c, d = -sin * along, cos * along
    matrix = (
        (a, b, width / 2 - a * centre_x - b * centre_y),
        (c, d, height / 2 - c * centre_x - d * centre_y),
    )
    found = sample(cutout, matrix, rows, columns)
    return slice(rows.start, rows.stop), slice(columns.start, columns.stop), found


def _box(centre: float, reach: float, side: int) -> range:
    first = math.floor(round(centre - reach, 6))
    last = math.ceil(round(centre + reach, 6))
    return range(min(max(first, 0), side), min(max(last, 0), side))


def paste(picture: UInt8[np.ndarray, "h w 3"], cutout: UInt8[np.ndarray, "h w 4"]) -> None:
    """Puts a premultiplied cut-out onto a picture of the same size, in place."""
    clear = 255 - cutout[..., 3:].astype(np.uint32)
    picture[...] = cutout[..., :3] + (picture * clear + 127) // 255


@functools.cache
def _blur_weights(sigma: float) -> tuple[int, ...]:
    reach = max(1, math.ceil(2.5 * sigma))
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)]
    rounded = [round(256 * weight / sum(weights)) for weight in weights]
    rounded[reach] += 256 - sum(rounded)
    return tuple(rounded)


def blur(picture: UInt8[np.ndarray, "h w c"], sigma: float) -> UInt8[np.ndarray, "h w c"]:
    """Gaussian of `sigma` pixels; below a third of one nothing."""
    if sigma < 0.33:
        return picture
    weights = _blur_weights(round(sigma, 1))
    reach = len(weights) // 2
    for axis in (0, 1):
        pad = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(picture, pad, mode="edge").astype(np.uint32)
        total = np.uint32(128)
        for i, weight in enumerate(weights):
            part = (
                padded[i : i + picture.shape[0]]
                if axis == 0
                else padded[:, i : i + picture.shape[1]]
            )
            total = total + part * np.uint32(weight)
        picture = (total >> 8).astype(np.uint8)
    return picture


def light_field(side: int, angle: float, strength: float) -> Float[np.ndarray, "h w"]:
    """Light that falls off across the picture: 1 - strength .. 1 + strength, along `angle`."""
    line = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side / 2) - 1
    x, y = (np.float32(round(strength * f(angle), 4)) for f in (math.cos, math.sin))
    return 1 + line * x + line[:, None] * y


def encode_jpeg(picture: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """As a camera would store it."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", picture[..., ::-1], flags)[1].tobytes()


def decode_jpeg(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
