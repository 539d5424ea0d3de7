"""The metrics of frames against the reference's numbers and worked examples, to the bit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.scoring import metrics
from tests.parity.fill import uniform

EXPECTED = np.load(Path(__file__).parents[1] / "parity/expected/metrics.npz")


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


# --------------------------------------------------------------------------- worked examples


def test_empty_target_scores_the_fraction_left_blank():
    logits = jnp.full((1, 4, 4), -1.0).at[0, 0, :3].set(1.0)
    np.testing.assert_allclose(metrics.mask_iou(logits, jnp.zeros((1, 4, 4))), 13 / 16)


def test_probability_one_half_is_background():
    assert metrics.mask_iou(jnp.zeros((1, 4, 4)), jnp.ones((1, 4, 4))) == 0


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_logit_that_is_no_number_is_not_taken_for_silence(value, target):
    logits = jnp.zeros((2, 4, 4)).at[1, 2, 3].set(value)
    assert jnp.isnan(metrics.mask_iou(logits, jnp.full((2, 4, 4), target)))
    assert jnp.isnan(metrics.max_f_measure(logits, jnp.full((2, 4, 4), target)))
