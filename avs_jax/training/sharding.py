"""Where the state lies: a sharding for each of its arrays, on the mesh of `avs_jax.devices`."""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avs_jax.devices import replicated
from avs_jax.types import PyTree, path_name

# Smaller arrays are not worth the messages: 2**14 float32 are 64 KiB.
MIN_FSDP_SIZE = 2**14


def state_shardings(shapes: PyTree, mesh: Mesh, rules: Sequence[tuple[str, tuple]] = ()) -> PyTree:
    """A sharding per array of the state (parameters, moments and averages alike).

    Args:
      shapes: tree of arrays or ShapeDtypeStructs.
      rules: [(regex, axes)]: the first regex found in the path decides, `axes` as in
        PartitionSpec. Where none matches: the largest axis that `fsdp` divides, if the array is
        large enough to be worth it; else a copy everywhere.
    """
    fsdp = mesh.shape["fsdp"]

    def choose(path, leaf):
        for pattern, axes in rules:
            if re.search(pattern, path_name(path)):
                return NamedSharding(mesh, PartitionSpec(*axes))
        divisible = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible or np.prod(leaf.shape) < MIN_FSDP_SIZE:
            return replicated(mesh)
        axis = max(divisible, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(choose, shapes)
