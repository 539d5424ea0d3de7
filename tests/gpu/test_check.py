"""The GPU's check, in its smallest form on the CPU; and what it counts, compares and tells."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.models import get_model
from avs_jax.models.forward import init_shapes
from tests import quick_xla
from tests.gpu import check, forms
from tests.gpu.numbers import compare
from tests.gpu.report import (
    FAILED,
    OUT_OF_MEMORY,
    TIME_WAS_UP,
    Budget,
    Column,
    Report,
    TimeIsUpError,
    describe,
)

ROOT = Path(__file__).parents[2]


def run(*arguments):
    # One device, as on the machines that it is for, and little of compiling.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_xla.FLAGS}
    command = [sys.executable, "-m", "tests.gpu.check", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_program_runs_in_its_smallest_form(tmp_path):
    sections = [name for name in check.SECTIONS if name != "sizes"]  # which is times again
    output = tmp_path / "gpu_check.json"
    done = run("--platform=cpu", "--minutes=30", "--output", output, "--only", *sections)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CPU NUMBERS" in done.stdout
    found = json.loads(output.read_text())
    assert found["form"] == "smallest" and found["card"] == "cpu" and found["jax"]
    peaks, numbers, attention, loader, times, modes = found["sections"].values()
    assert len(peaks) == 4 and all(row["tflops"] > 0 for row in peaks)
    # The same program on the same device, from the weights that the other process wrote.
    exact = numbers[0]
    assert exact["precision"] == "float32, highest"
    assert exact["logits_rms"] < 1e-5 and exact["gradient_rms"] < 1e-4
    assert attention[0]["today_error"] < 0.1 and attention[0]["today_ms"] > 0
    assert "cuDNN" in attention[0]["note"] and "cudnn_ms" not in attention[0]
    assert loader[0]["per_core"] > 0
    assert {(row["what"], row["dtype"]) for row in times} == {
        (what, dtype) for what in ("train", "predict") for dtype in check.DTYPES
    }
    assert all(row["ms"] > 0 and row["share"] > 0 for row in times)
    assert [row["what"] for row in modes] == ["sharded", "pmap"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--minutes", "soon"], "ValueError: --minutes soon: wanted a number up to 600."),
        (["--minutes", "0"], "ValueError: --minutes 0: wanted"),
        (["--platform", "tpu"], "KeyError: unknown platform 'tpu'; known: auto, cpu, cuda."),
        (["--only", "speed"], "unknown section of --only 'speed'; known: attention, loader, modes"),
        (["--output", "/"], "--output / is a folder"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, told, capsys):
    with pytest.raises(SystemExit) as end:
        errors.run_program(check.main, arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_several_devices_are_one_line():
    with pytest.raises(errors.BadValueError, match="there are 8; set CUDA_VISIBLE_DEVICES=0"):
        check.start("auto")


# ---------------------------------------------------------------- errors by the standard deviation


def test_errors_are_by_the_standard_deviation():
    expected = np.array([1.0, -1.0, 1.0, -1.0], np.float32)
    assert compare(expected + np.array([0, 0, 0, 0.5], np.float32), expected) == (0.5, 0.25)
    assert compare(expected, expected) == (0.0, 0.0)


def test_what_is_not_finite_is_no_small_error():
    expected = np.array([1.0, -1.0], np.float32)
    assert np.isnan(compare(np.array([np.nan, 0], np.float32), expected)).all()


def test_other_shapes_are_an_error():
    with pytest.raises(errors.BadValueError, match=r"found \(2,\), expected \(3,\)"):
        compare(np.zeros(2), np.zeros(3))


# ---------------------------------------------------------------- budget and table

COLUMNS = (Column("model", "model"), Column("ms", "ms", ".1f"))


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "found.json", {"card": "x"}, Budget(1))


def test_a_row_is_printed_and_kept(report, capsys):
    report.begin("Times", COLUMNS)
    report.run({"model": "a"}, lambda: {"ms": 1.25})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "## Times",
        "",
        "| model | ms | note |",
        "|---|---|---|",
        "| a | 1.2 |  |",
    ]
    found = json.loads(report.output.read_text())
    assert found == {"card": "x", "sections": {"Times": [{"model": "a", "ms": 1.25}]}}


def raising(error):
    def measure():
        raise error

    return measure


def test_what_fails_is_a_row_and_the_next_one_runs(report, capsys):
    report.begin("Times", COLUMNS)
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to\nmore")
    report.run({"model": "a"}, raising(full))
    report.run({"model": "b"}, raising(ValueError("no\nsecond line")))
    report.run({"model": "c"}, raising(TimeIsUpError()))
    report.run({"model": "d"}, lambda: {"ms": 2.0})
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "| a |  | out of memory |",
        "| b |  | failed: ValueError: no |",
        "| c |  | not run: time was up |",
        "| d | 2.0 |  |",
    ]
    assert [report.count(note) for note in (FAILED, OUT_OF_MEMORY, TIME_WAS_UP)] == [1, 1, 1]


def test_when_the_time_is_up_nothing_begins(tmp_path, capsys):
    clock = [0.0]
    report = Report(tmp_path / "x.json", {}, Budget(1, now=lambda: clock[0]))
    report.begin("Times", COLUMNS)
    clock[0] = 60.0
    row = report.run({"model": "a"}, raising(AssertionError("it began")))
    assert row == {"model": "a", "note": TIME_WAS_UP}


def test_what_would_take_longer_than_is_left_does_not_begin(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tests.gpu.report.time.monotonic", lambda: clock[0])
    report = Report(tmp_path / "x.json", {}, Budget(1, now=lambda: clock[0]))
    report.begin("Times", COLUMNS)

    def measure():
        clock[0] += 35.0
        return {"ms": 1.0}

    assert "note" not in report.run({"model": "a"}, measure)
    assert report.run({"model": "b"}, measure)["note"] == TIME_WAS_UP
    report.begin("Short ones", COLUMNS)
    assert "note" not in report.run({"model": "c"}, lambda: {"ms": 1.0})


def test_memory_of_the_host_counts_as_memory():
    assert describe(MemoryError()) == OUT_OF_MEMORY


# ---------------------------------------------------------------- shapes


@pytest.mark.slow
def test_attention_is_timed_at_the_shapes_that_the_models_ask_for():
    asked = set()

    def note(query, key, value, *_):
        asked.add((query.shape[1], key.shape[1], *query.shape[2:]))
        return query

    # PVTv2-B1 has B5's heads and widths.
    model = get_model("catr", "pvt_v2_b1", audio_backbone="audio_cnn", input_scale=2)
    with (
        patch("avs_jax.layers.attention.attend", note),
        patch("avs_jax.backbones.pvt_v2.attend", note),
    ):
        init_shapes(model, 5, 224)
    wanted = {name: shape[1:5] for name, shape in forms.ATTENTION.items()}
    assert {name: shape for name, shape in wanted.items() if tuple(shape) not in asked} == {}


# ---------------------------------------------------------------- the script


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run_script(clone, machines_python, *arguments):
    """launch/gpu_check.sh in a clone whose .venv notes what pip is to install."""
    (clone / "launch").mkdir()
    for name in ("launch/environment.sh", "launch/gpu_check.sh", "setup.cfg"):
        shutil.copy(ROOT / name, clone / name)
    for name in ("dirname", "cksum", "cat", "rm"):
        (clone / "bin").mkdir(exist_ok=True)
        (clone / "bin" / name).symlink_to(shutil.which(name))
    write_program(clone / "bin/python3", machines_python)
    note = f'if [ "$2" = pip ]; then echo "${{@: -1}}" >>{clone}/installed; else echo "venv $*"; fi'
    write_program(clone / ".venv/bin/python", note)
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [shutil.which("bash"), "launch/gpu_check.sh", *arguments]
    environment["PATH"] = f"{clone}/bin"
    return subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_machines_own_jax_is_taken_where_it_sees_a_gpu(tmp_path):
    sees = '[ "$1" = -c ] || echo "GPU $CUDA_VISIBLE_DEVICES: $*"'
    out = run_script(tmp_path, sees, "--minutes", "3")
    assert out == "GPU 0: -m tests.gpu.check --minutes 3\n"
    assert not (tmp_path / "installed").exists()


@pytest.mark.parametrize("driver, extra", [(True, "[cuda]"), (False, "")])
def test_else_the_extra_cuda_where_there_is_a_driver(tmp_path, driver, extra):
    if driver:
        write_program(tmp_path / "bin/nvidia-smi", "exit 0")
    out = run_script(tmp_path, "exit 1", "--platform", "cpu")
    assert out == "venv -m tests.gpu.check --platform cpu\n"
    assert (tmp_path / "installed").read_text() == f"{tmp_path}{extra}\n"
