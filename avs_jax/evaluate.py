"""Evaluate a checkpoint: every figure of a split, with the sound it came with and without it.

    python -m avs_jax.evaluate --checkpoint WORKDIR
    python -m avs_jax.evaluate --checkpoint WORKDIR --metrics paper,strict,dataset,jf,robust

WORKDIR is what `avs_jax.train` wrote; the model, its data set and picture size come from the
checkpoint's own config. To evaluate weights that `avs_jax.convert` wrote, name the config they are
for: --config configs/pcmanet.py:subset=s4 --checkpoint CONVERTED.

Several runs, e.g. of several seeds: --checkpoint A,B,C --output DIR gives the mean of every figure,
its standard deviation (of a sample) and each one's own.

Prints tables and one JSON line, and writes results.json (the same line), results.md (the tables)
and, with --metrics, details.json (by clip, class and group) to --output, by default WORKDIR:

    miou           mean IoU over frames (AVSBench's; on AVSS over classes)
    f_measure      best F-measure over thresholds, per video (AVSBench's with batches of one video)
    *_mute         the sound replaced by silence; *_swap by another clip's
    *_all_objects_oracle    a deaf model that marks every visible object perfectly, where the data
                   set knows them: a result near it shows nothing about listening

--metrics adds families of figures that other papers report; they differ by ten points and more on
the same masks, so compare within one family only:

    paper    AVSBench's evaluation code, batch by batch (--f_batch_videos), to the digit
    strict   every frame weighs the same, one threshold for the set, no padded frames: recommended
    dataset  pixels summed over the whole set before anything is divided
    jf       DAVIS: region similarity J, boundary accuracy F
    robust   silence, noise, a sound from off the screen, another clip's, a late one

    python -m avs_jax.evaluate --checkpoint WORKDIR --report DIR

also writes DIR/report.html, one file that opens without a network: figures with their intervals, by
group and class, best and worst clips with their sound, other sounds, reliability, the run's curves.

    python -m avs_jax.evaluate --real DIR

scores the model that comes with the package, or that of --checkpoint, on films of your own with
boxes around what sounds (boxes.json; its form and the figures are told in scoring/real.py).

    python -m avs_jax.evaluate --calibrate --split validation

tells how true a model's probabilities are, and the temperature and threshold that `convert
--to-zoo` takes (one class only; scoring/calibration.py).
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from avs_jax import __version__, devices, errors, hosts, peers
from avs_jax.config import differences
from avs_jax.data import load_class_names, open_split, transforms
from avs_jax.devices import quiet_libraries
from avs_jax.media.partial import removed_on_signals
from avs_jax.models.forward import count_params
from avs_jax.prediction.masks import compile_forward
from avs_jax.prediction.model import Model
from avs_jax.reporting import gathering
from avs_jax.scoring import calibration, evaluators, modes, real, report, seeds, sounds, views
from avs_jax.scoring.evaluators import ORACLE, Evaluator
from avs_jax.scoring.records import Records
from avs_jax.weights import open_model, trained, zoo
from avs_jax.weights.trained import Loaded

FAMILIES = (*modes.MODES, "robust")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with removed_on_signals():
        if args.real:
            evaluate_real(args)
        elif args.calibrate:
            calibrate(args)
        else:
            evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    quiet_libraries()
    place = (args.coordinator, args.process_id, args.num_processes, args.wait_seconds)
    job = hosts.read_job(args.distributed, *place)
    if args.original_size and job:
        raise errors.BadValueError(
            "--original_size works on one host; leave out --distributed and --coordinator."
        )
    devices.start_jax(job)
    of_a_host = ("data_dir", "process_id")
    hosts.check_same({f"--{k}": v for k, v in vars(args).items() if k not in of_a_host})
    with peers.watched():
        evaluate_all(args)


def evaluate_all(args: argparse.Namespace) -> None:
    # Clips of their original size do not fit into one batch: one clip at a time, on one device.
    mesh = devices.make_mesh(devices=jax.local_devices()[:1] if args.original_size else None)
    checkpoints = args.checkpoint.split(",")
    if args.report:
        errors.check_writable("--report", epath.Path(args.report))
    runs, first, evaluator = {}, None, None
    for number, checkpoint in enumerate(checkpoints):
        started = time.monotonic()
        loaded = open_model(checkpoint, args.which, args.config)
        first = first or loaded
        check_same_kind(first, loaded, checkpoints[0], checkpoint)
        part = f"run_{number}" if len(checkpoints) > 1 else ""
        output = epath.Path(args.output or zoo.own_folder(checkpoint)) / part
        precision = args.matmul_precision or loaded.matmul_precision
        with jax.default_matmul_precision(precision):
            if evaluator is None:
                config = override(loaded.config, args, mesh)
                evaluator = build_evaluator(loaded, config, args, mesh, output)
            variables = replicate(loaded.variables, mesh)
            records = evaluator.records(variables, show_progress)
        if jax.process_index() == 0:
            about = describe(loaded, config, checkpoint, args) | {
                "clips": len(records["own"].clips),
                "frames": int(records["own"].use.sum()),
                "eval/seconds": round(time.monotonic() - started, 1),
            }
            runs[checkpoint] = present(records, about, config, args, output)
        if args.report:
            run = (evaluator, variables, loaded, config, records, runs[checkpoint], about)
            with jax.default_matmul_precision(precision):
                page = gathering.report_run(epath.Path(args.report) / part, *run)
            print(f"report: {page}", file=sys.stderr)
    if len(runs) > 1:
        results, text = seeds.summarise(runs)
        print(f"\n{text}\n{json.dumps(results)}")
        report.write(epath.Path(args.output), results, {}, text)
        if args.report:
            gathering.report_runs(epath.Path(args.report), results)


def evaluate_real(args: argparse.Namespace) -> None:
    """Films with boxes: a table and a JSON line of each checkpoint."""
    quiet_libraries()
    films, others = real.read_films(args.real), real.read_other_sounds(args.real)
    devices.start_jax()
    for checkpoint in args.checkpoint.split(","):
        loaded = open_model(checkpoint, args.which, args.config)
        model = Model(loaded, args.matmul_precision)
        passes = tqdm(desc="evaluate", unit="pass", total=real.count_passes(films, others))

        def mark(frames, times, sound, model=model, passes=passes):
            passes.update()
            return model.segment_at(frames, times, sound, probabilities=True)

        figures = real.score(films, mark, loaded.threshold, others)
        passes.close()
        about = {"checkpoint": checkpoint, "step": loaded.step, "threshold": loaded.threshold}
        about |= {"real": args.real, "avs_jax": __version__}
        print(f"\n{real.tabulate(args.real, figures)}\n{json.dumps(figures | about)}")
        if args.output:
            name = f"real_{checkpoint.strip('./').replace('/', '_')}.json"
            path = epath.Path(args.output) / name
            errors.check_writable("--output", path.parent)
            path.write_text(json.dumps(figures | about) + "\n")


def calibrate(args: argparse.Namespace) -> None:
    """Temperature and threshold of one checkpoint by a split; tables and a JSON line."""
    quiet_libraries()
    devices.start_jax()
    loaded = open_model(args.checkpoint, args.which, args.config)
    data = loaded.config.data
    if loaded.config.model.num_classes > 1:
        raise errors.BadValueError("--calibrate is for models of one class; this one has more.")
    source = open_split(data.name, data.subset, args.split, args.data_dir or data.data_dir)
    forward = compile_forward(loaded._replace(temperature=1.0), args.matmul_precision)
    fit, counts = transforms.Resize(data.size), calibration.LogitCounts()
    for index in tqdm(range(len(source)), desc="calibrate", unit="clip"):
        clip = fit.map(source[index])
        inputs = (clip[name][None] for name in ("frames", "waveform", "frame_mask"))
        logits = np.asarray(forward(*inputs)[0, ..., 0])
        use = clip["frame_mask"] & clip["label_mask"]
        for frame, label in zip(logits[use], clip["label"][use], strict=True):
            counts.add(frame, label > 0)
    counts = counts.counts()
    found, total = calibration.fit(counts), counts.sum(0)
    for title, temperature in (("as trained", 1.0), ("calibrated", found.temperature)):
        rows = {
            f"{said:.3f}": {"share that sounds": true, "pixels": pixels}
            for said, true, pixels in calibration.reliability(total, temperature)
        }
        print(report.make_table(f"said, {title}", ["share that sounds", "pixels"], rows))
    about = {"checkpoint": args.checkpoint, "step": loaded.step, "split": args.split}
    about |= {"frames": len(counts), "avs_jax": __version__}
    print(json.dumps(found._asdict() | about))
    if args.output:
        errors.check_writable("--output", epath.Path(args.output))
        calibration.draw(epath.Path(args.output) / "reliability.png", total, found.temperature)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(kind, known):
        def parse(text):
            chosen = known if text == "all" else tuple(filter(None, text.split(",")))
            for name in chosen:
                if name not in known:
                    raise errors.unknown_name(kind, name, (*known, "all"))
            return chosen

        return parse

    add = parser.add_argument
    add(
        "--checkpoint",
        "--model",
        default=zoo.DEFAULT,
        help=f"{', '.join(zoo.NAMES)} (of the package), WORKDIR of a run, or converted weights; or "
        f"A,B,C (default: {zoo.DEFAULT})",
    )
    add("--calibrate", action="store_true", help="how true probabilities are, see below")
    add("--real", metavar="DIR", help="films with boxes instead of a data set, see below")
    add("--which", default="best", help="best, latest or a step (default: best)")
    add("--config", help="FILE[:arguments], for converted weights or another data set")
    add(
        "--split",
        default="test",
        help="e.g. test, validation, test[:100], its first (default: test)",
    )
    add(
        "--sounds",
        type=names("sound", sounds.SOUNDS),
        help=f"comma-separated, of {', '.join(sounds.SOUNDS)}, or all (default: own,mute,swap; "
        "noise too with --report)",
    )
    add(
        "--metrics",
        type=names("metric", FAMILIES),
        default=(),
        help=f"comma-separated, of {', '.join(FAMILIES)}, or all (default: none)",
    )
    add("--f_batch_videos", type=int, default=4, help="clips of a batch in paper mode (default: 4)")
    add("--no_padded_frames", action="store_true", help="leave them out of AVSS in paper mode")
    add("--original_size", action="store_true", help="score at the size on disk, not the model's")
    add("--save_masks", metavar="DIR", help="folder for every predicted mask, as ids and colours")
    add("--report", metavar="DIR", help="folder for report.html, all of it on one page")
    add("--size", type=int, help="pixels that the model sees, if not those it was trained on")
    add(
        "--tta",
        type=names("test-time augmentation", views.AUGMENTATIONS),
        default=(),
        help=f"comma-separated, of {', '.join(views.AUGMENTATIONS)}, or all: mean probabilities of "
        "the mirrored picture, of 3/4 and 5/4 of the size (default: none)",
    )
    add(
        "--matmul_precision",
        choices=trained.MATMUL_PRECISIONS,
        help="of products in float32 (default: as the run's config says; converted weights: "
        "highest)",
    )
    add("--batch_size", type=int, help="clips, over all devices")
    add("--data_dir", help="where the data set is built, if not where it was")
    add("--output", metavar="DIR", help="folder for the results (default: the checkpoint's)")
    hosts.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.sounds is None:
        args.sounds = (*sounds.USUAL, *(["noise"] if args.report else []))
    _check_arguments(args)
    return args


def _check_arguments(args: argparse.Namespace) -> None:
    other = [k for k in ("real", "calibrate", "distributed", "coordinator") if getattr(args, k)]
    if args.report and other:
        raise errors.BadValueError(
            f"--report is of a data set, evaluated by one process; leave out --{other[0]}."
        )
    if args.f_batch_videos < 1:
        raise errors.BadValueError(f"--f_batch_videos={args.f_batch_videos}: wanted 1 or more.")
    if args.size is not None and args.size < 1:
        raise errors.BadValueError(f"--size={args.size}: wanted a number of pixels, 1 or more.")
    checkpoints = args.checkpoint.split(",")
    if len(set(checkpoints)) < len(checkpoints) or "" in checkpoints:
        raise errors.BadValueError(
            f"--checkpoint {args.checkpoint}: wanted the folders of different runs, A,B,C."
        )
    if len(checkpoints) > 1 and args.save_masks:
        raise errors.BadValueError("--save_masks is for one run at a time; leave out the others.")
    if len(checkpoints) > 1 and not (args.output or args.real):
        raise errors.BadValueError(
            f"--checkpoint {args.checkpoint}: several runs have no folder in common for their "
            "mean; add --output DIR."
        )


# ------------------------------------------------------------------------------------------ inputs


def override(
    config: ml_collections.ConfigDict, args: argparse.Namespace, mesh: jax.sharding.Mesh
) -> ml_collections.ConfigDict:
    """The checkpoint's config with what the command line says instead.

    Raises:
      BadValueError: a batch size that the devices cannot share.
    """
    config = ml_collections.ConfigDict(config)
    with config.unlocked():
        config.eval.split = args.split
        wanted = dict.fromkeys(["own", *args.sounds])
        if "robust" in args.metrics:
            wanted |= dict.fromkeys(sounds.SOUNDS)
        config.eval.sounds = tuple(wanted)
        if args.original_size:
            config.eval.batch_size = 1
        elif args.batch_size is not None:
            config.eval.batch_size = args.batch_size
        else:
            config.eval.batch_size = devices.round_up(config.eval.batch_size, mesh)
        if args.data_dir is not None:
            config.data.data_dir = args.data_dir
        if args.size is not None:
            config.data.size = args.size
    devices.check_batch_size(config.eval.batch_size, mesh, "--batch_size")
    return config


def check_same_kind(one: Loaded, other: Loaded, name: str, other_name: str) -> None:
    """Raises BadValueError where the mean of two runs' figures would mean nothing.

    They must have the same model, data set and size of pictures; how they were trained may differ.
    """
    kinds = []
    for loaded in (one, other):
        config = json.loads(loaded.config.to_json())
        data = {k: config["data"][k] for k in ("name", "subset", "size", "seconds")}
        kinds.append({"model": config["model"], "data": data})
    if found := differences(*kinds):
        raise errors.BadValueError(
            f"{other_name} and {name} are not seeds of one run: {'; '.join(found)}; evaluate them "
            "one by one."
        )


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Host or local arrays -> the same on every device of every process."""
    everywhere = devices.replicated(mesh)

    def place(x):
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(place, tree)


def build_evaluator(
    loaded: Loaded,
    config: ml_collections.ConfigDict,
    args: argparse.Namespace,
    mesh: jax.sharding.Mesh,
    output: epath.Path,
) -> Evaluator:
    """The pass that the command line asks for, and the oracle where objects are known.

    A sound from off the screen that robust alone asks for is left out where there is none.
    """
    data = config.data
    source = open_split(data.name, data.subset, config.eval.split, data.data_dir)
    errors.check_writable("--output", output)
    config.eval.oracle = "objects" in source[0]
    folder = None
    if args.save_masks:
        folder = report.MaskFolder(args.save_masks, config.model.num_classes)

    def build():
        return Evaluator(
            views.make_network(loaded.model, config, args.tta),
            config,
            source,
            devices.batch_sharding(mesh),
            boundaries="jf" in args.metrics,
            temperature=loaded.temperature if args.report else None,
            on_masks=folder.save if folder else None,
            original_size=args.original_size,
        )

    try:
        return build()
    except sounds.NoOffscreenError as error:
        if "offscreen" in args.sounds:
            raise
        tqdm.write(f"off-screen test left out: {error}", file=sys.stderr)
        config.eval.sounds = tuple(s for s in config.eval.sounds if s != "offscreen")
        return build()


def show_progress(batches):
    """A bar over batches, in the first process."""
    return tqdm(batches, desc="evaluate", unit="batch", disable=jax.process_index() > 0)


# ----------------------------------------------------------------------------------------- figures


def describe(
    loaded: Loaded, config: ml_collections.ConfigDict, checkpoint: str, args: argparse.Namespace
) -> dict[str, Any]:
    """What the figures are of: they mean nothing without it."""
    words = json.dumps(json.loads(loaded.config.to_json()), sort_keys=True)
    about = {
        "params": count_params(loaded.variables["params"]),
        "model": config.model.name,
        "data": f"{config.data.name}/{config.data.subset}/{config.eval.split}",
        "size": config.data.size,
        "batch_size": config.eval.batch_size,
        "scored_at": "original size" if args.original_size else "model size",
        "tta": ",".join(args.tta) or "none",
        "matmul_precision": args.matmul_precision or loaded.matmul_precision or "default",
        "checkpoint": checkpoint,
        "step": loaded.step,
        "config_hash": hashlib.sha256(words.encode()).hexdigest()[:12],
        "avs_jax": __version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    log = epath.Path(zoo.own_folder(checkpoint)) / "metrics.jsonl"
    seconds = trained.last_value(log, "train/seconds")
    if seconds is not None:
        about["train/seconds"] = round(seconds, 1)
    return about


def compute_families(
    records: Mapping[str, Records], args: argparse.Namespace
) -> dict[str, dict[str, float | int]]:
    """{family: {figure: value}} of the families asked for, and a bootstrap interval."""
    own = records["own"]
    families = {}
    for family in args.metrics:
        if family == "robust":
            others = {s: r for s, r in records.items() if s in sounds.SOUNDS[1:]}
            families[family] = modes.robust(own, others)
        elif family == "paper":
            families[family] = modes.paper(own, args.f_batch_videos, not args.no_padded_frames)
        else:
            families[family] = modes.MODES[family](own)
    if args.metrics or args.report:
        families["interval"] = {
            f"{name}_{end}": value
            for name, ends in modes.intervals(own).items()
            for end, value in zip(("low", "high"), ends, strict=True)
        }
    return families


def present(
    records: Mapping[str, Records],
    about: Mapping,
    config: ml_collections.ConfigDict,
    args: argparse.Namespace,
    output: epath.Path,
) -> dict[str, Any]:
    """Prints tables and the JSON line, writes them to `output`, and returns the line."""
    split = evaluators.split_name(config.eval.split)
    asked = [sound for sound in records if sound in (*args.sounds, "own", ORACLE)]
    by_sound = {sound: modes.summary(records[sound]) for sound in asked}
    results = {
        f"{split}/{metric}{evaluators.suffix(sound)}": value
        for sound, figures in by_sound.items()
        for metric, value in figures.items()
    }
    tables = [report.table_of_sounds(split, by_sound)]
    for family, figures in compute_families(records, args).items():
        results |= {f"{family}/{name}": value for name, value in figures.items()}
        title = f"95 % interval over clips, of {split}" if family == "interval" else family
        tables.append(report.table_of_figures(title, figures))
    details = (
        report.breakdown(records["own"], load_class_names(config.data.name)) if args.metrics else {}
    )
    tables.append(report.table_of_groups(details))
    results |= about
    tables.append("\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n")
    text = "\n".join(filter(None, tables))
    print(f"\n{text}\n{json.dumps(results)}")
    text = "\n".join(filter(None, [text, report.table_of_classes(details)]))  # too long to print
    report.write(output, results, details, text)
    return results


if __name__ == "__main__":
    errors.run_program(main)
