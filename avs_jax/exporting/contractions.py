"""ONNX for what sums over many: convolutions, windows, matrix products; and for gathering.

As in `operators`, a function names all of a primitive's parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from onnx import TensorProto

from avs_jax.exporting.graph import Graph, Tensor, Value, axes_in_place
from avs_jax.exporting.operators import (
    Out,
    Unsupported,
    broadcast_in_dim,
    elementwise,
    reduce_bool,
    reshape,
    transpose,
)


def _order_of(spec: Sequence[int]) -> tuple[int, ...]:
    """Order of a tensor that has the axes of an array as `spec` lists them."""
    return tuple(list(spec).index(axis) for axis in range(len(spec)))


def conv(
    graph: Graph,
    out: Out,
    x: Value,
    kernel: Value,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    precision,
    preferred_element_type,
    out_sharding=None,
) -> Tensor:
    if any(n != 1 for n in lhs_dilation):
        raise Unsupported("lhs_dilation (a transposed convolution)")
    if batch_group_count != 1:
        raise Unsupported("batch_group_count")
    if any(n < 0 for pair in padding for n in pair):
        raise Unsupported("negative padding")
    # lhs_spec lists the array's axes as ONNX has them: batch, feature, then space.
    x = graph.expand(graph.lay(x, _order_of(dimension_numbers.lhs_spec)))
    kernel = graph.expand(graph.lay(kernel, _order_of(dimension_numbers.rhs_spec)))
    low, high = zip(*padding, strict=True)
    name = graph.node(
        "Conv",
        x.name,
        kernel.name,
        strides=list(window_strides),
        pads=[*low, *high],
        dilations=list(rhs_dilation),
        group=feature_group_count,
        kernel_shape=list(kernel.sizes[2:]),
    )
    order = _order_of(dimension_numbers.out_spec)
    return Tensor(name, np.dtype(out.dtype), tuple(out.shape), order)


def max_pool(
    graph: Graph,
    out: Out,
    x: Value,
    *,
    window_dimensions,
    window_strides,
    padding,
    base_dilation,
    window_dilation,
) -> Tensor:
    if any(n != 1 for n in base_dilation):
        raise Unsupported("base_dilation")
    rank = len(out.shape)
    trivial = [
        axis
        for axis in range(rank)
        if (window_dimensions[axis], window_strides[axis], *padding[axis]) == (1, 1, 0, 0)
    ]
    if len(trivial) < 2:
        raise Unsupported("windows over all axes")
    lead, channel = trivial[0], trivial[-1]
    space = [axis for axis in range(rank) if axis not in (lead, channel)]
    x = graph.expand(graph.lay(x, _order_of([lead, channel, *space])))
    name = graph.node(
        "MaxPool",
        x.name,
        kernel_shape=[window_dimensions[axis] for axis in space],
        strides=[window_strides[axis] for axis in space],
        pads=[padding[axis][side] for side in (0, 1) for axis in space],
        dilations=[window_dilation[axis] for axis in space],
    )
    return dataclasses.replace(x, name=name, shape=tuple(out.shape))


# -------------------------------------------------------------------------------- matrix products


def _known_matrix(graph: Graph, out: Out, x: Tensor, matrix: np.ndarray, axis: int) -> Tensor:
    """Sum over an axis of x and the first of a known matrix [k n]: wherever in memory it lies.

    The new axis is the array's last.
    """
    x = graph.expand(x, range(len(x.shape)))
    rank, place = len(x.shape), x.order[axis]
    if place == rank - 2:  # from the left, as it lies
        name = graph.node("MatMul", graph.constant(matrix.T), x.name)
    else:
        if place != rank - 1:
            x = graph.lay(x, range(rank)) if axis == rank - 1 else _bring_last(graph, x, axis)
            place = rank - 1
        name = graph.node("MatMul", x.name, graph.constant(matrix))
    kept = [i for i in range(rank) if i != axis]
    order = (*(x.order[i] for i in kept), place)
    return Tensor(name, np.dtype(out.dtype), tuple(out.shape), order)


def _bring_last(graph: Graph, x: Tensor, axis: int) -> Tensor:
    places = [i for i in axes_in_place(x.order) if i != axis]
    return graph.lay(x, _order_of([*places, axis]))


def dot_general(
    graph: Graph,
    out: Out,
    a: Value,
    b: Value,
    *,
    dimension_numbers,
    precision,
    preferred_element_type,
    out_sharding=None,
) -> Tensor:
    if not np.issubdtype(out.dtype, np.floating) or a.dtype != b.dtype:
        raise Unsupported(f"{a.dtype} by {b.dtype}")
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    simple = len(sum_a) == 1 and not batch_a
    if simple and isinstance(b, np.ndarray) and b.ndim == 2 and len(a.shape) > 1:
        return _known_matrix(graph, out, a, b if sum_b[0] == 0 else b.T, sum_a[0])
    if simple and isinstance(a, np.ndarray) and a.ndim == 2 and len(b.shape) > 1:
        free = [n for i, n in enumerate(b.shape) if i != sum_b[0]]
        turned = Out((*free, out.shape[0]), out.dtype)
        y = _known_matrix(graph, turned, b, a if sum_a[0] == 0 else a.T, sum_b[0])
        return transpose(graph, out, y, permutation=(len(free), *range(len(free))))
    free_a = [i for i in range(len(a.shape)) if i not in (*sum_a, *batch_a)]
    free_b = [i for i in range(len(b.shape)) if i not in (*sum_b, *batch_b)]
    count = len(sum_a), len(batch_a)
    left = _as_matrices(graph, a, batch_a, free_a, sum_a)
    right = _as_matrices(graph, b, batch_b, sum_b, free_b)
    name = graph.node("MatMul", left.name, right.name)
    sizes = (*left.shape[: count[1]], left.shape[-2], right.shape[-1])
    return reshape(graph, out, graph.tensor(name, out.dtype, sizes))


def _as_matrices(graph: Graph, x: Value, batch, rows, columns) -> Tensor:
    """[*batch rows columns], several axes of rows or columns as one."""
    axes = [*batch, *rows, *columns]
    shape = [x.shape[axis] for axis in axes]
    lead, middle = len(batch), len(batch) + len(rows)
    new = (*shape[:lead], int(np.prod(shape[lead:middle])), int(np.prod(shape[middle:])))
    if isinstance(x, np.ndarray):
        return graph.expand(x.transpose(axes).reshape(new))
    turned = transpose(graph, Out(shape, x.dtype), x, permutation=axes)
    return _plain(graph, reshape(graph, Out(new, x.dtype), turned))


def _plain(graph: Graph, x: Value) -> Tensor:
    return graph.tensor(graph.plain(x), x.dtype, x.shape)


# -------------------------------------------------------------------------------------- gathering


def gather(
    graph: Graph,
    out: Out,
    x: Value,
    indices: Value,
    *,
    dimension_numbers,
    slice_sizes,
    unique_indices,
    indices_are_sorted,
    mode,
    fill_value,
) -> Tensor:
    """Single elements of some axes, all of the others; out of range as `mode` says."""
    d = dimension_numbers
    indexed, batch = list(d.start_index_map), list(d.operand_batching_dims)
    whole = [i for i in range(len(x.shape)) if i not in (*indexed, *batch)]
    if any(slice_sizes[i] != x.shape[i] for i in whole):
        raise Unsupported("parts of axes")
    if any(slice_sizes[i] != 1 for i in indexed):
        raise Unsupported("more than one element of an axis")
    limits = np.asarray([x.shape[i] - 1 for i in indexed], indices.dtype)
    safe = _in_range(graph, indices, limits)
    if isinstance(indices, np.ndarray) and _takes_along_one_axis(d, indices, x):
        return _take(graph, out, x, indices[:, 0], indexed[0])
    # [*batch *other index], the data [*batch *indexed *whole] -> [*batch *other *whole]
    lead = list(d.start_indices_batching_dims)
    other = [i for i in range(len(indices.shape) - 1) if i not in lead]
    axes = [*lead, *other, len(indices.shape) - 1]
    lengths = [indices.shape[i] for i in axes]
    safe = _turn(graph, safe, axes)
    data = _turn(graph, x, [*batch, *indexed, *whole])
    wide = graph.node("Cast", safe.name, to=TensorProto.INT64)
    name = graph.node("GatherND", data.name, wide, batch_dims=len(batch))
    found = graph.tensor(name, out.dtype, (*lengths[:-1], *(x.shape[i] for i in whole)))
    # Then axes of length 1 for what is indexed and kept, and all in their places.
    kept = [i for i in range(len(x.shape)) if i not in (*d.collapsed_slice_dims, *batch)]
    ones = [i for i in kept if i in indexed]
    found = reshape(graph, Out((*found.shape, *(1 for _ in ones)), out.dtype), found)
    sources = {place: [*lead, *other].index(i) for i, place in enumerate(_batch_places(d, out))}
    behind = len(lead) + len(other)
    for place, axis in zip(d.offset_dims, kept, strict=True):
        at = len(whole) + ones.index(axis) if axis in ones else whole.index(axis)
        sources[place] = behind + at
    permutation = [sources[place] for place in range(len(out.shape))]
    found = transpose(graph, out, found, permutation=permutation)
    if mode == jax.lax.GatherScatterMode.FILL_OR_DROP:
        return _fill(graph, out, found, indices, limits, d, fill_value)
    return found


def _takes_along_one_axis(d, indices: np.ndarray, x: Value) -> bool:
    """x[..., indices, ...]: the axis stays where it is."""
    (axis, *more) = d.start_index_map
    others = tuple(i for i in range(len(x.shape)) if i != axis)
    return not more and indices.ndim == 2 and isinstance(x, Tensor) and d.offset_dims == others


def _take(graph: Graph, out: Out, x: Tensor, indices: np.ndarray, axis: int) -> Tensor:
    x = graph.expand(x, [axis])
    name = graph.node("Gather", x.name, graph.constant(indices.tolist()), axis=x.order[axis])
    repeated = x.repeated - {i for i, n in enumerate(out.shape) if n == 1}
    return dataclasses.replace(x, name=name, shape=tuple(out.shape), repeated=repeated)


def _turn(graph: Graph, x: Value, axes: Sequence[int]) -> Tensor:
    """The array with its axes in this order, as it is."""
    if isinstance(x, np.ndarray):
        return _plain(graph, x.transpose(axes))
    shape = [x.shape[i] for i in axes]
    return _plain(graph, transpose(graph, Out(shape, x.dtype), x, permutation=axes))


def _batch_places(d: jax.lax.GatherDimensionNumbers, out: Out) -> list[int]:
    """Axes of the output that are those of the indices, in their order."""
    return [place for place in range(len(out.shape)) if place not in d.offset_dims]


def _in_range(graph: Graph, indices: Value, limits: np.ndarray) -> Value:
    """The indices, none of them outside: known ones are refused, others moved to the edge."""
    if isinstance(indices, np.ndarray):
        if ((indices < 0) | (indices > limits)).any():
            raise Unsupported("indices outside of what is there")
        return indices
    one = Out(indices.shape, indices.dtype)
    low = elementwise(graph, one, [indices, np.zeros((), indices.dtype)], _call(graph, "Max"))
    return elementwise(graph, one, [low, _spread(limits, indices)], _call(graph, "Min"))


def _call(graph: Graph, kind: str) -> Callable:
    return functools.partial(graph.node, kind)


def _spread(limits: np.ndarray, indices: Tensor) -> np.ndarray:
    return np.broadcast_to(limits, indices.shape)


def _fill(graph, out, found, indices, limits, d, fill_value) -> Tensor:
    """NaN where an index is outside."""
    if isinstance(indices, np.ndarray):
        return found
    if not np.issubdtype(out.dtype, np.floating) or not np.isnan(fill_value or np.nan):
        raise Unsupported("a fill value")
    flags = Out(indices.shape, bool)
    zero = np.zeros((), indices.dtype)
    low = elementwise(graph, flags, [indices, zero], _call(graph, "GreaterOrEqual"))
    high = elementwise(
        graph, flags, [indices, _spread(limits, indices)], _call(graph, "LessOrEqual")
    )
    inside = elementwise(graph, flags, [low, high], _call(graph, "And"))
    axis = len(indices.shape) - 1
    inside = reduce_bool("ReduceMin", graph, Out(indices.shape[:-1], bool), inside, axes=(axis,))
    inside = broadcast_in_dim(
        graph,
        Out(out.shape, bool),
        inside,
        shape=out.shape,
        broadcast_dimensions=_batch_places(d, out),
        sharding=None,
    )
    nan = np.asarray(np.nan, out.dtype)
    return elementwise(graph, out, [inside, found, nan], _call(graph, "Where"))


TABLE = {
    "conv_general_dilated": conv,
    "dot_general": dot_general,
    "gather": gather,
    "reduce_window_max": max_pool,
}
