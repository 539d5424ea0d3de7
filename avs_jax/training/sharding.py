"""Where the state lies: a sharding for each of its arrays, on the mesh of `avs_jax.devices`."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avs_jax import errors
from avs_jax.devices import replicated
from avs_jax.training.rules import Rules, apply_rules
from avs_jax.types import PyTree, path_name

# Smaller arrays are not worth the messages: 2**14 float32 are 64 KiB.
MIN_FSDP_SIZE = 2**14


def state_shardings(shapes: PyTree, params: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """A sharding per array of the state.

    Args:
      shapes: tree of arrays or ShapeDtypeStructs.
      params: the parameters in it.
      rules: `config.sharding_rules`, see `rules.py`: (regex of parameters, axes), `axes` as in
        PartitionSpec, e.g. (None, "fsdp"). Moments and averages lie as their parameter does. Where
        none matches: the largest axis that `fsdp` divides, if the array is large enough to be worth
        it; else a copy everywhere.

    Raises:
      BadValueError: a rule that decides nothing, or axes that do not fit the array or the mesh.
    """
    fsdp = mesh.shape["fsdp"]
    chosen = apply_rules(rules, params, None, "sharding_rules")

    def choose(path, leaf):
        parts = path_name(path).split("/")
        names = ("/".join(parts[i:]) for i in range(len(parts)))
        parameter = next((name for name in names if name in chosen), None)
        if parameter is not None and chosen[parameter] is not None:
            _check(parameter, chosen[parameter], leaf.shape, mesh)
            return NamedSharding(mesh, PartitionSpec(*chosen[parameter]))
        divisible = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible or np.prod(leaf.shape) < MIN_FSDP_SIZE:
            return replicated(mesh)
        axis = max(divisible, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _check(name, axes, shape, mesh):
    """Raises BadValueError where an array of that shape cannot be split so."""
    fits = len(axes) <= len(shape)
    for axis, size in zip(axes, shape, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        known = all(name in mesh.shape for name in names)
        fits &= known and size % np.prod([mesh.shape[n] for n in names], dtype=int) == 0
    if not fits:
        raise errors.BadValueError(
            f"sharding_rules: {tuple(axes)} does not fit {name} of shape {list(shape)}; wanted at "
            f"most one mesh axis ({', '.join(mesh.shape)}) or None per dimension, that divides it."
        )
