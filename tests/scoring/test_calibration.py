"""Probabilities against what is true, from counts of logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.scoring import calibration, metrics


def draw_frames(temperature, count=40, side=64, seed=0):
    """Logits `temperature` times as large as they should be, and truth drawn by what they should
    say."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(-1, 2, (count, side, side))
    return (honest * temperature).astype(np.float32), rng.random(honest.shape) < 1 / (
        1 + np.exp(-honest)
    )


def count(logits, truth):
    counts = calibration.LogitCounts()
    for frame, label in zip(logits, truth, strict=True):
        counts.add(frame, label)
    return counts.counts()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found(temperature):
    counts = count(*draw_frames(temperature))
    found = calibration.fit(counts)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.error < 0.01
    assert found.nll <= found.nll_before
    assert found.error_before > 0.05 or temperature == 1.0


def test_reliability_says_how_often_it_is_right():
    total = count(*draw_frames(1.0)).sum(0)
    rows = calibration.reliability(total)
    assert sum(pixels for _, _, pixels in rows) == 40 * 64 * 64
    for said, true, _ in rows:
        assert said == pytest.approx(true, abs=0.02)


def test_mean_iou_is_avsbench_s_also_of_empty_frames():
    logits, truth = draw_frames(1.0, count=6)
    truth[2:4] = False
    found = calibration.fit(count(logits, truth))
    assert found.miou_at_half == pytest.approx(float(metrics.mask_iou(logits, truth)), abs=5e-3)


def test_threshold_is_where_the_mean_iou_is_highest():
    logits, truth = draw_frames(2.0)
    found = calibration.fit(count(logits, truth))
    p = 1 / (1 + np.exp(-logits / found.temperature))

    def miou(threshold):
        marked = p > threshold
        return ((marked & truth).sum((1, 2)) / (marked | truth).sum((1, 2))).mean()

    assert found.miou == pytest.approx(miou(found.threshold), abs=5e-3)
    assert found.miou >= max(miou(t) for t in (0.2, 0.3, 0.4, 0.5, 0.6)) - 5e-3
    assert found.threshold < 0.5  # few pixels sound: IoU gains by marking more than is likely


def test_logits_beyond_the_limit_count_at_it():
    counts = count(np.array([[[-1e9, 1e9]]], np.float32), np.array([[[False, True]]]))
    assert counts[0, 0, 0] == counts[0, 1, -1] == 1


def test_a_plot_is_drawn(tmp_path):
    calibration.draw(tmp_path / "r.png", count(*draw_frames(2.0)).sum(0), 2.0)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_tenths_of_the_device_are_those_of_the_histograms():
    logits, truth = draw_frames(1.5, count=8)
    batch = jnp.asarray(logits)[None, ..., None], jnp.asarray(truth, jnp.int32)[None]
    counted = calibration.count_tenths(*batch, 1.5)
    rows, error = calibration.read_tenths(np.asarray(counted, np.float64)[0].sum(0))
    expected = calibration.reliability(count(logits, truth).sum(0), 1.5)
    assert sum(pixels for _, _, pixels in rows) == truth.size
    # of a histogram, whose bins of 0.05 blur the tenths' edges
    np.testing.assert_allclose([r[:2] for r in rows], [r[:2] for r in expected], atol=0.03)
    assert error < 0.02


def test_tenths_of_several_classes_ask_whether_the_likeliest_is_right():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.65, 0.25]]))
    label = jnp.array([1, 1])
    counted = calibration.count_tenths(logits.reshape(1, 1, 1, 2, 3), label.reshape(1, 1, 1, 2))
    rows, error = calibration.read_tenths(np.asarray(counted, np.float64)[0, 0])
    assert rows == [pytest.approx((0.65, 1.0, 1)), pytest.approx((0.7, 0.0, 1))]
    assert error == pytest.approx((0.35 + 0.7) / 2)
