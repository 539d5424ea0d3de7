"""What a training run left: its model with the weights, and its log, read without training.

WORKDIR/checkpoints/STEP   model, optimizer, data, meta     the last few, to go on from
WORKDIR/best/STEP          model, meta                      the best ones by validation
WORKDIR/metrics.jsonl      a line of figures each time one was logged

Orbax restores a damaged file without a word where no structure is broken, and raises where one is.
So each array's checksum is kept in `meta` and compared after restoring.
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from avs_jax import errors, paths
from avs_jax.config import differences
from avs_jax.data import load_class_names
from avs_jax.models import MODELS, get_model
from avs_jax.models.forward import init_shapes
from avs_jax.types import Array, PyTree, path_name

# What jax.default_matmul_precision takes; "default" is the platform's.
MATMUL_PRECISIONS = ("default", "high", "highest")


class Loaded(NamedTuple):
    """A model and its weights, ready to apply."""

    config: ml_collections.FrozenConfigDict
    model: nn.Module
    variables: dict[str, PyTree]  # "params" (the averaged ones if the run kept any), "batch_stats"
    step: int  # 0: converted weights
    temperature: float = 1.0  # logits are divided by it for calibrated probabilities
    threshold: float = 0.5  # of the probability of a sounding pixel (k = 1)

    @property
    def matmul_precision(self) -> str | None:
        """For `jax.default_matmul_precision`: a run's own as it was trained, converted weights
        "highest", float32 as where they come from. A TPU would take bfloat16 passes, and Hopper
        TF32, of which PCMANet's thresholds at 0.99 make other masks."""
        return "highest" if self.step == 0 else self.config.get("matmul_precision")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the class ids of the data set it was trained on; None where k = 1."""
        if self.config.model.num_classes == 1:
            return None
        return load_class_names(self.config.data.name)


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)


# What fields of `config.model` were before there were such fields, where that is not their default.
_BEFORE = {"avesformer": {"refine": ()}}


def _complete(model: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """`config.model` of a run of any version, with fields that it did not have."""
    return _BEFORE.get(model.get("name"), {}) | dict(model)


def build_model(
    config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict, **fields
) -> nn.Module:
    """The model that `config.model` describes; `fields`: what else training says of it."""
    # Frozen: lists, which tuples become in JSON, are tuples again.
    model = dict(ml_collections.FrozenConfigDict(_complete(config.model)))
    # A switch of earlier versions: what is frozen is now the optimiser's business alone.
    model.pop("freeze_audio", None)
    return get_model(**model | fields)


def load_model(
    directory: str | os.PathLike, which: str = "best", say: Callable[[str], None] = _say_on_stderr
) -> Loaded:
    """The model of a run's WORKDIR with its weights.

    Args:
      which: "best" by validation ("latest" where none ran), "latest", or a step. Where the best or
        latest cannot be read, the one before is taken and `say` is told. A model in best/ of
        another run than checkpoints/ is not taken.

    Raises:
      NotFoundError: no such folder, no checkpoint in it, or not that step.
      BadValueError: no checkpoint can be read, or it fits no model of this version.
    """
    workdir = paths.absolute(directory)
    reasons = []
    for folder, step in _find_steps(workdir, which, say):
        try:
            return _load_step(folder, step)
        except errors.InputError:
            raise
        except Exception as error:  # orbax raises whatever its parts raise
            reasons.append(f"{folder.name}/{step} cannot be read ({first_line(error)})")
            say(f"checkpoint {reasons[-1]}; trying the one before.")
    raise errors.BadValueError(f"no checkpoint of {workdir} can be used: {'; '.join(reasons)}.")


def _load_step(folder: epath.Path, step: int) -> Loaded:
    manager = open_manager(folder, None)
    try:
        meta = read_meta(manager, step)
        config = ml_collections.FrozenConfigDict(meta["config"])
        model = build_model(config)
        shapes = dict(init_shapes(model, config.data.seconds, config.data.size))
        shapes.setdefault("batch_stats", {})
        shapes |= _find_averages(shapes, meta["checksums"])
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
        )
        args = ocp.args.Composite(model=ocp.args.StandardRestore(target))
        restored = manager.restore(step, args=args)["model"]
        compare_checksums({"model": restored}, meta["checksums"])
    finally:
        manager.close()
    averages = restored.get("ema", {})
    if not averages.keys() <= {"params", "batch_stats"}:  # of an older run, see below
        averages = {"params": averages}
    variables = {
        name: unflatten_dict(flatten_dict(restored[name]) | flatten_dict(averages.get(name, {})))
        for name in ("params", "batch_stats")
    }
    return Loaded(config, model, variables, step)


def _find_averages(shapes: dict[str, PyTree], saved: Iterable[str]) -> dict[str, PyTree]:
    """{"ema": shapes of the running averages} if there are any among the names of `saved` arrays.

    They lie under model/ema/params and model/ema/batch_stats, of what learns and of the statistics
    that follow it; in older runs under model/ema, of all parameters and of no statistics.
    """
    found, old = {"params": {}, "batch_stats": {}}, {}
    flat = {name: flatten_dict(shapes[name], sep="/") for name in found}
    names = [path.removeprefix("model/ema/") for path in saved if path.startswith("model/ema/")]
    for name in names:
        kind, _, path = name.partition("/")
        if name in flat["params"]:
            old[name] = flat["params"][name]
        elif path in flat.get(kind, {}):
            found[kind][path] = flat[kind][path]
        else:
            raise ValueError(f"the model has no {name}, of which it holds an average")
    if old:
        return {"ema": unflatten_dict(old, sep="/")}
    found = {kind: unflatten_dict(paths, sep="/") for kind, paths in found.items()}
    return {"ema": found} if names else {}


def _find_steps(
    workdir: epath.Path, which: str, say: Callable[[str], None]
) -> list[tuple[epath.Path, int]]:
    """Where `which` may be, the one to be preferred first: the best by value, then the latest."""
    found = {}
    for folder in ("best", "checkpoints"):
        path = workdir / folder
        if path.exists() and not path.is_dir():
            raise errors.BadValueError(
                f"{path} is a file, wanted a folder of checkpoints; move it away."
            )
        steps = [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.exists() else []
        found[folder] = [(path, step) for step in sorted(steps, reverse=True)]
    found["best"] = _leave_others_out(found["best"], found["checkpoints"], say)
    found["best"].sort(key=lambda place: _read_value(*place), reverse=True)
    if not any(found.values()):
        raise errors.NotFoundError(
            f"no checkpoint under {workdir}: expected checkpoints/STEP or best/STEP, as "
            "`python -m avs_jax.train --workdir` writes them."
        )
    if which == "best":
        return found["best"] + found["checkpoints"]
    if which == "latest":
        return found["checkpoints"] + found["best"]
    everywhere = found["checkpoints"] + found["best"]
    matches = [(path, step) for path, step in everywhere if str(step) == str(which)]
    if not matches:
        known = sorted({step for _, step in everywhere})
        raise errors.NotFoundError(
            f"no checkpoint {which!r} under {workdir}; there are: best, latest, "
            f"{', '.join(map(str, known))}."
        )
    return matches


def _leave_others_out(best: list, latest: list, say: Callable[[str], None]) -> list:
    """Those of best/ that are of a run of checkpoints/; what cannot be read is nobody else's."""
    runs = [meta for place in latest if (meta := _peek(*place))]
    kept = []
    for place in best:
        meta = _peek(*place)
        if not runs or not meta or any(is_same_run(meta, run) for run in runs):
            kept.append(place)
        else:
            say(f"best/{place[1]} is of another run than checkpoints/ and is not taken.")
    return kept


def _peek(folder: epath.Path, step: int) -> dict | None:
    """The `meta` of a checkpoint without its checks; None if it cannot be read."""
    try:
        meta = json.loads((folder / str(step) / "meta" / "metadata").read_text())
        return meta if isinstance(meta["config"]["model"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_value(folder: epath.Path, step: int) -> float:
    """By what a model of best/ was kept; of one that cannot be read, less than any."""
    try:
        return float((_peek(folder, step) or {})["best"]["value"])
    except (ValueError, KeyError, TypeError):
        return -math.inf


def open_manager(path: epath.Path, keep: int | None) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        path,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        item_names=None,
    )


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict:
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


# Fields of `config.model` that make no other network of it: a run may go on with others.
_HOW_IT_TRAINS = (
    "freeze_audio",
    "remat",
    "norm",
    "two_pass_variance",
    "running_statistics",
)


def is_same_run(one: dict, other: dict) -> bool:
    """Whether two checkpoints are of one run, by their `meta`.

    Those of versions that gave runs no name are where the fields that both models have are equal.
    """
    if one.get("run") or other.get("run"):
        return one.get("run") == other.get("run")
    a, b = one["config"]["model"], other["config"]["model"]
    return all(a[name] == b[name] for name in a.keys() & b.keys() - {*_HOW_IT_TRAINS})


def check_same_model(config: ml_collections.ConfigDict, saved: dict, where: str) -> None:
    """Raises BadValueError naming the fields of `config.model` that differ from the saved ones.

    A field that did not exist when the run was saved is there what it was before, or its default.
    """
    here = json.loads(json.dumps(_complete(json.loads(config.to_json())["model"])))
    network = MODELS[here["name"]][1] if here["name"] in MODELS else None
    defaults = {f.name: f.default for f in dataclasses.fields(network)} if network else {}
    there = {name: defaults[name] for name in here if name in defaults} | _complete(saved["model"])
    there = json.loads(json.dumps(there, default=str))  # tuples as lists, as here
    here, there = (
        {name: value for name, value in fields.items() if name not in _HOW_IT_TRAINS}
        for fields in (here, there)
    )
    differing = differences(here, there, "model.")
    if differing:
        raise errors.BadValueError(
            f"{where} holds a checkpoint of another model: {'; '.join(differing)}; "
            "use another --workdir or the same fields."
        )


def _sum_bits(part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """Of a part of an array: the sum of its words, each times 2 * place + 1 where `place` counts
    the elements of the whole array of that `shape`. Any changed word of 32 bits changes it."""
    words = part.view(f"u{part.dtype.itemsize}").astype(np.uint32, copy=False)
    weighted, stride = 0, 1
    for axis in reversed(range(len(shape))):  # place = sum over axes of stride * position
        position = np.arange(*index[axis].indices(shape[axis])[:2], dtype=np.uint32)
        weighted += stride * int((words @ position).sum(dtype=np.uint32))
        words = words.sum(-1, dtype=np.uint32)
        stride *= shape[axis]
    return 2 * weighted + int(words)


def _checksum(x: Array | np.ndarray) -> int:
    """Of what this process holds of the array, each element once over all processes."""
    if not isinstance(x, jax.Array):
        return _sum_bits(x, (slice(None),) * x.ndim, x.shape)
    own = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    return sum(_sum_bits(np.asarray(shard.data), shard.index, x.shape) for shard in own)


def checksums(tree: PyTree) -> dict[str, int]:
    """{path: u32 checksum} of every array of `tree`, whatever its sharding.

    By the host, which saving copies the arrays to in any case: on the devices it would be a program
    to compile for each shape, and those of a whole state take longer than many a save.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        values = list(pool.map(_checksum, (leaf for _, leaf in named)))
    # Arrays that are spread over processes; of the others, every process holds the whole.
    spread = [isinstance(x, jax.Array) and not x.is_fully_addressable for _, x in named]
    if any(spread):
        own = np.array([value % 2**32 for value in values], np.uint32)
        everyone = multihost_utils.process_allgather(own).sum(0, dtype=np.uint64)
        values = np.where(spread, everyone, own)
    return {path_name(path): int(v) % 2**32 for (path, _), v in zip(named, values, strict=True)}


def compare_checksums(tree: PyTree, expected: dict[str, int]) -> None:
    found = checksums(tree)
    wrong = [name for name in found if expected.get(name) != found[name]]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays have other bits than were saved, e.g. {wrong[0]}")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def read_curves(log: epath.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps, values); a line that is cut off is left out."""
    points: dict[str, dict[int, float]] = {}
    for line in log.read_text().splitlines():
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError):  # the last line of a killed run
            continue
        for name, value in record.items():
            if isinstance(value, int | float):
                points.setdefault(name, {})[step] = value
    return {
        name: (np.array(sorted(series)), np.array([series[s] for s in sorted(series)], float))
        for name, series in points.items()
    }


def last_value(log: str | os.PathLike, name: str) -> float | None:
    """The newest value of `name` in a run's log; None if it holds none or there is no log."""
    log = epath.Path(log)
    curves = read_curves(log) if log.exists() else {}
    return float(curves[name][1][-1]) if name in curves else None
