"""Learning curves of a run, drawn from its log."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from avs_jax import errors
from avs_jax.weights.trained import read_curves

_NO_LOSS = {
    f"train/{name}" for name in ("learning_rate", "clips_per_second", "seconds", "grad_norm")
}
_MOST_POINTS = 400  # of a curve: more than a picture has columns for
_SCORE = re.compile(r"(?!train/).*/(miou|f_measure)(_mute|_swap)?")  # the log has finer ones


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
    log = epath.Path(log)
    if not log.exists():
        raise errors.NotFoundError(f"no log {str(log)!r}; a run writes WORKDIR/metrics.jsonl.")
    panels = choose_panels(read_curves(log))
    if not panels:
        raise errors.BadValueError(
            f"{str(log)!r} holds no train/loss and no score; wanted a run's metrics.jsonl."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s, for this alone
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 2.6 * len(panels)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, panels, read_curves(log).get("train/seconds"))
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Software": None})


Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (steps, values), see `read_curves`


def choose_panels(curves: Curves) -> list[tuple[str, Curves]]:
    """(title, its curves) of what a log holds: "loss" and "validation", or one, or neither."""
    losses = {n: c for n, c in curves.items() if n.startswith("train/") and n not in _NO_LOSS}
    scores = {n: c for n, c in curves.items() if _SCORE.fullmatch(n)}
    return [panel for panel in (("loss", losses), ("validation", scores)) if panel[1]]


def draw(
    figure: Any,
    panels: list[tuple[str, Curves]],
    seconds: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draws `choose_panels` one below the other onto a matplotlib Figure.

    seconds: the log's train/seconds, for a scale of minutes.
    """
    panels = [(title, {n: thin(*c) for n, c in group.items()}) for title, group in panels]
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, group) in zip(axes, panels, strict=True):
        _draw_panel(axis, title, group)
    axes[-1].set_xlabel("step")
    _add_minutes(axes[0], seconds)


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most 400 points: means of neighbours where there are more."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    parts = zip(*(np.array_split(x, _MOST_POINTS) for x in (steps, values)), strict=True)
    means = [(s[-1], v.mean()) for s, v in parts]
    return np.array([s for s, _ in means]), np.array([v for _, v in means])


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
