"""The set criterion against plain loops over clips, targets and queries, as CATR's loss has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from avs_jax.layers import losses
from avs_jax.layers.set_criterion import layer_losses, make_targets, match_queries
from avs_jax.models import get_loss

SIZE = 8
COSTS = {"class_cost": 2.0, "dice_cost": 7.0}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def make_example(seed, b=2, t=3, q=5, k=1, layers=2):
    """Outputs with masks at the label's size (resizing is tested apart), and a batch."""
    rng = np.random.default_rng(seed)
    outputs = {
        "pred_masks": rng.normal(0, 2, (layers, b, t, q, SIZE, SIZE)),
        "pred_is_referred": rng.normal(0, 1, (layers, b, t, q, k + 1)),
    }
    label = rng.integers(0, max(k, 2), (b, t, SIZE, SIZE))
    label[rng.random((b, t)) < 0.3] = 0  # silent frames
    label_mask = rng.random((b, t)) < 0.7
    label_mask[:, 0] = True
    batch = {
        "label": jnp.asarray(label, jnp.int32),
        "label_mask": jnp.asarray(label_mask),
        "frame_mask": jnp.ones((b, t), bool),
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}, batch


def loop_losses(masks, classes, label, label_mask, k, double_sigmoid=True):
    """One layer's terms, one clip, target, frame and query at a time."""
    b, _, q, none = *masks.shape[:3], k
    referred, dices, focals, bces = 0.0, [], [], []
    for i in range(b):
        frames = np.flatnonzero(label_mask[i])
        ids = [0] if k == 1 else sorted(set(label[i][frames].reshape(-1)))
        truth = {c: (label[i] > 0 if k == 1 else label[i] == c).astype(float) for c in ids}
        cost = np.zeros((len(ids), q))
        for row, c in enumerate(ids):
            for j in range(q):
                for f in frames:
                    p, y = sigmoid(masks[i, f, j]), truth[c][f]
                    overlap = (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
                    wanted = c if y.any() else none
                    likely = softmax(classes[i, f, j])[wanted]
                    cost[row, j] -= (2 * likely + 7 * overlap) / len(frames)
        matched = dict(zip(*linear_sum_assignment(cost)[::-1], strict=True))  # query -> row
        for f in frames:
            for j in range(q):
                c = ids[matched[j]] if j in matched else None
                wanted = c if c is not None and truth[c][f].any() else none
                weight = 0.1 if c is None else 1.0
                referred -= weight * np.log(softmax(classes[i, f, j])[wanted])
                if c is None:
                    continue
                x, y = masks[i, f, j], truth[c][f]
                p = sigmoid(x)
                dices.append(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
                right = np.where(y > 0, p, 1 - p)
                balance = np.where(y > 0, 0.25, 0.75)
                focals.append((-balance * (1 - right) ** 2 * np.log(right)).mean())
                again = sigmoid(p) if double_sigmoid else p
                bces.append(-np.log(np.where(y > 0, again, 1 - again)).mean())
    return {
        "is_referred": referred / label_mask.sum(),
        "dice": np.mean(dices),
        "focal": np.mean(focals),
        "bce": np.mean(bces),
    }


@pytest.mark.parametrize("double_sigmoid", [True, False])
@pytest.mark.parametrize("k", [1, 3])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**16))
def test_terms_equal_loops(k, double_sigmoid, seed):
    outputs, batch = make_example(seed, k=k)
    _, parts = compute_loss(outputs, batch, double_sigmoid_bce=double_sigmoid)
    masks, classes = (outputs[name][-1] for name in ("pred_masks", "pred_is_referred"))
    arrays = [np.asarray(x) for x in (masks, classes, batch["label"], batch["label_mask"])]
    wanted = loop_losses(*arrays, k, double_sigmoid)
    for name, value in wanted.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, err_msg=name)


def loss(outputs, batch, **options):
    """-> total, {name: mean}."""
    terms = get_loss("catr")(outputs, batch, **options)
    return losses.total(terms), losses.means(terms)


compute_loss = jax.jit(
    loss, static_argnames=("double_sigmoid_bce", "labelled_frames", "max_targets")
)


def test_total_is_the_weighted_sum_over_layers():
    outputs, batch = make_example(0)
    total, _ = compute_loss(outputs, batch)
    wanted = 0.0
    for layer in range(2):
        alone = {name: x[layer : layer + 1] for name, x in outputs.items()}
        _, parts = compute_loss(alone, batch)
        wanted += parts["is_referred"] + 5 * parts["dice"] + 5 * parts["focal"] + 4 * parts["bce"]
    np.testing.assert_allclose(total, wanted, rtol=1e-5)


def test_only_labelled_frames_count():
    outputs, batch = make_example(1)
    batch["label_mask"] = jnp.array([[True, False, False]] * 2)
    other = batch | {"label": batch["label"].at[:, 1:].set(1)}
    changed = {name: x.at[:, :, 1:].add(1.0) for name, x in outputs.items()}
    one, two = compute_loss(outputs, batch)[0], compute_loss(changed, other)[0]
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_leading_labelled_frames_can_be_told():
    outputs, batch = make_example(2)
    batch["label_mask"] = jnp.array([[True, False, False]] * 2)
    one, two = (compute_loss(outputs, batch, labelled_frames=n)[0] for n in (None, 1))
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_batch_without_labels_costs_nothing():
    outputs, batch = make_example(3)
    total, _ = compute_loss(outputs, batch | {"label_mask": jnp.zeros((2, 3), bool)})
    assert total == 0.0


def test_silent_clips_make_every_query_no_object():
    outputs, batch = make_example(4, layers=1)
    batch |= {"label": jnp.zeros_like(batch["label"]), "label_mask": jnp.ones((2, 3), bool)}

    def referred(classes):
        given = outputs | {"pred_is_referred": classes}
        return loss(given, batch)[1]["is_referred"]

    grad = jax.jit(jax.grad(referred))(outputs["pred_is_referred"])
    assert (grad[..., -1] < 0).all()  # "no object" grows
    assert (grad[..., 0] > 0).all()


def test_several_targets_are_the_classes_present():
    _, batch = make_example(5, k=4)
    label = jnp.zeros_like(batch["label"]).at[0, 0, :3].set(3).at[0, 1, 0].set(1)
    frames = jnp.ones((2, 3), bool).at[0, 1].set(False)  # class 1 is on an unlabelled frame only
    targets = make_targets(label, frames, num_classes=4, max_targets=3)
    found = [
        {int(c) for c, e in zip(ids, exists, strict=True) if e}
        for ids, exists in zip(targets["ids"], targets["exists"], strict=True)
    ]
    assert found == [{0, 3}, {0}]
    assert targets["masks"].shape == (2, 3, 3, SIZE, SIZE)
    np.testing.assert_array_equal(targets["masks"][0, 0].sum(0), 1)


def test_the_largest_classes_are_trained_where_there_are_too_many():
    label = jnp.zeros((1, 1, SIZE, SIZE), jnp.int32).at[0, 0, 0, :3].set(1).at[0, 0, 1, :4].set(2)
    targets = make_targets(label, jnp.ones((1, 1), bool), num_classes=4, max_targets=2)
    assert set(targets["ids"][0].tolist()) == {0, 2}


def test_two_targets_never_share_a_query():
    outputs, batch = make_example(6, k=4)
    targets = make_targets(batch["label"], batch["label_mask"], 4, 4)
    masks, classes = (outputs[name][0] for name in ("pred_masks", "pred_is_referred"))
    matched = match_queries(masks, classes, targets, batch["label_mask"], **COSTS)
    assert all(len(set(row.tolist())) == 4 for row in matched)


def test_the_query_that_fits_is_matched():
    outputs, batch = make_example(7, b=1)
    label = batch["label"].at[:].set(0).at[:, :, 2:5, 2:5].set(1)
    masks = outputs["pred_masks"][0].at[:, :, 3].set(jnp.where(label > 0, 9.0, -9.0))
    targets = make_targets(label, batch["frame_mask"], 1, 1)
    classes = jnp.zeros((1, 3, 5, 2))
    assert match_queries(masks, classes, targets, batch["frame_mask"], **COSTS) == 3


def test_the_train_step_needs_no_host():
    outputs, batch = make_example(8, k=3)
    text = jax.jit(jax.grad(lambda x: loss(x, batch)[0])).lower(outputs).as_text()
    assert "callback" not in text


def test_masks_are_resized_to_the_label():
    outputs, batch = make_example(9)
    small = {**outputs, "pred_masks": outputs["pred_masks"][..., ::2, ::2]}
    targets = make_targets(batch["label"], batch["label_mask"], 1, 1)
    terms, _ = layer_losses(
        small["pred_masks"][0],
        small["pred_is_referred"][0],
        targets,
        batch["label_mask"],
        no_object=0.1,
        double_sigmoid_bce=True,
        **COSTS,
    )
    assert all(np.isfinite(x) for x in losses.means(terms).values())


# ---------------------------------------------------------------- answers
