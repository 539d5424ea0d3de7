"""The metrics against the reference's numbers, worked examples, and invariances of the sums."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax import errors
from avs_jax.scoring import metrics
from tests.parity.fill import uniform

EXPECTED = np.load(Path(__file__).parents[1] / "parity/expected/metrics.npz")
few_examples = settings(max_examples=15, deadline=None)
update = jax.jit(lambda state, *arrays: state.update(*arrays))


# ---------------------------------------------------------------------------------- parity


def _binary_cases():
    p = uniform("metrics/iou_pred", (5, 64, 64), -4, 4)
    y = (uniform("metrics/iou_target", (5, 64, 64)) > 0.6).astype(np.float32)
    s, zero = 2 * y - 1, np.zeros_like(y)
    one_empty = np.concatenate([y[:2], zero[:1], y[3:]])
    return {
        "random": (p, y),
        "correlated": (p + 3 * s, y),
        "one_empty": (p + 3 * s, one_empty),
        "all_empty": (p, zero),
        "all_empty_pred_empty": (-abs(p) - np.float32(0.1), zero),
        "perfect": (8 * s, y),
        "saturated": (40 * s, y),
        "inverted": (-(p + 3 * s), y),
    }


BINARY = _binary_cases()


@pytest.mark.parametrize("case", BINARY)
def test_mask_iou_equals_the_reference(case):
    logits, target = map(jnp.asarray, BINARY[case])
    np.testing.assert_allclose(
        metrics.mask_iou(logits, target), EXPECTED[f"mask_iou/{case}"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("case", BINARY)
def test_max_f_measure_equals_the_reference(case):
    logits, target = map(jnp.asarray, BINARY[case])
    np.testing.assert_allclose(
        metrics.max_f_measure(logits, target), EXPECTED[f"fmeasure/{case}"], rtol=0, atol=1e-6
    )


def test_precision_and_recall_curves_equal_the_reference():
    logits, target = map(jnp.asarray, BINARY["correlated"])
    precision, recall = metrics.precision_recall(logits, target)
    np.testing.assert_allclose(precision[0], EXPECTED["pr/precision"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(recall[0], EXPECTED["pr/recall"], rtol=0, atol=1e-6)


def test_thresholds_are_the_reference_s_to_the_bit():
    np.testing.assert_array_equal(metrics.THRESHOLDS, EXPECTED["pr/thresholds"])


def _semantic_cases():
    logits = uniform("metrics/avss_logits", (10, 71, 32, 32), -4, 4).transpose(0, 2, 3, 1)

    def label(classes):
        values = uniform("metrics/avss_label", (10, 32, 32), 0, classes)
        return np.minimum(values.astype(np.int32), classes - 1)

    all_ = label(71)
    few = np.asarray([0, 3, 17], np.int32)[label(3)]
    few[5:] = 0
    onehot = np.eye(71, dtype=np.float32)
    some = np.zeros(71, np.float32)
    some[[0, 3, 5, 17]] = 8
    return {
        "random": (logits, all_),
        "correlated": (logits + 5 * onehot[all_], all_),
        "few_classes": (logits + 5 * onehot[few] + some, few),
    }


SEMANTIC = _semantic_cases()


@pytest.mark.parametrize("case", SEMANTIC)
def test_semantic_sums_equal_the_reference(case):
    sums = metrics.semantic_sums(*map(jnp.asarray, SEMANTIC[case]))
    expected = {
        "iou": "iou_sum",
        "f_measure": "fscore_sum",
        "count": "class_count",
        "frame_miou": "frame_miou",
    }
    for field, name in expected.items():
        want = EXPECTED[f"avss/{case}/{name}"]
        np.testing.assert_allclose(getattr(sums, field), want, rtol=1e-6, atol=1e-6, err_msg=field)


@pytest.mark.parametrize(
    ("name", "cases"),
    [("final_few", ["few_classes"]), ("final_correlated_plus_few", ["correlated", "few_classes"])],
)
def test_semantic_state_reaches_the_reference_s_final_figures(name, cases):
    state = metrics.SemanticState.empty(71)
    for case in cases:
        logits, label = SEMANTIC[case]
        state = update(state, jnp.asarray(logits)[None], jnp.asarray(label)[None], _all(1, 10))
    results = state.compute()
    per_class = state.per_class()
    # the reference's "no background" drops the last class; its mean over all is ours
    ours = [
        results["miou"],
        per_class["iou"][:-1].mean(),
        results["f_measure"],
        per_class["f_measure"][:-1].mean(),
    ]
    np.testing.assert_allclose(ours, EXPECTED[f"avss/{name}"], rtol=0, atol=1e-6)


# --------------------------------------------------------------------------- worked examples


def test_empty_target_scores_the_fraction_left_blank():
    logits = jnp.full((1, 4, 4), -1.0).at[0, 0, :3].set(1.0)
    np.testing.assert_allclose(metrics.mask_iou(logits, jnp.zeros((1, 4, 4))), 13 / 16)


def test_probability_one_half_is_background():
    assert metrics.mask_iou(jnp.zeros((1, 4, 4)), jnp.ones((1, 4, 4))) == 0


def test_semantic_background_frame_with_a_hallucinated_class():
    logits = jnp.zeros((1, 4, 4, 71)).at[..., 0].set(1.0).at[:, :2, :, 5].set(2.0)
    state = update(
        metrics.SemanticState.empty(71),
        logits[None],
        jnp.zeros((1, 1, 4, 4), jnp.int32),
        _all(1, 1),
    )
    np.testing.assert_allclose(state.compute()["miou"], 0.5 / 71)


def test_silent_video_scores_f_zero_and_counts():
    target = jnp.zeros((2, 1, 4, 4), jnp.int32).at[0, 0, 0].set(7)
    logits = jnp.where(target > 0, 5.0, -5.0)
    results = update(metrics.BinaryState.empty(), logits, target, _all(2, 1)).compute()
    np.testing.assert_allclose(results["f_measure"], 0.5)
    np.testing.assert_allclose(results["f_measure_set"], 1.0)


def test_empty_and_other_frames_are_told_apart():
    target = jnp.zeros((1, 2, 4, 4), jnp.int32).at[0, 0, 0].set(1)  # second frame: nothing sounds
    results = update(
        metrics.BinaryState.empty(), jnp.full((1, 2, 4, 4), 5.0), target, _all(1, 2)
    ).compute()
    assert results["miou_empty"] == 0
    np.testing.assert_allclose(results["miou_nonempty"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(results["miou"], 0.125, rtol=1e-6)
    np.testing.assert_allclose(results["iou_dataset"], 4 / 32)


def test_figure_over_no_frames_is_left_out():
    target = jnp.ones((1, 1, 4, 4), jnp.int32)
    results = update(
        metrics.BinaryState.empty(), jnp.ones((1, 1, 4, 4)), target, _all(1, 1)
    ).compute()
    assert "miou_empty" not in results


@pytest.mark.parametrize("state", [metrics.BinaryState.empty(), metrics.SemanticState.empty(3)])
def test_no_frame_at_all_is_an_error(state):
    with pytest.raises(errors.BadValueError, match="no labelled frame"):
        state.compute()


# ----------------------------------------------------------------------------- exact arithmetic


def test_bins_follow_the_float32_comparison_around_every_threshold():
    below = np.nextafter(metrics.THRESHOLDS, np.float32(-1))
    above = np.nextafter(metrics.THRESHOLDS, np.float32(2))
    p = np.concatenate([metrics.THRESHOLDS, below[1:], above[:-1]])
    expected = (p[:, None] >= metrics.THRESHOLDS).sum(1) - 1
    np.testing.assert_array_equal(metrics._threshold_bin(jnp.asarray(p)), expected)


@pytest.mark.parametrize("bins", [71, 512])
def test_both_histograms_count_the_same(bins):
    index = np.random.default_rng(0).integers(-1, bins + 1, (3, 500)).astype(np.int32)
    expected = [np.bincount(row[(row >= 0) & (row < bins)], minlength=bins) for row in index]
    np.testing.assert_array_equal(metrics._scatter_counts(jnp.asarray(index), bins), expected)
    np.testing.assert_array_equal(metrics._matmul_counts(jnp.asarray(index), bins), expected)


def test_memory_does_not_grow_with_the_number_of_thresholds():
    frames = jax.ShapeDtypeStruct((5, 224, 224), jnp.float32)
    compiled = metrics.max_f_measure.lower(frames, frames).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * frames.size  # bytes


def test_nan_logits_predict_nothing():
    target = jnp.ones((1, 4, 4))
    assert metrics.mask_iou(jnp.full((1, 4, 4), jnp.nan), target) == 0
    assert metrics.max_f_measure(jnp.full((1, 4, 4), jnp.nan), target) == 0


@given(st.lists(st.integers(0, 2**30), min_size=1, max_size=40), st.integers(1, 7))
@few_examples
def test_total_is_exact_however_it_is_split(units, size):
    total = metrics.Total.empty()
    for start in range(0, len(units), size):
        part = np.zeros(size, np.int32)
        part[: len(units[start:][:size])] = units[start:][:size]
        total = total.add(jnp.asarray(part), jnp.ones(size, bool))
    assert total.value() == sum(units)


# ------------------------------------------------------------------------------------ properties


def _all(*shape):
    return jnp.ones(shape, bool)


def _clips(seed, number=8, frames=3, size=8, classes=1):
    rng = np.random.default_rng(seed)
    shape = (number, frames, size, size)
    logits = rng.normal(size=shape if classes == 1 else (*shape, classes)).astype(np.float32) * 3
    label = rng.integers(0, max(classes, 2), shape).astype(np.int32)
    label *= rng.random((number, frames, 1, 1)) > 0.3  # some frames are empty
    return logits, label, rng.random((number, frames)) > 0.2


def _in_batches(empty, logits, label, use, batch_size):
    """Sums over padded batches; the padding holds NaN and other labels, masked out."""
    state = empty
    for start in range(0, len(logits), batch_size):
        pad = max(0, start + batch_size - len(logits))
        part = [array[start : start + batch_size] for array in (logits, label, use)]
        fills = [np.nan, 1, False]
        padded = [
            np.concatenate([a, np.full((pad, *a.shape[1:]), fill, a.dtype)])
            for a, fill in zip(part, fills, strict=True)
        ]
        state = update(state, *map(jnp.asarray, padded))
    return state


@given(st.integers(0, 2**16))
@few_examples
def test_scores_lie_between_zero_and_one(seed):
    logits, label, use = _clips(seed)
    use[0, 0] = True
    results = _in_batches(metrics.BinaryState.empty(), logits, label, use, 8).compute()
    assert all(0 <= value <= 1 for value in results.values()), results


@given(st.integers(0, 2**16))
@few_examples
def test_perfect_predictions_score_one(seed):
    _, label, use = _clips(seed)
    use[0, 0], label[0, 0, 0, 0] = True, 1
    logits = np.where(label > 0, 20.0, -20.0).astype(np.float32)
    results = _in_batches(metrics.BinaryState.empty(), logits, label, use, 8).compute()
    videos = use.any(1).sum()
    sounding = ((label > 0).any((2, 3)) & use).any(1).sum()
    expected = dict.fromkeys(results, 1.0) | {"f_measure": sounding / videos}
    assert results == pytest.approx(expected, abs=1e-6)


def test_perfect_semantic_predictions_score_one_on_the_classes_present():
    _, label, use = _clips(0, classes=5)
    label = np.minimum(label, 3)  # class 4 never occurs
    logits = 9 * np.eye(5, dtype=np.float32)[label]
    results = _in_batches(metrics.SemanticState.empty(5), logits, label, use, 4).compute()
    assert results["miou_present"] == results["f_measure_present"] == results["miou_dataset"] == 1
    np.testing.assert_allclose(results["miou"], 4 / 5)
    np.testing.assert_allclose(results["miou_nobg"], 3 / 4)


@given(st.integers(0, 2**16), st.randoms())
@few_examples
def test_order_of_the_frames_of_a_video_does_not_matter(seed, random):
    logits, label, use = _clips(seed)
    use[0, 0] = True
    order = random.sample(range(3), 3)
    once = _in_batches(metrics.BinaryState.empty(), logits, label, use, 8)
    again = _in_batches(
        metrics.BinaryState.empty(), logits[:, order], label[:, order], use[:, order], 8
    )
    assert once.compute() == pytest.approx(again.compute(), abs=1e-6)


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batch_size_and_padding_do_not_matter(classes, batch_size):
    logits, label, use = _clips(3, classes=classes)
    empty = metrics.BinaryState.empty() if classes == 1 else metrics.SemanticState.empty(5)
    whole = _in_batches(empty, logits, label, use, len(logits)).compute()
    assert _in_batches(empty, logits, label, use, batch_size).compute() == whole


@pytest.mark.parametrize("classes", [1, 5])
def test_merge_of_two_halves_is_the_whole(classes):
    logits, label, use = _clips(4, classes=classes)
    empty = metrics.BinaryState.empty() if classes == 1 else metrics.SemanticState.empty(5)
    halves = [_in_batches(empty, logits[i], label[i], use[i], 2) for i in (slice(4), slice(4, 8))]
    whole = _in_batches(empty, logits, label, use, 2)
    assert halves[0].merge(halves[1]).compute() == whole.compute()


@pytest.mark.parametrize("classes", [1, 5])
def test_eight_devices_give_the_figures_of_one(classes):
    logits, label, use = _clips(5, classes=classes)
    empty = metrics.BinaryState.empty() if classes == 1 else metrics.SemanticState.empty(5)

    def run(devices):
        mesh = jax.make_mesh(
            (devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
        )
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        arrays = jax.device_put((logits, label, use), sharding)
        return update(jax.device_put(empty, jax.NamedSharding(mesh, jax.P())), *arrays).compute()

    assert run(8) == run(1)
