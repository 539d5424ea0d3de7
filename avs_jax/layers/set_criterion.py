"""The set criterion of DETR (arXiv 2005.12872, section 3.1) for queries with masks, over clips.

A query of a frame has a mask and class logits: k classes and "no object", which is the last one.
With one class that means "this sounds" or not (S4, MS3: one target per clip, the union of what
sounds). With several (AVSS; ours, as in MaskFormer, arXiv 2107.06278) every class of a clip,
background among them, is a target of its own.

Each target of a clip is matched with the query that fits best over the clip's labelled frames; the
matched ones learn class and mask, the others learn to be no object. Every decoder layer is matched
and trained by itself.
"""

import jax
import jax.numpy as jnp
import optax

from avs_jax.layers import losses
from avs_jax.layers.resize import resize_masks
from avs_jax.types import Array, Bool, Float, Int


def make_targets(
    label: Int[Array, "b t h w"],
    frames: Bool[Array, "b t"],
    num_classes: int,
    max_targets: int,
) -> dict[str, Array]:
    """What the queries of a clip are matched with.

    -> masks f32[b t m h w], ids i32[b m] (classes), exists bool[b m], visible bool[b t m]. One
    class: m = 1, everything that sounds. Several: m = max_targets, the classes of labelled `frames`
    that take the most pixels.
    """
    if num_classes == 1:
        masks = (label > 0)[:, :, None]
        ids = jnp.zeros((label.shape[0], 1), jnp.int32)
        exists = jnp.ones(ids.shape, bool)
    else:
        same = label[..., None] == jnp.arange(num_classes)
        area = (same & frames[:, :, None, None, None]).sum((1, 2, 3))  # [b k]
        area, ids = jax.lax.top_k(area, min(max_targets, num_classes))
        exists = area > 0
        masks = label[:, :, None] == ids[:, None, :, None, None]
        masks &= exists[:, None, :, None, None]
    visible = masks.any((-2, -1))
    return {"masks": masks.astype(jnp.float32), "ids": ids, "exists": exists, "visible": visible}


def match_queries(
    masks: Float[Array, "b t q y x"],
    classes: Float[Array, "b t q k1"],
    targets: dict[str, Array],
    frames: Bool[Array, "b t"],
    class_cost: float,
    dice_cost: float,
) -> Int[Array, "b m"]:
    """The query of each target: cost = -class probability and -Dice, means over labelled `frames`.

    In a frame where a target is not visible its class is "no object" (the published code, which has
    first frames alone, keeps an empty one's "sounds"). Carries no gradient.
    """
    masks, classes = jax.lax.stop_gradient((masks, classes))
    truth = targets["masks"]
    p = jax.nn.sigmoid(resize_masks(masks, truth.shape[-2:]))
    overlap = jnp.einsum("btqhw,btmhw->btmq", p, truth)
    area = p.sum((-2, -1))[:, :, None] + truth.sum((-2, -1))[..., None]
    dice = (2.0 * overlap + 1.0) / (area + 1.0)

    wanted = _classes_of(targets, classes.shape[-1])  # [b t m]
    probabilities = jax.nn.softmax(classes).swapaxes(-2, -1)  # [b t k+1 q]
    likely = jnp.take_along_axis(probabilities, wanted[..., None], axis=2)
    cost = -class_cost * likely - dice_cost * dice  # [b t m q]
    cost = losses.weighted_mean(cost, frames[..., None, None], axis=1)
    # A target that does not exist takes whatever query is left over.
    return losses.match(jnp.where(targets["exists"][..., None], cost, 0.0))


def _classes_of(targets, num_logits):
    """Class of each target in each frame; where it is not visible, "no object"."""
    return jnp.where(targets["visible"], targets["ids"][:, None], num_logits - 1)


def layer_losses(
    masks: Float[Array, "b t q y x"],
    classes: Float[Array, "b t q k1"],
    targets: dict[str, Array],
    frames: Bool[Array, "b t"],
    no_object: float,
    class_cost: float,
    dice_cost: float,
    double_sigmoid_bce: bool,
) -> tuple[dict[str, losses.Term], Int[Array, "b m"]]:
    """The terms of one decoder layer (of weight 1), and the query that each target got.

    is_referred: cross-entropy of all queries, sum over queries, mean over frames; those without a
      target weigh `no_object`.
    dice, focal, bce: of the matched masks, resized to the label; mean over targets and frames. In
      frames where the target is not visible the mask is to be empty.

    What a mean divides by are frames, and targets in frames: of the labels alone, whatever queries
    get the targets. The matching, too, looks at one clip at a time.
    """
    matched = match_queries(masks, classes, targets, frames, class_cost, dice_cost)
    exists = targets["exists"]
    num_queries, num_logits = classes.shape[-2:]

    assigned = jax.nn.one_hot(matched, num_queries, dtype=bool) & exists[..., None]  # [b m q]
    difference = _classes_of(targets, num_logits) - (num_logits - 1)
    wanted = num_logits - 1 + jnp.einsum("btm,bmq->btq", difference, assigned.astype(jnp.int32))
    entropy = optax.softmax_cross_entropy_with_integer_labels(classes, wanted)
    weight = jnp.where(assigned.any(1), 1.0, no_object)[:, None]  # [b 1 q]
    terms = {"is_referred": losses.make_term((entropy * weight).sum(-1), frames)}

    chosen = jnp.take_along_axis(masks, matched[:, None, :, None, None], axis=2)
    truth = targets["masks"]
    logits = resize_masks(chosen, truth.shape[-2:])
    counted = frames[..., None] & exists[:, None]
    # Published: the sigmoid of the sigmoid, which stays between 0.5 and 0.73.
    probability = jax.nn.sigmoid(logits) if double_sigmoid_bce else logits
    terms |= {
        "dice": losses.make_term(losses.dice(logits, truth), counted),
        "focal": losses.make_term(losses.focal(logits, truth), counted),
        "bce": losses.make_term(losses.bce_with_logits(probability, truth), counted),
    }
    return terms, matched


def set_losses(
    masks: Float[Array, "l b t q y x"],
    classes: Float[Array, "l b t q k1"],
    targets: dict[str, Array],
    frames: Bool[Array, "b t"],
    weights: dict[str, float],
    **options,
) -> dict[str, losses.Term]:
    """`layer_losses` of every decoder layer, with their `weights` by name.

    -> the last layer's under their own names, the earlier ones' with the layer's number ("dice_0").
    """
    terms, last = {}, len(masks) - 1
    for i, (layer_masks, layer_classes) in enumerate(zip(masks, classes, strict=True)):
        layer, _ = layer_losses(layer_masks, layer_classes, targets, frames, **options)
        for name, weight in weights.items():
            key = name if i == last else f"{name}_{i}"
            terms[key] = layer[name]._replace(weight=weight)
    return terms
