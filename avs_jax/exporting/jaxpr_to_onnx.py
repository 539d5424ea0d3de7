"""A function of jax -> ONNX: what depends on no input is computed here, the rest is written.

`write(function, constants, inputs)` traces the function and goes through its operations. Known
numbers stay numbers, so that of the weights' reshaping, position codes and resizing weights the
results alone are in the graph. Functions inside functions (jit, checkpoint, custom derivatives) are
written in place, `lax.map` and `lax.scan` as ONNX's Scan, and of `lax.platform_dependent` the
branch for platforms that have no name. What no table knows is refused.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper

from avs_jax import errors
from avs_jax.exporting import contractions, operators
from avs_jax.exporting.graph import Graph, Tensor, Value, describe, squash

# A primitive that calls a function -> the parameter that holds it.
CALLS = {
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
TABLE = operators.OTHER | contractions.TABLE


def write(
    function: Callable,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    outputs: Sequence[str],
    half: bool = False,
) -> onnx.ModelProto:
    """The function as an ONNX model.

    Args:
      function: of arrays in the order of `inputs`; returns arrays in the order of `outputs`.
      half: see `Graph`.

    Raises:
      BadValueError: something that the function does is not known here.
    """
    closed = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph(half)
    tensors = [graph.tensor(name, x.dtype, x.shape) for name, x in inputs.items()]
    found = Writer(graph).run(closed, tensors)
    named = {
        name: graph.expand(x) if isinstance(x, np.ndarray) else x
        for name, x in zip(outputs, found, strict=True)
    }
    return graph.model(tensors, named)


class Made(NamedTuple):
    """How a tensor came about."""

    primitive: str
    values: list[Value]


class Writer:
    """Goes through jaxprs and adds to a graph what is not known."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._made: dict[Tensor, Made] = {}
        self._within: list[str] = []  # modules whose jitted functions are being written

    def run(self, closed: ClosedJaxpr | Jaxpr, values: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr for these inputs."""
        jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        known = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
        known |= dict(zip(jaxpr.invars, values, strict=True))

        def read(atom):
            return (
                np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else known[atom]
            )

        for equation in jaxpr.eqns:
            found = self._equation(equation, [read(atom) for atom in equation.invars])
            known |= dict(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation, values: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in CALLS:
            return self._run_within(equation, params[CALLS[name]], values)
        if name == "platform_index":
            return [np.asarray(pick_platform(params["platforms"]), np.int32)]
        if name == "cond" and isinstance(values[0], np.ndarray):
            branches = params["branches"]
            taken = branches[np.clip(values[0], 0, len(branches) - 1)]
            return self._run_within(equation, taken, values[1:])
        if all(isinstance(x, np.ndarray) for x in values):
            return evaluate(equation, values)
        self._graph.within = modules(equation, self._within)
        try:
            found = self._write(equation, values)
        except operators.Unsupported as error:
            raise errors.BadValueError(
                f"{name} ({error}) {place(equation, self._within)} cannot be written as ONNX; "
                "export to .npz instead."
            ) from error
        self._made |= {x: Made(name, values) for x in found if isinstance(x, Tensor)}
        return found

    def _run_within(self, equation, jaxpr, values: Sequence[Value]) -> list[Value]:
        """The outputs of a function that an operation calls."""
        self._within.append(str(equation.source_info.name_stack))
        found = self.run(jaxpr, values)
        self._within.pop()
        return found

    def _write(self, equation, values: list[Value]) -> list[Value]:
        name, graph = equation.primitive.name, self._graph
        params = {key: with_plain_numbers(value) for key, value in equation.params.items()}
        avals = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.outvars]
        out = avals if equation.primitive.multiple_results else avals[0]
        if name == "scan":
            check_parameters(self._scan, avals, values, **params)
            return self._scan(avals, values, **params)
        if name in operators.ELEMENTWISE or name in operators.BOOLEAN:
            if (x := self._input_of_relu(name, values)) is not None:
                return [operators.relu(graph, out, x)]
            if (clipped := self._input_of_clip(name, values)) is not None:
                return [operators.clip(graph, out, *clipped)]
            return [operators.write_elementwise(name, graph, out, values, params)]
        if name not in TABLE:
            raise operators.Unsupported("not in the tables")
        if name not in TAKE_KNOWN:
            values = [x if isinstance(x, Tensor) else graph.expand(x) for x in values]
        check_parameters(TABLE[name], graph, out, *values, **params)
        found = TABLE[name](graph, out, *values, **params)
        return found if isinstance(found, list) else [found]

    def _input_of_relu(self, name: str, values: list[Value]) -> Value | None:
        """x, where this is max(x, 0) or selects 0 where x <= 0."""
        if name == "max" and is_zero(values[1]):
            return values[0]
        if name != "select_n" or len(values) != 3 or not is_zero(values[2]):
            return None
        made = self._made.get(values[0]) if isinstance(values[0], Tensor) else None
        if made is None or made.primitive != "le" or not is_zero(made.values[1]):
            return None
        x = made.values[0]
        return x if isinstance(values[1], Tensor) and x == values[1] else None

    def _input_of_clip(self, name: str, values: list[Value]) -> list[Value] | None:
        """x, low and high, where this is min(max(x, low), high) of two numbers, in any order."""
        if name != "min" or (found := number_and_tensor(values)) is None:
            return None
        high, clipped = found
        made = self._made.get(clipped)
        if made is None or made.primitive != "max":
            return None
        if (found := number_and_tensor(made.values)) is None:
            return None
        low, x = found
        return [x, low, high]

    def _scan(
        self,
        avals,
        values: list[Value],
        *,
        jaxpr,
        length,
        reverse,
        unroll,
        num_consts=None,
        num_carry=None,
        linear=None,
        _split_transpose=False,
        ft_in=None,
        ft_out=None,
    ) -> list[Value]:
        """`lax.scan` as ONNX's Scan; its body reads what does not change from outside."""
        graph = self._graph
        if ft_in is not None:  # since jax 0.12: trees of constants, carry and slices
            num_consts, num_carry, _ = map(len, ft_in.unpack())
        constants, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
        slices = values[num_consts + num_carry :]
        inside = [graph.tensor(graph.name("carry"), x.dtype, x.shape) for x in carry]
        inside += [graph.tensor(graph.name("slice"), x.dtype, x.shape[1:]) for x in slices]
        # Beforehand, outside: what the body would do again each time.
        constants = [x if isinstance(x, np.ndarray) else self._settle(x) for x in constants]
        with graph.body() as nodes:
            found = [graph.plain(x) for x in self.run(jaxpr, [*constants, *inside])]
            found = [graph.node("Identity", name) for name in found]
        shapes = [x.aval for x in getattr(jaxpr, "jaxpr", jaxpr).outvars]
        body = helper.make_graph(
            nodes,
            graph.name("body"),
            [describe(x.name, x.dtype, x.shape) for x in inside],
            [describe(n, x.dtype, x.shape) for n, x in zip(found, shapes, strict=True)],
        )
        names = [graph.plain(x) for x in (*carry, *slices)]
        way = int(reverse)
        outputs = graph.outputs_of(
            "Scan",
            names,
            len(avals),
            body=body,
            num_scan_inputs=len(slices),
            scan_input_directions=[way] * len(slices),
            scan_output_directions=[way] * (len(avals) - num_carry),
        )
        return [graph.tensor(n, x.dtype, x.shape) for n, x in zip(outputs, avals, strict=True)]

    def _settle(self, x: Tensor) -> Tensor:
        return self._graph.tensor(self._graph.plain(x), x.dtype, x.shape)


# What numpy does alike and at once; jax compiles a program for every shape that comes.
BY_NUMPY = {
    "add": np.add,
    "div": np.divide,
    "max": np.maximum,
    "mul": np.multiply,
    "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
    "sqrt": np.sqrt,
    "sub": np.subtract,
}

# Their functions take arrays that are known; to all others they are given as tensors.
TAKE_KNOWN = {"concatenate", "conv_general_dilated", "dot_general", "gather", "pad", "stack"}


def check_parameters(function: Callable, *values, **params) -> None:
    """Raises Unsupported where the function does not know a parameter that jax gives."""
    try:
        inspect.signature(function).bind(*values, **params)
    except TypeError as error:
        raise operators.Unsupported(str(error)) from error


def with_plain_numbers(param: Any) -> Any:
    """A parameter of an operation; axes are ints, of which jax has some as NumPy's."""
    if type(param) is tuple:
        return tuple(map(with_plain_numbers, param))
    return int(param) if isinstance(param, np.integer) else param


def is_zero(value: Value) -> bool:
    return isinstance(value, np.ndarray) and not value.any()


def number_and_tensor(values: Sequence[Value]) -> tuple[np.ndarray, Tensor] | None:
    """Of two values, in any order: one known number, however often, and what is not known."""
    for number, tensor in (values, values[::-1]):
        known = isinstance(number, np.ndarray) and isinstance(tensor, Tensor)
        if known and (one := squash(number)).size == 1:
            return one.reshape(()), tensor
    return None


def pick_platform(platforms: Sequence) -> int:
    """Index of the branch for platforms without a name, else the first."""
    return next((i for i, names in enumerate(platforms) if names is None), 0)


def evaluate(equation, values: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of an operation on known numbers."""
    primitive, params = equation.primitive, equation.params
    name = primitive.name
    if name == "broadcast_in_dim":  # a view: 50 ReLUs have zeros of a whole map each
        shape = [1] * len(params["shape"])
        for axis, length in zip(params["broadcast_dimensions"], values[0].shape, strict=True):
            shape[axis] = length
        return [np.broadcast_to(values[0].reshape(shape), params["shape"])]
    if name in ("reshape", "squeeze"):
        return [values[0].reshape(equation.outvars[0].aval.shape)]
    if name == "transpose":
        return [values[0].transpose(params["permutation"])]
    if name in BY_NUMPY and values[0].dtype == np.float32 and not any(params.values()):
        with np.errstate(all="ignore"):
            return [np.asarray(BY_NUMPY[name](*values))]
    found = primitive.bind(*values, **params)
    return list(map(np.asarray, found if primitive.multiple_results else [found]))


def modules(equation, within: Sequence[str]) -> str:
    """Of what module an operation is: names from the outermost inwards; "" if of none."""
    return "/".join(filter(None, [*within, str(equation.source_info.name_stack)]))


def place(equation, within: Sequence[str]) -> str:
    """Where in the model an operation comes from, in words."""
    names = modules(equation, within)
    return f"in {names}" if names else "outside of modules"
