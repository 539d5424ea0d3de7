"""A run, its data and its weights in a bucket: the real programs against an emulated one.

Needs gcsfs and gcp-storage-emulator (a server like Google's, in Python).
"""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests import quick_xla
from tests.data.tiny import build_tiny
from tests.test_train import ROOT, TINY

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gcsfs", "gcp_storage_emulator")),
    reason="needs gcsfs and gcp-storage-emulator",
)

# TensorStore reads the generation of what it downloads, which the emulator leaves out.
SERVER = """
import sys, threading
from gcp_storage_emulator.handlers import objects

download = objects.download

def download_with_generation(request, response, storage, *args, **kwargs):
    download(request, response, storage, *args, **kwargs)
    place = request.params["bucket_name"], request.params["object_id"]
    if place[1] in storage.objects.get(place[0], {}):
        response["x-goog-generation"] = str(storage.get_file_obj(*place)["generation"])

objects.download = download_with_generation
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
print("ready", flush=True)
threading.Event().wait()
"""
UPLOAD = """
import pathlib, sys
from etils import epath
here, there = pathlib.Path(sys.argv[1]), epath.Path(sys.argv[2])
for path in here.rglob("*"):
    if path.is_file():
        (there / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())
"""
LOOK = """
import sys
from etils import epath
from avs_jax.weights import trained
run = epath.Path(sys.argv[1])
loaded = trained.load_model(str(run))
print("loaded", loaded.step, sorted(p.name for p in run.iterdir()))
print("lines", len((run / "metrics.jsonl").read_text().splitlines()))
"""


@pytest.fixture
def call(tmp_path):
    """`call(*python arguments)` -> output; gs://bucket is there, and empty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_xla.FLAGS,
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",  # gcsfs, for epath
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",  # TensorStore, for orbax
        "AVS_JAX_DATA_CACHE": str(tmp_path / "cache"),
    }

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run
    server.kill()
    server.wait()
    server.stdout.close()


@pytest.mark.slow
def test_a_run_in_a_bucket_trains_goes_on_and_is_loaded(call, tmp_path):
    here = pathlib.Path(build_tiny(tmp_path / "data", clips=(16, 4, 4)))
    call("-c", UPLOAD, here, "gs://bucket/data")
    fields = TINY | {"data.data_dir": "gs://bucket/data"}
    for steps in (2, 4):
        output = call(
            *("-m", "avs_jax.train", "--config", f"configs/quickstart.py:steps={steps}"),
            "--workdir=gs://bucket/run",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        )
    assert "going on at step 2 of 4" in output
    found = call("-c", LOOK, "gs://bucket/run")
    assert "loaded" in found
    for name in ("best", "checkpoints", "config.json", "metrics.jsonl", "tensorboard"):
        assert f"'{name}'" in found
    assert "lines 6" in found  # of four steps and two evaluations
