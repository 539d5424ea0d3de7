"""Several runs of one recipe: the mean of every figure, how far it spreads, and each one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.scoring import report


def mean_and_std(values: list[float]) -> tuple[float, float]:
    """The mean and the standard deviation of a sample (n - 1), in float64."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def summarise(runs: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """Results of runs by their names -> what to write as one, and Markdown tables.

    A figure that every run has becomes its mean, and `NAME_std`; what is the same in all (a data
    set, a size) stays; `runs` holds each one's own.
    """
    names, all_results = list(runs), list(runs.values())
    results: dict[str, Any] = {}
    rows: dict[str, dict[str, float]] = {}
    for figure, value in all_results[0].items():
        values = [run.get(figure) for run in all_results]
        if all(isinstance(v, float) for v in values):
            mean, std = mean_and_std(values)
            results |= {figure: mean, f"{figure}_std": std}
            rows[figure] = {"mean": mean, "std": std} | dict(zip(names, values, strict=True))
        elif all(v == value for v in values):
            results[figure] = value
    results |= {"checkpoints": names, "runs": {name: dict(run) for name, run in runs.items()}}
    table = report.make_table(f"{len(names)} runs", ["mean", "std", *names], rows)
    same = [f"- {k}: {v}" for k, v in results.items() if isinstance(v, str | int) and k not in rows]
    return results, table + "\n" + "\n".join(same) + "\n"
