"""Converted weights on disk. Needs no PyTorch.

DIR/weights           the arrays, by orbax
DIR/provenance.json   network, its fields, source file and its sha256, input normalisation,
                      checksums; written last, so that a folder without it is unfinished
"""

import inspect
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from avs_jax import __version__, errors
from avs_jax.backbones import BACKBONES, PICTURE_BACKBONES, get_normalization
from avs_jax.models import get_model
from avs_jax.types import PyTree

PROVENANCE = "provenance.json"
_SHOWN = 6  # names of each kind in an error message


class ConversionError(errors.BadValueError):
    """Weights and a network do not fit; `problems` has every mismatch: {kind: [what, ...]}."""

    def __init__(self, message: str, problems: Mapping[str, list[str]]):
        super().__init__(message)
        self.problems = problems


def list_names(names: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def flatten(variables: Mapping[str, PyTree]) -> dict[str, Any]:
    """{"params/conv1/kernel": array, ...}."""
    kept = {name: variables.get(name) or {} for name in ("params", "batch_stats")}
    return traverse_util.flatten_dict(kept, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, PyTree]:
    tree = traverse_util.unflatten_dict(dict(flat), sep="/")
    return {name: tree.get(name, {}) for name in ("params", "batch_stats")}


def save_converted(
    directory: epath.PathLike,
    network: str,
    variables: Mapping[str, PyTree],
    source: Mapping[str, Any],
    **fields,
) -> dict[str, Any]:
    """Writes DIR/weights (orbax) and DIR/provenance.json, and returns the provenance.

    `source` says where the weights come from: {"file", "sha256", ...}. Pictures' normalisation is
    kept with the weights: mean and std of RGB in [0, 1].

    Raises:
      BadValueError: where DIR holds weights already, or cannot be written.
    """
    directory = epath.Path(directory).expanduser().absolute()
    if (directory / PROVENANCE).exists():
        raise errors.BadValueError(
            f"{directory} holds converted weights already; remove it or give another --output."
        )
    flat = flatten(variables)
    provenance = {
        "network": network,
        "fields": fields,
        "source": dict(source),
        "normalization": find_normalization(network, fields),
        "parameters": sum(x.size for path, x in flat.items() if path.startswith("params/")),
        "avs_jax": __version__,
        # Orbax does not notice changed bytes.
        "crc32": {path: zlib.crc32(np.ascontiguousarray(x)) for path, x in flat.items()},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / "weights", flat, force=True)
        # Last: a folder without it is a conversion that was cut short.
        (directory / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
    except OSError as error:
        raise errors.BadValueError(f"cannot write to {directory}: {error}.") from error
    return provenance


def find_normalization(network: str, fields: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """What a network's pictures must be normalised with; None for sound."""
    backbone = network
    if network not in BACKBONES:
        default = inspect.signature(get_model).parameters["backbone"].default
        backbone = fields.get("backbone", default)
    if backbone not in PICTURE_BACKBONES:
        return None
    mean, std = get_normalization(backbone)
    return {"mean": [round(float(x), 6) for x in mean], "std": [round(float(x), 6) for x in std]}


def load_converted(directory: epath.PathLike) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """DIR -> ({"params", "batch_stats"} of numpy arrays, provenance). Needs no PyTorch.

    Raises:
      NotFoundError: DIR does not exist, or no conversion was finished in it.
      BadValueError: its files are damaged.
    """
    directory = epath.Path(directory).expanduser().absolute()
    if not (directory / PROVENANCE).exists():
        raise errors.NotFoundError(
            f"no converted weights under {directory}: expected {PROVENANCE} and weights/; make "
            f"them with python -m avs_jax.convert NETWORK FILE --output {directory}."
        )
    try:
        provenance = json.loads((directory / PROVENANCE).read_text())
        crc32 = provenance["crc32"]
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(directory / "weights").item_metadata.tree
            empty = {path: np.empty(x.shape, x.dtype) for path, x in metadata.items()}
            flat = checkpointer.restore(directory / "weights", empty)
    except Exception as error:  # orbax and tensorstore raise nearly every class for a damaged file
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.BadValueError(
            f"the converted weights under {directory} cannot be read ({first}); convert them again."
        ) from error
    flat = {path: np.asarray(array) for path, array in flat.items()}
    damaged = [path for path in crc32 if path not in flat or zlib.crc32(flat[path]) != crc32[path]]
    if damaged or len(flat) != len(crc32):
        raise errors.BadValueError(
            f"the converted weights under {directory} are damaged: {len(damaged)} arrays have "
            f"other bits than were saved, e.g. {list_names(damaged)}; convert them again."
        )
    return unflatten(flat), provenance
