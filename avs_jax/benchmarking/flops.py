"""FLOPs of products and convolutions, counted in the program before it is compiled.

XLA's own count takes the body of a loop once, however often it runs: of attention by tiles a tenth.
"""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.extend import core

from avs_jax.types import PyTree


def count_flops(function: Callable, *inputs: PyTree) -> int:
    """Of `function(*inputs)`, arrays or shapes; a multiply-add is two.

    All that `lax.map` and `lax.scan` do is counted; of a `while_loop`, whose rounds nobody knows
    beforehand, one. Of branches the dearest counts, of convolutions what falls on padding does not.
    """
    return _count(jax.make_jaxpr(function)(*inputs).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _count_product(equation)
    if name == "conv_general_dilated":
        return _count_convolution(equation)
    inside = [_count(jaxpr) for jaxpr in _programs_in(equation.params.values())]
    if name == "cond":
        return max(inside)
    return equation.params.get("length", 1) * sum(inside) if name == "scan" else sum(inside)


def _programs_in(values) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _programs_in(value)


def _count_product(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(left[i] for i in contracted) * equation.outvars[0].aval.size


def _count_convolution(equation: core.JaxprEqn) -> int:
    p, numbers = equation.params, equation.params["dimension_numbers"]
    left, kernel = (x.aval.shape for x in equation.invars)
    out = equation.outvars[0].aval.shape
    macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for i, stride in enumerate(p["window_strides"]):
        macs *= _pairs(
            left[numbers.lhs_spec[2 + i]],
            kernel[numbers.rhs_spec[2 + i]],
            out[numbers.out_spec[2 + i]],
            stride,
            p["padding"][i][0],
            p["lhs_dilation"][i],
            p["rhs_dilation"][i],
        )
    return 2 * macs


def _pairs(size, taps, out, stride, before, spread, dilation) -> int:
    """How often, along an axis, a tap of the kernel meets a cell that is there."""
    place = stride * np.arange(out)[:, None] + dilation * np.arange(taps) - before
    there = (place >= 0) & (place <= spread * (size - 1)) & (place % spread == 0)
    return int(there.sum())
