"""Pictures of what a model does: overlays, strips of frame, truth and prediction, learning curves.

Pictures are u8[h w 3] RGB arrays; `write_png` saves them.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avs_jax import audio, errors
from avs_jax.types import Bool, Float, Int, UInt8

# Of binary masks. Rare in nature and in films, and bright on light and dark ground.
BINARY_COLOURS = np.array([(0, 0, 0), (255, 40, 130)], np.uint8)
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (140, 140, 140)
_NO_LOSS = {
    f"train/{name}" for name in ("learning_rate", "clips_per_second", "seconds", "grad_norm")
}
_SCORE = re.compile(r"(?!train/).*/(miou|f_measure)(_mute|_swap)?")  # the log has finer ones
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
        ids = mask.astype(np.uint8)
        if colours is None:
            colours = BINARY_COLOURS if mask.dtype == bool else palette(256)
        present = [int(i) for i in np.unique(ids) if i]
        if present and present[-1] >= len(colours):
            raise errors.BadValueError(
                f"the mask holds class {present[-1]}, but there are {len(colours)} colours."
            )
        self._alpha = alpha
        self._empty = not present
        self._inside = ids
        self._paint = colours[ids]
        line = max(1, round(min(ids.shape) / 300))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
        # A line of the colour within the border and a white one around it: seen on any ground.
        within = (ids > 0) & (cv2.erode(ids, kernel) != ids)
        around = (ids == 0) & (cv2.dilate(ids, kernel) != ids)
        self._paint[around] = 255
        self._solid = (within | around).astype(np.uint8)
        if class_names is not None and present:
            self._add_legend([(class_names[i], colours[i]) for i in present])

    def _add_legend(self, entries: list[tuple[str, np.ndarray]]) -> None:
        height, width = self._solid.shape
        box = _draw_legend(entries, max(10, round(min(height, width) / 28)))
        box = box[:height, :width]
        place = np.s_[height - len(box) :, : box.shape[1]]
        self._paint[place] = box
        self._solid[place] = 1

    def __call__(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A new picture: the frame with the mask on it."""
        if frame.shape[:2] != self._solid.shape:
            raise errors.BadValueError(
                f"a mask of {self._solid.shape} (h, w) does not fit a frame of {frame.shape[:2]}."
            )
        picture = frame.copy()
        if self._empty:
            return picture
        tinted = cv2.addWeighted(frame, 1 - self._alpha, self._paint, self._alpha, 0)
        cv2.copyTo(tinted, self._inside, picture)
        cv2.copyTo(self._paint, self._solid, picture)
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
    t, height, width = frames.shape[:3]
    if binary:
        truth = None if truth is None else np.minimum(truth, 1)
        prediction = np.minimum(prediction, 1)
    scale = max(1.0, _CELL / width)
    size = (round(width * scale), round(height * scale))
    colours = BINARY_COLOURS if binary else palette(256)
    masks = {"frame": None, "truth": truth, "prediction": prediction}
    if truth is None:
        del masks["truth"]
    rows, used = [], set()
    for name, ids in masks.items():
        cells = []
        for k in range(t):
            cell = cv2.resize(frames[k], size, interpolation=cv2.INTER_CUBIC)
            if ids is not None:
                mask = ids[k]
                used |= set(np.unique(mask).tolist()) - {0}
                mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                cell = overlay(_dim(cell), mask, colours, alpha=0.75)
            cells.append(cell)
        rows.append((name, _beside(cells)))
    if truth is not None:
        rows.append(("", _write_scores(truth, prediction, size[0])))
    if waveform is not None:
        rows.append(("sound", _beside(_draw_sound(waveform, t, size[0]))))
    legend = None
    if not binary and class_names is not None and used:
        legend = [(class_names[i], colours[i]) for i in sorted(used)]
    return _assemble(rows, t, size[0], legend)


def _dim(frame: np.ndarray) -> np.ndarray:
    """Grey and darker, so that colour means a mask and nothing else."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return np.repeat(0.6 * grey, 3, axis=2).astype(np.uint8)


def _beside(cells: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((len(cells[0]), _GAP, 3), 255, np.uint8)
    parts = [part for cell in cells for part in (gap, cell)]
    return np.concatenate(parts[1:], axis=1)


def _write_scores(truth: np.ndarray, prediction: np.ndarray, width: int) -> np.ndarray:
    """J of each second over all that sounds or is marked, a wrong class being wrong."""
    font = ImageFont.load_default(13)
    cells = []
    for a, b in zip(truth, prediction, strict=True):
        union = int(((a > 0) | (b > 0)).sum())
        text = f"J {((a == b) & (a > 0)).sum() / union:.2f}" if union else "nothing, rightly"
        cell = Image.new("RGB", (width, 18), _PAPER)
        ImageDraw.Draw(cell).text((width / 2, 8), text, _INK, font, anchor="mm")
        cells.append(np.array(cell))
    return _beside(cells)


def _draw_sound(waveform: np.ndarray, t: int, width: int) -> list[np.ndarray]:
    """For each second its log-mel patch, low tones below, and under it the waveform."""
    waveform = waveform[: t * audio.SAMPLE_RATE]
    waveform = np.pad(waveform, (0, t * audio.SAMPLE_RATE - len(waveform)))
    log_mel = audio.log_mel(jnp.asarray(waveform), num_patches=t, alignment="second")
    log_mel = np.asarray(log_mel)
    low, high = np.log(audio.LOG_OFFSET), max(1.0, float(log_mel.max()))
    levels = ((log_mel - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    peak = max(float(np.abs(waveform).max()), 1e-3)
    cells = []
    for k in range(t):
        patch = cv2.resize(levels[k].T[::-1], (width, 64), interpolation=cv2.INTER_AREA)
        patch = cv2.applyColorMap(patch, cv2.COLORMAP_INFERNO)[..., ::-1]
        second = waveform[k * audio.SAMPLE_RATE : (k + 1) * audio.SAMPLE_RATE]
        columns = np.array_split(second / peak, width)
        curve = np.full((33, width, 3), 255, np.uint8)
        for x, column in enumerate(columns):
            top, bottom = (round(16 - 15 * float(v)) for v in (column.max(), column.min()))
            curve[top : bottom + 1, x] = (70, 90, 160)
        cells.append(np.concatenate([patch, curve]))
    return cells


def _assemble(rows, t: int, width: int, legend) -> np.ndarray:
    """Rows with their names at the left and the seconds above."""
    font = ImageFont.load_default(14)
    margin, top = 88, 24
    height = top + sum(row.shape[0] + _GAP for _, row in rows)
    box = _draw_legend(legend, 12) if legend else np.zeros((0, 0, 3), np.uint8)
    total = margin + rows[0][1].shape[1] + _GAP + (box.shape[1] + _GAP if legend else 0)
    sheet = Image.new("RGB", (total, max(height, top + len(box) + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for k in range(t):
        x = margin + k * (width + _GAP)
        draw.text((x + width / 2, top / 2), f"second {k}", _FAINT, font, anchor="mm")
    y = top
    for name, row in rows:
        sheet.paste(Image.fromarray(np.ascontiguousarray(row)), (margin, y))
        draw.text((margin - 10, y + row.shape[0] / 2), name, _INK, font, anchor="rm")
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
    Image.fromarray(picture).save(path, compress_level=1)


def learning_curve(log: str | os.PathLike, picture: str | os.PathLike) -> None:
    """Draws a run's log: the losses above, the validation scores below, over steps and minutes.

    Args:
      log: JSON lines, {"step": n, "train/loss": x, ...} and {"step": n, "validation/miou": x, ...};
        a line that is cut off is left out.
      picture: the PNG to write.

    Raises:
      NotFoundError: no such log.
      BadValueError: the log holds no train/loss and no score.
    """
    curves = _read_curves(log)
    losses = {n: c for n, c in curves.items() if n.startswith("train/") and n not in _NO_LOSS}
    scores = {n: c for n, c in curves.items() if _SCORE.fullmatch(n)}
    if not losses and not scores:
        raise errors.BadValueError(
            f"{str(log)!r} holds no train/loss and no score; wanted a run's metrics.jsonl."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s, for this alone
    from matplotlib.figure import Figure

    panels = [p for p in (("loss", losses), ("validation", scores)) if p[1]]
    figure = Figure(figsize=(7, 0.6 + 2.6 * len(panels)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, group) in zip(axes, panels, strict=True):
        _draw_panel(axis, title, group)
    axes[-1].set_xlabel("step")
    _add_minutes(axes[0], curves.get("train/seconds"))
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Software": None})


def _read_curves(log) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps, values)."""
    if not os.path.exists(log):
        raise errors.NotFoundError(f"no log {str(log)!r}; a run writes WORKDIR/metrics.jsonl.")
    points: dict[str, dict[int, float]] = {}
    for line in Path(log).read_text().splitlines():
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (ValueError, KeyError, AttributeError):  # the last line of a killed run
            continue
        for name, value in record.items():
            if isinstance(value, int | float):
                points.setdefault(name, {})[step] = value
    return {
        name: (np.array(sorted(series)), np.array([series[s] for s in sorted(series)], float))
        for name, series in points.items()
    }


def _draw_panel(axis, title: str, group: dict) -> None:
    """Curves of one kind: losses by their points, faintly, and running mean; scores as they are."""
    for name, (steps, values) in sorted(group.items(), key=lambda item: not _is_main(item[0])):
        style = {"label": name.removeprefix("train/"), "lw": 1.8 if _is_main(name) else 1.1}
        if title == "loss" and len(steps) > 50:
            (line,) = axis.plot(steps, _running_mean(values, len(steps) // 40), **style)
            axis.plot(steps, values, color=line.get_color(), alpha=0.2, lw=0.8)
        else:
            axis.plot(steps, values, marker="o" if title != "loss" else None, ms=3, **style)
        if title != "loss" and _is_main(name):
            best = int(values.argmax())
            place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{values[best]:.3f}", (steps[best], values[best]), fontsize=8, **place)
    axis.set_ylabel(title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    axis.margins(y=0.12)
    axis.set_ylim(bottom=0)


def _is_main(name: str) -> bool:
    return name == "train/loss" or name.endswith("/miou")


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over `half` values on either side, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _add_minutes(axis, seconds: tuple[np.ndarray, np.ndarray] | None) -> None:
    """A second scale on top, where the log tells it: after how many minutes of training."""
    if seconds is None or len(seconds[0]) < 2:
        return
    steps, minutes = seconds[0], seconds[1] / 60
    places = np.linspace(steps[0], steps[-1], 6)
    scale = axis.twiny()
    scale.set_xlim(axis.get_xlim())
    scale.set_xticks(places, [f"{m:.1f}" for m in np.interp(places, steps, minutes)], fontsize=8)
    scale.set_xlabel("minutes of training", fontsize=8)
    scale.spines[["right"]].set_visible(False)
