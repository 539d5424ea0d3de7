"""What is frozen: one list of regexes (`optimizer.freeze`) decides, and means one thing.

What is frozen runs as in evaluation (BatchNorm by its running statistics, which stay; no dropout,
no drop-path), is not differentiated, so that its backward pass is not in the program, is neither
updated nor decayed, and has no moments, no running average, and no part in the gradient's norm.

Parameters, and whatever lies beside them, are split in two trees with the same paths: what learns
and what does not. `overlay` puts them together again.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

from avs_jax import errors
from avs_jax.training.rules import apply_rules
from avs_jax.types import PyTree


class Frozen(NamedTuple):
    """params: paths of the frozen parameters. modules: the largest modules of which all are frozen,
    e.g. "audio_backbone" or "backbone/layer1_0"; these run as in evaluation. statistics: all of
    BatchNorm's stay, whatever its parameters do."""

    params: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    statistics: bool = False


NOTHING = Frozen()


def find_frozen(params: PyTree, freeze: Sequence[str], norm: str = "global") -> Frozen:
    """What the regexes of `optimizer.freeze` freeze of the parameters (or their shapes).

    norm: the model's; "frozen" keeps all batch statistics as they are.

    Raises:
      BadValueError: a regex that matches nothing, or nothing is left to learn.
    """
    values = apply_rules([(p, True) for p in freeze], params, False, "optimizer.freeze")
    frozen = frozenset(path for path, value in values.items() if value)
    if frozen and len(frozen) == len(values):
        raise errors.BadValueError(
            f"optimizer.freeze={tuple(freeze)} freezes every parameter; leave one that learns."
        )
    learning = {module for path, value in values.items() if not value for module in _above(path)}
    modules = []
    for path in sorted(frozen):
        largest = next((m for m in _above(path) if m not in learning), None)
        if largest is not None and largest not in modules:
            modules.append(largest)
    return Frozen(frozen, tuple(modules), norm == "frozen")


def _above(path: str) -> list[str]:
    """The modules that a parameter lies in, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def split(tree: PyTree, frozen: Collection[str]) -> tuple[PyTree, PyTree]:
    """A tree by paths -> (what learns, what is frozen), without what is then empty."""
    flat = flatten_dict(tree, sep="/")
    return (
        unflatten_dict({path: x for path, x in flat.items() if path not in frozen}, sep="/"),
        unflatten_dict({path: x for path, x in flat.items() if path in frozen}, sep="/"),
    )


def split_statistics(batch_stats: PyTree, frozen: Frozen) -> tuple[PyTree, PyTree]:
    """Batch statistics -> (those that follow the data, those that stay)."""
    paths = flatten_dict(batch_stats, sep="/")
    stay = {p for p in paths if frozen.statistics or not set(_above(p)).isdisjoint(frozen.modules)}
    return split(batch_stats, stay)


def pick(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves of `tree` at the paths that `like` has."""
    flat = flatten_dict(tree, sep="/")
    return unflatten_dict({path: flat[path] for path in flatten_dict(like, sep="/")}, sep="/")


def overlay(tree: PyTree, part: PyTree) -> PyTree:
    """`tree` with the leaves of `part` (some of its paths) in place of its own."""
    return unflatten_dict(flatten_dict(tree, sep="/") | flatten_dict(part, sep="/"), sep="/")
