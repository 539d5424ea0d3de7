"""Checkpoints: state + position in the data + config, by orbax; latest ones and the best one.

    WORKDIR/checkpoints/STEP   model, optimizer, data, meta     the last few, to go on from
    WORKDIR/best/STEP          model, meta                      the best by validation

Orbax restores a damaged file without a word where no structure is broken, and raises where one is.
So each array's checksum is kept in `meta` and compared after restoring, and a step that cannot be
read is set aside in favour of the one before.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from avs_jax import errors, weights
from avs_jax.config import differences, read_config
from avs_jax.models import get_model
from avs_jax.optim import path_name
from avs_jax.state import TrainState, init_shapes
from avs_jax.types import Array, PyTree


class Loaded(NamedTuple):
    """A model and its weights, ready to apply."""

    config: ml_collections.FrozenConfigDict
    model: nn.Module
    variables: dict[str, PyTree]  # "params" (the averaged ones if the run kept any), "batch_stats"
    step: int


@jax.jit
def _checksums(leaves: list[Array]) -> Array:
    """One u32 per array: the sum of its bits, weighted by odd numbers by place. Any changed word of
    32 bits changes it, and sharding does not."""

    def one(x):
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        bits = x.dtype.itemsize * 8
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
        place = jax.lax.iota(jnp.uint32, words.size).reshape(words.shape)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([one(x) for x in leaves])


def checksums(tree: PyTree) -> dict[str, int]:
    """{path: checksum} of every array of `tree`, computed where the arrays are."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    values = np.asarray(_checksums([leaf for _, leaf in named]))
    return {path_name(path): int(v) for (path, _), v in zip(named, values, strict=True)}


def _check_sums(tree: PyTree, expected: dict[str, int]) -> None:
    found = checksums(tree)
    wrong = [name for name in found if expected.get(name) != found[name]]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays have other bits than were saved, e.g. {wrong[0]}")


def _split(state: TrainState) -> tuple[PyTree, PyTree]:
    """What evaluation needs, and what only training needs."""
    model = {"params": state.params, "batch_stats": state.batch_stats}
    if state.ema is not None:
        model["ema"] = state.ema
    return model, {"step": state.step, "opt_state": state.opt_state}


def _on_all_hosts(here: bool) -> bool:
    """Whether `here` holds on every host; all of them wait for each other."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).all())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run. Saving happens in the background."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: ml_collections.ConfigDict,
        *,
        keep: int = 2,
        say: Callable[[str], None] = print,
    ):
        self.workdir = epath.Path(workdir).resolve()
        self.config = config
        self._say = say
        self._latest = _manager(self.workdir / "checkpoints", keep)
        self._best = _manager(self.workdir / "best", 1)
        self._save = ocp.args.StandardSave
        self._best_value: float | None = None
        self.changed: list[str] = []

    def _meta(self, tree: PyTree, **more) -> dict:
        config = json.loads(self.config.to_json())
        return {"config": config, "checksums": checksums(tree)} | more

    def save(self, state: TrainState, iterator: Any) -> None:
        """Saves everything a run needs to go on as if it had never stopped."""
        model, optimizer = _split(state)
        self._latest.save(
            int(state.step),
            args=ocp.args.Composite(
                model=self._save(model),
                optimizer=self._save(optimizer),
                data=grain.checkpoint.CheckpointSave(iterator),
                meta=ocp.args.JsonSave(self._meta({"model": model, "optimizer": optimizer})),
            ),
        )

    def save_if_best(self, state: TrainState, name: str, value: float) -> bool:
        """Keeps the model if `value` (higher is better) beats the best so far."""
        step = self._best.latest_step()
        if step is not None:
            if self._best_value is None:
                self._best_value = self._read_best(step)
            # The same step again: a resumed run repeats what it did.
            if value <= self._best_value or step >= int(state.step):
                return False
        model, _ = _split(state)
        meta = self._meta({"model": model}, best={"name": name, "value": value})
        self._best.save(
            int(state.step),
            args=ocp.args.Composite(model=self._save(model), meta=ocp.args.JsonSave(meta)),
        )
        self._best_value = value
        return True

    def _read_best(self, step: int) -> float:
        try:
            return _read_meta(self._best, step)["best"]["value"]
        except Exception as error:  # orbax raises whatever its parts raise
            self._say(f"best/{step} cannot be read ({_first_line(error)}); it will be replaced.")
            return -math.inf

    def reached_preemption(self, step: int) -> bool:
        """True on every host at the same step once one of them got SIGTERM (jax.distributed)."""
        return self._latest.reached_preemption(step)

    def latest_step(self) -> int | None:
        """The last step saved, or None."""
        return self._latest.latest_step()

    def restore(self, shapes: TrainState, iterator: Any) -> TrainState | None:
        """The newest readable state (with the shardings of `shapes`); sets the iterator's position.

        None if there is no checkpoint. Steps that cannot be read are moved to WORKDIR/broken once
        an older one has been. `changed` then says how the config differs from the saved one.

        Raises:
          BadValueError: the checkpoint is of another model, or none of them can be read.
        """
        reasons = {}
        for step in sorted(self._latest.all_steps(), reverse=True):
            state, reason = self._try_step(step, shapes, iterator)
            if _on_all_hosts(reason is None):
                self._set_aside(reasons)
                return state
            reasons[step] = reason or "another host cannot read it"
            self._say(f"checkpoint {step} cannot be read ({reasons[step]}); trying the one before.")
        if reasons:
            changed = f" The config differs from the saved one: {'; '.join(self.changed)}."
            raise errors.BadValueError(
                f"none of the checkpoints of {self.workdir} can be read: "
                + "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
                + f".{changed if self.changed else ''} They are left as they are; go back to the "
                "config and number of hosts they were made with, or use another --workdir."
            )
        return None

    def _try_step(self, step, shapes, iterator) -> tuple[TrainState | None, str | None]:
        """(state, None), or (None, why not)."""
        model, optimizer = _split(shapes)
        try:
            meta = _read_meta(self._latest, step)
            check_same_model(self.config, meta["config"], str(self.workdir))
            self.changed = differences(json.loads(self.config.to_json()), meta["config"])
            restored = self._latest.restore(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(model),
                    optimizer=ocp.args.StandardRestore(optimizer),
                    data=grain.checkpoint.CheckpointRestore(iterator),
                ),
            )
            tree = {"model": restored["model"], "optimizer": restored["optimizer"]}
            _check_sums(tree, meta["checksums"])
        except errors.InputError:
            raise
        except Exception as error:  # orbax raises whatever its parts raise
            return None, _first_line(error)
        return TrainState(
            step=restored["optimizer"]["step"],
            params=restored["model"]["params"],
            batch_stats=restored["model"]["batch_stats"],
            opt_state=restored["optimizer"]["opt_state"],
            ema=restored["model"].get("ema"),
        ), None

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Moves damaged steps out of the way: the run will save them anew."""
        for step in steps:
            source = self.workdir / "checkpoints" / str(step)
            target = self.workdir / "broken" / str(step)
            if jax.process_index() == 0:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rmtree()
                source.rename(target)
            self._say(f"checkpoint {step} is kept as {target}.")
        if steps:
            _on_all_hosts(True)  # nobody looks before the folders are moved
            self._latest.reload()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Finishes writing."""
        self.wait()
        self._latest.close()
        self._best.close()


def _manager(path: epath.Path, keep: int | None) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        path,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        item_names=None,
    )


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict:
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def check_same_model(config: ml_collections.ConfigDict, saved: dict, where: str) -> None:
    """Raises BadValueError naming the fields of `config.model` that differ from the saved ones."""
    here = json.loads(config.to_json())["model"]
    differing = differences(here, saved["model"], "model.")
    if differing:
        raise errors.BadValueError(
            f"{where} holds a checkpoint of another model: {'; '.join(differing)}; "
            "use another --workdir or the same fields."
        )


def build_model(config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict) -> nn.Module:
    """The model that `config.model` describes."""
    # Frozen: lists, which tuples become in JSON, are tuples again.
    return get_model(**dict(ml_collections.FrozenConfigDict(config.model)))


def load_model(
    directory: str | os.PathLike, which: str = "best", say: Callable[[str], None] = _say_on_stderr
) -> Loaded:
    """The model of a run's WORKDIR with its weights.

    Args:
      which: "best" (or "latest" where no validation ran), "latest", or a step. Where the best or
        latest cannot be read, the one before is taken and `say` is told.

    Raises:
      NotFoundError: no such folder, no checkpoint in it, or not that step.
      BadValueError: no checkpoint can be read, or it fits no model of this version.
    """
    workdir = epath.Path(directory).expanduser().resolve()
    reasons = []
    for folder, step in _find_steps(workdir, which):
        try:
            return _load_step(folder, step)
        except errors.InputError:
            raise
        except Exception as error:  # orbax raises whatever its parts raise
            reasons.append(f"{folder.name}/{step} cannot be read ({_first_line(error)})")
            say(f"checkpoint {reasons[-1]}; trying the one before.")
    raise errors.BadValueError(f"no checkpoint of {workdir} can be used: {'; '.join(reasons)}.")


def _load_step(folder: epath.Path, step: int) -> Loaded:
    manager = _manager(folder, None)
    try:
        meta = _read_meta(manager, step)
        config = ml_collections.FrozenConfigDict(meta["config"])
        model = build_model(config)
        shapes = dict(init_shapes(model, config.data.seconds, config.data.size))
        shapes.setdefault("batch_stats", {})
        if config.ema_decay is not None:
            shapes["ema"] = shapes["params"]
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
        )
        args = ocp.args.Composite(model=ocp.args.StandardRestore(target))
        restored = manager.restore(step, args=args)["model"]
        _check_sums({"model": restored}, meta["checksums"])
    finally:
        manager.close()
    variables = {
        "params": restored.get("ema", restored["params"]),
        "batch_stats": restored["batch_stats"],
    }
    return Loaded(config, model, variables, step)


def _find_steps(workdir: epath.Path, which: str) -> list[tuple[epath.Path, int]]:
    """Where `which` may be, the one to be preferred first."""
    found = {}
    for folder in ("best", "checkpoints"):
        path = workdir / folder
        steps = [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.exists() else []
        found[folder] = [(path, step) for step in sorted(steps, reverse=True)]
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


def open_model(
    directory: str | os.PathLike, which: str = "best", config_file: str | None = None
) -> Loaded:
    """A run's model, or converted weights in the model of a config file.

    Args:
      directory: WORKDIR of a run, or a folder that `convert` wrote.
      which: of a run, see `checkpoint.load_model`.
      config_file: FILE[:arguments]; converted weights need it, a run may be given other data by it.

    Raises:
      NotFoundError, BadValueError: what is not there, cannot be read, or does not fit.
    """
    given = read_config(config_file) if config_file else None
    if not (epath.Path(directory) / weights.PROVENANCE).exists():
        loaded = load_model(directory, which)
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
    variables, _ = weights.merge_init(shapes, {"model": str(directory)})
    return Loaded(ml_collections.FrozenConfigDict(given), model, variables, step=0)
