"""Pictures of what a model does: overlays, and strips of whole clips.

Pictures are u8[h w 3] RGB arrays; `write_png` saves them.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avs_jax import errors
from avs_jax.media import audio
from avs_jax.media.partial import write_whole
from avs_jax.types import Bool, Float, Int, UInt8

# Of binary masks. Rare in nature and in films, and bright on light and dark ground.
BINARY_COLOURS = np.array([(0, 0, 0), (255, 40, 130)], np.uint8)
ASKING = np.array((255, 190, 0), np.uint8)  # of what is uncertain; the palette has it for no class
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (140, 140, 140)
_CELL = 144  # least width of a picture in a strip, pixels
_GAP = 6


def palette(num_classes: int) -> UInt8[np.ndarray, "k 3"]:
    """PASCAL VOC's colours, as AVSBench paints its labels: 0 black, 1 (128, 0, 0), 2 (0, 128, 0).

    The bits of the class id, three at a time, become the high bits of red, green and blue.
    """
    ids = np.arange(num_classes, dtype=np.uint32)[:, None] >> np.arange(3, dtype=np.uint32)
    colours = np.zeros((num_classes, 3), np.uint32)
    for step in range(8):
        colours |= ((ids >> (3 * step)) & 1) << (7 - step)
    return colours.astype(np.uint8)


class Overlay:
    """A mask ready to be laid over many frames: tinted inside, outlined, with a legend."""

    def __init__(
        self,
        mask: Bool[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"] | Int[np.ndarray, "h w"],
        colours: UInt8[np.ndarray, "k 3"] | None = None,
        alpha: float = 0.45,
        class_names: Sequence[str] | None = None,
    ):
        """See `overlay`. `class_names[i]` names class i in the legend, which needs them."""
        self._shape, self._alpha = mask.shape, alpha
        self._legend = None
        line = max(1, round(min(mask.shape) / 300))
        ids = np.ascontiguousarray(mask, np.uint8)
        # Nothing happens farther from what is marked than the outline reaches.
        x, y, width, height = cv2.boundingRect(ids)
        rows = slice(max(0, y - line), y + height + line)
        self._place = (rows, slice(max(0, x - line), x + width + line))
        self._is_empty = not width
        if self._is_empty:
            return
        self._inside = ids = np.ascontiguousarray(ids[self._place])
        if colours is None:
            colours = BINARY_COLOURS if mask.dtype == bool else palette(256)
        present = [1]
        if mask.dtype != bool:
            counts = cv2.calcHist([ids], [0], None, [256], [0, 256])
            present = [int(i) for i in np.flatnonzero(counts) if i]
        if present[-1] >= len(colours):
            raise errors.BadValueError(
                f"the mask holds class {present[-1]}, but there are {len(colours)} colours."
            )
        table = np.zeros((1, 256, 3), np.uint8)
        table[0, : len(colours)] = colours[:256]
        self._paint = cv2.LUT(cv2.merge([ids] * 3), table)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
        # A line of the colour within the border and a white one around it: seen on any ground.
        within = (ids > 0) & (cv2.erode(ids, kernel) != ids)
        around = (ids == 0) & (cv2.dilate(ids, kernel) != ids)
        self._paint[around] = 255
        self._solid = (within | around).view(np.uint8)
        if class_names is not None:
            entries = [(class_names[i], colours[i]) for i in present]
            self._legend = _draw_legend(entries, max(10, round(min(mask.shape) / 28)))

    def __call__(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A new picture: the frame with the mask on it."""
        if frame.shape[:2] != self._shape:
            raise errors.BadValueError(
                f"a mask of {self._shape} (h, w) does not fit a frame of {frame.shape[:2]}."
            )
        picture = frame.copy()
        if self._is_empty:
            return picture
        part = frame[self._place].copy()
        tinted = cv2.addWeighted(part, 1 - self._alpha, self._paint, self._alpha, 0)
        cv2.copyTo(tinted, self._inside, part)
        cv2.copyTo(self._paint, self._solid, part)
        picture[self._place] = part
        if self._legend is not None:
            height, width = self._shape
            box = self._legend[:height, :width]
            picture[height - len(box) :, : box.shape[1]] = box
        return picture


def overlay(
    frame: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"] | Int[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "k 3"] | None = None,
    alpha: float = 0.45,
) -> UInt8[np.ndarray, "h w 3"]:
    """Tints and outlines what a mask marks; the rest of the frame stays as it is.

    Args:
      mask: bool, or class ids with 0 = background.
      colours: by class id; None: one colour for a bool mask, `palette` for ids.
      alpha: weight of the colour inside.

    Raises:
      BadValueError: mask and frame differ in size, or a class has no colour.
    """
    return Overlay(mask, colours, alpha)(frame)


def _draw_legend(entries: list[tuple[str, np.ndarray]], size: int) -> np.ndarray:
    """Swatches and names, one below the other, `size` pixels high each."""
    font = ImageFont.load_default(size)
    pad = max(2, size // 3)
    width = round(max(font.getlength(name) for name, _ in entries)) + size + 3 * pad
    box = Image.new("RGB", (width, len(entries) * (size + pad) + pad), (24, 24, 24))
    draw = ImageDraw.Draw(box)
    for row, (name, colour) in enumerate(entries):
        y = pad + row * (size + pad)
        draw.rectangle((pad, y, pad + size - 1, y + size - 1), tuple(map(int, colour)), _PAPER)
        draw.text((2 * pad + size, y + size / 2), name, _PAPER, font, anchor="lm")
    return np.array(box)


def strip(
    frames: UInt8[np.ndarray, "t h w 3"],
    truth: Int[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"] | None,
    prediction: Int[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"],
    waveform: Float[np.ndarray, "s"] | None = None,
    class_names: Sequence[str] | None = None,
    binary: bool = True,
) -> UInt8[np.ndarray, "out_h out_w 3"]:
    """One clip in one picture: time to the right; rows of frames, truth, prediction and sound.

    Args:
      truth: class ids, 0 = background; None leaves the row out.
      prediction: as truth.
      waveform: 16 kHz, as long as the frames; drawn as the log-mel picture that the model hears,
        with the waveform under it, each second below its frame. None leaves the row out.
      class_names: for a legend, where masks are class ids.
      binary: masks say whether, not what: one colour, and every id but 0 counts as 1.

    Under the prediction of each second stands its Jaccard index with the truth, over all sources.
    """
    if binary:
        truth = None if truth is None else np.minimum(truth, 1)
        prediction = np.minimum(prediction, 1)
    colours = BINARY_COLOURS if binary else palette(256)
    rows = _frame_rows(frames, truth, colours)
    width = rows[0][1][0].shape[1]
    rows.append(("prediction", _paint(frames, prediction, colours)))
    if truth is not None:
        rows.append(("", _write_scores(truth, prediction, width)))
    if waveform is not None:
        rows.append(("sound", _draw_sound(waveform, len(frames), width)))
    legend = None if binary else _name_classes((truth, prediction), class_names)
    return _assemble(rows, legend)


def confidence_strip(
    frames: UInt8[np.ndarray, "t h w 3"],
    truth: Int[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"] | None,
    answers: dict[str, Int[np.ndarray, "t _ _"]],
    uncertain: dict[str, Bool[np.ndarray, "t _ _"]],
    waveform: Float[np.ndarray, "s"] | None = None,
    class_names: Sequence[str] | None = None,
    binary: bool = True,
) -> UInt8[np.ndarray, "out_h out_w 3"]:
    """What each stage of a network answers and where it is still uncertain: a row a stage.

    Args:
      truth: class ids, 0 = background; None leaves the row out.
      answers: stage name -> class ids on the stage's own grid, coarse to fine.
      uncertain: stage name -> True where the stage is uncertain, so that the next one asks again;
        stages that are not there are all certain.
      waveform, class_names, binary: see `strip`.

    Beside each stage stands the share of its cells that is uncertain, over the clip; under each
    second that of its frame.
    """
    if binary:
        truth = None if truth is None else np.minimum(truth, 1)
        answers = {name: np.minimum(ids, 1) for name, ids in answers.items()}
    colours = BINARY_COLOURS if binary else palette(255)
    asks = len(colours)
    colours = np.concatenate([colours, ASKING[None]])
    rows = _frame_rows(frames, truth, colours)
    width = rows[0][1][0].shape[1]
    for name, ids in answers.items():
        label = f"{name}\n{ids.shape[1]} x {ids.shape[2]} cells"
        asked = uncertain.get(name)
        if asked is None:
            rows.append((f"{label}\nanswers all", _paint(frames, ids, colours)))
            continue
        cells = _paint(frames, np.where(asked, asks, ids), colours)
        rows.append((f"{label}\n{asked.mean():.0%} uncertain", cells))
        shares = asked.mean((1, 2))
        rows.append(("", _write([f"{share:.0%} uncertain" for share in shares], width)))
    if waveform is not None:
        rows.append(("sound", _draw_sound(waveform, len(frames), width)))
    certain = [("certain: sounds", colours[1])] if binary else []
    certain += _name_classes((truth, *answers.values()), class_names) if not binary else []
    dark = ("certain: silent", np.array((70, 70, 70)))
    return _assemble(rows, [("uncertain: asks on", ASKING), *certain, dark])


def listening_strip(
    frames: UInt8[np.ndarray, "t h w 3"],
    truth: Int[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"] | None,
    attention: Float[np.ndarray, "t y x"],
    notes: Sequence[str],
    heard: dict[str, tuple[Int[np.ndarray, "t h w"], Float[np.ndarray, "s"]]],
    class_names: Sequence[str] | None = None,
    binary: bool = True,
) -> UInt8[np.ndarray, "out_h out_w 3"]:
    """Where a network looks in a clip, and what it marks there when it hears other sounds.

    Args:
      truth: class ids, 0 = background, of the clip with its own sound; None leaves the row out.
      attention: weights >= 0 of cells of any number, drawn as a share of the clip's greatest.
      notes: what to write under the attention of each second.
      heard: name of a sound -> (class ids that the network marks, waveform at 16 kHz).
      class_names, binary: see `strip`.

    Under the masks of a sound stands the marked share of each frame, and under it the sound.
    """
    if binary:
        truth = None if truth is None else np.minimum(truth, 1)
        heard = {name: (np.minimum(ids, 1), sound) for name, (ids, sound) in heard.items()}
    colours = BINARY_COLOURS if binary else palette(256)
    rows = _frame_rows(frames, truth, colours)
    width = rows[0][1][0].shape[1]
    rows += [("attention of\nthe query", _heat(frames, attention)), ("", _write(notes, width))]
    for name, (ids, sound) in heard.items():
        rows.append((f"marked with\n{name}", _paint(frames, ids, colours)))
        rows.append(("", _write([f"{(mask > 0).mean():.0%} marked" for mask in ids], width)))
        rows.append((name, _draw_sound(sound, len(frames), width, height=40)))
    shades = _colour_map(np.array([[0, 128, 255]], np.uint8))[0]
    names = ("no attention", "half of the most", "most attention")
    legend = list(zip(names, shades, strict=True))
    if binary:
        legend.append(("sounds", colours[1]))
    else:
        legend += _name_classes((truth, *(ids for ids, _ in heard.values())), class_names)
    return _assemble(rows, legend)


def attention_strip(
    frames: UInt8[np.ndarray, "t h w 3"],
    truth: Int[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"] | None,
    maps: dict[str, Float[np.ndarray, "t _ _"]],
    waveform: Float[np.ndarray, "s"] | None = None,
    class_names: Sequence[str] | None = None,
    binary: bool = True,
) -> UInt8[np.ndarray, "out_h out_w 3"]:
    """What cells of a clip look at: a row a thing looked at.

    Args:
      truth: class ids, 0 = background; None leaves the row out.
      maps: name -> weights >= 0 of cells, each drawn as a share of its clip's greatest; under each
        second stand the least and the greatest of its frame.
      waveform, class_names, binary: see `strip`.
    """
    if binary:
        truth = None if truth is None else np.minimum(truth, 1)
    rows = _frame_rows(frames, truth, BINARY_COLOURS if binary else palette(256))
    width = rows[0][1][0].shape[1]
    for name, weights in maps.items():
        rows.append((name, _heat(frames, weights)))
        ends = [f"{second.min():.0%} to {second.max():.0%}" for second in weights]
        rows.append(("", _write(ends, width)))
    if waveform is not None:
        rows.append(("sound", _draw_sound(waveform, len(frames), width)))
    shades = _colour_map(np.array([[0, 128, 255]], np.uint8))[0]
    names = ("no attention", "half of the most", "most attention")
    legend = [] if binary else _name_classes((truth,), class_names)
    return _assemble(rows, [*zip(names, shades, strict=True), *legend])


def _name_classes(masks, class_names: Sequence[str] | None) -> list[tuple[str, np.ndarray]]:
    """A legend of the classes in masks of class ids, if they have names."""
    present = [np.unique(ids) for ids in masks if ids is not None]
    used = sorted(set(np.concatenate(present).tolist()) - {0})
    return [(class_names[i], palette(256)[i]) for i in used] if class_names is not None else []


def _frame_rows(frames: np.ndarray, truth: np.ndarray | None, colours: np.ndarray) -> list:
    """The first rows of every strip: the frames as they are, and the truth if it is known."""
    rows = [("frame", [_enlarge(frame) for frame in frames])]
    return rows if truth is None else [*rows, ("truth", _paint(frames, truth, colours))]


def _enlarge(frame: np.ndarray) -> np.ndarray:
    scale = max(1.0, _CELL / frame.shape[1])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)


def _paint(frames: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> list[np.ndarray]:
    """A cell a second: masks of any size over the frame in grey."""
    cells = []
    for frame, mask in zip(frames, ids, strict=True):
        ground = _dim(_enlarge(frame))
        size = ground.shape[1::-1]
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        cells.append(overlay(ground, mask, colours, alpha=0.75))
    return cells


def _heat(frames: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """A cell a second: weights as colours over the frame in grey."""
    levels = (weights / max(float(weights.max()), 1e-12) * 255).astype(np.uint8)
    cells = []
    for frame, level in zip(frames, levels, strict=True):
        ground = _dim(_enlarge(frame))
        level = cv2.resize(level, ground.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        cells.append(cv2.addWeighted(ground, 0.4, _colour_map(level), 0.6, 0))
    return cells


def _colour_map(levels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Black, violet, red, yellow, in the order of brightness."""
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def _dim(frame: np.ndarray) -> np.ndarray:
    """Grey and darker, so that colour means a mask and nothing else."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return np.repeat(0.6 * grey, 3, axis=2).astype(np.uint8)


def _beside(cells: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((len(cells[0]), _GAP, 3), 255, np.uint8)
    parts = [part for cell in cells for part in (gap, cell)]
    return np.concatenate(parts[1:], axis=1)


def _write_scores(truth: np.ndarray, prediction: np.ndarray, width: int) -> list[np.ndarray]:
    """J of each second over all that sounds or is marked, a wrong class being wrong."""
    texts = []
    for a, b in zip(truth, prediction, strict=True):
        union = int(((a > 0) | (b > 0)).sum())
        texts.append(f"J {((a == b) & (a > 0)).sum() / union:.2f}" if union else "nothing, rightly")
    return _write(texts, width)


def _write(texts: Sequence[str], width: int) -> list[np.ndarray]:
    """A line of text for each second."""
    cells = []
    for text in texts:
        cell = Image.new("RGB", (width, 18), _PAPER)
        font = ImageFont.load_default(13)
        ImageDraw.Draw(cell).text((width / 2, 8), text, _INK, font, anchor="mm")
        cells.append(np.array(cell))
    return cells


def draw_spectrogram(
    waveform: Float[np.ndarray, "s"], seconds: int, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The log-mel picture that the models hear: time to the right, 125 to 7500 Hz upwards.

    Args:
      waveform: 16 kHz; cut or filled with silence to so many `seconds`, each of which gets the same
        share of the `width`.
    """
    waveform = waveform[: seconds * audio.SAMPLE_RATE]
    waveform = np.pad(waveform, (0, seconds * audio.SAMPLE_RATE - len(waveform)))
    patches = audio.log_mel(jnp.asarray(waveform), num_patches=seconds, alignment="second")
    return paint_log_mel(np.asarray(patches).reshape(-1, audio.NUM_BANDS), height, width)


def paint_log_mel(
    log_mel: Float[np.ndarray, "n 64"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Rows of log-mel as a picture: time to the right, 125 to 7500 Hz upwards."""
    low, high = np.log(audio.LOG_OFFSET), max(1.0, float(log_mel.max()))
    levels = ((log_mel - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    return _colour_map(cv2.resize(levels.T[::-1], (width, height), interpolation=cv2.INTER_AREA))


def _draw_sound(waveform: np.ndarray, t: int, width: int, height: int = 64) -> list[np.ndarray]:
    """For each second what the models hear, `height` pixels, and under it the waveform."""
    picture = draw_spectrogram(waveform, t, height, t * width)
    waveform = np.pad(waveform, (0, max(0, t * audio.SAMPLE_RATE - len(waveform))))
    peak = max(float(np.abs(waveform).max()), 1e-3)
    cells = []
    for k in range(t):
        second = waveform[k * audio.SAMPLE_RATE : (k + 1) * audio.SAMPLE_RATE]
        columns = np.array_split(second / peak, width)
        curve = np.full((33, width, 3), 255, np.uint8)
        for x, column in enumerate(columns):
            top, bottom = (round(16 - 15 * float(v)) for v in (column.max(), column.min()))
            curve[top : bottom + 1, x] = (70, 90, 160)
        cells.append(np.concatenate([picture[:, k * width : (k + 1) * width], curve]))
    return cells


def _assemble(rows: list[tuple[str, list]], legend: list | None) -> np.ndarray:
    """Rows of a cell a second, with their names at the left, the seconds above, and a legend."""
    font = ImageFont.load_default(14)
    lines = [line for name, _ in rows for line in name.split("\n")]
    top, margin = 24, 20 + round(max(font.getlength(line) for line in lines))
    rows = [(name, _beside(cells), len(cells)) for name, cells in rows]
    height = top + sum(row.shape[0] + _GAP for _, row, _ in rows)
    box = _draw_legend(legend, 12) if legend else np.zeros((0, 0, 3), np.uint8)
    total = margin + rows[0][1].shape[1] + _GAP + (box.shape[1] + _GAP if legend else 0)
    sheet = Image.new("RGB", (total, max(height, top + len(box) + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _, first, t = rows[0]
    for k in range(t):
        x = margin + (k + 0.5) * (first.shape[1] + _GAP) / t - _GAP / 2
        draw.text((x, top / 2), f"second {k}", _FAINT, font, anchor="mm")
    y = top
    for name, row, _ in rows:
        sheet.paste(Image.fromarray(np.ascontiguousarray(row)), (margin, y))
        middle = (margin - 10, y + row.shape[0] / 2)
        draw.text(middle, name, _INK, font, anchor="rm", align="right")
        y += row.shape[0] + _GAP
    if legend:
        sheet.paste(Image.fromarray(box), (total - box.shape[1] - _GAP, top))
    return np.array(sheet)


def contact_sheet(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int = 1, gap: int = 16
) -> UInt8[np.ndarray, "out_h out_w 3"]:
    """Pictures of any size in a grid on white, row by row, each centred in its place."""
    if not pictures:
        raise errors.BadValueError("a contact sheet needs at least one picture, got none.")
    grid = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [max(row[c].shape[1] for row in grid if c < len(row)) for c in range(len(grid[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in grid]
    shape = (sum(heights) + gap * (len(heights) + 1), sum(widths) + gap * (len(widths) + 1), 3)
    sheet = np.full(shape, 255, np.uint8)
    y = gap
    for row, height in zip(grid, heights, strict=True):
        x = gap
        for picture, width in zip(row, widths, strict=False):
            h, w = picture.shape[:2]
            top, left = y + (height - h) // 2, x + (width - w) // 2
            sheet[top : top + h, left : left + w] = picture
            x += width + gap
        y += height + gap
    return sheet


def write_png(path: str | os.PathLike, picture: UInt8[np.ndarray, "h w *c"]) -> None:
    """Saves a picture (RGB) or a mask (one channel, mode L); its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG", compress_level=1)
    write_whole(path, encoded.getvalue())
