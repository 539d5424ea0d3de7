"""Ordered rules by name: one language for rates, decay, freezing and sharding.

A rule list is [(regex, value), ...]. Parameter paths look like `backbone/layer1_0/conv1/kernel`;
the first regex that matches the whole path (`re.fullmatch`) wins. A regex that decides nothing is
a typo and an error.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from avs_jax import errors
from avs_jax.types import PyTree, path_name

Rules = Sequence[tuple[str, Any]]


def apply_rules(rules: Rules, params: PyTree, default: Any, what: str) -> dict[str, Any]:
    """{path: the value that `rules` give to the parameter}; `default` where none matches.

    Raises:
      BadValueError: a regex that is not one, or that decides nothing; named with `what`.
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in rules]
    except re.error as error:
        raise errors.BadValueError(f"{what}: {error.pattern!r} is not a regex: {error}.") from error
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    used, values = set(), {}
    for path in paths:
        matches = (i for i, (pattern, _) in enumerate(compiled) if pattern.fullmatch(path))
        first = next(matches, None)
        used.add(first)
        values[path] = default if first is None else rules[first][1]
    for i, (pattern, _) in enumerate(rules):
        if i not in used:
            top = sorted({path.split("/")[0] for path in paths})
            raise errors.BadValueError(
                f"{what}: the regex {pattern!r} decides no parameter (none matches, or earlier "
                f"rules take all that do); paths start with {', '.join(top)}."
            )
    return values
