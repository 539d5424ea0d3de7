"""Several runs as one result."""

import numpy as np
import pytest

from avs_jax.scoring import seeds

RUNS = {
    "a": {"test/miou": 0.5, "test/f_measure": 0.7, "clips": 5, "step": 10},
    "b": {"test/miou": 0.6, "test/f_measure": 0.7, "clips": 5, "step": 20},
    "c": {"test/miou": 0.8, "test/f_measure": 0.7, "clips": 5, "step": 30},
}


def test_every_figure_has_its_mean_and_the_deviation_of_a_sample():
    results, _ = seeds.summarise(RUNS)
    assert results["test/miou"] == pytest.approx(np.mean([0.5, 0.6, 0.8]))
    assert results["test/miou_std"] == pytest.approx(np.sqrt(0.07 / 3))  # (n - 1): 0.1528
    assert results["test/f_measure_std"] == pytest.approx(0, abs=1e-12)


def test_what_differs_and_is_no_figure_is_left_to_the_runs():
    results, _ = seeds.summarise(RUNS)
    assert results["clips"] == 5 and "step" not in results
    assert results["runs"] == RUNS and results["checkpoints"] == ["a", "b", "c"]


def test_table_has_each_run_s_own_figure():
    _, table = seeds.summarise(RUNS)
    header, _, miou, *_ = table.splitlines()
    assert header == "| 3 runs | mean | std | a | b | c |"
    assert miou == "| test/miou | 0.6333 | 0.1528 | 0.5000 | 0.6000 | 0.8000 |"
