"""Benchmark a model: latency, throughput, parameters, FLOPs and memory, as compiled.

    python -m avs_jax.benchmark --model avesformer --backbone resnet50 --size 224

FLOPs and memory come from the compiled program's own analysis, so they hold for this platform's
program; FLOPs count a multiply-add as two. Times are medians over runs after a warm-up; the sound's
way from waveform to log-mel and through the sound backbone is included; log-mel is timed apart as
well. One JSON line at the end. Compare models within one call: machines differ and drift.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from avs_jax import audio, errors, sharding, state
from avs_jax.backbones import get_normalization
from avs_jax.models import MODELS, get_model


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    sharding.start_jax()
    fields = dict(field.split("=", 1) for field in args.field)
    fields = {name: parse_value(value) for name, value in fields.items()}
    rows = []
    for name in args.model.split(","):
        model = get_model(
            name,
            backbone=args.backbone,
            audio_backbone=args.audio_backbone,
            num_classes=args.num_classes,
            dtype=args.dtype,
            **fields,
        )
        rows.append({"model": name} | measure(model, args))
        print(make_row(rows[-1]))
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    about |= {k: getattr(args, k) for k in ("backbone", "audio_backbone", "size", "seconds")}
    about |= {"batch_size": args.batch_size, "dtype": args.dtype}
    print(json.dumps(about | {"rows": rows}))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(MODELS)
    parser.add_argument("--model", default="avesformer", help=f"comma-separated, of {known}")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--audio_backbone", default="vggish")
    parser.add_argument("--num_classes", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--seconds", type=int, default=5, help="frames of a clip (default: 5)")
    parser.add_argument("--batch_size", type=int, default=1, help="clips (default: 1)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--runs", type=int, default=10, help="timed runs (default: 10)")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=VALUE", help="a field of the model"
    )
    args = parser.parse_args(argv)
    for field in args.field:
        if "=" not in field:
            parser.error(f"--field {field}: wanted NAME=VALUE")
    return args


def parse_value(text: str):
    """JSON where it is (numbers, true, lists), else the text itself."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value


def measure(model: nn.Module, args: argparse.Namespace) -> dict[str, int | float]:
    """All figures of one model."""
    b, t, size = args.batch_size, args.seconds, args.size
    shapes = dict(state.init_shapes(model, t, size))
    rng = np.random.default_rng(0)
    # Any numbers do for timing; initialising for real would take longer than all the rest.
    variables = jax.tree.map(lambda x: jnp.asarray(fill(rng, x.shape), x.dtype), shapes)
    batch = {
        "frames": jnp.asarray(rng.integers(0, 256, (b, t, size, size, 3)), jnp.uint8),
        "waveform": jnp.asarray(rng.uniform(-0.5, 0.5, (b, 16_000 * t)), jnp.float32),
        "frame_mask": jnp.ones((b, t), bool),
    }
    normalization = get_normalization(args.backbone)
    forward = jax.jit(state.make_forward(model, normalization=normalization, size=size))
    began = time.perf_counter()
    compiled = forward.lower(variables, batch).compile()
    compile_seconds = time.perf_counter() - began
    seconds = time_runs(functools.partial(compiled, variables, batch), args.runs, "model")
    front_end = jax.jit(functools.partial(audio.log_mel, num_patches=t))
    sound = time_runs(functools.partial(front_end, batch["waveform"]), args.runs, "log-mel")
    memory = compiled.memory_analysis()
    sizes = {k: state.count_params(v) for k, v in shapes["params"].items()}
    picture, ears = sizes.get("backbone", 0), sizes.get("audio_backbone", 0)
    return {
        "params": sum(sizes.values()),
        "params_backbone": picture,
        "params_audio_backbone": ears,
        "params_head": sum(sizes.values()) - picture - ears,
        "gflops": compiled.cost_analysis()["flops"] / 1e9,
        "seconds_batch": seconds,
        "frames_per_second": b * t / seconds,
        "log_mel_seconds": sound,
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
        "argument_megabytes": memory.argument_size_in_bytes / 1e6,
        "compile_seconds": compile_seconds,
    }


def fill(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a size that keeps activations finite."""
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


def time_runs(run: Callable, runs: int, name: str) -> float:
    """Median seconds of a run, after one that is not counted."""
    if runs < 1:
        raise errors.BadValueError(f"--runs={runs}: wanted at least 1.")
    jax.block_until_ready(run())
    times = []
    for _ in tqdm(range(runs), desc=name, leave=False):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def make_row(row: dict) -> str:
    """A line for people."""
    return (
        f"{row['model']}: {row['params'] / 1e6:.2f} M parameters (picture "
        f"{row['params_backbone'] / 1e6:.2f}, sound {row['params_audio_backbone'] / 1e6:.2f}, head "
        f"{row['params_head'] / 1e6:.2f}), {row['gflops']:.1f} GFLOP a batch, "
        f"{row['seconds_batch'] * 1e3:.1f} ms a batch, {row['frames_per_second']:.1f} frames/s "
        f"(log-mel {row['log_mel_seconds'] * 1e3:.1f} ms), "
        f"{row['temporary_megabytes']:.0f} MB at work + {row['argument_megabytes']:.0f} MB given"
    )


if __name__ == "__main__":
    errors.run_program(main)
