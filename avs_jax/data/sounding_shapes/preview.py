"""Draws a contact sheet of `sounding_shapes`: what is seen, what is heard, what sounds."""

import colorsys

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avs_jax.data.sounding_shapes import scenes, shapes
from avs_jax.media import drawing
from avs_jax.types import UInt8

_SIDE = 120  # pixels of a picture on the sheet
_GAP = 4
_SOUND_HEIGHT = 56
_CAPTION = 18
_MARGIN = 92  # for the names of the rows
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def class_colours() -> UInt8[np.ndarray, "k 3"]:
    """A colour for each class id, background black; the classes of a pair differ in brightness."""
    colours = [(0.0, 0.0, 0.0)]
    for kind, look in enumerate(shapes.LOOKS):
        colours.append(
            colorsys.hsv_to_rgb(look.hue, 0.9 - 0.45 * (kind % 2), 0.75 + 0.25 * (kind % 2))
        )
    return (np.array(colours) * 255).astype(np.uint8)


def _draw_truth(frame, label, objects) -> np.ndarray:
    """What sounds in its class's colour; silent objects as thin outlines on the dimmed picture."""
    grey = frame.mean(-1, keepdims=True) * 0.3 + 12
    picture = np.broadcast_to(grey, frame.shape).copy()
    colours = class_colours()
    for kind in np.unique(objects[objects > 0]):
        shape = (objects == kind).astype(np.uint8)
        rim = shape - cv2.erode(shape, np.ones((3, 3), np.uint8))
        picture[rim > 0] = (150, 150, 150)
    picture[label > 0] = colours[label[label > 0]]
    return picture.astype(np.uint8)


def _clip_rows(plan: scenes.Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three strips of a clip: pictures, sound, truth; each u8[h w 3] of the same width."""
    clip = scenes.render_clip(plan, _SIDE)
    step = _SIDE + _GAP
    width = plan.seconds * step - _GAP
    seen = np.full((_SIDE, width, 3), 255, np.uint8)
    truth = seen.copy()
    heard = np.full((_SOUND_HEIGHT, width, 3), 255, np.uint8)
    waveform = clip.waveform / np.float32(32768)
    sound = drawing.draw_spectrogram(waveform, plan.seconds, _SOUND_HEIGHT, plan.seconds * _SIDE)
    for k in range(plan.seconds):
        columns = slice(k * step, k * step + _SIDE)
        seen[:, columns] = clip.frames[k]
        heard[:, columns] = sound[:, k * _SIDE : (k + 1) * _SIDE]
        truth[:, columns] = _draw_truth(clip.frames[k], clip.label[k], clip.objects[k])
    return seen, heard, truth


def _name_sounds(plan: scenes.Plan, second: int) -> str:
    """The timbres heard, e.g. "bell + organ" (a class's name is its timbre, then its shape)."""
    time = second + scenes.FRAME_OFFSET
    heard = [scenes.CLASSES[thing.kind + 1] for thing in plan.things if plan.is_on(thing, time)]
    return " + ".join(name.split()[0] for name in heard) if heard else "silence"


def draw_sheet(plans: list[scenes.Plan], columns: int = 2) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet of clips side by side: pictures, spectrogram, truth and the names of what sounds."""
    strips = [_clip_rows(plan) for plan in plans]
    columns = min(columns, len(plans))
    line = 2 * _SIDE + _SOUND_HEIGHT + 2 * _GAP + _CAPTION + 14
    column = max(strip[0].shape[1] for strip in strips) + 24
    lines = -(-len(plans) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * column - 12, lines * line + 4), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for index, (plan, rows) in enumerate(zip(plans, strips, strict=True)):
        x, y = _MARGIN + index % columns * column, 10 + index // columns * line
        for name, row in zip(("seen", "heard", "sounding"), rows, strict=True):
            sheet.paste(Image.fromarray(row), (x, y))
            if index % columns == 0:
                draw.text((x - 10, y + row.shape[0] // 2), name, _INK, font, anchor="rm")
            y += row.shape[0] + _GAP
        for second in range(plan.seconds):
            middle = x + second * (_SIDE + _GAP) + _SIDE // 2
            words = _name_sounds(plan, second)
            draw.text((middle, y + _CAPTION // 2 - 2), words, _INK, small, anchor="mm")
    return np.asarray(sheet)
