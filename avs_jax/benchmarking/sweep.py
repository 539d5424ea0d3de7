"""How cost grows with pixels, clips and seconds: one of them in turn, the others as they are."""

from collections.abc import Sequence

import numpy as np

from avs_jax import errors
from avs_jax.benchmarking.variant import Shape

# What is swept -> the field of Shape, what cost is a power of, in words and of a shape.
AXES = {
    "size": ("size", "pixels", lambda shape: shape.size**2),
    "batch": ("clips", "clips", lambda shape: shape.clips),
    "seconds": ("seconds", "seconds", lambda shape: shape.seconds),
}


def parse_sweep(texts: Sequence[str]) -> dict[str, list[int]]:
    """["size=224,320", ..] -> {"size": [224, 320], ..}.

    Raises:
      UnknownNameError, BadValueError: no such axis, or not two and more whole numbers.
    """
    found = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in AXES:
            raise errors.unknown_name("axis of --sweep", name, AXES)
        numbers = values.split(",")
        if not all(x.isdecimal() and int(x) for x in numbers) or len(set(numbers)) < 2:
            raise errors.BadValueError(
                f"--sweep {text}: wanted two or more different whole numbers, e.g. {name}=1,2."
            )
        found[name] = sorted({int(x) for x in numbers})
    return found


def parse_counts(text: str) -> list[int]:
    """ "1,2,4,8" -> [1, 2, 4, 8].

    Raises:
      BadValueError: not two or more different numbers from 1 to 64, which is what a machine can
        stand in for.
    """
    words = text.split(",")
    numbers = sorted({int(x) for x in words if x.isdecimal()})
    if len(numbers) != len(words) or len(numbers) < 2 or not 1 <= numbers[0] <= numbers[-1] <= 64:
        raise errors.BadValueError(
            f"--scaling {text}: wanted two or more different numbers of devices from 1 to 64, "
            "e.g. --scaling 1,2,4,8."
        )
    return numbers


def shapes_of(axis: str, values: Sequence[int], base: Shape) -> list[Shape]:
    """`base` with each of the values on that axis."""
    return [base._replace(**{AXES[axis][0]: value}) for value in values]


def fit_exponent(
    axis: str, shapes: Sequence[Shape], costs: Sequence[int] | Sequence[float]
) -> float:
    """p of cost = a * pixels^p (or clips, or seconds): a line through the logarithms."""
    x = [AXES[axis][2](shape) for shape in shapes]
    return float(np.polyfit(np.log(x), np.log(costs), 1)[0])
