"""What all losses promise: sums and counts that add up over clips, so that parts are the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.layers import losses
from avs_jax.models import get_loss
from tests.models.unequal_clips import (
    CASES,
    FRAMES,
    LAYERS,
    QUERIES,
    SIZE,
    loss_of_every_term,
    make_batch,
)


def make_outputs(name, k, seed=1):
    """Outputs of both clips, those of the auxiliary heads too; the axis of clips comes first."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(0, 2, (2, *shape)), jnp.float32)

    outputs = {"tags": normal(FRAMES, 3), "semantic": normal(FRAMES, 4, 4, 3)}
    if name == "catr":
        outputs["pred_masks"] = normal(LAYERS, FRAMES, QUERIES, 8, 8)
        outputs["pred_is_referred"] = normal(LAYERS, FRAMES, QUERIES, k + 1)
        return outputs
    outputs["logits"] = normal(FRAMES, SIZE, SIZE, k)
    if name == "pcmanet":
        outputs["outputs"] = tuple(normal(FRAMES, SIZE, SIZE, k) for _ in range(4))
        outputs["masks"] = tuple(normal(FRAMES, side, side) > 0 for side in (1, 2, 4))
    return outputs


def make_loss(name):
    """Of outputs whose first axis is the clip."""
    loss = loss_of_every_term(name)

    def terms(outputs, batch):
        layers_first = ("pred_masks", "pred_is_referred")
        outputs = {n: x.swapaxes(0, 1) if n in layers_first else x for n, x in outputs.items()}
        return loss(outputs, batch)

    return terms


def clip(tree, i):
    return jax.tree.map(lambda x: x[i : i + 1], tree)


@functools.cache
def by_parts(name, k):
    """(terms, total, gradient) of both clips together, and the sums of those of each alone."""
    loss, batch, outputs = make_loss(name), make_batch(), make_outputs(name, k)
    floats = {n: x for n, x in outputs.items() if n != "masks"}
    rest = {n: x for n, x in outputs.items() if n == "masks"}

    def of(floats, rest, batch, counts):
        terms = loss(floats | rest, batch)
        return losses.total(terms, counts), terms

    gradient = jax.jit(jax.value_and_grad(of, has_aux=True))
    (total, terms), grads = gradient(floats, rest, batch, None)
    counts = {n: term.count for n, term in terms.items()}
    parts = [gradient(clip(floats, i), clip(rest, i), clip(batch, i), counts) for i in (0, 1)]
    (first, _), (second, _) = parts
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), parts[0][1], parts[1][1])
    added = {n: jax.tree.map(jnp.add, first[1][n], second[1][n]) for n in terms}
    return (terms, total, grads), (added, first[0] + second[0], joined)


@pytest.mark.parametrize("name, k", CASES)
def test_unequal_clips_give_their_whole_batch_s_gradient_in_parts(name, k):
    (_, total, whole), (_, parts_total, parts) = by_parts(name, k)
    np.testing.assert_allclose(parts_total, total, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name, k", CASES)
def test_sums_and_counts_add_up_over_clips(name, k):
    (terms, _, _), (added, _, _) = by_parts(name, k)
    assert {"tags", "semantic"} < set(terms)
    for key, term in terms.items():
        assert added[key].count == term.count, key
        np.testing.assert_allclose(added[key].sum, term.sum, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name, k", CASES)
def test_counts_are_of_the_labels_alone(name, k):
    loss, batch = make_loss(name), make_batch()

    def counts(seed):
        return {
            n: float(term.count)
            for n, term in jax.jit(loss)(make_outputs(name, k, seed), batch).items()
        }

    assert counts(1) == counts(2)


@pytest.mark.parametrize("name, k", CASES)
def test_a_batch_without_labels_has_no_gradient(name, k):
    loss, outputs = make_loss(name), make_outputs(name, k)
    batch = make_batch() | {"label_mask": jnp.zeros((2, FRAMES), bool)}
    masks = {n: outputs.pop(n) for n in ("masks",) if n in outputs}
    gradient = jax.jit(jax.grad(lambda x: losses.total(loss(x | masks, batch))))(outputs)
    assert all(not x.any() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["avesformer", "pcmanet"])
def test_balanced_cross_entropy_is_off_unless_asked_for(name):
    terms = get_loss(name)(make_outputs(name, 4), make_batch())
    assert not [key for key in terms if "balanced" in key]
