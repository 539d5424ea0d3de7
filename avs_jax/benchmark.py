"""Benchmark models, or two variants of one: latency, throughput, parameters, FLOPs and memory.

    python -m avs_jax.benchmark --model avesformer --backbone resnet50 --size 224
    python -m avs_jax.benchmark --model avesformer,pcmanet,catr --parts --peaks
    python -m avs_jax.benchmark --model lite
    python -m avs_jax.benchmark --model pcmanet --backbone pvt_v2_b5 --compare masking=false
    python -m avs_jax.benchmark --model catr --backbone pvt_v2_b5 --field input_scale=2
    python -m avs_jax.benchmark --model avesformer --sweep size=224,320,448 batch=1,2,4,8
    python -m avs_jax.benchmark --model avesformer --train
    python -m avs_jax.benchmark --plan v5e:4x4 --model catr --backbone pvt_v2_b5 --batch_size 64
    python -m avs_jax.benchmark --plan h100:8 --model pcmanet --batch_size 64 --dtype bfloat16
    python -m avs_jax.benchmark --scaling 1,2,4,8 --config configs/quickstart.py --batch_size 2

Machines differ and drift, so compare within one call: in every round each model runs once, in turn
forwards and backwards, and times are medians over rounds after one that is not counted. Where the
middle half of the rounds reaches further than --max_spread of their median, nothing is concluded.
On a machine with other work --clock=cpu tells the time of all cores instead. A run is from frames
and waveform to masks' logits: log-mel and the sound backbone are in it; log-mel is timed apart as
well, and so are the metrics of a clip. FLOPs (a multiply-add is two) are those of products and
convolutions, with all rounds of a loop; bytes touched and memory come from the compiled program's
own analysis, so they hold for this platform's program. On CPU the most memory that the process ever
had in RAM is told as well: Python, compiling, weights and all models of the call. One JSON line at
the end.

--parts    time of the two backbones and of what follows them, each as a program of its own, against
           its FLOPs; a part at less than a third of the others' rate is told.
--peaks    the best rate of a matrix product and of a convolution here, and what share models reach.
--sweep    size, batch and seconds in turn: cost = a * pixels^p, the p of time and of FLOPs.
--train    a train step instead: AdamW, the sound backbone frozen, the loss at its defaults, on all
           devices; on several both as one program and as one per device (config.parallel).
--plan     what training by configs/MODEL.py, or by --config FILE[:arguments], takes on a slice of
           TPUs that is not here: its own compiler tells (pip install 'avs_jax[tpu]'; minutes), and
           times are reckoned, with the assumptions beside them. --set NAME=VALUE: config fields.
           Slices as Cloud TPU writes them: v5e:4x4, v6e:2x4, v4:2x2x1, v5p:2x2x1. GPUs, as h100:8,
           need one to compile; there memory and messages are those of CPUs' program.
--scaling  bytes a device of that training step as devices, forced CPU ones, grow in number with
           --batch_size clips on each: state, temporaries, messages; they must not grow.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import re
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from avs_jax import devices, errors
from avs_jax.benchmarking import sweep, timing
from avs_jax.benchmarking.timing import spread_of, time_rounds
from avs_jax.benchmarking.variant import Part, Shape, Variant, find_slow
from avs_jax.media import audio
from avs_jax.models import MODELS
from avs_jax.scoring import metrics
from avs_jax.weights import zoo

CPU = "CPU-s a clip"
# Rows of the table: title, number of a row of figures, format.
TABLE = (
    ("ms a clip, median", lambda row: row["seconds_batch"] / row["batch_size"] * 1e3, ".1f"),
    ("clips/s", lambda row: row["batch_size"] / row["seconds_batch"], ".3f"),
    ("frames/s", lambda row: row["frames_per_second"], ".2f"),
    (CPU, lambda row: row["cpu_seconds_batch"] / row["batch_size"], ".3f"),
    ("GFLOP a clip", lambda row: row["gflops"] / row["batch_size"], ".1f"),
    ("GB touched a clip", lambda row: row["gigabytes_touched"] / row["batch_size"], ".2f"),
    ("MB at work", lambda row: row["temporary_megabytes"], ".0f"),
    ("MB of weights and input", lambda row: row["argument_megabytes"], ".0f"),
    ("M parameters", lambda row: row["params"] / 1e6, ".2f"),
    ("  picture backbone", lambda row: row["params_backbone"] / 1e6, ".2f"),
    ("  sound backbone", lambda row: row["params_audio_backbone"] / 1e6, ".2f"),
    ("  head", lambda row: row["params_head"] / 1e6, ".2f"),
    ("s to compile", lambda row: row["compile_seconds"], ".1f"),
)
# Rows that are powers of a time. The ratio of two times is not that of their medians, but the
# median over rounds of their ratio: what slows the machine for a while slows both.
TIMES = {"ms a clip, median": 1, "clips/s": -1, "frames/s": -1}
UNKNOWN = "?"  # in place of what rounds that spread too far do not tell


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    # What another call compiled would make this one's compiling, and its memory, look small.
    jax.config.update("jax_enable_compilation_cache", False)
    if args.plan:
        from avs_jax.benchmarking import plan  # optax and all of training, for this alone

        plan.force_devices(args.plan)
    if args.scaling:
        devices.force_cpu_devices(max(args.scaling))
    devices.start_jax()
    timing.check_clock(args.clock)
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "clock": args.clock}
    about |= {k: getattr(args, k) for k in ("backbone", "audio_backbone", "size", "seconds")}
    about |= {"batch_size": args.batch_size, "dtype": args.dtype}
    shape = Shape(args.batch_size, args.seconds, args.size)
    if args.plan:
        about |= tell_plans(args)
    elif args.scaling:
        about |= tell_scaling(args)
    elif args.train:
        about |= tell_steps(args, shape)
    elif args.sweep:
        about |= tell_growth(args, shape)
    else:
        about |= tell_cost(args, shape)
    about |= {"peak_resident_megabytes": timing.peak_resident_bytes() / 1e6}
    print(f"the process had at most {about['peak_resident_megabytes']:.0f} MB in RAM")
    print(json.dumps(about))


def tell_cost(args: argparse.Namespace, shape: Shape) -> dict:
    """Prints what the models cost, side by side; the figures."""
    variants = [Variant(label, fields, shape) for label, fields in list_variants(args)]
    parts = [variant.parts() if args.parts else [] for variant in variants]
    peaks = timing.make_peaks(args.dtype) if args.peaks else {}
    runs = [variant.run for variant in variants]
    runs += [part.run for found in parts for part in found] + [run for run, _ in peaks.values()]
    times = time_rounds(runs, args.runs, "rounds")
    clock = getattr(times, args.clock)
    batch = make_waveform(shape)
    log_mel = jax.jit(functools.partial(audio.log_mel, num_patches=args.seconds))
    sound = time_rounds([functools.partial(log_mel, batch)], args.runs, "log-mel").wall
    scored = time_rounds([functools.partial(score, *make_masks(args))], args.runs, "metrics").wall
    rows = [
        variant.figures() | time_figures(clock[i], times.cpu[i], shape)
        for i, variant in enumerate(variants)
    ]
    told = {
        "log_mel_seconds": float(np.median(sound)),
        "metrics_seconds_clip": float(np.median(scored)),
        "rows": rows,
    }
    ratio = None
    if len(rows) == 2:
        ratios = clock[1] / clock[0]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        sure = spread_of(ratios) <= args.max_spread
        ratio = float(middle) if sure else np.nan
        told["time_ratio"] = float(middle) if sure else None
    print(make_table(rows, ratio))
    if ratio is not None:
        print(f"ratio of ms: median of {args.runs} rounds; half of them {low:.3f} to {high:.3f}")
    tell_spread([row["model"] for row in rows], clock, args.max_spread, ratio)
    first = len(variants)
    for row, found in zip(rows, parts, strict=True):
        row["parts"] = tell_parts(row["model"], found, clock[first : first + len(found)])
        first += len(found)
    if peaks:
        told["peaks"] = tell_peaks(peaks, clock[first:], rows)
    print(
        f"log-mel alone {told['log_mel_seconds'] * 1e3:.1f} ms a batch, IoU and F-measure "
        f"{told['metrics_seconds_clip'] * 1e3:.1f} ms a clip"
    )
    return told


def tell_spread(labels: Sequence[str], clock, bound: float, ratio: float | None = None) -> None:
    """Prints which times, and whether the ratio of two, must not be believed."""
    for label, times in zip(labels, clock, strict=False):
        if spread_of(times) > bound:
            print(
                f"no conclusion about {label}: half of its rounds spread by "
                f"{spread_of(times):.0%} of their median, --max_spread is {bound:.0%}"
            )
    if ratio is not None and np.isnan(ratio):
        print(
            f"no ratio: the rounds' spread by more than --max_spread={bound:.0%}; run again on a "
            "quiet machine, with more --runs, or with --clock=cpu"
        )


def tell_parts(label: str, parts: Sequence[Part], clock: np.ndarray) -> list[dict]:
    """Prints a model's parts, and which of them are slow for what they compute; the figures."""
    rows = []
    for part, times in zip(parts, clock, strict=True):
        seconds = float(np.median(times))
        rows.append({"part": part.name, "seconds": seconds, "gflops": part.flops / 1e9})
    whole = sum(row["seconds"] for row in rows)
    for row in rows:
        rate = row["gflops"] / row["seconds"]
        print(
            f"{label}: {row['part']:<19} {row['seconds'] * 1e3:9.1f} ms "
            f"{row['seconds'] / whole:4.0%}  {row['gflops']:8.2f} GFLOP {rate:8.1f} GFLOP/s"
        )
    rates = {row["part"]: row["gflops"] / row["seconds"] for row in rows}
    slow = find_slow(rates, {row["part"]: row["gflops"] for row in rows})
    for name, others in slow.items():
        print(
            f"SLOW: {label}'s {name} computes at {rates[name]:.1f} GFLOP/s, less than a third of "
            f"the others' {others:.1f}"
        )
    return [row | {"slow": row["part"] in slow} for row in rows]


def tell_peaks(peaks: dict, clock: np.ndarray, rows: Sequence[dict]) -> dict[str, float]:
    """Prints the machine's best rates and the share of them that models reach; GFLOP/s."""
    best = {}
    for (name, (_, flops)), times in zip(peaks.items(), clock, strict=True):
        best[name] = flops / float(np.median(times)) / 1e9
    for row in rows:
        rate = row["gflops"] / row["seconds_batch"]
        row["share_of_peak"] = {name: rate / value for name, value in best.items()}
        shares = ", ".join(
            f"{rate / value:.0%} of {name}'s {value:.0f} GFLOP/s" for name, value in best.items()
        )
        print(f"{row['model']} computes at {rate:.1f} GFLOP/s: {shares}")
    return best


def tell_growth(args: argparse.Namespace, shape: Shape) -> dict:
    """Prints how the cost of each model grows with size, clips and seconds; the figures."""
    rows = []
    for label, fields in list_variants(args):
        weights = None
        for axis, values in sweep.parse_sweep(args.sweep).items():
            shapes = sweep.shapes_of(axis, values, shape)
            variants = []
            for point in shapes:
                variants.append(Variant(label, fields, point, weights))
                weights = variants[0].weights
            times = time_rounds([v.run for v in variants], args.runs, f"{label} {axis}")
            clock = getattr(times, args.clock)
            seconds = [float(x) for x in np.median(clock, axis=1)]
            flops = [variant.flops for variant in variants]
            sure = max(map(spread_of, clock)) <= args.max_spread
            row = {"model": label, "axis": axis, "values": values, "seconds": seconds}
            row |= {"gflops": [x / 1e9 for x in flops]}
            row |= {"exponent_flops": sweep.fit_exponent(axis, shapes, flops)}
            row |= {"exponent_time": sweep.fit_exponent(axis, shapes, seconds) if sure else None}
            rows.append(row)
            for value, x, y in zip(values, seconds, row["gflops"], strict=True):
                print(f"{label} {axis}={value:<5} {x * 1e3:9.1f} ms {y:9.1f} GFLOP")
            exponent = f"{row['exponent_time']:.2f}" if sure else UNKNOWN
            print(
                f"{label}: time ~ {sweep.AXES[axis][1]}^{exponent}, "
                f"FLOPs ~ {sweep.AXES[axis][1]}^{row['exponent_flops']:.2f}"
            )
            tell_spread([f"{label} {axis}={v}" for v in values], clock, args.max_spread)
    return {"growth": rows}


def tell_steps(args: argparse.Namespace, shape: Shape) -> dict:
    """Prints what a train step costs in each mode of config.parallel; the figures."""
    from avs_jax.benchmarking.steps import Step  # optax and all of training, for this alone
    from avs_jax.training.sharding import MODES

    modes = MODES if len(jax.devices()) > 1 else ("sharded",)
    steps = [
        Step(label, fields, shape, mode) for label, fields in list_variants(args) for mode in modes
    ]
    times = time_rounds([step.run for step in steps], args.runs, "steps")
    clock, rows = getattr(times, args.clock), []
    for step, wall, cpu in zip(steps, clock, times.cpu, strict=True):
        row = step.figures() | time_figures(wall, cpu, shape)
        rows.append(row)
        print(
            f"{row['step']}: {row['seconds_batch'] * 1e3:.1f} ms a step "
            f"({row['cpu_seconds_batch']:.3f} CPU-s), {row['gflops']:.1f} GFLOP, "
            f"{row['peak_megabytes']:.0f} MB a device, "
            f"{row['collective_megabytes']:.2f} MB of collectives, "
            f"{row['compile_seconds']:.1f} s to compile"
        )
    tell_spread([step.label for step in steps], clock, args.max_spread)
    return {"devices": len(jax.devices()), "steps": rows}


def tell_plans(args: argparse.Namespace) -> dict:
    """Prints what training takes on devices that are not here; the figures."""
    from avs_jax.benchmarking import plan  # as above

    plans = []
    for spec, config in read_configs(args, plan.read_fields):
        print(f"{spec} for {args.plan}: compiling", file=sys.stderr, flush=True)
        plans.append(plan.plan_training(args.plan, config))
        print("\n".join(plan.make_lines(plans[-1])), flush=True)
    return {"plans": plans}


def tell_scaling(args: argparse.Namespace) -> dict:
    """Prints what each device holds and sends as they grow in number; the figures."""
    from avs_jax.benchmarking import plan, scaling  # as above

    told, growth = [], {}
    print(scaling.HEADER, flush=True)
    for spec, config in read_configs(args, plan.read_fields):
        rows = []
        for way, count in itertools.product(scaling.WAYS, args.scaling):
            rows.append(scaling.measure(config, way, count, args.batch_size))
            print(scaling.make_row(rows[-1]), flush=True)
        told += rows
        for (way, name), most in scaling.find_growth(rows).items():
            growth[f"{spec}, {way}, {name}"] = most
            if most > 1 + scaling.TOLERANCE:
                print(f"GROWS: {spec}, {way}: {name} bytes a device by {most - 1:.1%}")
    return {"scaling": told, "growth": growth}


def read_configs(args: argparse.Namespace, read) -> list[tuple[str, ml_collections.ConfigDict]]:
    """(what names it, config) of every training that is asked about, by `plan.read_fields`."""
    specs = args.config or [
        f"configs/{name}.py:backbone={args.backbone}" for name in args.model.split(",")
    ]
    fields = [] if args.config else ["batch_size=1", "model.dtype=float32"]
    return [(spec, read(spec, [*fields, *args.set])) for spec in specs]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join((*MODELS, *zoo.NAMES))
    parser.add_argument("--model", default="avesformer", help=f"comma-separated, of {known}")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--audio_backbone", default="vggish")
    parser.add_argument("--num_classes", type=int, default=1)
    parser.add_argument(
        "--size", type=int, help="pixels (default: 224, or those of a model of the package)"
    )
    parser.add_argument("--seconds", type=int, default=5, help="frames of a clip (default: 5)")
    parser.add_argument("--batch_size", type=int, help="clips (default: 1, or --config's)")
    parser.add_argument("--dtype", help="float32 (default, or --config's) or bfloat16")
    parser.add_argument("--runs", type=int, default=10, help="timed rounds (default: 10)")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=VALUE", help="a field of the model"
    )
    parser.add_argument(
        "--compare",
        default="",
        metavar="NAME=VALUE[,..]",
        help="fields of a second variant of each model, timed against the first",
    )
    parser.add_argument("--parts", action="store_true", help="time by part, see above")
    parser.add_argument("--peaks", action="store_true", help="share of what this machine can do")
    parser.add_argument("--train", action="store_true", help="a train step, see above")
    parser.add_argument(
        "--sweep", nargs="+", default=[], metavar="AXIS=N,N[,..]", help="size, batch, seconds"
    )
    parser.add_argument("--plan", metavar="KIND:SHAPE", help="TPUs or GPUs, see above")
    parser.add_argument("--scaling", metavar="N,N[,..]", help="numbers of devices, see above")
    parser.add_argument(
        "--config", action="append", default=[], help="of --plan, --scaling: FILE[:arguments]"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of these: a config field"
    )
    parser.add_argument("--clock", default="wall", help="wall, or cpu: of all cores")
    parser.add_argument(
        "--max_spread",
        type=float,
        default=0.2,
        help="of rounds, in parts of their median: beyond it nothing is concluded (default: 0.2)",
    )
    args = parser.parse_args(argv)
    chosen = [
        name for name in ("plan", "scaling", "train", "sweep", "parts") if getattr(args, name)
    ]
    if len(chosen) > 1:
        raise errors.BadValueError(f"--{' and --'.join(chosen)}: one at a time.")
    asked = {"batch_size": args.batch_size, "model.dtype": args.dtype}
    args.set = [f"{name}={x}" for name, x in asked.items() if x is not None] + args.set
    args.batch_size = 1 if args.batch_size is None else args.batch_size
    args.dtype = args.dtype or "float32"
    sweep.parse_sweep(args.sweep)
    args.scaling = sweep.parse_counts(args.scaling) if args.scaling else None
    if args.size is None:
        sizes = [zoo.read_about(m)["config"]["data"]["size"] for m in zoo.NAMES if m == args.model]
        args.size = sizes[0] if sizes else 224
    for name in ("size", "seconds", "batch_size", "runs"):
        if getattr(args, name) < 1:
            raise errors.BadValueError(f"--{name}={getattr(args, name)}: wanted 1 or more.")
    return args


def list_variants(args: argparse.Namespace) -> list[tuple[str, dict]]:
    """(label, get_model's arguments) of everything to measure.

    Raises:
      UnknownNameError, BadValueError: a field that a model does not have, a value that it is not.
    """
    common = {k: getattr(args, k) for k in ("backbone", "audio_backbone", "num_classes", "dtype")}
    variants = []
    for name in args.model.split(","):
        base = {"name": name} | common
        if zoo.is_zoo(name):  # its own fields; those of the command line are for the others
            base = dict(ml_collections.FrozenConfigDict(zoo.read_about(name)["config"]["model"]))
        base |= parse_fields(base["name"], "--field", args.field)
        variants.append((name, base))
        if args.compare:
            # A comma parts fields, but not the numbers of a [list].
            texts = re.split(r",(?![^\[]*\])", args.compare)
            variants.append(
                (f"{name}:{args.compare}", base | parse_fields(base["name"], "--compare", texts))
            )
    return variants


def parse_fields(model: str, flag: str, texts: Sequence[str]) -> dict:
    """["masking=false", ..] -> {"masking": False, ..}, each of its field's type."""
    if model not in MODELS:
        raise errors.unknown_name("model", model, MODELS)
    known = {f.name: f.default for f in dataclasses.fields(MODELS[model][1])}
    known |= {"backbone": "", "audio_backbone": "", "dtype": ""}
    for name in ("parent", "name"):  # flax's
        known.pop(name, None)
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise errors.BadValueError(f"{flag} {text!r}: wanted NAME=VALUE, e.g. remat=true.")
        if name not in known:
            raise errors.unknown_name(f"field of model {model!r}", name, known)
        fields[name] = parse_value(value)
        if not is_like(fields[name], known[name]):
            raise errors.BadValueError(
                f"{flag} {text}: wanted a value of the kind of {name}'s default, "
                f"{json.dumps(known[name])}."
            )
    return fields


def is_like(value, default) -> bool:
    """Whether a value may stand for a default: of its type, or a whole number for a fraction."""
    if not isinstance(default, bool | int | float | str | tuple):
        return True
    if isinstance(default, float) and type(value) is int:
        return True
    return type(value) is type(default)


def parse_value(text: str):
    """JSON where it is (numbers, true, lists), else the text itself."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value


def make_waveform(shape: Shape) -> jax.Array:
    """Noise to hear: f32[b s]."""
    rng = np.random.default_rng(0)
    samples = (shape.clips, 16_000 * shape.seconds)
    return jnp.asarray(rng.uniform(-0.5, 0.5, samples), jnp.float32)


def make_masks(args: argparse.Namespace) -> tuple[jax.Array, jax.Array]:
    """Logits and target f32[t h w] of a clip, for the metrics."""
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((2, args.seconds, args.size, args.size), np.float32)
    return jnp.asarray(logits), jnp.asarray(target > 1, jnp.float32)


def score(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """AVSBench's two figures of a clip."""
    return metrics.mask_iou(logits, target), metrics.max_f_measure(logits, target)


def time_figures(times: np.ndarray, cpu: np.ndarray, shape: Shape) -> dict[str, float]:
    """What follows from a program's times, by the chosen clock and of all cores."""
    seconds = float(np.median(times))
    return {
        "seconds_batch": seconds,
        "cpu_seconds_batch": float(np.median(cpu)),
        "spread": spread_of(times),
        "frames_per_second": shape.clips * shape.seconds / seconds,
    }


def make_table(rows: Sequence[dict], time_ratio: float | None = None) -> str:
    """A column a variant; with `time_ratio`, of two, also the second divided by the first. NaN: not
    known."""
    labels = [row["model"] for row in rows] + ["ratio"] * (time_ratio is not None)
    widths = [max(10, len(label)) for label in labels]
    title_width = max(len(title) for title, _, _ in TABLE)
    lines = [" " * title_width]
    lines[0] += "".join(f"  {label:>{w}}" for label, w in zip(labels, widths, strict=True))
    for title, number, form in TABLE:
        values = [number(row) for row in rows]
        cells = [format(value, form) for value in values]
        if time_ratio is not None:
            ratio = values[1] / values[0] if values[0] else 1.0
            if title in TIMES:
                ratio = time_ratio ** TIMES[title]
            sure = not np.isnan(time_ratio) or title not in (*TIMES, CPU)
            cells.append(f"{ratio:.3f}" if sure else UNKNOWN)
        padded = "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        lines.append(f"{title:<{title_width}}" + padded)
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run_program(main)
