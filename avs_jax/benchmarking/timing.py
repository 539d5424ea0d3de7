"""Times of programs that take turns, how far to trust them, and what the machine can do at most."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from avs_jax import errors

CLOCKS = ("wall", "cpu")


class Times(NamedTuple):
    """Seconds f64[run round], by the clock on the wall and of all cores of this process."""

    wall: np.ndarray
    cpu: np.ndarray


def time_rounds(runs: Sequence[Callable], rounds: int, name: str) -> Times:
    """In each round all run once, in turn forwards and backwards; once before, not counted."""
    for run in runs:
        jax.block_until_ready(run())
    times = np.zeros((2, len(runs), rounds))
    for i in tqdm(range(rounds), desc=name, leave=False):
        for k in range(len(runs))[:: 1 if i % 2 == 0 else -1]:
            began = time.perf_counter(), time.process_time()
            jax.block_until_ready(runs[k]())
            times[:, k, i] = time.perf_counter() - began[0], time.process_time() - began[1]
    return Times(*times)


def check_clock(clock: str) -> None:
    """Raises UnknownNameError or BadValueError for a clock that does not tell what runs."""
    if clock not in CLOCKS:
        raise errors.unknown_name("clock", clock, CLOCKS)
    if clock == "cpu" and jax.default_backend() != "cpu":
        raise errors.BadValueError(
            f"--clock=cpu tells nothing of what runs on {jax.default_backend()}; use --clock=wall."
        )


def spread_of(values: np.ndarray) -> float:
    """How far the middle half of the values reaches, in parts of their median."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle else np.inf


def make_peaks(
    dtype: str, side: int = 2048, pictures: int = 5
) -> dict[str, tuple[Callable, float]]:
    """{"matmul", "conv": (run, FLOPs)}: what this machine does best, of large square shapes.

    Args:
      side: of the matrices. pictures: of 56 x 56 and 256 channels. A GPU is done with the default
        ones in less time than it takes to be told.
    """
    shapes = ((side, side), (side, side), (pictures, 56, 56, 256), (3, 3, 256, 256))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    # Drawn where they are used: a processor takes seconds for as many as a GPU is busy with.
    a, b, x, kernel = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )

    @jax.jit
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        # Padded: without, XLA for CPU (jax 0.10) takes 2.7 times as long for what is computed.
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    multiply = jax.jit(jnp.matmul)
    return {
        "matmul": (lambda: multiply(a, b), 2.0 * side**3),
        "conv": (lambda: convolve(x, kernel), 2.0 * pictures * (3 * 56 - 2) ** 2 * 256**2),
    }


def peak_resident_bytes() -> int:
    """The most memory that this process ever had in RAM."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux: kB
