"""The optimiser as one optax chain; who learns, how fast, and who decays, by ordered rules.

A rule list is [(regex, value), ...]. Parameter paths look like `backbone/layer1_0/conv1/kernel`;
the first regex that matches the whole path (`re.fullmatch`) wins. A regex that decides nothing is
a typo and an error.
"""

import re
from collections.abc import Sequence

import jax
import optax

from avs_jax import errors
from avs_jax.types import PyTree, path_name

Rules = Sequence[tuple[str, float]]


def apply_rules(rules: Rules, params: PyTree, default: float, what: str) -> PyTree:
    """The value that `rules` give to every parameter; `default` where none matches.

    Raises:
      BadValueError: a regex that is not one, or that decides nothing; named with `what`.
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in rules]
    except re.error as error:
        raise errors.BadValueError(f"{what}: {error.pattern!r} is not a regex: {error}.") from error
    used = set()

    def decide(path, _):
        for i, (pattern, value) in enumerate(compiled):
            if pattern.fullmatch(path_name(path)):
                used.add(i)
                return value
        return default

    values = jax.tree_util.tree_map_with_path(decide, params)
    for i, (pattern, _) in enumerate(rules):
        if i not in used:
            top = sorted({path_name(path).split("/")[0] for path, _ in _leaves(params)})
            raise errors.BadValueError(
                f"{what}: the regex {pattern!r} decides no parameter (none matches, or earlier "
                f"rules take all that do); paths start with {', '.join(top)}."
            )
    return values


def _leaves(tree: PyTree):
    return jax.tree_util.tree_leaves_with_path(tree)


def make_schedule(
    learning_rate: float, steps: int, *, warmup_steps: int = 0, decay: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up from 0, then "cosine" to 0, "poly" (power 0.9) to 0, or "constant"."""
    decay_steps = max(steps - warmup_steps, 1)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, decay_steps),
        # Power 0.9: DeepLab's (arXiv 1606.00915), the usual one for segmentation.
        "poly": lambda: optax.polynomial_schedule(learning_rate, 0.0, 0.9, decay_steps),
        "constant": lambda: optax.constant_schedule(learning_rate),
    }
    if decay not in after:
        raise errors.unknown_name("learning-rate decay", decay, after)
    warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
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
    """AdamW (or "adam", "sgd" with momentum b1) over the parameters that are not frozen.

    Args:
      params: the parameters, or their shapes.
      clip_norm: global norm that gradients of unfrozen parameters are cut to; None = no limit.
      rate_rules: factors on the learning rate, 1 by default.
      decay_rules: factors on `weight_decay`; by default 1 for matrices and kernels, 0 for vectors
        (biases, scales).
      freeze: regexes of parameters that never change and have no optimiser state.
    """
    cores = {
        "adamw": lambda: optax.scale_by_adam(b1, b2, eps),
        "adam": lambda: optax.scale_by_adam(b1, b2, eps),
        "sgd": lambda: optax.trace(b1),
    }
    if name not in cores:
        raise errors.unknown_name("optimizer", name, cores)
    rates = apply_rules(rate_rules, params, 1.0, "optimizer.rate_rules")
    decays = apply_rules(decay_rules, params, -1.0, "optimizer.decay_rules")
    decays = jax.tree.map(
        lambda value, p: float(p.ndim > 1) if value < 0 else value, decays, params
    )
    frozen = _find_frozen(params, freeze)
    labels = jax.tree.map(lambda value: "frozen" if value else "trained", frozen)

    steps = [cores[name](), _decay_by(weight_decay, decays), _scale_by(rates)]
    if clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    trained = optax.chain(*steps, optax.scale_by_learning_rate(schedule))
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def frozen_parts(params: PyTree, freeze: Sequence[str]) -> list[str]:
    """The parts of a model (its top-level modules) of which nothing learns."""
    frozen = _find_frozen(params, freeze)
    return [part for part, values in frozen.items() if all(jax.tree.leaves(values))]


def _find_frozen(params, freeze):
    return apply_rules([(p, 1.0) for p in freeze], params, 0.0, "optimizer.freeze")


def _decay_by(weight_decay: float, factors: PyTree) -> optax.GradientTransformation:
    """AdamW's decoupled decay with a factor per parameter. Frozen leaves are MaskedNode here."""

    def update(updates, params):
        def decay(u, p, factor):
            return u if isinstance(u, optax.MaskedNode) else u + weight_decay * factor * p

        return jax.tree.map(decay, updates, params, factors, is_leaf=_is_masked)

    return optax.stateless(update)


def _scale_by(factors: PyTree) -> optax.GradientTransformation:
    def update(updates, _):
        def scale(u, factor):
            return u if isinstance(u, optax.MaskedNode) else u * factor

        return jax.tree.map(scale, updates, factors, is_leaf=_is_masked)

    return optax.stateless(update)


def _is_masked(x) -> bool:
    return isinstance(x, optax.MaskedNode)
