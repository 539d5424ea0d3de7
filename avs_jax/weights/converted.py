"""Converted weights on disk, and a model that starts from them. Needs no PyTorch.

DIR/weights           the arrays, by orbax
DIR/provenance.json   network, its fields, source file and its sha256, input normalisation,
                      checksums; written last, so that a folder without it is unfinished
"""

import inspect
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
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
        "normalization": _normalization(network, fields),
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


def _normalization(network: str, fields: Mapping[str, Any]) -> dict[str, list[float]] | None:
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


def load_weights(directory: epath.PathLike) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """As `load_converted`, of a folder written by `convert` or of a run's WORKDIR (its best
    checkpoint).

    Raises:
      NotFoundError, BadValueError: no such folder, or it cannot be read.
    """
    path = epath.Path(directory).expanduser().absolute()
    if not any((path / folder).exists() for folder in ("best", "checkpoints")):
        return load_converted(path)
    from avs_jax.checkpoint import load_model  # needs the data loader, which conversion does not

    run = load_model(path)
    fields = dict(run.config.model.to_dict())
    network = fields.pop("name")
    provenance = {
        "network": network,
        "fields": fields,
        "source": {"file": f"step {run.step}"},
        "normalization": _normalization(network, fields),
    }
    return jax.tree.map(np.asarray, run.variables), provenance


def _part_of(variables: dict[str, PyTree], network: str, part: str) -> dict[str, Any]:
    """Flat variables under their paths in the model; of a whole model that part alone."""
    flat = flatten(variables)
    if part == "model":
        return flat
    if network in BACKBONES:
        return {path.replace("/", f"/{part}/", 1): x for path, x in flat.items()}
    return {path: x for path, x in flat.items() if path.split("/")[1] == part}


def merge_init(
    variables: Mapping[str, PyTree], directories: Mapping[str, epath.PathLike]
) -> tuple[dict[str, PyTree], list[str]]:
    """Pours converted weights into a model's variables.

    Args:
      variables: {"params", "batch_stats"} of the model; only structure and shapes of what is
        replaced are looked at.
      directories: part of the model -> folder written by `convert`, or WORKDIR of a training run,
        e.g. {"backbone": DIR, "audio_backbone": DIR}; the part "model" is the whole. Of the weights
        of a whole model that part is taken.

    Returns:
      New variables (numpy arrays where loaded, the given leaves elsewhere), and report lines: what
      was loaded from where, and what was not.

    Raises:
      NotFoundError, BadValueError: a folder that cannot be read.
      ConversionError: weights of another structure or shape, or made for another normalisation than
        the backbone gets here; every mismatch of every part. Nothing is loaded by halves.
    """
    flat = flatten(variables)
    merged, report, problems = dict(flat), [], {}
    for part, directory in directories.items():
        loaded, provenance = load_weights(directory)
        network = provenance["network"]
        given = _part_of(loaded, network, part)
        wanted = {path for path in flat if part in ("model", path.split("/")[1])}
        found = {
            "missing": sorted(wanted - set(given)),
            "unknown entries": sorted(set(given) - wanted),
            "wrong shapes": [
                f"{path} {list(given[path].shape)} for {list(flat[path].shape)}"
                for path in sorted(wanted & set(given))
                if given[path].shape != flat[path].shape
            ],
            "other normalisation": [],
        }
        expected = _normalization(network, provenance["fields"])
        if provenance["normalization"] != expected:
            found["other normalisation"].append(f"{provenance['normalization']} for {expected}")
        for kind, names in found.items():
            if names:
                problems.setdefault(f"{part} from {network} of {directory}: {kind}", []).extend(
                    names
                )
        merged.update(given)
        count = sum(x.size for path, x in given.items() if path.startswith("params/"))
        report.append(
            f"{part}: {count:,} parameters of {network} from {directory} "
            f"({provenance['source'].get('file', 'unknown file')})"
        )
    if problems:
        listed = "; ".join(f"{what}: {list_names(names)}" for what, names in problems.items())
        raise ConversionError(f"init_from does not fit the model: {listed}.", problems)
    fresh = sorted({path.split("/")[1] for path in flat if merged[path] is flat[path]})
    if fresh:
        report.append(f"not loaded, from scratch: {', '.join(fresh)}")
    return unflatten(merged), report
