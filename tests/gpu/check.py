"""What a CUDA GPU makes of this package, in six minutes: right numbers first, then times.

    launch/gpu_check.sh [--minutes 6] [--output gpu_check.json] [--only SECTION ..]

Sections, in order of importance; nothing begins when the time is up or less is left than what is
like it took, and what was not run is said. What was compiled is kept: a second call gets further.

peaks      the best rate of a matrix product and of a convolution: what shares below are of
numbers    three models' logits and a gradient beside the CPU's in float32: largest error, and root
           of the mean square of errors, by the standard deviation of what was expected
attention  in bfloat16 at the shapes of CATR 448 and PVTv2, today's way beside cuDNN's fused kernel
loader     clips/s from disk, one core
times      train steps and predictions at 224, 8 clips
modes      a train step as one program, and as one per device
sizes      times, 1 and 32 clips

Without a GPU, or with --platform cpu, the least of each runs on the CPU: a test of this program.
Exit code 1: a case failed other than by its memory, or float32 at the highest precision gives other
numbers than the CPU.
"""

import argparse
import contextlib
import datetime
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from avs_jax import devices, errors
from avs_jax.benchmarking import timing
from avs_jax.benchmarking.steps import Step
from avs_jax.benchmarking.timing import time_rounds
from avs_jax.benchmarking.variant import Shape, Variant
from avs_jax.data import benchmark as loading
from avs_jax.data import open_split
from avs_jax.data.avsbench import build
from avs_jax.training.sharding import MODES
from tests.gpu import attending
from tests.gpu.forms import FULL, SMALLEST, Form, register
from tests.gpu.numbers import PRECISIONS, Reference, compare, compute
from tests.gpu.report import FAILED, OUT_OF_MEMORY, TIME_WAS_UP, Budget, Column, Report

DTYPES = ("bfloat16", "float32")
# Root of the mean square of errors by the standard deviation, beyond which float32 at the highest
# precision is wrong; the published networks' own are below 1e-3 (`tests.parity.fidelity`).
WRONG = 0.05
_TIMES = (
    Column("model", "model"),
    Column("what", "what"),
    Column("dtype", "dtype"),
    Column("clips", "clips"),
    Column("ms", "ms", ".2f"),
    Column("clips/s", "clips_per_second", ".1f"),
    Column("TFLOP/s", "tflops", ".2f"),
    Column("of matmul's best", "share", ".0%"),
    Column("MB of the program", "program_megabytes", ".0f"),
    Column("MB at most so far", "most_megabytes", ".0f"),
    Column("s to compile", "compile_seconds", ".0f"),
    Column("spread", "spread", ".0%"),
)


class Check:
    """The sections, each of which adds rows to the report."""

    def __init__(self, form: Form, report: Report, folder: Path):
        """folder: for what is made up and thrown away."""
        self.form, self.report, self.folder = form, report, folder
        self.best: dict[str, float] = {}  # {dtype: FLOP/s of a matrix product}
        self._weights: dict[str, dict] = {}  # drawn by the processor, once for each model

    def peaks(self) -> None:
        columns = ("dtype", "dtype"), ("what", "what"), ("TFLOP/s", "tflops", ".2f")
        self.report.begin("The machine's best rates", [Column(*x) for x in columns])
        for dtype in DTYPES:
            for what in ("matmul", "conv"):
                case = {"dtype": dtype, "what": what}
                self.report.run(case, lambda: self._find_peak(**case))  # noqa: B023 (run at once)

    def _find_peak(self, dtype: str, what: str) -> dict:
        run, flops = timing.make_peaks(dtype, self.form.side, self.form.pictures)[what]
        rate = flops / float(np.median(time_rounds([run], self.form.rounds, what).wall))
        if what == "matmul":
            self.best[dtype] = rate
        return {"tflops": rate / 1e12}

    def numbers(self) -> None:
        columns = [Column("model", "model"), Column("computed in", "precision")]
        for what in ("logits", "gradient"):
            columns.append(Column(f"{what}: largest error / std", f"{what}_largest", ".1e"))
            columns.append(Column(f"{what}: rms error / std", f"{what}_rms", ".1e"))
        self.report.begin("Numbers beside those of the CPU in float32", columns)
        form = "full" if self.form is FULL else "smallest"
        reference = Reference(self.folder, form, self.report.budget)
        try:
            for name in self.form.networks:
                for precision in PRECISIONS:
                    case = {"model": name, "precision": precision}
                    self.report.run(
                        case,
                        lambda: self._compare(reference, **case),  # noqa: B023
                    )
        finally:
            reference.stop()

    def _compare(self, reference: Reference, model: str, precision: str) -> dict:
        fields, shape = self.form.networks[model], self.form.numbers_shape
        found, _ = compute(fields, shape, precision, lambda: reference.wait(model)[1])
        expected, _ = reference.wait(model)
        row = {}
        for what, values in found.items():
            largest, rms = compare(values, expected[what])
            row |= {f"{what}_largest": largest, f"{what}_rms": rms}
            # Said so that NaN is wrong, too.
            if precision == "float32, highest" and not rms <= WRONG:
                row["note"] = f"{FAILED}{what} differ from the CPU's"
        return row

    def attention(self) -> None:
        columns = [Column("where", "where"), Column("[n, q, k, heads, d]", "shape")]
        for name, title in (("today", "today"), ("cudnn", "cuDNN")):
            columns += [
                Column(f"{title} ms", f"{name}_ms", ".3f"),
                Column("with gradients", f"{name}_gradient_ms", ".3f"),
                Column("error / std", f"{name}_error", ".1e"),
                Column("MB at work", f"{name}_megabytes", ".0f"),
            ]
        self.report.begin("Attention in bfloat16, today's way and cuDNN's", columns)
        for name, shape in self.form.attention.items():
            case = {"where": name, "shape": str(list(shape[:5]))}
            self.report.run(
                case,
                lambda: attending.measure(shape, self.form.rounds),  # noqa: B023
            )

    def loader(self) -> None:
        columns = [Column("clips", "clips"), Column("clips/s on one core", "per_core", ".0f")]
        columns += [Column("cores of the machine", "cores")]
        self.report.begin("Loading: PNG of 5 frames to batches", columns)
        case = {"clips": self.form.loader_clips, "cores": os.cpu_count()}
        self.report.run(case, self._load)

    def _load(self) -> dict:
        release, built = self.folder / "release", self.folder / "built"
        size, clips = self.form.size, self.form.loader_clips
        loading.write_release(release, clips, size)
        build.build("s4", release, built, repack=True, num_workers=1)
        source = open_split("avsbench", "s4", "train", built)
        with loading.one_core():
            stages = loading.time_stages(source, clips, size, {}, runs=2)
        return {"per_core": stages["train"]["clips_per_second"]}

    def times(self) -> None:
        self._time_all("Times", self.form.clips[:1])

    def sizes(self) -> None:
        self._time_all("Times with fewer and more clips", self.form.clips[1:])

    def _time_all(self, title: str, all_clips: Sequence[int]) -> None:
        self.report.begin(f"{title}, {self.form.size} x {self.form.size}", _TIMES)
        for clips in all_clips:
            for dtype in DTYPES:
                for name in self.form.models:
                    for what in ("train", "predict"):
                        case = {"model": name, "what": what, "dtype": dtype, "clips": clips}
                        self.report.run(case, lambda: self._time(**case))  # noqa: B023

    def _time(self, model: str, what: str, dtype: str, clips: int) -> dict:
        shape = Shape(clips, self.form.seconds, self.form.size)
        fields = self.form.models[model] | {"dtype": dtype}
        if what == "train":
            program = Step(model, fields, shape, "sharded")
            figures = program.figures()
            megabytes = figures["peak_megabytes"]
        else:
            program = Variant(model, fields, shape, self._weights.get(model))
            self._weights[model] = program.weights
            figures = program.figures()
            megabytes = figures["temporary_megabytes"] + figures["argument_megabytes"]
        times = time_rounds([program.run], self.form.rounds, model).wall[0]
        return self._rates(times, program.flops, dtype, clips) | {
            "program_megabytes": megabytes,
            "compile_seconds": figures["compile_seconds"],
        }

    def _rates(self, times: np.ndarray, flops: int, dtype: str, clips: int) -> dict:
        seconds = float(np.median(times))
        rate, best = flops / seconds, self.best.get(dtype)
        memory = jax.devices()[0].memory_stats() or {}
        most = memory.get("peak_bytes_in_use")  # of the whole process: it is never set back
        return {
            "ms": 1e3 * seconds,
            "clips_per_second": clips / seconds,
            "tflops": rate / 1e12,
            "share": rate / best if best else None,
            "most_megabytes": most / 1e6 if most else None,
            "spread": timing.spread_of(times),
        }

    def modes(self) -> None:
        self.report.begin("One program, and one per device", _TIMES)
        model, clips = next(iter(self.form.models)), self.form.clips[0]
        shape = Shape(clips, self.form.seconds, self.form.size)
        fields = self.form.models[model] | {"dtype": "bfloat16"}
        for mode in MODES:
            case = {"model": model, "what": mode, "dtype": "bfloat16", "clips": clips}
            self.report.run(case, lambda: self._time_mode(fields, shape, mode))  # noqa: B023

    def _time_mode(self, fields: dict, shape: Shape, mode: str) -> dict:
        step = Step(mode, fields, shape, mode)
        figures = step.figures()
        times = time_rounds([step.run], self.form.rounds, mode).wall[0]
        return self._rates(times, step.flops, fields["dtype"], shape.clips) | {
            "program_megabytes": figures["peak_megabytes"],
            "compile_seconds": figures["compile_seconds"],
        }


SECTIONS: dict[str, Callable[[Check], None]] = {
    "peaks": Check.peaks,
    "numbers": Check.numbers,
    "attention": Check.attention,
    "loader": Check.loader,
    "times": Check.times,
    "modes": Check.modes,
    "sizes": Check.sizes,
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    register()
    budget = Budget(args.minutes)
    on_gpu = start(args.platform)
    about = describe_machine() | {"minutes": args.minutes, "form": "full" if on_gpu else "smallest"}
    print(f"{about['card']}, driver {about['driver']}, jax {about['jax']}, {about['date']}")
    if not on_gpu:
        print("CPU NUMBERS: there is no GPU here, or none was asked for; the least of each case.")
    report = Report(args.output, about, budget)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        check = Check(FULL if on_gpu else SMALLEST, report, Path(folder))
        for name in args.only or SECTIONS:
            SECTIONS[name](check)
    failed, large, late = map(report.count, (FAILED, OUT_OF_MEMORY, TIME_WAS_UP))
    print(f"\n{failed} failed, {large} out of memory, {late} not run; all of it: {args.output}")
    if late:
        print(f"more of it: the same command again, or --minutes {2 * args.minutes:g}")
    sys.exit(failed > 0)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", default="6", help="nothing new begins after them (default: 6)")
    add("--output", type=Path, default="gpu_check.json", help="default: gpu_check.json")
    add("--platform", default="auto", help="auto, cuda, or cpu: the least of it")
    add("--only", nargs="+", default=[], metavar="SECTION", help="of those above")
    args = parser.parse_args(argv)
    try:
        minutes = float(args.minutes)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= 600:
        raise errors.BadValueError(f"--minutes {args.minutes}: wanted a number up to 600.")
    args.minutes = minutes
    if args.platform not in ("auto", "cuda", "cpu"):
        raise errors.unknown_name("platform", args.platform, ("auto", "cuda", "cpu"))
    for name in args.only:
        if name not in SECTIONS:
            raise errors.unknown_name("section of --only", name, SECTIONS)
    if args.output.is_dir():
        raise errors.BadValueError(f"--output {args.output} is a folder; wanted a file.")
    errors.check_writable("--output", args.output.absolute().parent)
    return args


def start(wanted: str) -> bool:
    """Starts jax; whether on a GPU.

    Raises:
      BadValueError: a GPU was asked for and is not found; or there are several.
    """
    if wanted != "auto":
        jax.config.update("jax_platforms", wanted)
    try:
        devices.start_jax()
        found = jax.devices()
    except RuntimeError as error:
        raise errors.BadValueError(
            f"--platform {wanted}: jax finds none ({str(error).splitlines()[0]}); is the driver "
            "there (nvidia-smi), and is it new enough for the extra `cuda`?"
        ) from error
    if len(found) > 1:
        raise errors.BadValueError(
            f"one device is checked, there are {len(found)}; set CUDA_VISIBLE_DEVICES=0."
        )
    return found[0].platform == "gpu"


def describe_machine() -> dict:
    """Card or processor, driver, versions, date."""
    driver = "none"
    if jax.default_backend() == "gpu":
        driver = "unknown"
        if smi := shutil.which("nvidia-smi"):
            command = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                told = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
                driver = told.partition("\n")[0].strip() or driver
    return {
        "card": jax.devices()[0].device_kind,
        "driver": driver,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


if __name__ == "__main__":
    errors.run_program(main)
