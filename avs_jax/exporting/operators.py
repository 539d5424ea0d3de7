"""ONNX for jax's primitives on elements and on the order of axes: a table each.

A function here takes the graph, what comes out (shape and dtype) and the values, then the
primitive's parameters by name. It names all of them: one that another jax adds is refused by
Python, not overlooked.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import onnx
from onnx import helper

from avs_jax.exporting.graph import (
    Graph,
    Tensor,
    Value,
    axes_in_place,
    match_axes,
    place_missing,
)

Out = jax.ShapeDtypeStruct


class Unsupported(Exception):  # noqa: N818 (not an error of a user)
    """A use of a primitive that is not written; the message says of what kind."""


def dtype_code(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# ---------------------------------------------------------------------------- element by element


def common_order(values: Sequence[Value], rank: int) -> tuple[int, ...]:
    """The order of the largest tensor among them: what is small is cheap to turn."""
    tensors = [x for x in values if isinstance(x, Tensor) and len(x.shape) == rank]
    if not tensors:
        return tuple(range(rank))
    return max(tensors, key=lambda x: int(np.prod(x.sizes))).order


def elementwise(graph: Graph, out: Out, values: Sequence[Value], emit: Callable) -> Tensor:
    """Lays the values alike and calls `emit(*names) -> name`; scalars go with any shape."""
    rank = len(out.shape)
    order = common_order(values, rank)
    tensors = [
        graph.lay(x, order if len(x.shape) == rank else tuple(range(len(x.shape)))) for x in values
    ]
    long = [axis for axis in range(rank) if out.shape[axis] > 1]
    repeated = {axis for axis in long if all(not x.shape or axis in x.repeated for x in tensors)}
    name = emit(*(x.name for x in tensors))
    return Tensor(name, np.dtype(out.dtype), tuple(out.shape), order, frozenset(repeated))


def _node(kind: str, **attributes) -> Callable:
    return lambda graph, out: functools.partial(graph.node, kind, **attributes)


def _chain(*kinds: str) -> Callable:
    """The first of the values, then one after the other."""

    def make(graph, out):
        def emit(*names):
            for kind in kinds:
                names = [graph.node(kind, *names)]
            return names[0]

        return emit

    return make


def _square(graph, out):
    return lambda x: graph.node("Mul", x, x)


def _erfc(graph, out):
    one = graph.constant(np.ones((), out.dtype))
    return lambda x: graph.node("Sub", one, graph.node("Erf", x))


def _log1p(graph, out):
    # Of numbers below 1e-7 it is 0: an error as small as what rounding does to larger ones.
    one = graph.constant(np.ones((), out.dtype))
    return lambda x: graph.node("Log", graph.node("Add", x, one))


def _select(graph, out):
    return lambda which, no, yes: graph.node("Where", which, yes, no)


def _clamp(graph, out):
    return lambda low, x, high: graph.node("Min", graph.node("Max", x, low), high)


# Primitives whose parameters, if any (accuracy, out_dtype), have to be None.
ELEMENTWISE = {
    "abs": _node("Abs"),
    "add": _node("Add"),
    "add_any": _node("Add"),
    "ceil": _node("Ceil"),
    "clamp": _clamp,
    "cos": _node("Cos"),
    "div": _node("Div"),
    "eq": _node("Equal"),
    "erf": _node("Erf"),
    "erfc": _erfc,
    "exp": _node("Exp"),
    "floor": _node("Floor"),
    "ge": _node("GreaterOrEqual"),
    "gt": _node("Greater"),
    "le": _node("LessOrEqual"),
    "log": _node("Log"),
    "log1p": _log1p,
    "logistic": _node("Sigmoid"),
    "lt": _node("Less"),
    "max": _node("Max"),
    "min": _node("Min"),
    "mul": _node("Mul"),
    "ne": _chain("Equal", "Not"),
    "neg": _node("Neg"),
    "pow": _node("Pow"),
    "rem": _node("Mod", fmod=1),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "select_n": _select,
    "sign": _node("Sign"),
    "sin": _node("Sin"),
    "sqrt": _node("Sqrt"),
    "square": _square,
    "sub": _node("Sub"),
    "tanh": _node("Tanh"),
}
BOOLEAN = {"and": _node("And"), "not": _node("Not"), "or": _node("Or"), "xor": _node("Xor")}


def write_elementwise(name: str, graph: Graph, out: Out, values: list[Value], params) -> Value:
    """A primitive of ELEMENTWISE or BOOLEAN."""
    asked = [key for key, value in params.items() if value is not None]
    if asked:
        raise Unsupported(", ".join(asked))
    if name in BOOLEAN and out.dtype != bool:
        raise Unsupported("bits of whole numbers")
    if name == "select_n" and (len(values) != 3 or values[0].dtype != bool):
        raise Unsupported("more than two cases")
    if name == "sub" and isinstance(values[1], np.ndarray) and values[1].dtype == np.float32:
        # Which runtimes fold into the convolution before it.
        name, values = "add", [values[0], np.asarray(-values[1])]
    table = BOOLEAN if name in BOOLEAN else ELEMENTWISE
    return elementwise(graph, out, values, table[name](graph, out))


def relu(graph: Graph, out: Out, x: Value) -> Value:
    """What runtimes fold into the convolution before it."""
    return elementwise(graph, out, [x], functools.partial(graph.node, "Relu"))


def clip(graph: Graph, out: Out, x: Value, low: np.ndarray, high: np.ndarray) -> Value:
    """Between two numbers: what runtimes fold into the convolution before it."""
    ends = [graph.constant(end.astype(out.dtype)) for end in (low, high)]
    return elementwise(graph, out, [x], lambda name: graph.node("Clip", name, *ends))


def same(graph: Graph, out: Out, x: Value, **params) -> Value:
    """What changes no number."""
    return x


def convert(graph: Graph, out: Out, x: Value, *, new_dtype, weak_type, sharding) -> Value:
    return elementwise(
        graph, out, [x], functools.partial(graph.node, "Cast", to=dtype_code(new_dtype))
    )


def integer_pow(graph: Graph, out: Out, x: Value, *, y: int) -> Value:
    if y == 2:
        return elementwise(graph, out, [x], _square(graph, out))
    exponent = np.asarray(y, out.dtype)
    return elementwise(graph, out, [x, exponent], functools.partial(graph.node, "Pow"))


def round_(graph: Graph, out: Out, x: Value, *, rounding_method) -> Value:
    if rounding_method != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Unsupported("halves away from zero")
    return elementwise(graph, out, [x], functools.partial(graph.node, "Round"))


# --------------------------------------------------------------------------------- order of axes


def transpose(graph: Graph, out: Out, x: Tensor, *, permutation) -> Tensor:
    """Nothing moves: the tensor is read in another order."""
    return dataclasses.replace(
        x,
        shape=tuple(out.shape),
        order=tuple(x.order[axis] for axis in permutation),
        repeated=frozenset(i for i, axis in enumerate(permutation) if axis in x.repeated),
    )


def reshape(graph: Graph, out: Out, x: Tensor, *, new_sizes=None, dimensions=None, sharding=None):
    if dimensions is not None:
        raise Unsupported("dimensions")
    groups = match_axes(x.shape, out.shape)
    # An axis that stays one may go on repeating itself.
    merged = {axis for olds, news in groups for axis in olds if (len(olds), len(news)) != (1, 1)}
    x = graph.expand(x, merged)
    lie = [axis for axis in axes_in_place(x.order) if x.shape[axis] != 1]
    apart = any(
        lie[(start := lie.index(olds[0])) : start + len(olds)] != olds for olds, _ in groups
    )
    if apart:
        x = graph.lay(x, range(len(x.shape)))
        lie = [axis for axis in range(len(x.shape)) if x.shape[axis] != 1]
    groups.sort(key=lambda group: lie.index(group[0][0]))
    places = [axis for _, news in groups for axis in news]
    repeated = {news[0] for olds, news in groups if olds[0] in x.repeated}
    y = dataclasses.replace(
        x,
        shape=tuple(out.shape),
        order=place_missing(places, len(out.shape)),
        repeated=frozenset(repeated),
    )
    if y.sizes == x.sizes:
        return y
    return dataclasses.replace(y, name=graph.node("Reshape", x.name, graph.constant(y.sizes)))


def squeeze(graph: Graph, out: Out, x: Tensor, *, dimensions) -> Tensor:
    return reshape(graph, out, x)


def broadcast_in_dim(graph: Graph, out: Out, x: Tensor, *, shape, broadcast_dimensions, sharding):
    """Nothing is written out: new axes have length 1."""
    if list(broadcast_dimensions) != sorted(broadcast_dimensions):
        raise Unsupported("axes in another order")
    to = dict(enumerate(broadcast_dimensions))
    repeated = {axis for axis in range(len(shape)) if shape[axis] > 1}
    repeated -= {to[i] for i, n in enumerate(x.shape) if n > 1 and i not in x.repeated}
    y = dataclasses.replace(
        x,
        shape=tuple(shape),
        order=place_missing([to[i] for i in axes_in_place(x.order)], len(shape)),
        repeated=frozenset(repeated),
    )
    if y.sizes == x.sizes:
        return y
    return dataclasses.replace(y, name=graph.node("Reshape", x.name, graph.constant(y.sizes)))


def concatenate(graph: Graph, out: Out, *parts: Value, dimension) -> Tensor:
    order = common_order(parts, len(out.shape))
    laid = [graph.expand(graph.lay(x, order)) for x in parts]
    name = graph.node("Concat", *(x.name for x in laid), axis=order[dimension])
    return Tensor(name, np.dtype(out.dtype), tuple(out.shape), order)


def stack(graph: Graph, out: Out, *parts: Value, axis) -> Tensor:
    shape = [1 if i == axis else n for i, n in enumerate(out.shape)]
    part = jax.ShapeDtypeStruct(shape, out.dtype)
    parts = [
        x.reshape(shape) if isinstance(x, np.ndarray) else reshape(graph, part, x) for x in parts
    ]
    return concatenate(graph, out, *parts, dimension=axis)


def tile(graph: Graph, out: Out, x: Tensor, *, reps) -> Tensor:
    name = graph.node("Tile", graph.plain(x), graph.constant(list(reps)))
    return graph.tensor(name, out.dtype, out.shape)


def _slice(graph: Graph, x: Tensor, cuts: dict[int, tuple[int, int, int]], shape) -> Tensor:
    """Cuts: axis -> first, end, step. Where x repeats itself there is nothing to cut."""
    repeated = frozenset(axis for axis in x.repeated if shape[axis] > 1)
    y = dataclasses.replace(x, shape=tuple(shape), repeated=repeated)
    cuts = {axis: cut for axis, cut in cuts.items() if axis not in x.repeated}
    if not cuts:
        return y
    starts, ends, steps = zip(*cuts.values(), strict=True)
    places = [x.order[axis] for axis in cuts]
    lists = [graph.constant(list(numbers)) for numbers in (starts, ends, places, steps)]
    return dataclasses.replace(y, name=graph.node("Slice", x.name, *lists))


def slice_(graph: Graph, out: Out, x: Tensor, *, start_indices, limit_indices, strides) -> Tensor:
    cuts = {}
    steps = strides or (1,) * len(x.shape)
    for axis, cut in enumerate(zip(start_indices, limit_indices, steps, strict=True)):
        if cut != (0, x.shape[axis], 1):
            cuts[axis] = cut
    return _slice(graph, x, cuts, out.shape)


def split(graph: Graph, out: Sequence[Out], x: Tensor, *, sizes, axis) -> list[Tensor]:
    ends = np.cumsum(sizes).tolist()
    return [
        _slice(graph, x, {axis: (end - int(size), end, 1)}, part.shape)
        for size, end, part in zip(sizes, ends, out, strict=True)
    ]


def unstack(graph: Graph, out: Sequence[Out], x: Tensor, *, axis) -> list[Tensor]:
    """A primitive since jax 0.12."""
    shape = [1 if i == axis else n for i, n in enumerate(x.shape)]
    slices = (_slice(graph, x, {axis: (i, i + 1, 1)}, shape) for i in range(len(out)))
    return [reshape(graph, part, one) for part, one in zip(out, slices, strict=True)]


def rev(graph: Graph, out: Out, x: Tensor, *, dimensions) -> Tensor:
    cuts = {axis: (-1, np.iinfo(np.int64).min, -1) for axis in dimensions}
    return _slice(graph, x, cuts, out.shape)


def pad(graph: Graph, out: Out, x: Value, value: Value, *, padding_config) -> Tensor:
    if any(inner for _, _, inner in padding_config):
        raise Unsupported("padding between elements")
    if any(min(low, high) < 0 for low, high, _ in padding_config):
        raise Unsupported("padding of less than nothing")
    padded = [axis for axis, edges in enumerate(padding_config) if any(edges)]
    if isinstance(x, np.ndarray):
        x = graph.expand(x)
    x = graph.expand(x, padded)
    pads = np.zeros((2, len(x.shape)), int)
    for axis in padded:
        pads[:, x.order[axis]] = padding_config[axis][:2]
    name = graph.node("Pad", x.name, graph.constant(pads.ravel().tolist()), graph.plain(value))
    return dataclasses.replace(x, name=name, shape=tuple(out.shape))


# ------------------------------------------------------------------------------------- reductions


def _reduced(x: Tensor, name: str, out: Out, axes: Sequence[int]) -> Tensor:
    """What is left of x's layout without `axes`."""
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    places = sorted(x.order[axis] for axis in kept)
    return Tensor(
        name,
        np.dtype(out.dtype),
        tuple(out.shape),
        tuple(places.index(x.order[axis]) for axis in kept),
        frozenset(i for i, axis in enumerate(kept) if axis in x.repeated),
    )


def reduce_(kind: str, graph: Graph, out: Out, x: Tensor, *, axes, out_sharding=None) -> Tensor:
    """ReduceSum, ReduceMax, ReduceMin, ReduceProd."""
    x = graph.expand(x, axes)
    places = sorted(x.order[axis] for axis in axes)
    name = graph.node(kind, x.name, graph.constant(places), keepdims=0)
    return _reduced(x, name, out, axes)


def arg_reduce(kind: str, graph: Graph, out: Out, x: Tensor, *, axes, index_dtype) -> Tensor:
    """ArgMax, ArgMin: of equal ones the first, as in jax."""
    (axis,) = axes
    x = graph.expand(x, axes)
    name = graph.node(kind, x.name, axis=x.order[axis], keepdims=0, select_last_index=0)
    return _reduced(x, graph.node("Cast", name, to=dtype_code(index_dtype)), out, axes)


def reduce_bool(kind: str, graph: Graph, out: Out, x: Tensor, *, axes, out_sharding=None):
    """reduce_and, reduce_or: ONNX has no such, but maxima of whole numbers."""
    number = dataclasses.replace(
        x, name=graph.node("Cast", x.name, to=onnx.TensorProto.INT32), dtype=np.dtype(np.int32)
    )
    found = reduce_(kind, graph, Out(out.shape, np.int32), number, axes=axes)
    name = graph.node("Cast", found.name, to=onnx.TensorProto.BOOL)
    return dataclasses.replace(found, name=name, dtype=np.dtype(bool))


OTHER = {
    "argmax": functools.partial(arg_reduce, "ArgMax"),
    "argmin": functools.partial(arg_reduce, "ArgMin"),
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "convert_element_type": convert,
    "copy": same,
    "copy_p": same,
    "integer_pow": integer_pow,
    "pad": pad,
    "reduce_and": functools.partial(reduce_bool, "ReduceMin"),
    "reduce_max": functools.partial(reduce_, "ReduceMax"),
    "reduce_min": functools.partial(reduce_, "ReduceMin"),
    "reduce_or": functools.partial(reduce_bool, "ReduceMax"),
    "reduce_prod": functools.partial(reduce_, "ReduceProd"),
    "reduce_sum": functools.partial(reduce_, "ReduceSum"),
    "reshape": reshape,
    "rev": rev,
    "round": round_,
    "slice": slice_,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "stop_gradient": same,
    "tile": tile,
    "transpose": transpose,
    "unstack": unstack,
}
