"""Losses as pure functions: logits and targets in, one float32 number per frame out.

Every loss of a frame is computed in float32, whatever the logits' dtype, and returned per frame, so
that "only the labelled frames count" is a matter of weights outside (`make_term`) and never a
special case in here. Axis letters as in the package docstring; `*b` is any number of leading axes
(clip and second).

What a model's loss returns is {name: Term}: sums and what to divide them by, not means. A batch
that is worked through in parts is divided once, by the whole batch's counts; means of the parts
would give a part with one labelled frame as much say as one with eight.

Targets of binary losses are 0 or 1 as float32. The matcher that assigns queries to targets (CATR)
is here too: it runs inside jit, with no trip to the host.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from avs_jax.errors import BadValueError
from avs_jax.types import Array, Bool, Float, Int

_PIXELS = (-2, -1)


class Term(NamedTuple):
    """One term of a loss, over a batch or a part of one; its value is sum / count.

    sum: f32[]. count: f32[], of the batch's labels and masks alone, never of the model's outputs.
    weight: in the total; 0 is only logged.
    """

    sum: Float[Array, ""]
    count: Float[Array, ""]
    weight: float


def make_term(
    values: Float[Array, "..."],
    weights: Float[Array, "..."] | Bool[Array, "..."] | Int[Array, "..."],
    weight: float = 1.0,
) -> Term:
    """Sum of weights * values, the sum of weights as count. `weights` are of the labels alone.

    Values without weight take no part, not even as NaN (a padded frame may hold anything).
    """
    summed, count = _weighted_sum(values, weights, None)
    return Term(summed, count, weight)


def means(
    terms: Mapping[str, Term], counts: Mapping[str, Float[Array, ""]] | None = None
) -> dict[str, Float[Array, ""]]:
    """{name: sum / count}, 0 where nothing counts.

    counts: those of the whole batch where `terms` are of a part of it; such means add up over the
      parts.
    """
    counts = {name: term.count for name, term in terms.items()} if counts is None else counts
    return {name: _divide(term.sum, counts[name]) for name, term in terms.items()}


def total(
    terms: Mapping[str, Term], counts: Mapping[str, Float[Array, ""]] | None = None
) -> Float[Array, ""]:
    """What is trained on: the sum of weight * sum / count. `counts` as in `means`."""
    # Without weight a term must not reach the gradient, not even as 0 * NaN.
    values = means({name: term for name, term in terms.items() if term.weight}, counts)
    return sum((terms[name].weight * value for name, value in values.items()), jnp.float32(0))


def bce_with_logits(
    logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"]
) -> Float[Array, "*b"]:
    """Binary cross-entropy of sigmoid(logits), mean over the pixels; stable for any logit."""
    logits, target = _float32(logits, target)
    return optax.losses.sigmoid_binary_cross_entropy(logits, target).mean(_PIXELS)


def bce_clamped(
    logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"]
) -> Float[Array, "*b"]:
    """`bce_with_logits` as PCMANet computes it: from the rounded sigmoid, logarithms cut at -100.

    It differs from the stable form only where the float32 sigmoid saturates (|logit| near 17 and
    more): there a wrong pixel costs 100 and has no gradient.
    """
    logits, target = _float32(logits, target)
    return _bce_of_probability(jax.nn.sigmoid(logits), target).mean(_PIXELS)


@jax.custom_vjp
def _bce_of_probability(p, target):
    log_p, log_q = jnp.maximum(jnp.log(p), -100.0), jnp.maximum(jnp.log1p(-p), -100.0)
    return -(target * log_p + (1.0 - target) * log_q)


def _bce_forward(p, target):
    return _bce_of_probability(p, target), (p, target)


def _bce_backward(residuals, cotangent):
    # torch.nn.BCELoss: the denominator is kept above 1e-12, which the derivative of the clamp is
    # not.
    p, target = residuals
    return cotangent * (p - target) / jnp.maximum(p * (1.0 - p), 1e-12), jnp.zeros_like(target)


_bce_of_probability.defvjp(_bce_forward, _bce_backward)


def soft_iou(logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"]) -> Float[Array, "*b"]:
    """1 - (I + 1) / (U + 1) with the soft I = sum p*y, U = sum (p + y) - I of a frame (PCMANet)."""
    logits, target = _float32(logits, target)
    p = jax.nn.sigmoid(logits)
    inter = (p * target).sum(_PIXELS)
    union = (p + target).sum(_PIXELS) - inter
    return 1.0 - (inter + 1.0) / (union + 1.0)


def dice(
    logits: Float[Array, "*b h w"], target: Float[Array, "*b h w"], smooth: float = 1.0
) -> Float[Array, "*b"]:
    """1 - (2 sum p*y + smooth) / (sum p + sum y + smooth) of a frame (AVESFormer, CATR)."""
    logits, target = _float32(logits, target)
    p = jax.nn.sigmoid(logits)
    return 1.0 - (2.0 * (p * target).sum(_PIXELS) + smooth) / (
        p.sum(_PIXELS) + target.sum(_PIXELS) + smooth
    )


def focal(
    logits: Float[Array, "*b h w"],
    target: Float[Array, "*b h w"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*b"]:
    """Sigmoid focal loss, mean over the pixels (RetinaNet's alpha and gamma, as CATR)."""
    logits, target = _float32(logits, target)
    p = jax.nn.sigmoid(logits)
    wrong = p * (1.0 - target) + (1.0 - p) * target
    balance = alpha * target + (1.0 - alpha) * (1.0 - target)
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return (balance * wrong**gamma * entropy).mean(_PIXELS)


def cross_entropy(
    logits: Float[Array, "*b h w k"], label: Int[Array, "*b h w"]
) -> Float[Array, "*b"]:
    """Softmax cross-entropy over the k classes, mean over the pixels of a frame (AVSS)."""
    (logits,) = _float32(logits)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label).mean(_PIXELS)


def balanced_cross_entropy(
    logits: Float[Array, "*b h w k"], label: Int[Array, "*b h w"]
) -> Float[Array, "*b"]:
    """Softmax cross-entropy, mean over the pixels of each class that a frame's label holds, then
    over those classes: a class counts as much in ten pixels as in ten thousand.

    Ours, of no paper: in AVSS background takes most pixels. By frame, so that it depends on no
    statistics of the data set and not on the rest of the batch.
    """
    (logits,) = _float32(logits)
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    y = jax.nn.one_hot(label, logits.shape[-1])
    area = y.sum((-3, -2))  # [*b k]
    of_class = (entropy[..., None] * y).sum((-3, -2)) / jnp.maximum(area, 1.0)
    return weighted_mean(of_class, area > 0, axis=-1)


def dice_present(
    logits: Float[Array, "*b h w k"], label: Int[Array, "*b h w"], smooth: float = 1.0
) -> Float[Array, "*b"]:
    """Dice of the softmax for each class that a frame's label holds, mean over those classes."""
    (logits,) = _float32(logits)
    p = jax.nn.softmax(logits)
    y = jax.nn.one_hot(label, logits.shape[-1])
    inter = (p * y).sum((-3, -2))  # [*b k]
    area = y.sum((-3, -2))
    loss = 1.0 - (2.0 * inter + smooth) / (p.sum((-3, -2)) + area + smooth)
    return weighted_mean(loss, area > 0, axis=-1)


def weighted_mean(
    values: Float[Array, "..."],
    weights: Float[Array, "..."] | Bool[Array, "..."] | Int[Array, "..."],
    axis: int | None = None,
) -> Float[Array, "..."]:
    """Sum of weights * values over sum of weights; 0 where no weight is positive.

    Values without weight take no part, not even as NaN (a padded frame may hold anything).
    """
    return _divide(*_weighted_sum(values, weights, axis))


def _weighted_sum(values, weights, axis):
    """Of weights * values, and of weights."""
    weights = jnp.broadcast_to(weights, values.shape).astype(jnp.float32)
    return (jnp.where(weights > 0, values, 0.0) * weights).sum(axis), weights.sum(axis)


def _divide(summed, count):
    return jnp.where(count > 0, summed / jnp.where(count > 0, count, 1.0), 0.0)


def match(cost: Float[Array, "*b targets queries"]) -> Int[Array, "*b targets"]:
    """The query of each target such that no query serves two and the summed cost is the least.

    One target (S4, MS3) is an argmin, the first of equals; several are solved by the Hungarian
    algorithm, jitted. The result carries no gradient. Raises BadValueError if there are fewer
    queries than targets.
    """
    *batch, targets, queries = cost.shape
    if targets > queries:
        raise BadValueError(
            f"{targets} targets cannot each have a query of their own among {queries}; "
            "give the model more queries."
        )
    # A diverged run's NaN would keep the Hungarian algorithm's loops from ending.
    cost = jnp.nan_to_num(jax.lax.stop_gradient(cost.astype(jnp.float32)), nan=1e9)
    if targets == 1:
        return jnp.argmin(cost, axis=-1).astype(jnp.int32)
    chosen = jax.vmap(_assign)(cost.reshape(-1, targets, queries))
    return chosen.reshape(*batch, targets)


def _assign(cost):
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))


def _float32(*arrays):
    return tuple(a.astype(jnp.float32) for a in arrays)
