"""Our networks beside the published PyTorch code: time, memory, and that they say the same.

    python -m tests.parity.time_published pcmanet_resnet50 --code ~/PCMANet
    python -m tests.parity.time_published catr_pvt --code ~/CATR.github.io --size 448 --clock cpu
    python -m tests.parity.time_published pcmanet_pvt --code ~/PCMANet --train

The code is a clone that you make (`published.SOURCES`); PyTorch comes with the extra `convert`. The
same weights and inputs on both sides, log-mel given, VGGish included, all outputs asked for. Each
side is a process of its own, and they run in turn, forwards and backwards. Where the machine has
other work, `--clock cpu` under `taskset -c 0`. --train: a step of Adam on S4's loss, VGGish frozen.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from avs_jax import errors
from tests.parity import fill
from tests.parity.published import SOURCES, find_code, make_published

SIDES = ("published", "ours")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=SOURCES)
    parser.add_argument("--code", required=True, type=Path, help="clone of the published code")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--outputs", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        return serve(args)
    find_code(args.network, args.code)
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.npy" for side in SIDES}
        sides = {side: start(args, side, file) for side, file in files.items()}
        about = {side: ask(process) for side, process in sides.items()}
        times = np.zeros((args.rounds, 2))
        for i in tqdm(range(args.rounds), desc=args.network, leave=False):
            for k in (0, 1)[:: 1 if i % 2 == 0 else -1]:
                times[i, k] = ask(sides[SIDES[k]], "run")[args.clock]
        memory = {side: ask(process, "end")["megabytes"] for side, process in sides.items()}
        outputs = [np.load(file) for file in files.values()]
    ratios = times[:, 1] / times[:, 0]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    report = {
        "network": args.network,
        "clips": args.clips,
        "size": args.size,
        "train": args.train,
        "clock": args.clock,
        "processors": len(os.sched_getaffinity(0)),
        "seconds": dict(zip(SIDES, np.median(times, 0).round(3).tolist(), strict=True)),
        "ratio": round(middle, 3),
        "middle_half": [round(low, 3), round(high, 3)],
        "megabytes": memory,
        "compile_seconds": about["ours"]["seconds"],
    }
    if not args.train:
        difference = np.abs(outputs[0] - outputs[1]).max() / outputs[0].std()
        report["largest_difference_of_std"] = float(f"{difference:.2g}")
    print(json.dumps(report))


def start(args, side: str, file: Path) -> subprocess.Popen:
    """One side in a process of its own, which waits to be asked."""
    words = [args.network, "--code", str(args.code), "--side", side, "--outputs", str(file)]
    words += ["--clips", str(args.clips), "--size", str(args.size)] + ["--train"] * args.train
    return subprocess.Popen(
        [sys.executable, "-m", "tests.parity.time_published", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))},
    )


def ask(process: subprocess.Popen, word: str | None = None) -> dict:
    """The next answer of a side, after it was told a word."""
    if word:
        process.stdin.write(word + "\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise errors.InputError(
        f"{' '.join(process.args[3:])}: ended with {process.wait()}, see above."
    )


def serve(args) -> None:
    """One side: makes its network, then runs it each time that it is told to."""
    frames = fill.uniform("frames", (args.clips, 5, args.size, args.size, 3), -2, 2)
    log_mel = fill.uniform("log_mel", (args.clips, 5, 96, 64), -4, 1)
    began = time.perf_counter()
    if args.side == "published":
        run = make_published(args.network, args.code, frames, log_mel, args.train)
    elif args.train:
        run = make_step(args)
    else:
        run = make_ours(args.network, frames, log_mel)
    outputs = run()
    np.save(args.outputs, outputs)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 1)}), flush=True)
    forget_peak()
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps({"megabytes": round(peak_megabytes())}), flush=True)
            return
        began = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


def make_ours(network: str, frames: np.ndarray, log_mel: np.ndarray):
    """A run of ours in evaluation mode -> logits as the published code lays out its own."""
    import jax

    from avs_jax import models
    from avs_jax.layers.shared import calls_kept
    from tests.parity import catr, pcmanet

    module = catr if network == "catr_pvt" else pcmanet
    variables = jax.device_put(module.variables_of(f"{network}_s4"))
    if module is catr:
        model = models.get_model("catr", backbone=catr.BACKBONES["catr_pvt_s4"])
    else:
        model = models.get_model("pcmanet", **pcmanet.NETWORKS[f"{network}_s4"])
    with calls_kept(jax.devices()):
        forward = jax.jit(model.apply).lower(variables, frames, log_mel).compile()
    frames, log_mel = jax.device_put((frames, log_mel))

    def run():
        outputs = jax.block_until_ready(forward(variables, frames, log_mel))
        if module is catr:
            return np.asarray(outputs["pred_masks"][-1]).swapaxes(0, 1)
        return np.moveaxis(np.asarray(outputs["logits"]), -1, 2).reshape(-1, 1, *frames.shape[2:4])

    return run


def make_step(args):
    """A step of ours as `avs_jax.train` makes it, by the paper's config -> nothing f32[]."""
    import jax

    from avs_jax import devices
    from avs_jax.benchmarking.steps import make_batch
    from avs_jax.config import read_config
    from avs_jax.training import state
    from avs_jax.training.program import plan_program

    name, _, backbone = args.network.partition("_")
    backbone = {"pvt": "pvt_v2_b5"}.get(backbone, backbone)
    config = read_config(f"configs/{name}.py:subset=s4,backbone={backbone}")
    config.batch_size = args.clips
    if name == "catr":
        config.model.input_scale = args.size // 224
        args.size = 224
    mesh = devices.make_mesh()
    program = plan_program(config, mesh, steps=100)
    shapes = state.batch_shapes(args.clips, 5, args.size, devices.batch_sharding(mesh))
    step = program.make_step(args.size)
    now = program.create_state()
    totals = program.make_empty_totals(step, shapes)()
    compiled = program.compile_step(step, now, totals, shapes)
    batch = make_batch(shapes, 1)
    first = np.arange(5) == 0
    batch["label_mask"] = jax.numpy.broadcast_to(first, batch["label_mask"].shape)
    batch = jax.device_put(batch, devices.batch_sharding(mesh))
    kept = [now, totals]
    del now, totals

    def run():
        kept[0], kept[1], token = compiled(*kept, batch)
        jax.block_until_ready(token)
        return np.zeros(())

    return run


def forget_peak() -> None:
    """What was loaded and compiled once does not count as memory of running, on either side, nor
    what the C library keeps of it (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """The most memory in RAM since `forget_peak`, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    raise errors.InputError("/proc/self/status tells no VmHWM: memory is measured on Linux alone.")


if __name__ == "__main__":
    errors.run_program(main)
