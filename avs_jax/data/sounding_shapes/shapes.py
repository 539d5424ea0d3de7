"""How the ten classes of `sounding_shapes` look: outlines, textures, colours, backgrounds.

Everything is drawn from parameters that do not know the picture's size, so that one scene can be
drawn at 32, 96 or 512 pixels. A shape lives in its own coordinates (u to the right, v down, in
units of its radius); it is drawn inside its bounding box only, in float32.

Classes come in pairs that share a family of colours, so that a colour alone does not name the
class.
"""

import colorsys
import dataclasses
import math
from collections.abc import Callable

import cv2
import numpy as np

from avs_jax.types import Float, UInt8

# A shape's own coordinates -> how far inside its outline (in radii) or how bright (0..1).
Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
Texture = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


def _ray(u, v, turns: int):
    """Radius and cos(turns * angle), by recurrence: no arctan2, which differs between machines."""
    r = np.sqrt(u * u + v * v) + np.float32(1e-6)
    c = u / r
    before, now = np.ones_like(c), c
    for _ in range(turns - 1):
        before, now = now, 2 * c * now - before
    return r, now


def _disc(u, v):
    return 1 - np.sqrt(u * u + v * v)


def _triangle(u, v):
    return 0.5 - np.maximum(v, 0.8660254 * np.abs(u) - 0.5 * v)


def _square(u, v):
    return 1 - np.maximum(np.abs(u), np.abs(v))


def _flower(u, v):
    r, petals = _ray(u, v, 5)
    return 0.74 + 0.26 * petals - r


def _ellipse(u, v):
    return (1 - np.sqrt(u * u + (v / 0.55) ** 2)) * 0.7


def _hexagon(u, v):
    return 0.8660254 - np.maximum(np.abs(v), 0.8660254 * np.abs(u) + 0.5 * np.abs(v))


def _crescent(u, v):
    return np.minimum(_disc(u, v), np.sqrt((u - 0.5) ** 2 + v * v) - 0.78)


def _cross(u, v):
    a, b = np.abs(u), np.abs(v)
    return np.minimum(0.36 - np.minimum(a, b), 1 - np.maximum(a, b))


def _ring(u, v):
    return 0.24 - np.abs(np.sqrt(u * u + v * v) - 0.76)


def _star(u, v):
    r, points = _ray(u, v, 4)
    return 0.66 + 0.2 * points + 0.14 * points * np.abs(points) - r


def _wave(x):
    """A sine of period 1 in 0..1, flattened towards stripes."""
    return np.clip(0.5 + 0.9 * np.sin(np.float32(2 * np.pi) * x), 0, 1)


def _rings(u, v, scale, phase):
    return _wave(np.sqrt(u * u + v * v) * (1.9 * scale) + phase)


def _stripes(u, v, scale, phase):
    return _wave(u * (1.5 * scale) + phase)


def _checker(u, v, scale, phase):
    sines = np.sin(np.float32(4.4 * scale) * u + phase) * np.sin(
        np.float32(4.4 * scale) * v + phase
    )
    return np.clip(0.5 + 3 * sines, 0, 1)


def _blotches(u, v, scale, phase):
    turn = np.float32(6.28 * phase)
    field = np.sin(3.1 * scale * u + turn) + np.sin(3.7 * scale * v - 2 * turn)
    field = field + np.sin(2.6 * scale * (u + v) + 3 * turn) + np.sin(4.3 * scale * (u - v) + turn)
    return np.clip(0.5 + field, 0, 1)


def _fine_stripes(u, v, scale, phase):
    return _wave(v * (3.4 * scale) + phase)


def _gradient(u, v, scale, phase):
    return np.clip(0.5 + 0.5 * scale * (v + 0.6 * (phase - 0.5)), 0, 1)


def _dots(u, v, scale, phase):
    cosines = np.cos(np.float32(8.5 * scale) * u + 6.28 * phase) * np.cos(
        np.float32(8.5 * scale) * v
    )
    return np.clip(1.4 - 4 * np.abs(cosines), 0, 1)


def _diagonal_bars(u, v, scale, phase):
    return _wave((u + v) * (1.1 * scale) + phase)


def _spokes(u, v, scale, phase):
    _, spokes = _ray(u, v, 8)
    return np.clip(0.5 + 1.5 * spokes + (phase - 0.5), 0, 1)


def _hatch(u, v, scale, phase):
    crossing = np.maximum(_wave((u + v) * (2.2 * scale) + phase), _wave((u - v) * (2.2 * scale)))
    return np.maximum(crossing - 0.35, 0) / np.float32(0.65)


@dataclasses.dataclass(frozen=True)
class Look:
    """What a class looks like.

    Attributes:
      outline, texture: see `Field`, `Texture`.
      hue: centre of its family of colours, in turns; shared by the two classes of a pair.
      reach: half the side of the box that holds the outline, in radii.
      growth: factor on the radius that gives every class about the area of a disc, so that size
        does not name the class either.
    """

    outline: Field
    texture: Texture
    hue: float
    reach: float
    growth: float


LOOKS: tuple[Look, ...] = (
    Look(_disc, _rings, 0.01, 1.0, 0.92),
    Look(_triangle, _stripes, 0.01, 1.0, 1.44),
    Look(_square, _checker, 0.13, 1.42, 0.82),
    Look(_flower, _blotches, 0.13, 1.0, 1.21),
    Look(_ellipse, _fine_stripes, 0.37, 1.0, 1.24),
    Look(_hexagon, _gradient, 0.37, 1.0, 1.01),
    Look(_crescent, _dots, 0.58, 1.0, 1.30),
    Look(_cross, _diagonal_bars, 0.58, 1.1, 1.07),
    Look(_ring, _spokes, 0.84, 1.0, 1.08),
    Look(_star, _hatch, 0.84, 1.0, 1.32),
)


@dataclasses.dataclass(frozen=True)
class Skin:
    """What varies in the look of one object: drawn once a clip, kept over its seconds."""

    hue: float
    saturation: float
    value: float
    aspect: float
    scale: float
    phase: float

    @staticmethod
    def draw(look: Look, rng: np.random.Generator) -> "Skin":
        return Skin(
            hue=(look.hue + rng.uniform(-0.025, 0.025)) % 1.0,
            saturation=rng.uniform(0.55, 0.95),
            value=rng.uniform(0.7, 1.0),
            aspect=rng.uniform(0.87, 1.15),
            scale=rng.uniform(0.85, 1.2),
            phase=rng.uniform(0.0, 1.0),
        )


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where an object is: centre and radius in units of the picture's side, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


def _local(look: Look, skin: Skin, pose: Pose, size: int):
    """The object's bounding box, cut at the picture's edge, and its own coordinates in it."""
    radius = pose.radius * look.growth * size
    reach = radius * look.reach * max(skin.aspect, 1 / skin.aspect) + 1
    cx, cy = pose.x * size - 0.5, pose.y * size - 0.5  # pixel i has its centre at i + 0.5
    left, right = max(0, math.floor(cx - reach)), min(size, math.ceil(cx + reach) + 1)
    top, bottom = max(0, math.floor(cy - reach)), min(size, math.ceil(cy + reach) + 1)
    if left >= right or top >= bottom:
        return None
    x = (np.arange(left, right, dtype=np.float32) - np.float32(cx))[None, :]
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(cy))[:, None]
    cos, sin = math.cos(pose.angle) / radius, math.sin(pose.angle) / radius
    u = (np.float32(cos) * x + np.float32(sin) * y) * np.float32(skin.aspect)
    v = (np.float32(cos) * y - np.float32(sin) * x) * np.float32(1 / skin.aspect)
    return slice(top, bottom), slice(left, right), u, v, radius


def outline(look: Look, skin: Skin, pose: Pose, size: int):
    """Pixels whose centre is inside: (rows, columns, bool[rows columns]), None if out of sight."""
    local = _local(look, skin, pose, size)
    if local is None:
        return None
    rows, columns, u, v, _ = local
    return rows, columns, look.outline(u, v) > 0


def paint(picture: np.ndarray, look: Look, skin: Skin, pose: Pose) -> None:
    """Draws an object into `picture` f32[size size 3] in 0..1, in place, with soft edges."""
    local = _local(look, skin, pose, picture.shape[0])
    if local is None:
        return
    rows, columns, u, v, radius = local
    alpha = np.clip(0.5 + look.outline(u, v) * np.float32(radius), 0, 1)[..., None]
    bright = colorsys.hsv_to_rgb(skin.hue, skin.saturation, skin.value)
    dark = np.float32(bright) * np.float32(0.38)
    tone = look.texture(u, v, skin.scale, skin.phase)[..., None]
    colour = dark + (np.float32(bright) - dark) * tone.astype(np.float32)
    box = picture[rows, columns]
    box += alpha * (colour - box)


def draw_background(size: int, rng: np.random.Generator) -> Float[np.ndarray, "size size 3"]:
    """Three octaves of smooth noise on a random muted colour, in 0..1."""
    base = np.float32(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.7))
    )
    picture = np.broadcast_to(base, (size, size, 3)).astype(np.float32)
    for cells, strength in ((3, 0.16), (7, 0.10), (17, 0.07)):
        grid = rng.standard_normal((cells, cells, 3), dtype=np.float32)
        # Mostly light and dark, a little colour, as on walls, grass and sand.
        grid = 0.75 * grid[..., :1] + 0.35 * grid
        picture = picture + np.float32(strength) * cv2.resize(grid, (size, size))
    return np.clip(picture, 0, 1)


def to_bytes(
    picture: Float[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Adds the sensor's noise (2 % of full scale) to a picture in 0..1 and rounds it to bytes."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip((picture + np.float32(0.02) * noise) * 255 + 0.5, 0, 255).astype(np.uint8)
