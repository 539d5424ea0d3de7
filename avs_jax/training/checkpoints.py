"""Checkpoints: state + position in the data + config, by orbax; latest ones and the best one.

    WORKDIR/checkpoints/STEP   model, optimizer, data, meta     the last few, to go on from
    WORKDIR/best/STEP          model, meta                      the best ones by validation

`meta` names the run, so that the best ones of another run in the same folder are told apart: they
are moved to WORKDIR/before-DATE, from which they can be used like those of any run.

Orbax restores a damaged file without a word where no structure is broken, and raises where one is.
So each array's checksum is kept in `meta` and compared after restoring, and a step that cannot be
read is set aside in favour of the one before.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from avs_jax import errors, paths
from avs_jax.config import differences
from avs_jax.training import older_runs
from avs_jax.training.state import TrainState
from avs_jax.types import PyTree
from avs_jax.weights.trained import (
    check_same_model,
    checksums,
    compare_checksums,
    first_line,
    is_same_run,
    open_manager,
    read_meta,
)


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


class _Best:
    """Orbax deletes what has no value among those that are kept, after a new one is written."""

    def __init__(self, values: dict[int, float]):
        self._values = values

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [info.step in self._values for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run. Saving happens in the background."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: ml_collections.ConfigDict,
        *,
        keep: int = 2,
        keep_best: int = 1,
        say: Callable[[str], None] = print,
    ):
        """keep, keep_best: how many of the latest and of the best are kept."""
        self.workdir = paths.absolute(workdir)
        self.config = config
        self._say = say
        self._latest = open_manager(self.workdir / "checkpoints", keep)
        self._keep_best = keep_best
        self._values: dict[int, float] = {}  # of the steps in best/
        self._best = ocp.CheckpointManager(
            self.workdir / "best",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Best(self._values), enable_async_checkpointing=True
            ),
        )
        for step in self._best.all_steps():
            self._values[step] = self._read_best(step)
        self._save = ocp.args.StandardSave
        self._run: str | None = uuid.uuid4().hex  # None: of a version that gave runs no name
        self.changed: list[str] = []

    def _meta(self, tree: PyTree, **more) -> dict:
        config = json.loads(self.config.to_json())
        run = {"run": self._run} if self._run else {}
        return {"config": config, "checksums": checksums(tree)} | run | more

    def save(self, state: TrainState, iterator: Any) -> None:
        """Saves everything a run needs to go on as if it had never stopped."""
        self._take_turns(self._best)
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
        """Keeps the model if `value` (higher is better) is among the best so far."""
        step = int(state.step)
        if not self.would_keep(step, value):
            return False
        self._take_turns(self._latest)
        model, _ = _split(state)
        meta = self._meta({"model": model}, best={"name": name, "value": value})
        self._values[step] = value
        for other in sorted(self._values, key=self._values.get, reverse=True)[self._keep_best :]:
            del self._values[other]
        self._best.save(
            step, args=ocp.args.Composite(model=self._save(model), meta=ocp.args.JsonSave(meta))
        )
        return True

    def _take_turns(self, other: ocp.CheckpointManager) -> None:
        """Waits for the other manager, on several hosts: their threads meet at barriers of the same
        names, and where hosts come to them in another order each waits for 20 minutes."""
        if jax.process_count() > 1:
            other.wait_until_finished()

    def would_keep(self, step: int, value: float) -> bool:
        """Whether a model of that step and value is among the best so far, and not yet kept."""
        # The same step again: a resumed run repeats what it did.
        if any(step <= kept for kept in self._values):
            return False
        return len(self._values) < self._keep_best or value > min(self._values.values())

    @property
    def best_step(self) -> int | None:
        """The step of the best model so far."""
        return max(self._values, key=self._values.get, default=None)

    def _read_best(self, step: int) -> float:
        try:
            return read_meta(self._best, step)["best"]["value"]
        except Exception as error:  # orbax raises whatever its parts raise
            self._say(f"best/{step} cannot be read ({first_line(error)}); it will be replaced.")
            return -math.inf

    def reached_preemption(self, step: int) -> bool:
        """True on every host at the same step once one of them got SIGTERM (jax.distributed)."""
        return self._latest.reached_preemption(step)

    def latest_step(self) -> int | None:
        """The last step saved, or None."""
        return self._latest.latest_step()

    def saved_step(self) -> int | None:
        """The last step that is on disk as a whole, or None; another thread may be saving."""
        return max(ocp.utils.checkpoint_steps(self.workdir / "checkpoints"), default=None)

    def restore(self, shapes: TrainState, iterator: Any) -> TrainState | None:
        """The newest readable state (with the shardings of `shapes`); sets the iterator's position.

        None if there is no checkpoint. Steps that cannot be read are moved to WORKDIR/broken once
        an older one has been, best ones of another run to WORKDIR/before-DATE. `changed` then says
        how the config differs from the saved one.

        Raises:
          BadValueError: the checkpoint is of another model, or none of them can be read.
        """
        reasons = {}
        for step in sorted(self._latest.all_steps(), reverse=True):
            state, reason = self._try_step(step, shapes, iterator)
            if _on_all_hosts(reason is None):
                self._set_aside(reasons)
                self._go_on_as(read_meta(self._latest, step))
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
        self._set_best_aside("there is no checkpoint to go on from")
        return None

    def _try_step(self, step, shapes, iterator) -> tuple[TrainState | None, str | None]:
        """(state, None), or (None, why not)."""
        model, optimizer = _split(shapes)
        try:
            meta = read_meta(self._latest, step)
            check_same_model(self.config, meta["config"], str(self.workdir))
            self.changed = differences(json.loads(self.config.to_json()), meta["config"])
            old = older_runs.is_old(meta["checksums"])
            restored = self._latest.restore(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(None if old else model),
                    optimizer=ocp.args.StandardRestore(None if old else optimizer),
                ),
            )
            iterator.set_state(self._read_position(step))
            tree = {"model": restored["model"], "optimizer": restored["optimizer"]}
            compare_checksums(tree, meta["checksums"])
            if old:
                return older_runs.translate(**tree, shapes=shapes), None
        except errors.InputError:
            raise
        except Exception as error:  # orbax raises whatever its parts raise
            return None, first_line(error)
        return TrainState(
            step=restored["optimizer"]["step"],
            params=restored["model"]["params"],
            batch_stats=restored["model"]["batch_stats"],
            opt_state=restored["optimizer"]["opt_state"],
            ema=restored["model"].get("ema"),
        ), None

    def _read_position(self, step: int) -> dict:
        """The iterator's state: what this process wrote, or, where other numbers of them trained,
        any of those; `processes` says how many there were."""
        folder = self.workdir / "checkpoints" / str(step) / "data"
        own = folder / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
        files = [own] if own.exists() else sorted(folder.glob("process_*-of-*.json"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no position in the data")
        processes = int(files[0].stem.rpartition("-")[2])
        return json.loads(files[0].read_text()) | {"processes": processes}

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Moves damaged steps out of the way: the run will save them anew."""
        for step in steps:
            source = self.workdir / "checkpoints" / str(step)
            target = self.workdir / "broken" / str(step)
            if jax.process_index() == 0:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rmtree()
                if paths.in_bucket(target):  # there a folder is there once it holds something
                    note = "Checkpoints that could not be read when the run went on.\n"
                    (target.parent / "README").write_text(note)
                source.rename(target)
            self._say(f"checkpoint {step} is kept as {target}.")
        if steps:
            _on_all_hosts(True)  # nobody looks before the folders are moved
            self._latest.reload()

    def _go_on_as(self, meta: dict) -> None:
        """Takes the name of the run whose checkpoint has that `meta`."""
        self._run = meta.get("run")
        for step in self._values:
            try:
                own = is_same_run(read_meta(self._best, step), meta)
            except Exception:  # it cannot be read and will be replaced, see `_read_best`
                own = True
            if not _on_all_hosts(own):
                self._set_best_aside("it is of another run than checkpoints/")
                return

    def _set_best_aside(self, reason: str) -> None:
        """Moves best/, with its config and log, to where it can be used as that of any run."""
        if not _on_all_hosts(bool(self._values)):
            return
        best = self.workdir / "best"
        target = self.workdir / time.strftime("before-%Y%m%d-%H%M%S")
        if jax.process_index() == 0:
            target.mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "metrics.jsonl"):
                if (self.workdir / name).exists():
                    (target / name).write_bytes((self.workdir / name).read_bytes())
            if paths.in_bucket(target):  # there a folder is there once it holds something
                (target / "README").write_text(f"best/ was moved here since {reason}.\n")
            best.rename(target / "best")
            best.mkdir(exist_ok=True)
        self._say(f"best/ holds an earlier model: {reason}; it is kept as {target / 'best'}.")
        _on_all_hosts(True)  # nobody looks before it is moved
        self._values.clear()
        self._best.reload()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Finishes writing."""
        self.wait()
        self._latest.close()
        self._best.close()
