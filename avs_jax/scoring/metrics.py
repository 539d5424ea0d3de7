"""The metrics of audio-visual segmentation: scores of frames.

They follow the arithmetic of the AVSBench evaluation code, which AVESFormer, CATR and PCMANet
share: `mask_iou`, `max_f_measure` (S4, MS3) and `semantic_sums` (AVSS) of a video, `binary_frames`
and `semantic_frames` of each frame. A foreground pixel of a binary target is one with class id > 0.

Figures of a data set are made of the scores of its frames (`records`) and of nothing else, by
`modes`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from avs_jax.types import Array, Bool, Float, Int

# Thresholds of the F-measure: linspace(0, 1 - 1e-10, 255) as torch computes it in float32, that is
# from both ends with one rounding each, which makes the last exactly 1.
_STEP = np.float64(np.float32(1) / np.float32(254))
_UP = np.arange(255)
THRESHOLDS = np.where(_UP < 127, _STEP * _UP, 1.0 - _STEP * (254 - _UP)).astype(np.float32)

BETA2 = 0.3  # weight of recall in the F-measure, from salient object detection


# -------------------------------------------------------------------------- binary masks, per frame


class BinaryFrames(NamedTuple):
    """Scores of frames. `curve` is the F-measure at each threshold; meaningless where `empty`."""

    iou: Float[Array, "*b"]
    curve: Float[Array, "*b 255"]
    empty: Bool[Array, "*b"]  # the target has no foreground
    inter: Int[Array, "*b"]  # pixels predicted and true
    union: Int[Array, "*b"]  # pixels predicted or true


def binary_frames(
    logits: Float[Array, "*b h w"],
    target: Float[Array, "*b h w"] | Int[Array, "*b h w"] | Bool[Array, "*b h w"],
) -> BinaryFrames:
    """Scores every frame of sigmoid(logits) against target > 0.

    IoU: prediction = sigmoid > 0.5, I / (U + 1e-7). If the target is empty: the fraction of pixels
    predicted as background, so that 1 is earned by staying silent.
    """
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    truth = target > 0
    predicted = p > 0.5
    inter = _count(predicted & truth)
    union = _count(predicted | truth)
    empty = ~truth.any((-2, -1))
    pixels = truth.shape[-2] * truth.shape[-1]
    top = jnp.where(empty, pixels - union, inter).astype(jnp.float32)
    bottom = jnp.where(empty, pixels, union).astype(jnp.float32)
    precision, recall = _precision_recall(p, truth)
    return BinaryFrames(top / (bottom + 1e-7), _f_measure(precision, recall), empty, inter, union)


def precision_recall(
    logits: Float[Array, "*b h w"],
    target: Float[Array, "*b h w"] | Int[Array, "*b h w"] | Bool[Array, "*b h w"],
) -> tuple[Float[Array, "*b 255"], Float[Array, "*b 255"]]:
    """Precision and recall of each frame's mask `sigmoid(logits) >= THRESHOLDS[i]`, for every i."""
    return _precision_recall(jax.nn.sigmoid(logits.astype(jnp.float32)), target > 0)


@jax.jit
def mask_iou(
    logits: Float[Array, "t h w"],
    target: Float[Array, "t h w"] | Int[Array, "t h w"] | Bool[Array, "t h w"],
) -> Float[Array, ""]:
    """Mean IoU over the frames of a video (AVSBench `mask_iou`, see `binary_frames`).

    NaN if a logit is NaN or infinite, which AVSBench's code takes for silence.
    """
    return jnp.where(jnp.isfinite(logits).all(), binary_frames(logits, target).iou.mean(), jnp.nan)


@jax.jit
def max_f_measure(
    logits: Float[Array, "t h w"],
    target: Float[Array, "t h w"] | Int[Array, "t h w"] | Bool[Array, "t h w"],
) -> Float[Array, ""]:
    """Best F-measure over the thresholds of a video's mean curve (AVSBench `Eval_Fmeasure`).

    The curves of frames whose target is not empty are averaged, then the best threshold is taken:
    this is the published figure for a batch of one video. A video without such frames scores 0; NaN
    if a logit is NaN or infinite.
    """
    frames = binary_frames(logits, target)
    sounding = ~frames.empty
    total = jnp.where(sounding[:, None], frames.curve, 0.0).sum(0)
    best = total.max() / jnp.maximum(sounding.sum(), 1)
    return jnp.where(jnp.isfinite(logits).all(), best, jnp.nan)


def _precision_recall(p, truth):
    """All thresholds in one pass over the pixels: a histogram of the highest threshold reached."""
    bins = _threshold_bin(p) + 256 * truth  # true pixels in the upper half; bin 255 stays unused
    bins = jnp.where(jnp.isnan(p), -1, bins).reshape(*p.shape[:-2], -1)
    counts = _histogram(bins, 512).reshape(*p.shape[:-2], 2, 256)[..., :255]
    reached = jnp.cumsum(counts[..., ::-1], axis=-1)[..., ::-1].astype(jnp.float32)
    hits = reached[..., 1, :]
    precision = hits / (reached.sum(-2) + 1e-20)
    recall = hits / (_count(truth).astype(jnp.float32)[..., None] + 1e-20)
    return precision, recall


def _threshold_bin(p):
    """Largest i with p >= THRESHOLDS[i], exactly as the float32 comparisons say."""
    guess = jnp.clip((p * 254.0).astype(jnp.int32), 0, 254)  # off by one at most
    table = jnp.asarray(np.append(THRESHOLDS, np.float32(np.inf)))
    return guess + (p >= table[guess + 1]) - (p < table[guess])


# ------------------------------------------------------------------------ semantic masks, per frame


class SemanticFrames(NamedTuple):
    """Pixel counts of each class in each frame, and the scores made of them."""

    inter: Int[Array, "*b k"]
    predicted: Int[Array, "*b k"]
    labelled: Int[Array, "*b k"]
    iou: Float[Array, "*b k"]
    f_measure: Float[Array, "*b k"]
    counted: Bool[Array, "*b k"]  # the class is in the label or in the prediction


class SemanticSums(NamedTuple):
    """What AVSBench accumulates over a split: sums over frames, and each frame's own mean."""

    iou: Float[Array, "k"]
    f_measure: Float[Array, "k"]
    count: Int[Array, "k"]  # frames in which the class is labelled or predicted
    frame_miou: Float[Array, "t"]  # over the classes with IoU > 0


def semantic_frames(
    logits: Float[Array, "*b h w k"], labels: Int[Array, "*b h w"]
) -> SemanticFrames:
    """Counts and scores of argmax(logits) against the labels, for each class in each frame.

    A class that is neither labelled nor predicted in a frame has IoU 0 there and is not counted.
    Labels outside of [0, k) match nothing.
    """
    classes = logits.shape[-1]
    frame = labels.shape[:-2]
    guess = jnp.argmax(logits, -1).astype(jnp.int32).reshape(*frame, -1)
    truth = labels.astype(jnp.int32).reshape(*frame, -1)
    inter = _histogram(jnp.where(guess == truth, truth, -1), classes)
    predicted = _histogram(guess, classes)
    labelled = _histogram(truth, classes)
    union = predicted + labelled - inter
    # float32 as in the reference: the 2.2e-16 only matters where the union is 0
    iou = inter.astype(jnp.float32) / (2.2e-16 + union.astype(jnp.float32))
    f_measure = _f_measure(inter / predicted, inter / labelled)
    return SemanticFrames(inter, predicted, labelled, iou, f_measure, union > 0)


@jax.jit
def semantic_sums(logits: Float[Array, "t h w k"], labels: Int[Array, "t h w"]) -> SemanticSums:
    """Sums over all frames given, padded ones too (AVSBench `_batch_miou_fscore`)."""
    frames = semantic_frames(logits, labels)
    frame_miou = frames.iou.sum(-1) / (frames.iou > 0).sum(-1)
    return SemanticSums(
        frames.iou.sum(0), frames.f_measure.sum(0), frames.counted.sum(0), frame_miou
    )


# -------------------------------------------------------------------------------- shared arithmetic


def _f_measure(precision, recall):
    f = (1 + BETA2) * precision * recall / (BETA2 * precision + recall)
    return jnp.where(jnp.isnan(f), 0.0, f)


def _count(mask):
    return mask.sum((-2, -1), dtype=jnp.int32)


def _histogram(index, bins):
    """i32[*b n] -> i32[*b bins]: how often each bin occurs; others than [0, bins) are left out."""
    rows = index.reshape(-1, index.shape[-1])
    # A scatter is the fastest on a CPU (0.4 ms for 5 x 224 x 224); accelerators serialise its
    # collisions.
    counts = lax.platform_dependent(
        rows, cpu=lambda i: _scatter_counts(i, bins), default=lambda i: _matmul_counts(i, bins)
    )
    return counts.reshape(*index.shape[:-1], bins)


def _scatter_counts(index, bins):
    index = jnp.where(index < 0, bins, index)  # a negative index would wrap around
    return jax.vmap(lambda i: jnp.zeros(bins, jnp.int32).at[i].add(1, mode="drop"))(index)


def _matmul_counts(index, bins):
    """bin = 16 * row + column: the product of two thin one-hot matrices counts exactly."""
    rows = -(-bins // 16)
    row = (index[..., None] // 16 == jnp.arange(rows)).astype(jnp.bfloat16)
    column = (index[..., None] % 16 == jnp.arange(16)).astype(jnp.bfloat16)
    counts = jnp.einsum("npr,npc->nrc", row, column, preferred_element_type=jnp.float32)
    return counts.reshape(-1, rows * 16)[:, :bins].astype(jnp.int32)
