"""Checkpoints of version 0.1 in today's form, so that its runs go on.

There the optimiser's state lay under optax.partition, with empty places for what was frozen, and
the running average was of all parameters and of no batch statistics. Weights lie as they did.
"""

from collections.abc import Iterable

import jax
import numpy as np

from avs_jax.training import freezing
from avs_jax.training.state import TrainState, place_like
from avs_jax.types import PyTree, path_name

_MOMENTS = "optimizer/opt_state/inner_states/trained/inner_state/"


def is_old(saved: Iterable[str]) -> bool:
    """Whether arrays of these names are of a checkpoint of version 0.1."""
    return any(path.startswith(_MOMENTS) for path in saved)


def translate(model: PyTree, optimizer: PyTree, shapes: TrainState) -> TrainState:
    """What such a checkpoint holds -> the state of `shapes`, placed as that is.

    Raises:
      ValueError: it holds no such moment, for it is of another optimiser or froze other parts.
    """
    params = place_like(model["params"], shapes.params)
    batch_stats = place_like(model["batch_stats"], shapes.batch_stats)
    ema = None
    if shapes.ema is not None:
        averages = {
            "params": freezing.pick(model.get("ema", model["params"]), shapes.ema["params"]),
            "batch_stats": freezing.pick(model["batch_stats"], shapes.ema["batch_stats"]),
        }
        ema = place_like(averages, shapes.ema)

    # "1/mu/head/kernel" -> "mu/head/kernel": the place in the chain may be another today.
    chain = optimizer["opt_state"]["inner_states"]["trained"]["inner_state"]
    named = jax.tree_util.tree_leaves_with_path(chain)
    found = {path_name(path).partition("/")[2]: np.asarray(leaf) for path, leaf in named}
    wanted = jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).partition("/")[2], shapes.opt_state
    )
    missing = set(jax.tree.leaves(wanted)) - set(found)
    if missing:
        raise ValueError(f"the optimiser's state of version 0.1 holds no {sorted(missing)[0]}")
    opt_state = jax.tree.map(lambda name: found[name], wanted)
    return TrainState(
        step=place_like(optimizer["step"], shapes.step),
        params=params,
        batch_stats=batch_stats,
        opt_state=place_like(opt_state, shapes.opt_state),
        ema=ema,
    )
