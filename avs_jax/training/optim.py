"""The optimiser as one optax chain; how fast parameters learn, and which decay, by ordered rules.

Rules: see `rules.py`. What does not learn at all: see `freezing.py`.
"""

from collections.abc import Sequence

import jax
import numpy as np
import optax

from avs_jax import errors
from avs_jax.training import freezing
from avs_jax.training.rules import Rules, apply_rules
from avs_jax.types import PyTree, path_name


def make_schedule(
    learning_rate: float, steps: int, *, warmup_steps: int = 0, decay: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up, then "cosine" to 0, "poly" (power 0.9) to 0, or "constant".

    Step i (from 0) of the warm-up has (i + 1) / (warmup_steps + 1) of the rate: a first step at 0
    would be lost.
    """
    decay_steps = max(steps - warmup_steps, 1)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, decay_steps),
        # Power 0.9: DeepLab's (arXiv 1606.00915), the usual one for segmentation.
        "poly": lambda: optax.polynomial_schedule(learning_rate, 0.0, 0.9, decay_steps),
        "constant": lambda: optax.constant_schedule(learning_rate),
    }
    if decay not in after:
        raise errors.unknown_name("learning-rate decay", decay, after)
    first = learning_rate / (warmup_steps + 1)
    warmup = optax.linear_schedule(first, learning_rate, max(warmup_steps, 1))
    return optax.join_schedules([warmup, after[decay]()], [warmup_steps])


def make_optimizer(
    params: PyTree,
    schedule: optax.Schedule,
    *,
    name: str = "adamw",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    rate_rules: Rules = (),
    decay_rules: Rules = (),
    freeze: Sequence[str] = (),
) -> optax.GradientTransformation:
    """ "adamw", "adam", or "sgd" with momentum b1, as PyTorch's of these names.

    Args:
      params: all parameters, or their shapes.
      weight_decay: of AdamW decoupled, as in its paper (arXiv 1711.05101); with "adam" and "sgd"
        the L2 penalty, which is added to the gradient and so goes through the moments.
      clip_norm: global norm that the gradient is cut to; None = no limit.
      rate_rules: factors on the learning rate, 1 by default.
      decay_rules: factors on `weight_decay`; by default 1 for kernels, 0 for all else (biases,
        scales, learned tokens such as CATR's `queries` and AVESFormer's `prompts`).
      freeze: regexes of parameters that do not learn.

    Returns:
      A transformation of the learning part of `params` (`freezing.split`) and its gradients.

    Raises:
      UnknownNameError: an optimiser that does not exist.
      BadValueError: a rule that decides nothing.
    """
    cores = {
        "adamw": lambda: optax.scale_by_adam(b1, b2, eps),
        "adam": lambda: optax.scale_by_adam(b1, b2, eps),
        "sgd": lambda: optax.trace(b1),
    }
    if name not in cores:
        raise errors.unknown_name("optimizer", name, cores)
    rates = apply_rules(rate_rules, params, 1.0, "optimizer.rate_rules")
    decays = apply_rules(decay_rules, params, None, "optimizer.decay_rules")
    # By name, not by rank: a learned token has two axes too, and so has a scale of scanned blocks.
    kernels = {path: float(path.rpartition("/")[2] == "kernel") for path in decays}
    decays = {path: kernels[path] if value is None else value for path, value in decays.items()}
    learning, _ = freezing.split(params, freezing.find_frozen(params, freeze).params)

    decay = []
    if weight_decay:
        decay = [_decay_by(weight_decay, _like(learning, decays))]
    steps = [cores[name](), *decay] if name == "adamw" else [*decay, cores[name]()]
    if clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    scale = _scale_by(_like(learning, rates))
    return optax.chain(*steps, scale, optax.scale_by_learning_rate(schedule))


def part_rates(params: PyTree, freeze: Sequence[str], rate_rules: Rules) -> dict[str, float]:
    """{part of the model (a top-level module): factor on the learning rate that its numbers get on
    the average}; 0 where all of it is frozen."""
    rates = apply_rules(rate_rules, params, 1.0, "optimizer.rate_rules")
    frozen = freezing.find_frozen(params, freeze).params
    sums: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        rate = 0.0 if name in frozen else rates[name]
        part = name.split("/")[0]
        sums[part] = sums.get(part, 0.0) + np.array([rate, 1.0]) * np.prod(leaf.shape)
    return {part: float(rate / count) for part, (rate, count) in sums.items()}


def _like(tree: PyTree, values: dict[str, float]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: values[path_name(path)], tree)


def _decay_by(weight_decay: float, factors: PyTree) -> optax.GradientTransformation:
    """Adds weight_decay * factor * parameter."""

    def update(updates, params):
        return jax.tree.map(lambda u, p, f: u + weight_decay * f * p, updates, params, factors)

    return optax.stateless(update)


def _scale_by(factors: PyTree) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
