"""Shapes as types for every public function, by jaxtyping where it is installed.

The annotations are documentation at run time and are checked in tests (`tests/conftest.py` installs
the checker). Without jaxtyping they are plain placeholders, so that `import avs_jax.models` needs
jax and flax alone.
"""

import jax

try:
    from jaxtyping import Bool, Float, Int, Key, PyTree, UInt8
except ImportError:

    class _AnyShape:
        """Stands in for `Float[Array, "b t"]` and its like."""

        def __class_getitem__(cls, _):
            return cls

    Bool = Float = Int = Key = PyTree = UInt8 = _AnyShape

Array = jax.Array

__all__ = ["Array", "Bool", "Float", "Int", "Key", "PyTree", "UInt8", "path_name"]


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` -> `backbone/conv1/kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
