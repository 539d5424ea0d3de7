"""Rounds, clocks and what is concluded from them."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.benchmarking import timing
from avs_jax.benchmarking.flops import count_flops


def test_rounds_are_interleaved_forwards_and_backwards():
    order = []
    runs = [lambda k=k: order.append(k) for k in range(3)]
    times = timing.time_rounds(runs, 2, "test")
    assert order == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert times.wall.shape == times.cpu.shape == (3, 2)


def test_times_belong_to_what_ran():
    runs = [lambda: None, lambda: time.sleep(0.02)]
    quick, slow = timing.time_rounds(runs, 3, "test").wall
    assert np.median(quick) < 0.02 <= slow.min()


def test_the_processor_does_not_count_sleep():
    times = timing.time_rounds([lambda: time.sleep(0.1)], 2, "test")
    assert np.median(times.cpu) < 0.05 < np.median(times.wall)


def test_spread_is_of_the_middle_half():
    assert timing.spread_of(np.array([1.0, 2.0, 2.0, 2.0, 50.0])) == 0
    assert timing.spread_of(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.5)


def test_the_cpu_clock_tells_nothing_of_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(errors.BadValueError, match="--clock=cpu tells nothing of what runs on gpu"):
        timing.check_clock("cpu")


def test_peaks_compute_what_they_say():
    peaks = timing.make_peaks("float32")
    a, x, kernel = jnp.zeros((2048, 2048)), jnp.zeros((5, 56, 56, 256)), jnp.zeros((3, 3, 256, 256))
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    assert peaks["matmul"][1] == count_flops(jnp.matmul, a, a)
    assert peaks["conv"][1] == count_flops(convolve, x, kernel)


def test_peak_is_in_bytes():
    held = np.ones(8_000_000)
    assert held.nbytes < timing.peak_resident_bytes() < 1e12
