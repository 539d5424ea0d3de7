"""Starting the train program on the smallest run, and reading what it left."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import quick_xla

ROOT = Path(__file__).parents[2]


def start(
    workdir: os.PathLike,
    data_dir: os.PathLike,
    steps: int = 6,
    *,
    devices: int = 1,
    program: str = "avs_jax.train",
    environment: dict[str, str] | None = None,
    options: Sequence[str] = (),
    **fields,
) -> subprocess.Popen:
    """The started program, whose output is a pipe. fields: of the config, e.g. **{"eval.every": 2}.

    What it compiles is kept in JAX_COMPILATION_CACHE_DIR, or beside the data.
    """
    fields = {"data.data_dir": data_dir} | fields
    command = [sys.executable, "-m", program, "--config", f"tests/faults/config.py:steps={steps}"]
    command += [f"--workdir={workdir}", *options]
    command += [f"--config.{k}={v}" for k, v in fields.items()]
    variables = {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(Path(data_dir) / "compiled"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_xla.flags(devices),
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | variables | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0, seconds: float = 300) -> str:
    """The output of a program that is to end with `code`."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def read_log(workdir: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of each line of metrics.jsonl that has one."""
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def read_sums(workdir: Path, step: int) -> dict[str, int]:
    """Checksums of every array of a saved state, as the run itself recorded them."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["checksums"]


def read_clips(workdir: Path) -> dict[int, list[str]]:
    """{step: ids of its clips} of `told_train`; a step that was done again had the same ones."""
    found: dict[int, list[str]] = {}
    for line in (workdir / "clips.jsonl").read_text().splitlines():
        step, ids = json.loads(line)
        assert found.setdefault(step, ids) == ids, f"step {step} had other clips before a kill"
    return found
