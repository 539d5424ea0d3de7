"""Train a model: data in, checkpoints and numbers out. Read top to bottom.

    python -m avs_jax.train --config configs/avesformer.py:subset=s4,backbone=resnet50 --workdir DIR

What follows the colon are the config file's arguments (see its docstring); any field is set with
--config.FIELD=VALUE. In WORKDIR: checkpoints/ (to go on from), best/ (by validation mIoU),
metrics.jsonl, tensorboard/, config.json, and while it runs lock.json. The same command goes on
where a stopped or killed run left off, bit for bit. SIGTERM saves a checkpoint and exits with 0.

On several hosts start the same command on each, with --distributed where jax knows the cluster
(TPU, GKE, Slurm, Open MPI), else with --coordinator HOST:PORT --process_id I --num_processes N.
"""

import contextlib
import functools
import operator
import sys
import time
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import config_flags
from orbax.checkpoint import multihost

from avs_jax import devices, errors, hosts, paths, peers
from avs_jax.backbones import get_normalization
from avs_jax.config import check_fields, flatten_config, read_config
from avs_jax.data import load_class_names, open_split, pipeline, transforms
from avs_jax.devices import quiet_libraries
from avs_jax.media.partial import write_whole
from avs_jax.models.forward import count_params
from avs_jax.scoring.evaluators import Evaluator, split_name
from avs_jax.scoring.views import make_network
from avs_jax.training import freezing, lock, optim, sharding, state
from avs_jax.training.checkpoints import Checkpoints
from avs_jax.training.logs import Logs
from avs_jax.training.pictures import ValidationPictures
from avs_jax.training.profiling import Profile
from avs_jax.training.program import plan_program
from avs_jax.training.progress import MAX_IN_FLIGHT, Progress
from avs_jax.training.remembered import Remembered
from avs_jax.training.stopping import Stop, StoppedError
from avs_jax.weights import merge_init, trained

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file[:arguments]")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the run writes")
_PROFILE = flags.DEFINE_integer("profile", 0, "trace that many steps into WORKDIR/tensorboard")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one of several, which jax finds")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many there are")
_WAIT_SECONDS = flags.DEFINE_float("wait_seconds", hosts.WAIT, "that all have to come")


def main(argv):
    if len(argv) > 1:
        raise errors.BadValueError(f"unknown argument {argv[1]!r}; see --help.")
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise errors.BadValueError("--config FILE[:arguments] and --workdir DIR are needed.")
    place = (_COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value, _WAIT_SECONDS.value)
    job = hosts.read_job(_DISTRIBUTED.value, *place)
    stop = Stop()
    if not job:  # else jax.distributed has its own handler
        stop.listen()
    train(_CONFIG.value, _WORKDIR.value, job, stop, _PROFILE.value)


def train(config, workdir, job=None, stop=None, profile_steps=0):
    quiet_libraries()
    devices.start_jax(job)
    sharding.check_parallel(config)
    mesh = devices.make_mesh(config.fsdp, by_process=config.parallel == "pmap")
    check_config(config, mesh)
    workdir = make_workdir(workdir)
    hosts.check_same({"--workdir": str(workdir)} | flatten_config(config))
    cure = "The same command goes on from the last checkpoint."
    with (
        errors.told_of_full_disk("--workdir", workdir, cure),
        lock.hold(workdir) as held,
        peers.watched() as others,
        contextlib.ExitStack() as at_end,
    ):
        if others and held:
            others.clean_up = held.release
        run(config, workdir, mesh, held, stop or Stop(), profile_steps, others, at_end)


def run(config, workdir, mesh, held, stop, profile_steps, others, at_end):
    started = time.monotonic()

    # ---------------------------------------------------------------- what is written
    logs = Logs(workdir)
    checkpoints = Checkpoints(
        workdir,
        config,
        keep=config.keep_checkpoints,
        keep_best=config.keep_best,
        say=logs.say,
    )
    if others:
        others.saved_step = checkpoints.saved_step
    logs.say(f"{mesh.size} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)")
    if config.parallel == "pmap" and config.model.norm != "frozen":
        logs.say(f"pmap: batch statistics of {config.batch_size // mesh.size} clips a device")

    # ---------------------------------------------------------------- data
    shard = (jax.process_index(), jax.process_count())
    source = open_split(config.data.name, config.data.subset, "train", config.data.data_dir)
    augment = transforms.train_transforms(config.data.size, **config.data.augment.to_dict())
    if source.seconds != config.data.seconds:
        raise errors.BadValueError(
            f"data.seconds={config.data.seconds}, but clips of {config.data.name}/"
            f"{config.data.subset} have {source.seconds}; use that, or choose the subset after the "
            "config's colon."
        )
    memory = None
    if config.remember.clips:
        memory = Remembered(config, source, workdir)
        source = memory
    steps = config.steps or max(config.epochs * len(source) // config.batch_size, 1)
    batches = pipeline.train_batches(
        source,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        transforms=() if memory else augment,
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        shard=shard,
    )
    at_end.callback(batches.close)  # readers end now, and not with a warning when Python does
    clips = devices.batch_sharding(mesh)

    # ---------------------------------------------------------------- model and state
    program = plan_program(config, mesh, steps)
    model, params, frozen = program.model, program.params, program.frozen
    learning, _ = freezing.split(params, frozen.params)
    if memory:
        memory.check(frozen)
    numbers = f"{count_params(params):,} parameters, of which {count_params(learning):,} learn"
    logs.say(f"{config.model.name}: {numbers}")

    # ---------------------------------------------------------------- go on, or start
    train_state = checkpoints.restore(program.state_shapes, batches)
    if train_state is not None:
        logs.say(f"going on at step {int(train_state.step)} of {steps}")
        for line in checkpoints.changed:
            logs.say(f"changed since: {line}")
    else:
        train_state = program.create_state()
        given = {name: path for name, path in config.init_from.items() if path}
        if given:
            variables, report = merge_init(
                {"params": train_state.params, "batch_stats": train_state.batch_stats}, given
            )
            train_state = train_state.with_variables(variables)
            for line in report:
                logs.say(line)
        for line in warn_of_random_parts(config, params, given):
            logs.say(line)
    start = int(train_state.step)
    owes = owes_evaluation(config, start, steps, logs, checkpoints)
    if not owes and (start >= steps or stops_early(config, start, checkpoints.best_step)):
        reached = f"nothing to do: step {start} of {steps} is reached; more with --config.steps"
        early = f"nothing to do: no better than at step {checkpoints.best_step}, see early_stop"
        logs.say(reached if start >= steps else early)
        checkpoints.close()
        logs.close()
        return
    logs.rewind(start, owed=score_name(config) if owes else None)
    if jax.process_index() == 0:
        write_whole(workdir / "config.json", config.to_json(indent=2) + "\n")

    # ---------------------------------------------------------------- steps, compiled ahead
    if memory:
        normalization = get_normalization(config.model.backbone)
        memory.fill(model, train_state.variables(), normalization, logs.say)
    size_schedule = config.size_schedule or ((0, config.data.size),)
    batch_shapes = state.batch_shapes(
        config.batch_size, config.data.seconds, config.data.size, clips
    )
    if memory:
        batch_shapes = memory.shapes(config.batch_size, clips)
    compiled = {}
    for first, size in size_schedule:
        step_fn = program.make_step(size)
        empty_totals = program.make_empty_totals(step_fn, batch_shapes)
        totals = empty_totals()
        began = time.monotonic()
        compiled[first] = program.compile_step(step_fn, train_state, totals, batch_shapes)
        logs.say(f"train step for {size} x {size} compiled in {time.monotonic() - began:.1f} s")
        if stop.is_set():
            logs.say("SIGTERM: nothing new to save; the same command goes on from here")
            checkpoints.close()
            logs.close()
            return

    # ---------------------------------------------------------------- evaluation
    held_out = open_split(
        config.data.name, config.data.subset, config.eval.split, config.data.data_dir
    )
    names = load_class_names(config.data.name) if config.model.num_classes > 1 else None
    pictures = ValidationPictures(held_out, config.eval.pictures, config.data.size, shard, names)
    evaluator = Evaluator(
        make_network(model, config),
        config,
        held_out,
        clips,
        batch_size=devices.round_up(config.eval.batch_size, mesh),
        on_masks=pictures.note if config.eval.pictures else None,
    )

    def leave():  # SIGTERM in an evaluation that does not react
        checkpoints.wait()
        logs.say("SIGTERM: the evaluation is left; the same command goes on from the saved step")
        logs.close()
        if held:
            held.release()

    def validate(step, train_state):
        """Scores the model and keeps it if it is a best one; whether training ends early."""
        precision = jax.default_matmul_precision(config.matmul_precision)
        try:
            with precision, stop.leave_within_seconds(leave):
                scores = dict(evaluator.run(train_state.variables(), stop.until_set))
        except StoppedError:
            return False
        checkpoints.save_if_best(train_state, score_name(config), float(scores[score_name(config)]))
        logs.write(step, scores)
        logs.say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        pictures.draw(logs, step, evaluator.split)
        return step < steps and stops_early(config, step, checkpoints.best_step)

    early = False  # whether validation scores have stopped rising
    if owes:
        logs.say(f"step {start} was not evaluated to the end: now")
        early = validate(start, train_state)
        if early:
            logs.say(f"no better than at step {checkpoints.best_step}: done")

    # ---------------------------------------------------------------- loop
    # On CPUs Gloo gives up where one process comes to a program's first run 30 seconds later than
    # another; until here they compiled for as long as they needed.
    multihost.get_barrier_sync_fn()(key="first_step", timeout_ms=3_600_000)
    logs.say(f"ready after {time.monotonic() - started:.1f} s; steps {start + 1} to {steps}")
    progress = Progress(
        logs,
        start=start,
        steps=steps,
        batch_size=config.batch_size,
        rates=jax.device_get(jax.vmap(program.schedule)(jnp.arange(steps))),
        seconds_before=trained.last_value(logs.path, "train/seconds") or 0.0,
    )
    at_end.callback(progress.close)  # before an error is told: its line is the last one
    recent_ids = deque(maxlen=config.log_every + MAX_IN_FLIGHT + 1)
    profile = Profile(logs.folder / "tensorboard", start, profile_steps, logs.say)
    for step in range(start + 1, 0 if early or stop.is_set() else steps + 1):
        batch, ids = pipeline.to_device(next(batches), clips)
        batch = {name: batch[name] for name in batch_shapes}
        recent_ids.append((step, ids))
        run_step = compiled[max(first for first in compiled if first < step)]
        with profile.step(step):
            train_state, totals, token = run_step(train_state, totals, batch)

        last = step == steps
        stopping = stop.is_set() or checkpoints.reached_preemption(step)
        # Whoever sends SIGTERM does not wait for an evaluation: the run that goes on owes it.
        evaluate = not stopping and (last or step % config.eval.every == 0)
        save = stopping or evaluate or step % config.checkpoint_every == 0
        if step % config.log_every == 0 or save:
            progress.end_interval(step, totals)
            totals = empty_totals()
        progress.dispatched(token)
        traced = profile.is_due(step, last or stopping)
        if save or traced:
            progress.wait()
        if traced:
            profile.stop()
        if held:
            held.check()
        if progress.bad_step is not None:
            raise not_finite(progress.bad_step, recent_ids, checkpoints)
        if save:
            logs.flush()
            checkpoints.save(train_state, batches)
        if evaluate:  # of what is saved: a kill meanwhile loses nothing
            early = validate(step, train_state)
            stopping = early or stop.is_set()
        if save or traced:
            progress.resume()
        if stopping:
            sigterm = f"SIGTERM: saved step {step}; the same command goes on from there"
            logs.say(f"no better than at step {checkpoints.best_step}: done" if early else sigterm)
            break
    progress.close()
    checkpoints.close()
    logs.close()


def check_config(config, mesh) -> None:
    """Raises BadValueError for numbers that cannot work, before anything is read or compiled."""
    devices.check_batch_size(config.batch_size, mesh)
    counts = ("steps", "epochs", "log_every", "eval.every", "checkpoint_every", "keep_best")
    for name in (*counts, "early_stop"):
        value = operator.attrgetter(name)(config)
        if value is not None and value < 1:
            raise errors.BadValueError(f"{name}={value}: wanted 1 or more.")
    if config.accumulate < 1 or config.batch_size % config.accumulate:
        raise errors.BadValueError(
            f"accumulate={config.accumulate} does not divide batch_size={config.batch_size}; use a "
            "divisor."
        )
    devices.check_batch_size(config.batch_size // config.accumulate, mesh, "batch per part")
    firsts = [first for first, _ in config.size_schedule]
    if firsts and (firsts[0] != 0 or firsts != sorted(set(firsts))):
        raise errors.BadValueError(
            f"size_schedule={config.size_schedule}: wanted ((0, size), (later step, size), ...)."
        )
    if config.matmul_precision not in (None, *trained.MATMUL_PRECISIONS):
        raise errors.unknown_name(
            "matmul_precision", config.matmul_precision, trained.MATMUL_PRECISIONS
        )
    for name in ("num_tags", "num_semantic"):
        if 0 < config.model.get(name, 0) < config.model.num_classes - 1:
            raise errors.BadValueError(
                f"model.{name}={config.model[name]}: the head is to name the "
                f"{config.model.num_classes - 1} classes but background; use that many, or 0."
            )
    if "own" not in config.eval.sounds:
        raise errors.BadValueError(
            f"eval.sounds={config.eval.sounds}: training keeps the best model by its score with "
            "the clips' own sound; add 'own'."
        )


def warn_of_random_parts(config, params, given) -> list[str]:
    """A line for each backbone that starts from random numbers and learns slowly or never: the rest
    of the network would have to make do with its noise."""
    rates = optim.part_rates(params, config.optimizer.freeze, config.optimizer.rate_rules)
    lines = []
    for part, rate in rates.items():
        if rate >= 1 or part in given or "model" in given or part not in config.init_from:
            continue
        how = (
            f"learns at {rate:.2g} of the rate (optimizer.rate_rules)"
            if rate
            else "never learns (optimizer.freeze)"
        )
        lines.append(
            f"CAREFUL: {part} starts from random numbers and {how}; give it weights: "
            f"--config.init_from.{part}=DIR (of `python -m avs_jax.convert`, see README, "
            f'"Fidelity"), or let it learn at the full rate'
        )
    return lines


def score_name(config) -> str:
    """Of the figure by which the best model is kept."""
    return f"{split_name(config.eval.split)}/miou"


def owes_evaluation(config, start: int, steps: int, logs: Logs, checkpoints: Checkpoints) -> bool:
    """Whether a run that goes on was ended between saving step `start` and the evaluation's end.

    Then its score is not in the log, or it is and the model is not among the best ones.
    """
    if start == 0 or start > steps or (start < steps and start % config.eval.every):
        return False
    curves = trained.read_curves(logs.path) if logs.path.exists() else {}
    scores = dict(zip(*curves.get(score_name(config), ((), ())), strict=True))
    owes = start not in scores or checkpoints.would_keep(start, float(scores[start]))
    if jax.process_count() > 1:  # the first one reads its own log
        owes = bool(multihost_utils.broadcast_one_to_all(np.asarray(owes)))
    return owes


def stops_early(config, step: int, best_step: int | None) -> bool:
    """Whether the last `config.early_stop` evaluations up to `step` brought no better score.

    Said by steps alone, so that a run that goes on decides as one that was never stopped.
    """
    if config.early_stop is None or best_step is None:
        return False
    return step // config.eval.every - best_step // config.eval.every >= config.early_stop


_WANTED = "wanted a {} of a run; move it away, or use another --workdir."


def make_workdir(workdir: str) -> epath.Path:
    """Creates the folder; raises BadValueError where nothing can be written."""
    if workdir.startswith("s3://"):
        raise errors.BadValueError(
            f"--workdir {workdir}: orbax, which writes the checkpoints, knows local folders and gs://"
            "; mount the bucket and name the folder, or use gs://."
        )
    path = paths.absolute(workdir)
    errors.check_writable("--workdir", path)
    for name in ("checkpoints", "best", "broken", "tensorboard"):
        if (path / name).exists() and not (path / name).is_dir():
            raise errors.BadValueError(f"{path / name} is a file, {_WANTED.format('folder')}")
    for name in ("metrics.jsonl", "config.json", "lock.json"):
        if (path / name).is_dir():
            raise errors.BadValueError(f"{path / name} is a folder, {_WANTED.format('file')}")
    return path


def not_finite(bad_step: int, recent_ids, checkpoints: Checkpoints) -> errors.BadValueError:
    """The error that stops a run whose loss or gradient is no number any more."""
    ids = next((ids for step, ids in recent_ids if step == bad_step), ())
    checkpoints.wait()
    saved = checkpoints.latest_step()
    last = f"the last good checkpoint is step {saved}" if saved else "there is no checkpoint yet"
    return errors.BadValueError(
        f"loss or gradient is NaN or infinite at step {bad_step}; its clips: {', '.join(ids)}; "
        f"{last}. Lower --config.optimizer.learning_rate or set --config.optimizer.clip_norm."
    )


def parse_flags(argv, known=flags.FLAGS):
    """absl's parser, after a look at --config: its own errors for a typo there are stack traces.

    Raises:
      NotFoundError, UnknownNameError, BadValueError: no such file, field, argument or flag; a value
        of another type.
    """
    spec, fields = None, []
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            spec = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
        elif name.startswith("config."):
            fields.append(name.removeprefix("config."))
    if spec:
        check_fields(read_config(spec), fields)
    try:
        return known(argv)
    except SystemExit:  # --help, which absl ends with 1
        sys.exit(0)
    except flags.Error as error:
        raise errors.BadValueError(f"{error} (see --help)") from error


if __name__ == "__main__":
    errors.run_program(functools.partial(app.run, main, flags_parser=parse_flags))
