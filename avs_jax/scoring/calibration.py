"""Whether probabilities are true: of pixels said to sound with 0.8, do 80 % sound? And the cure.

A network is usually too sure. Dividing its logits by one number, the temperature that makes the
labels of a validation split likeliest (Guo et al., ICML 2017), mends that and moves no pixel over
0.5. All is counted in histograms of logits by frame and truth, so that every temperature and
threshold can be tried afterwards.
"""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.types import Array, Bool, Float, Int

_LIMIT, _BINS = 20.0, 800  # logits beyond the limit count as there; a bin is 0.05 wide
_CENTRES = (np.arange(_BINS) + 0.5) * 2 * _LIMIT / _BINS - _LIMIT
_TEMPERATURES = np.geomspace(0.25, 8.0, 501)
_THRESHOLDS = np.arange(5, 96) / 100  # of calibrated probabilities


class Calibration(NamedTuple):
    """What `fit` finds."""

    temperature: float
    threshold: float  # of the calibrated probability, with the highest mean IoU
    miou: float  # at that threshold, empty frames as in `metrics.mask_iou`
    miou_at_half: float
    error: float  # expected calibration error: mean distance of the two columns of `reliability`
    error_before: float
    nll: float  # of a pixel, in nats
    nll_before: float


class LogitCounts:
    """Counts i64[frame 2 bins] of logits of pixels that are silent (0) and that sound (1)."""

    def __init__(self):
        self._frames: list[np.ndarray] = []

    def add(self, logits: Float[np.ndarray, "h w"], sounding: Bool[np.ndarray, "h w"]) -> None:
        """One frame."""
        places = ((logits.astype(np.float64) + _LIMIT) * (_BINS / (2 * _LIMIT))).astype(np.int64)
        places = places.clip(0, _BINS - 1) + _BINS * sounding
        self._frames.append(np.bincount(places.ravel(), minlength=2 * _BINS).reshape(2, _BINS))

    def counts(self) -> Int[np.ndarray, "n 2 bins"]:
        return np.stack(self._frames)


def fit(counts: Int[np.ndarray, "n 2 bins"]) -> Calibration:
    """The temperature with the least loss, then the threshold with the highest mean IoU."""
    total = counts.sum(0)
    losses = [_loss(total, t) for t in _TEMPERATURES]
    temperature = float(_TEMPERATURES[int(np.argmin(losses))])
    ious = _mean_ious(counts, temperature * np.log(_THRESHOLDS / (1 - _THRESHOLDS)))
    best = int(np.argmax(ious))
    return Calibration(
        temperature=round(temperature, 3),
        threshold=float(_THRESHOLDS[best]),
        miou=float(ious[best]),
        miou_at_half=float(_mean_ious(counts, np.zeros(1))[0]),
        error=_error(total, temperature),
        error_before=_error(total, 1.0),
        nll=float(min(losses)),
        nll_before=float(_loss(total, 1.0)),
    )


def reliability(
    total: Int[np.ndarray, "2 bins"], temperature: float = 1.0, parts: int = 10
) -> list[tuple[float, float, int]]:
    """(mean probability, share that sounds, pixels) of each tenth of probability that is not empty.

    Args:
      total: counts, summed over frames.
    """
    p = 1 / (1 + np.exp(-_CENTRES / temperature))
    part = np.minimum((p * parts).astype(int), parts - 1)
    rows = []
    for k in range(parts):
        inside = total[:, part == k]
        pixels = int(inside.sum())
        if pixels:
            mean = float((inside.sum(0) * p[part == k]).sum() / pixels)
            rows.append((mean, float(inside[1].sum() / pixels), pixels))
    return rows


def count_tenths(
    logits: Float[Array, "b t h w k"], label: Int[Array, "b t h w"], temperature: float = 1.0
) -> Float[Array, "b t 10 3"]:
    """By tenth of probability: pixels, the sum of what was said, and how many it is true of.

    On the device, so that no logits need be kept. Of one class what is said is the probability that
    a pixel sounds; of several that of the likeliest class, which is true where the label is that.
    """
    logits = logits.astype(jnp.float32) / temperature
    if logits.shape[-1] == 1:
        said, true = jax.nn.sigmoid(logits[..., 0]), label > 0
    else:
        said, true = jax.nn.softmax(logits).max(-1), logits.argmax(-1) == label
    tenth = jnp.clip((said * 10).astype(jnp.int32), 0, 9)
    rows = []
    for k in range(10):
        inside = tenth == k
        parts = (inside, jnp.where(inside, said, 0.0), inside & true)
        rows.append(jnp.stack([part.sum((2, 3), dtype=jnp.float32) for part in parts], -1))
    return jnp.stack(rows, 2)


def read_tenths(total: Float[np.ndarray, "10 3"]) -> tuple[list[tuple[float, float, int]], float]:
    """Rows as `reliability` gives them, and the expected calibration error.

    Args:
      total: `count_tenths`, summed over frames.
    """
    rows = [(said / n, true / n, int(n)) for n, said, true in total.tolist() if n]
    pixels = sum(n for _, _, n in rows)
    return rows, sum(abs(said - true) * n for said, true, n in rows) / pixels


def _loss(total: np.ndarray, temperature: float) -> float:
    """Binary cross-entropy, mean over pixels."""
    logits = _CENTRES / temperature
    silent, sounding = np.logaddexp(0, logits), np.logaddexp(0, -logits)
    return float((total[0] * silent + total[1] * sounding).sum() / total.sum())


def _error(total: np.ndarray, temperature: float) -> float:
    rows = reliability(total, temperature)
    return sum(abs(said - true) * pixels for said, true, pixels in rows) / int(total.sum())


def _mean_ious(counts: np.ndarray, cutoffs: np.ndarray) -> np.ndarray:
    """Mean over frames of the IoU of pixels above each cutoff; an empty truth asks for an empty
    mask: the IoU of its complement, as AVSBench counts."""
    above = np.zeros((*counts.shape[:2], _BINS + 1), np.int64)
    above[..., :-1] = counts[..., ::-1].cumsum(-1)[..., ::-1]  # pixels in bin i or higher
    at = np.ceil((cutoffs + _LIMIT) * (_BINS / (2 * _LIMIT)) - 1e-9).astype(int).clip(0, _BINS)
    false, hit = above[:, 0][:, at], above[:, 1][:, at]  # n cutoffs
    silent, sounding = counts.sum(-1).T[..., None]
    iou = np.where(
        sounding > 0,
        hit / np.maximum(sounding + false, 1),
        (silent - false) / np.maximum(silent, 1),
    )
    return iou.mean(0)


def draw(path: str | os.PathLike, total: Int[np.ndarray, "2 bins"], temperature: float) -> None:
    """A reliability plot, PNG: before and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s, for one picture
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.0), dpi=90)
    axes = figure.add_subplot(xlabel="probability said", ylabel="share that sounds")
    axes.plot([0, 1], [0, 1], color="0.6", lw=1)
    for t, name in ((1.0, "as trained"), (temperature, f"temperature {temperature:g}")):
        rows = reliability(total, t)
        axes.plot([row[0] for row in rows], [row[1] for row in rows], "o-", label=name)
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(os.fspath(path))
