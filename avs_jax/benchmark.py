"""Benchmark models, or two variants of one: latency, throughput, parameters, FLOPs and memory.

    python -m avs_jax.benchmark --model avesformer --backbone resnet50 --size 224
    python -m avs_jax.benchmark --model avesformer,pcmanet,catr
    python -m avs_jax.benchmark --model lite
    python -m avs_jax.benchmark --model pcmanet --backbone pvt_v2_b5 --compare masking=false
    python -m avs_jax.benchmark --model catr --backbone pvt_v2_b5 --field input_scale=2

Machines differ and drift, so compare within one call: in every round each model runs once, in turn
forwards and backwards, and times are medians over rounds after one that is not counted. A run is
from frames and waveform to masks' logits: log-mel and the sound backbone are in it; log-mel is
timed apart as well, and so are the metrics of a clip. FLOPs (a multiply-add is two), bytes touched
and memory come from the compiled program's own analysis, so they hold for this platform's program.
On CPU the most memory that the process ever had in RAM is told as well: Python, compiling, weights
and all models of the call. One JSON line at the end.
"""

import argparse
import dataclasses
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from avs_jax import devices, errors
from avs_jax.backbones import get_normalization
from avs_jax.media import audio
from avs_jax.models import MODELS, get_model
from avs_jax.models.forward import count_params, init_shapes, make_forward
from avs_jax.scoring import metrics
from avs_jax.weights import zoo

# Rows of the table: title, number of a row of figures, format.
TABLE = (
    ("ms a clip, median", lambda row: row["seconds_batch"] / row["batch_size"] * 1e3, ".1f"),
    ("clips/s", lambda row: row["batch_size"] / row["seconds_batch"], ".3f"),
    ("frames/s", lambda row: row["frames_per_second"], ".2f"),
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


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    # What another call compiled would make this one's compiling, and its memory, look small.
    jax.config.update("jax_enable_compilation_cache", False)
    devices.start_jax()
    batch = make_batch(args)
    variants = [Variant(label, fields, args, batch) for label, fields in list_variants(args)]
    times = time_rounds([variant.run for variant in variants], args.runs, "rounds")
    log_mel = jax.jit(functools.partial(audio.log_mel, num_patches=args.seconds))
    sound = time_rounds([functools.partial(log_mel, batch["waveform"])], args.runs, "log-mel")
    scored = time_rounds([functools.partial(score, *make_masks(args))], args.runs, "metrics")
    rows = [v.figures() | time_figures(x, args) for v, x in zip(variants, times, strict=True)]

    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    about |= {k: getattr(args, k) for k in ("backbone", "audio_backbone", "size", "seconds")}
    about |= {"batch_size": args.batch_size, "dtype": args.dtype}
    about |= {"log_mel_seconds": float(np.median(sound))}
    about |= {"metrics_seconds_clip": float(np.median(scored))}
    about |= {"peak_resident_megabytes": peak_resident_bytes() / 1e6}
    if len(rows) == 2:
        low, middle, high = np.quantile(times[1] / times[0], (0.25, 0.5, 0.75))
        about["time_ratio"] = float(middle)
        print(make_table(rows, float(middle)))
        print(f"ratio of ms: median of {args.runs} rounds; half of them {low:.3f} to {high:.3f}")
    else:
        print(make_table(rows))
    print(
        f"log-mel alone {about['log_mel_seconds'] * 1e3:.1f} ms a batch, IoU and F-measure "
        f"{about['metrics_seconds_clip'] * 1e3:.1f} ms a clip; the process had at most "
        f"{about['peak_resident_megabytes']:.0f} MB in RAM"
    )
    print(json.dumps(about | {"rows": rows}))


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
    parser.add_argument("--batch_size", type=int, default=1, help="clips (default: 1)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
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
    args = parser.parse_args(argv)
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


def make_batch(args: argparse.Namespace) -> dict[str, jax.Array]:
    """Noise to look at and to hear."""
    b, t, size = args.batch_size, args.seconds, args.size
    rng = np.random.default_rng(0)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (b, t, size, size, 3), np.uint8)),
        "waveform": jnp.asarray(rng.uniform(-0.5, 0.5, (b, 16_000 * t)), jnp.float32),
        "frame_mask": jnp.ones((b, t), bool),
    }


def make_masks(args: argparse.Namespace) -> tuple[jax.Array, jax.Array]:
    """Logits and target f32[t h w] of a clip, for the metrics."""
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((2, args.seconds, args.size, args.size), np.float32)
    return jnp.asarray(logits), jnp.asarray(target > 1, jnp.float32)


def score(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """AVSBench's two figures of a clip."""
    return metrics.mask_iou(logits, target), metrics.max_f_measure(logits, target)


class Variant:
    """A model with weights, compiled for a batch."""

    def __init__(self, label: str, fields: dict, args: argparse.Namespace, batch: dict):
        model = get_model(**fields)
        self.label, self._args, self._batch = label, args, batch
        self._shapes = dict(init_shapes(model, args.seconds, args.size))
        normalization = get_normalization(fields["backbone"])
        forward = make_forward(model, normalization=normalization, size=args.size)
        began = time.perf_counter()
        self._compiled = jax.jit(forward).lower(self._shapes, batch).compile()
        self._compile_seconds = time.perf_counter() - began
        # After compiling, so that they fill the memory which that leaves behind. Any numbers do for
        # timing; initialising for real would take longer than all the rest.
        rng = np.random.default_rng(0)
        self._variables = jax.tree.map(lambda x: jnp.asarray(fill(rng, x.shape)), self._shapes)

    def run(self) -> jax.Array:
        """Logits of the batch."""
        return self._compiled(self._variables, self._batch)

    def figures(self) -> dict[str, str | int | float]:
        """All that is not time."""
        memory, cost = self._compiled.memory_analysis(), self._compiled.cost_analysis()
        sizes = {k: count_params(v) for k, v in self._shapes["params"].items()}
        picture, sound = sizes.get("backbone", 0), sizes.get("audio_backbone", 0)
        return {
            "model": self.label,
            "batch_size": self._args.batch_size,
            "params": sum(sizes.values()),
            "params_backbone": picture,
            "params_audio_backbone": sound,
            "params_head": sum(sizes.values()) - picture - sound,
            "gflops": cost["flops"] / 1e9,
            "gigabytes_touched": cost["bytes accessed"] / 1e9,
            "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
            "argument_megabytes": memory.argument_size_in_bytes / 1e6,
            "compile_seconds": self._compile_seconds,
        }


def fill(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers f32 of a size that keeps activations finite."""
    if len(shape) < 2:
        return 0.5 + rng.random(shape, np.float32)
    values = rng.standard_normal(shape, np.float32)
    values /= np.sqrt(np.prod(shape[:-1]), dtype=np.float32)  # in place: VGGish has 50 M in one
    return values


def time_rounds(runs: Sequence[Callable], rounds: int, name: str) -> np.ndarray:
    """Seconds f64[run round]; in each round all run once, in turn forwards and backwards."""
    for run in runs:
        jax.block_until_ready(run())
    times = np.zeros((len(runs), rounds))
    for i in tqdm(range(rounds), desc=name, leave=False):
        for k in range(len(runs))[:: 1 if i % 2 == 0 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(runs[k]())
            times[k, i] = time.perf_counter() - began
    return times


def time_figures(times: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    """What follows from a variant's times."""
    seconds = float(np.median(times))
    return {
        "seconds_batch": seconds,
        "frames_per_second": args.batch_size * args.seconds / seconds,
    }


def peak_resident_bytes() -> int:
    """The most memory that this process ever had in RAM."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux: kB


def make_table(rows: Sequence[dict], time_ratio: float | None = None) -> str:
    """A column a variant; with `time_ratio`, of two, also the second divided by the first."""
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
            cells.append(f"{ratio:.3f}")
        padded = "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        lines.append(f"{title:<{title_width}}" + padded)
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run_program(main)
