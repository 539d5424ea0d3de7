"""Config files: `FILE[:arguments]` -> the config that the file's `get_config(arguments)` gives."""

import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

import ml_collections

from avs_jax import errors


def read_config(spec: str) -> ml_collections.ConfigDict:
    """Runs a config file, from wherever the program was started.

    Raises:
      NotFoundError: there is no such file.
      UnknownNameError, BadValueError: arguments that the file does not take.
    """
    path, _, arguments = spec.partition(":")
    if not Path(path).is_file():
        raise errors.NotFoundError(f"no config file {path!r}; known ones are in configs/.")
    # Config files import what they share as configs.common.
    root = str(Path(path).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    return runpy.run_path(path)["get_config"](arguments or None)


def check_fields(config: ml_collections.ConfigDict, fields: Iterable[str]) -> None:
    """Raises UnknownNameError for a dotted field that the config lacks, with those it has."""
    for field in fields:
        node, seen = config, "config"
        for name in field.split("."):
            seen += f".{name}"
            known = node.keys() if isinstance(node, ml_collections.ConfigDict) else ()
            if name not in known:
                raise errors.unknown_name("config field", seen, known)
            node = node[name]


def differences(here: dict, there: dict, prefix: str = "") -> list[str]:
    """What differs between two configs as plain dicts: "model.dim is 8 there and 16 here"."""
    found = []
    for name in sorted(here.keys() | there.keys()):
        a, b = here.get(name, "not set"), there.get(name, "not set")
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} is {b!r} there and {a!r} here")
    return found
