"""Evaluate a checkpoint: every figure of a split, with the sound it came with and without it.

    python -m avs_jax.evaluate --checkpoint WORKDIR --split test --sounds own,mute,swap

WORKDIR is what `avs_jax.train` wrote; the model, its data set and picture size come from the
checkpoint's own config. Prints a table and one JSON line, and writes results.json (the same line)
and results.md (the table) to --output, by default WORKDIR. Where the data set knows the masks of
all visible objects, the score of a deaf model that marks them all perfectly stands beside the
result: a model near it shows nothing about listening.

    miou           mean IoU over frames (AVSBench's; on AVSS over classes)
    f_measure      best F-measure over thresholds, per video (AVSBench's with batches of one video)
    *_mute         the sound replaced by silence; *_swap by another clip's
"""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from avs_jax import errors, sharding, state
from avs_jax.backbones import get_normalization
from avs_jax.checkpoint import Loaded, load_model
from avs_jax.data import open_split, pipeline
from avs_jax.evaluators import ORACLE, build_evaluators, split_name
from avs_jax.logs import quiet_libraries


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    quiet_libraries()
    sharding.start_jax(args.distributed)
    loaded = load_model(args.checkpoint, args.which)
    config = override(loaded.config, args)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.eval.batch_size, mesh, "--batch_size")
    data = config.data
    source = open_split(data.name, data.subset, config.eval.split, data.data_dir)
    with config.unlocked():
        config.eval.oracle = "objects" in source[0]
    started = time.monotonic()
    scores = run_evaluators(loaded, config, source, mesh)
    results = (
        scores
        | describe(loaded, config, args.checkpoint, len(source))
        | {"eval/seconds": round(time.monotonic() - started, 1)}
    )
    if jax.process_index() == 0:
        write(results, config, epath.Path(args.output or args.checkpoint))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="WORKDIR of a training run")
    parser.add_argument("--which", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--split", default="test", help="e.g. test, or test[:100] (default: test)")
    parser.add_argument(
        "--sounds",
        default="own,mute,swap",
        help=f"comma-separated, of {', '.join(pipeline.SOUNDS)} (default: all)",
    )
    parser.add_argument("--batch_size", type=int, help="clips, over all devices")
    parser.add_argument("--data_dir", help="where the data set is built, if not where it was")
    parser.add_argument("--output", help="folder for results.json and results.md")
    parser.add_argument(
        "--distributed", action="store_true", help="one of several hosts (jax.distributed)"
    )
    return parser.parse_args(argv)


def override(config: Mapping, args: argparse.Namespace) -> ml_collections.ConfigDict:
    """The checkpoint's config with what the command line says instead."""
    config = ml_collections.ConfigDict(config)
    with config.unlocked():
        config.eval.split = args.split
        config.eval.sounds = tuple(args.sounds.split(","))
        if args.batch_size is not None:
            config.eval.batch_size = args.batch_size
        if args.data_dir is not None:
            config.data.data_dir = args.data_dir
    return config


def run_evaluators(loaded: Loaded, config, source, mesh) -> dict[str, float]:
    """Every pass over the split, each with a progress bar."""
    normalization = get_normalization(config.model.backbone)
    forward = state.make_forward(loaded.model, normalization=normalization, size=config.data.size)
    passes = build_evaluators(config, forward, source, sharding.batch_sharding(mesh))
    variables = replicate(loaded.variables, mesh)
    scores = {}
    for evaluator in passes:
        name = f"{evaluator.name}{evaluator.suffix}"

        def track(batches, name=name):
            return tqdm(batches, desc=name, unit="batch", disable=jax.process_index() > 0)

        scores |= dict(evaluator.run(variables, track))
    return scores


def replicate(tree, mesh):
    """Host or local arrays -> the same on every device of every process."""
    everywhere = sharding.replicated(mesh)

    def place(x):
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(place, tree)


def describe(loaded: Loaded, config, checkpoint: str, clips: int) -> dict:
    """What the figures are of: they mean nothing without it."""
    words = json.dumps(json.loads(loaded.config.to_json()), sort_keys=True)
    about = {
        "params": state.count_params(loaded.variables["params"]),
        "model": loaded.config.model.name,
        "data": f"{config.data.name}/{config.data.subset}/{config.eval.split}",
        "clips": clips,
        "size": config.data.size,
        "checkpoint": str(checkpoint),
        "step": loaded.step,
        "config_hash": hashlib.sha256(words.encode()).hexdigest()[:12],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    seconds = training_seconds(epath.Path(checkpoint) / "metrics.jsonl")
    return about if seconds is None else about | {"train/seconds": seconds}


def training_seconds(path: epath.Path) -> float | None:
    """How long the run trained, if its log is there."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = [line["train/seconds"] for line in lines if "train/seconds" in line]
    return round(times[-1], 1) if times else None


def write(results: dict, config, output: epath.Path) -> None:
    """Prints the table and the JSON line, and writes both to the folder `output`."""
    table = make_table(results, split_name(config.eval.split))
    line = json.dumps(results)
    print(f"\n{table}\n{line}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(line + "\n")
        (output / "results.md").write_text(table)
    except OSError as error:
        raise errors.BadValueError(
            f"--output {output} is not writable ({error.strerror}); name a folder that is."
        ) from error


def make_table(results: Mapping, split: str) -> str:
    """Markdown: a row per metric, a column per sound, and what it is all of below."""
    columns = {"own": ""} | {s: f"_{s}" for s in (*pipeline.SOUNDS[1:], ORACLE)}
    cells = {}  # metric -> column -> value
    for name, value in results.items():
        if not name.startswith(f"{split}/"):
            continue
        metric = name.removeprefix(f"{split}/")
        column = next((c for c, s in columns.items() if s and metric.endswith(s)), "own")
        cells.setdefault(metric.removesuffix(columns[column]), {})[column] = value
    used = [c for c in columns if any(c in row for row in cells.values())]
    lines = [
        f"| {split} | " + " | ".join(c.replace("_", " ") for c in used) + " |",
        "|---" * (len(used) + 1) + "|",
    ]
    for metric, row in cells.items():
        numbers = (f"{row[c]:.4f}" if c in row else "" for c in used)
        lines.append(f"| {metric} | " + " | ".join(numbers) + " |")
    about = {name: value for name, value in results.items() if not name.startswith(f"{split}/")}
    lines += ["", *(f"- {name}: {value}" for name, value in about.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run_program(main)
