"""What CATR's queries say, where they look, and how they learn it.

A query of a frame has a mask and class logits: k classes and "no object", which is the last one.
With one class that means "this sounds" or not (S4, MS3: one target per clip, the union of what
sounds). With several (AVSS; ours, as in MaskFormer, arXiv 2107.06278) every class of a clip,
background among them, is a target of its own.

The criterion is DETR's as the published code has it: each target of a clip is matched with the
query that fits best over the clip's labelled frames; the matched ones learn class and mask, the
others learn to be no object. Every decoder layer is matched and trained by itself.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from avs_jax.layers import losses
from avs_jax.layers.auxiliary import auxiliary_losses
from avs_jax.layers.resize import resize_bilinear
from avs_jax.types import Array, Bool, Float, Int


def answer(
    masks: Float[Array, "b t q y x"],
    classes: Float[Array, "b t q k1"],
    size: tuple[int, int],
    empty_if_silent: bool = False,
) -> tuple[Float[Array, "b t h w k"], Int[Array, "b t"]]:
    """A layer's predictions -> logits at `size`, and the query that is the least "no object".

    One class: logits of that query's mask, bilinear (published); with `empty_if_silent` at most its
    class logit, so that a frame is empty if "no object" is the likelier (ours). Several: logarithm
    of the sum over queries of class probability times mask probability.
    """
    query = jnp.argmin(jax.nn.softmax(classes)[..., -1], axis=-1).astype(jnp.int32)
    if classes.shape[-1] > 2:
        probabilities = jax.nn.softmax(classes)[..., :-1]
        shares = jax.nn.sigmoid(_resize(masks, size))
        return jnp.log(jnp.einsum("btqk,btqhw->bthwk", probabilities, shares) + 1e-8), query
    chosen = jnp.take_along_axis(masks, query[..., None, None, None], axis=2)
    logits = _resize(chosen, size)[:, :, 0]
    if empty_if_silent:
        sounding = jnp.take_along_axis(classes, query[..., None, None], axis=2)[:, :, 0]
        sounding = sounding[..., 0] - sounding[..., 1]
        logits = jnp.minimum(logits, sounding[..., None, None])
    return logits[..., None], query


def _resize(masks, size):
    """Bilinear, of the last two axes."""
    flat = masks.reshape(-1, *masks.shape[-2:], 1)
    return resize_bilinear(flat, size).reshape(*masks.shape[:-2], *size)


def query_attention(
    model: nn.Module,
    variables: dict,
    frames: Float[Array, "b t h w 3"],
    log_mel: Float[Array, "b t 96 64"],
    frame_mask: Bool[Array, "b t"] | None = None,
) -> tuple[Float[Array, "b t y x"], Float[Array, "b t"]]:
    """Where the query that answers for a frame looks, in the decoder's last layer.

    -> weights over cells (1/8 of the enlarged frame, mean over heads), and their sum over audio
    tokens, which is 0 in `paper`; all weights of a frame sum to 1. `model` is a CATR, static under
    jit.
    """
    name = f"decoder{model.decoder_layers - 1}"

    def looks(module, method):
        return module.name in ("query", "key") and module.path[:2] == (name, "cross_attention")

    outputs, state = model.apply(
        variables, frames, log_mel, frame_mask, capture_intermediates=looks, mutable="intermediates"
    )
    found = state["intermediates"][name]["cross_attention"]
    b, t, height, width, _ = frames.shape
    cells = (height * model.input_scale // 8, width * model.input_scale // 8)
    query, key = (
        found[role]["__call__"][0].reshape(b, t, -1, model.num_heads, model.dim // model.num_heads)
        for role in ("query", "key")
    )
    query = jnp.take_along_axis(query, outputs["query"][..., None, None, None], axis=2)[:, :, 0]
    scores = jnp.einsum("btHd,btsHd->btHs", query, key) / query.shape[-1] ** 0.5
    if frame_mask is not None and model.mode == "reference":
        own = jnp.ones((b, t, cells[0] * cells[1]), bool)
        clip = jnp.broadcast_to(frame_mask[:, None], (b, t, t))
        scores = jnp.where(jnp.concatenate([own, clip], axis=2)[:, :, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).mean(2)  # [b t s + a]
    visual = weights[..., : cells[0] * cells[1]]
    return visual.reshape(b, t, *cells), 1.0 - visual.sum(-1)


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
    p = jax.nn.sigmoid(_resize(masks, truth.shape[-2:]))
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
    logits = _resize(chosen, truth.shape[-2:])
    counted = frames[..., None] & exists[:, None]
    # Published: the sigmoid of the sigmoid, which stays between 0.5 and 0.73.
    probability = jax.nn.sigmoid(logits) if double_sigmoid_bce else logits
    terms |= {
        "dice": losses.make_term(losses.dice(logits, truth), counted),
        "focal": losses.make_term(losses.focal(logits, truth), counted),
        "bce": losses.make_term(losses.bce_with_logits(probability, truth), counted),
    }
    return terms, matched


def loss(
    outputs: dict[str, Array],
    batch: dict[str, Array],
    *,
    is_referred_weight: float = 1.0,
    dice_weight: float = 5.0,
    focal_weight: float = 5.0,
    bce_weight: float = 4.0,
    tag_weight: float = 0.0,
    semantic_weight: float = 0.0,
    no_object: float = 0.1,
    class_cost: float = 2.0,
    dice_cost: float = 7.0,
    double_sigmoid_bce: bool = True,
    labelled_frames: int | None = None,
    max_targets: int = 8,
) -> dict[str, losses.Term]:
    """The set criterion of all the decoder's layers, and the auxiliary heads' losses.

    Classes are balanced as it is (AVSS): each is a target of its own, whatever its size.

    Args:
      no_object: weight of queries without a target (MTTR: 0.1).
      class_cost, dice_cost: the matcher's weights (7 is hard-coded in the published code).
      double_sigmoid_bce: as published; False is the ordinary binary cross-entropy.
      labelled_frames: that only the first so many frames have labels (S4: 1), which saves the work
        on the others; None looks at all frames of `label_mask`.
      max_targets: the most classes of a clip that are trained at a time (AVSS).

    Returns:
      The last layer's "is_referred", "dice", "focal" and "bce", the earlier ones' with the number
      of the layer ("dice_0"); "tags", "semantic".
    """
    label, frames = batch["label"], batch["label_mask"] & batch["frame_mask"]
    terms = auxiliary_losses(outputs, label, frames, tag_weight, semantic_weight)
    used = slice(labelled_frames)
    label, frames = label[:, used], frames[:, used]
    masks, classes = (outputs[name][:, :, used] for name in ("pred_masks", "pred_is_referred"))
    targets = make_targets(label, frames, classes.shape[-1] - 1, max_targets)
    criterion = partial(
        layer_losses,
        targets=targets,
        frames=frames,
        no_object=no_object,
        class_cost=class_cost,
        dice_cost=dice_cost,
        double_sigmoid_bce=double_sigmoid_bce,
    )
    weights = {
        "is_referred": is_referred_weight,
        "dice": dice_weight,
        "focal": focal_weight,
        "bce": bce_weight,
    }
    last = masks.shape[0] - 1
    for i in range(last + 1):
        layer, _ = criterion(masks[i], classes[i])
        for name, weight in weights.items():
            key = name if i == last else f"{name}_{i}"
            terms[key] = layer[name]._replace(weight=weight)
    return terms
