"""What a user asks for: config files `FILE[:arguments]`, and names on the command line."""

import argparse
import json
import os
import re
import runpy
import sys
from collections.abc import Iterable, Sequence
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


def flatten_config(config: ml_collections.ConfigDict) -> dict[str, object]:
    """{"data.size": 224, ..}: every field by its name on the command line."""
    flat = {}

    def visit(tree, prefix):
        for name, value in tree.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{name}.")
            else:
                flat[f"{prefix}{name}"] = value

    visit(json.loads(config.to_json()), "")
    return flat


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


def mark_paths(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Puts ./ before paths that argparse would take for options: YouTube ids may begin with -."""
    known = parser._option_string_actions
    takes_path = {option for option, action in known.items() if action.metavar in ("FILE", "DIR")}
    marked: list[str] = []
    for argument in argv:
        is_value = bool(marked) and marked[-1] in takes_path
        is_name = argument.startswith("-") and argument not in (*known, "-")  # - is stdout
        is_film = is_name and (
            os.path.exists(argument) or re.search(r"^-[^-].*\.[a-z]\w*$", argument)
        )
        marked.append(f"./{argument}" if is_film or (is_value and is_name) else argument)
    return marked
