"""An ONNX graph that grows node by node, and tensors laid out as its operators want them.

Where jax has arrays, the graph has tensors whose axes may lie in another order, and may have length
1 where the array repeats itself. So convolutions, which ONNX knows with channels first alone, come
after each other without a transposition between them, and nothing is repeated in memory that a
runtime can repeat as it reads.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Of September 2022: reductions take their axes as an input from here on. What reads ONNX today
# reads it, and so does what was made in the years between.
OPSET, IR_VERSION = 18, 8


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph in the place of an array.

    Attributes:
      name: in the graph. dtype: of numpy.
      shape: of the array.
      order: axis i of the array is axis order[i] of the tensor.
      repeated: axes of the array along which the tensor has length 1 and the array more.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]
    repeated: frozenset[int] = frozenset()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the tensor, in the tensor's order."""
        sizes = [0] * len(self.shape)
        for axis, place in enumerate(self.order):
            sizes[place] = 1 if axis in self.repeated else self.shape[axis]
        return tuple(sizes)

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is the array as it is."""
        return not self.repeated and self.order == tuple(range(len(self.shape)))


Value = Tensor | np.ndarray  # an array that is known is not in the graph until somebody asks


class Graph:
    """Nodes and constants; every method adds what it needs and returns tensors or their names.

    Args:
      half: keep constants that float16 holds exactly in float16.

    Attributes:
      within: the modules that the nodes to come are of; their names begin with it.
    """

    def __init__(self, half: bool = False):
        self.nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._casts: list[onnx.NodeProto] = []  # of constants in float16
        self._names: dict[tuple, str] = {}  # of constants, by what they hold
        self._half = half
        self._count = 0
        self.within = ""

    def name(self, kind: str) -> str:
        """A new name."""
        self._count += 1
        return f"{kind}_{self._count}"

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        """Adds a node; the name of its output."""
        (name,) = self.outputs_of(kind, inputs, 1, **attributes)
        return name

    def outputs_of(self, kind: str, inputs: Sequence[str], outputs: int, **attributes) -> list[str]:
        """Adds a node of several outputs; their names."""
        names = [self.name(kind) for _ in range(outputs)]
        name = "/".join(filter(None, [self.within, names[0]]))
        self.nodes.append(helper.make_node(kind, list(inputs), names, name, **attributes))
        return names

    def constant(self, array: np.ndarray | Sequence[int]) -> str:
        """Adds a constant (a list of numbers: int64), once if it comes again."""
        if not isinstance(array, np.ndarray):
            array = np.asarray(array, np.int64)
        data = array.tobytes()
        key = (array.dtype.str, array.shape, hashlib.sha256(data).digest())
        if key not in self._names:
            self._names[key] = self._add_constant(array)
        return self._names[key]

    def _add_constant(self, array: np.ndarray) -> str:
        name = self.name("constant")
        if self._half and array.dtype == np.float32 and array.size > 1:
            with np.errstate(over="ignore"):
                small = array.astype(np.float16)
            if np.array_equal(small, array):
                self._constants.append(numpy_helper.from_array(small, name))
                wide = self.name("wide")
                self._casts.append(
                    helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT)
                )
                return wide
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    # ------------------------------------------------------------ tensors as operators want them

    def tensor(self, name: str, like: np.dtype, shape: Sequence[int]) -> Tensor:
        """The tensor `name`, which is an array of this dtype and shape."""
        return Tensor(name, np.dtype(like), tuple(shape), tuple(range(len(shape))))

    def lay(self, value: Value, order: Sequence[int]) -> Tensor:
        """The value as a tensor with its axes in this order; repeated axes stay of length 1."""
        order = tuple(order)
        if isinstance(value, np.ndarray):
            return self._lay_constant(value, order)
        if value.order == order:
            return value
        now, wanted = axes_in_place(value.order), axes_in_place(order)
        sizes = dict(zip(now, value.sizes, strict=True))
        long = [axis for axis in now if sizes[axis] > 1]
        if long == [axis for axis in wanted if sizes[axis] > 1]:
            # Only axes of length 1 move: nothing does in memory.
            shape = self.constant([sizes[axis] for axis in wanted])
            name = self.node("Reshape", value.name, shape)
        else:
            name = self.node("Transpose", value.name, perm=[value.order[axis] for axis in wanted])
        return dataclasses.replace(value, name=name, order=order)

    def _lay_constant(self, array: np.ndarray, order: tuple[int, ...]) -> Tensor:
        small = squash(array)
        repeated = [i for i, n in enumerate(array.shape) if n > 1 and small.shape[i] == 1]
        name = self.constant(small.transpose(axes_in_place(order)))
        return Tensor(name, array.dtype, array.shape, order, frozenset(repeated))

    def expand(self, value: Value, axes: Collection[int] | None = None) -> Tensor:
        """The value with these axes of the array at full length (None: all), in its own order."""
        if isinstance(value, np.ndarray):
            return self.tensor(self.constant(value), value.dtype, value.shape)
        left = frozenset() if axes is None else value.repeated.difference(axes)
        if left == value.repeated:
            return value
        full = dataclasses.replace(value, repeated=left)
        name = self.node("Expand", value.name, self.constant(full.sizes))
        return dataclasses.replace(full, name=name)

    def plain(self, value: Value) -> str:
        """The name of a tensor that is the array as it is."""
        if isinstance(value, np.ndarray):
            return self.constant(value)
        return self.expand(self.lay(value, range(len(value.shape)))).name

    # --------------------------------------------------------------------------------- the end

    def model(self, inputs: Sequence[Tensor], outputs: dict[str, Tensor]) -> onnx.ModelProto:
        """The finished model, without nodes that no output needs."""
        for name, tensor in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.plain(tensor)], [name]))
        needed = set(outputs)
        kept = []
        for node in reversed(self._casts + self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(read_by(node))
        graph = helper.make_graph(
            kept[::-1],
            "avs_jax",
            [describe(x.name, x.dtype, x.shape) for x in inputs],
            [describe(name, x.dtype, x.shape) for name, x in outputs.items()],
            [constant for constant in self._constants if constant.name in needed],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        model.producer_name = "avs_jax"
        return model

    @contextlib.contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Nodes that are added meanwhile go into the list, not into the graph; constants do."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer


def describe(name: str, dtype: np.dtype, shape: Sequence[int]) -> onnx.ValueInfoProto:
    """What the graph says of an input or output."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def read_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, those in the graphs inside it, too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= read_by(inner)
        names.update(output.name for output in attribute.g.output)
    return names


def squash(array: np.ndarray) -> np.ndarray:
    """The array with length 1 along every axis on which it repeats itself."""
    for axis, length in enumerate(array.shape):
        if length > 1:
            first = array.take([0], axis)
            if np.array_equal(array.take([1], axis), first) and (array == first).all():
                array = first
    return array


def axes_in_place(order: Sequence[int]) -> list[int]:
    """Of a tensor's `order`: the axes of the array as they lie in the tensor."""
    return sorted(range(len(order)), key=order.__getitem__)


def match_axes(shape: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which axes of an array become which when it is reshaped: the smallest groups, in order.

    Axes of length 1 are in none. Both sides of a group have the same number of elements.
    """
    old_left = [i for i, n in enumerate(shape) if n != 1]
    new_left = [i for i, n in enumerate(new) if n != 1]
    groups = []
    while old_left:
        olds, news = [old_left.pop(0)], [new_left.pop(0)]
        while (a := math.prod(shape[i] for i in olds)) != (b := math.prod(new[i] for i in news)):
            if a < b:
                olds.append(old_left.pop(0))
            else:
                news.append(new_left.pop(0))
        groups.append((olds, news))
    return groups


def place_missing(places: list[int], rank: int) -> tuple[int, ...]:
    """The order of a tensor in which the axes of `places` lie so, and others behind the one before.

    Args:
      places: axes of the array in the order of the tensor, some of them.
    """
    places = list(places)
    for axis in range(rank):
        if axis not in places:
            places.insert(places.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(places.index(axis) for axis in range(rank))
