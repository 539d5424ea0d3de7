"""Data sets, runs and converted weights that an earlier version left open as they did there.

`tests/saved/README.txt` says what they are. Files are renamed and rewritten; what people built and
trained with them must not notice.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avs_jax import evaluate, predict
from avs_jax.data import open_split
from avs_jax.models.forward import count_params
from avs_jax.weights import load_weights, trained

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    shutil.unpack_archive(SAVED / "saved.tar.xz", folder, filter="data")
    return folder


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("data_set", list(EXPECTED["data"]))
def test_built_data_sets_hold_the_same_bits(saved, data_set, split):
    expected = EXPECTED["data"][data_set][split]
    source = open_split(*data_set.split("/"), split, saved / "data")
    assert (source.seconds, len(source)) == (expected["seconds"], len(expected["clips"]))
    for i, clip in enumerate(expected["clips"]):
        example = source[i]
        assert example["id"] == clip["id"]
        for name in ("frames", "waveform", "label", "label_mask", "frame_mask"):
            found = hashlib.sha256(np.ascontiguousarray(example[name])).hexdigest()
            assert (name, found) == (name, clip[name]["sha256"])


@pytest.mark.parametrize("which", ["best", "latest"])
def test_a_run_is_evaluated_to_the_same_figures(saved, tmp_path, which):
    evaluate.main(
        [
            f"--checkpoint={saved / 'run'}",
            f"--which={which}",
            f"--data_dir={saved / 'data'}",
            f"--output={tmp_path}",
            "--batch_size=8",
            "--metrics=strict,dataset",
        ]
    )
    found = json.loads((tmp_path / "results.json").read_text())
    for name, value in EXPECTED["evaluate"][which].items():
        if name != "config_hash":
            # Another processor may round pixels at the threshold to the other side, of 5120.
            assert found[name] == pytest.approx(value, abs=2e-3), name


@pytest.mark.parametrize("which", ["best", "latest"])
def test_a_run_gives_the_same_logits(saved, which):
    expected = EXPECTED["logits"][which]
    loaded = trained.load_model(saved / "run", which)
    assert loaded.step == expected["step"]
    clip = open_split("sounding_shapes", "ms3", "test", saved / "data")[0]
    logits = compute_logits(loaded, clip)
    assert list(logits.shape) == expected["shape"]
    assert np.abs(logits, dtype=np.float64).sum() == pytest.approx(expected["abs_sum"], rel=1e-4)
    middle = logits[0, :, 16, 16, 0]
    np.testing.assert_allclose(middle, expected["middle_pixel"], atol=1e-4)


def compute_logits(loaded, clip):
    batch = {name: clip[name][None] for name in ("frames", "waveform", "frame_mask")}
    return np.asarray(predict.compile_forward(loaded)(**batch))


def test_converted_weights_are_read(saved):
    expected = EXPECTED["weights"]["avesformer"]
    variables, provenance = load_weights(saved / "weights" / "avesformer")
    assert provenance["network"] == expected["network"]
    assert count_params(variables["params"]) == expected["parameters"]


def test_a_run_goes_on_where_it_stood(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved / "run", run)
    fields = EXPECTED["fields"] | {"data.data_dir": saved / "data", "init_from.model": ""}
    fields.pop("model.freeze_audio", None)  # optimizer.freeze says it alone
    command = [sys.executable, "-m", "avs_jax.train", f"--workdir={run}"]
    command += ["--config", EXPECTED["config"].format(steps=EXPECTED["resumed_steps"])]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    one_device = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(
        command, cwd=SAVED.parents[1], env=one_device, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "going on at step 4 of 6" in done.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["6"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    # Not that version's losses: what is frozen now runs as in evaluation.
    assert all(np.isfinite(value) for value in losses.values())
