"""Weights that exist, from wherever: the package's, a run's, or converted ones, to run or to start
from."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from avs_jax import errors, paths
from avs_jax.backbones import BACKBONES
from avs_jax.config import read_config
from avs_jax.models.forward import init_shapes
from avs_jax.types import PyTree
from avs_jax.weights import zoo
from avs_jax.weights.converted import (
    PROVENANCE,
    ConversionError,
    find_normalization,
    flatten,
    list_names,
    load_converted,
    unflatten,
)
from avs_jax.weights.trained import Loaded, build_model, load_model


def open_model(
    directory: str | os.PathLike, which: str = "best", config_file: str | None = None
) -> Loaded:
    """A model of the package, a run's, or converted weights in the model of a config file.

    Args:
      directory: one of `zoo.NAMES`, WORKDIR of a run, or a folder that `convert` wrote. A folder of
        the name of a model of the package is given as ./NAME.
      which: of a run, see `trained.load_model`.
      config_file: FILE[:arguments]; converted weights need it, a run may be given other data by it.

    Raises:
      NotFoundError, BadValueError: what is not there, cannot be read, or does not fit.
    """
    given = read_config(config_file) if config_file else None
    if zoo.is_zoo(directory) or not (epath.Path(directory) / PROVENANCE).exists():
        loaded = _open_trained(directory, which)
        if given is None:
            return loaded
        with given.unlocked():
            given.model = ml_collections.ConfigDict(loaded.config.model)
        return loaded._replace(config=ml_collections.FrozenConfigDict(given))
    if given is None:
        raise errors.BadValueError(
            f"{directory} holds converted weights, which do not say what data they are for; add "
            "--config FILE[:arguments], e.g. configs/pcmanet.py:subset=s4."
        )
    model = build_model(given)
    shapes = {"batch_stats": {}} | dict(init_shapes(model, 1, given.data.size))
    variables, _ = merge_init(shapes, {"model": str(directory)})
    return Loaded(ml_collections.FrozenConfigDict(given), model, variables, step=0)


def _open_trained(directory: str | os.PathLike, which: str) -> Loaded:
    if zoo.is_zoo(directory):
        zoo.tell_folder(directory)
        return zoo.open_zoo(os.fspath(directory))
    try:
        return load_model(directory, which)
    except errors.NotFoundError as error:
        if paths.in_bucket(directory) or epath.Path(directory).exists():
            raise
        raise errors.NotFoundError(
            f"{error} Models that come with avs_jax: {', '.join(zoo.NAMES)}."
        ) from error


def load_weights(directory: epath.PathLike) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """As `load_converted`, of a folder written by `convert`, of a run's WORKDIR (its best
    checkpoint), or of a model of the package by its name.

    Raises:
      NotFoundError, BadValueError: no such folder, or it cannot be read.
    """
    path = epath.Path(directory).expanduser().absolute()
    is_run = any((path / folder).exists() for folder in ("best", "checkpoints"))
    if not is_run and not zoo.is_zoo(directory):
        return load_converted(path)
    run = open_model(directory)
    fields = dict(run.config.model.to_dict())
    network = fields.pop("name")
    provenance = {
        "network": network,
        "fields": fields,
        "source": {"file": f"step {run.step}"},
        "normalization": find_normalization(network, fields),
    }
    return jax.tree.map(np.asarray, run.variables), provenance


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
        expected = find_normalization(network, provenance["fields"])
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


def _part_of(variables: dict[str, PyTree], network: str, part: str) -> dict[str, Any]:
    """Flat variables under their paths in the model; of a whole model that part alone."""
    flat = flatten(variables)
    if part == "model":
        return flat
    if network in BACKBONES:
        return {path.replace("/", f"/{part}/", 1): x for path, x in flat.items()}
    return {path: x for path, x in flat.items() if path.split("/")[1] == part}
