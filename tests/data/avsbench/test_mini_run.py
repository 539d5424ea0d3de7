"""From a folder of AVSBench to figures, by the programs a user types, in all three subsets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from avs_jax import evaluate
from avs_jax.backbones import get_backbone
from avs_jax.data.avsbench import build, classes
from avs_jax.weights import converted
from tests import quick_xla
from tests.data.avsbench import mini_avsbench as mini

ROOT = Path(__file__).parents[3]
TINY = {
    "data.name": "avsbench",
    "data.size": 32,
    "data.num_threads": 0,
    "data.frame_offset": 15 / 16,
    "batch_size": 2,
    "steps": 2,
    "size_schedule": "()",
    "eval.batch_size": 2,
    "eval.every": 2,
}
# Each subset with a model of its own, so that every one goes the whole way.
SETS = {
    "s4": {
        "config": "configs/avesformer.py:subset=s4,backbone=small_resnet",
        "model.audio_backbone": "audio_cnn",
        "model.dim": 16,
        "model.num_heads": 2,
        "model.pqg_hidden": 16,
        "model.early_stages": 0,
        "model.late_stages": 1,
        "model.late_hidden": 16,
        "model.norm_groups": 8,
        "model.head_widths": "(8,8)",
    },
    "ms3": {
        "config": "configs/pcmanet.py:subset=ms3,backbone=small_resnet,corrected=true",
        "model.audio_backbone": "audio_cnn",
        "model.dim": 16,
        "model.num_heads": 2,
        "model.head_width": 8,
    },
    "avss": {
        "config": "configs/catr.py:subset=avss,backbone=small_resnet,mode=paper",
        "model.audio_backbone": "audio_cnn",
        "model.dim": 16,
        "model.num_heads": 2,
        "model.hidden": 16,
        "model.encoder_layers": 2,
        "model.decoder_layers": 1,
        "model.pixel_widths": "(16,16,16,8)",
        "model.mask_dim": 8,
    },
}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return mini.write_all(tmp_path_factory.mktemp("release"), size=48)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What one run compiled, the next one reuses."""
    return str(tmp_path_factory.mktemp("xla"))


def save_backbone(folder):
    """Weights of the picture backbone as `convert` writes them."""
    variables = jax.jit(get_backbone("small_resnet").init)(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    source = {"file": "made_up.pth", "sha256": ""}
    converted.save_converted(folder, "small_resnet", jax.device_get(variables), source)


@pytest.fixture(scope="module", params=SETS)
def results(request, release, cache, tmp_path_factory):
    """(subset, results.json, details.json, what train printed), from build to evaluation."""
    subset, folder = request.param, tmp_path_factory.mktemp(request.param)
    build.main([subset, str(release), str(folder / "data")])
    fields = TINY | SETS[subset] | {"data.data_dir": folder / "data"}
    command = [sys.executable, "-m", "avs_jax.train", "--workdir", folder / "run"]
    command += ["--config", fields.pop("config")]
    if subset == "ms3":
        fields["init_from.backbone"] = folder / "weights"
        save_backbone(folder / "weights")
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {
        "XLA_FLAGS": quick_xla.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arguments = ["--checkpoint", folder / "run", "--output", folder / "figures"]
    arguments += ["--metrics", "paper,strict,dataset,jf,robust"]
    arguments += ["--batch_size", "8"]  # over the test suite's eight devices
    evaluate.main(list(map(str, arguments)))
    figures, details = (
        json.loads((folder / "figures" / name).read_text())
        for name in ("results.json", "details.json")
    )
    return subset, figures, details, done.stdout + done.stderr


def train(folder, cache, **fields):
    """Runs the program and returns {step: logged line}."""
    fields = TINY | fields
    command = [sys.executable, "-m", "avs_jax.train", "--workdir", folder]
    command += ["--config", fields.pop("config")]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {
        "XLA_FLAGS": quick_xla.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "train/loss" in line}


@pytest.mark.slow
def test_a_batch_in_parts_is_trained_as_a_whole_one(release, cache, tmp_path):
    # Clips of v1s carry one label of five, those of v2 ten of ten: a mean of the parts' means
    # would not be the batch's. Batch statistics, which are a part's own, stand still.
    build.main(["avss", str(release), str(tmp_path / "data")])
    fields = SETS["s4"] | {
        "config": "configs/avesformer.py:subset=avss,backbone=small_resnet",
        "data.data_dir": tmp_path / "data",
        "model.norm": "frozen",
        "steps": 2,
        "log_every": 1,
        "optimizer.warmup_steps": 0,
        "optimizer.learning_rate": 0.01,
    }
    whole = train(tmp_path / "whole", cache, **fields)
    parts = train(tmp_path / "parts", cache, **fields, accumulate=2)
    for step in (1, 2):
        for name in ("loss", "ce", "dice", "grad_norm"):
            found, expected = (run[step][f"train/{name}"] for run in (parts, whole))
            assert found == pytest.approx(expected, rel=1e-4), (step, name)
    assert whole[2]["train/loss"] != pytest.approx(whole[1]["train/loss"], rel=1e-3)


@pytest.mark.slow
def test_every_clip_and_frame_of_the_test_split_is_scored(results):
    subset, figures, *_ = results
    expected = {"s4": (2, 10), "ms3": (1, 5), "avss": (3, 20)}
    assert (figures["clips"], figures["frames"]) == expected[subset]


@pytest.mark.slow
@pytest.mark.parametrize(
    "figure", ["test/miou", "paper/miou", "strict/miou", "dataset/miou", "jf/j", "robust/mute/fpr"]
)
def test_families_of_figures_are_there(results, figure):
    assert 0 <= results[1][figure] <= 1


@pytest.mark.slow
def test_mixed_set_is_reported_by_subset(results):
    subset, _, details, _ = results
    frames = {name: row["frames"] for name, row in details["groups"].items() if "subset" in name}
    expected = {"subset_v1s": 5, "subset_v1m": 5, "subset_v2": 10}
    assert frames == (expected if subset == "avss" else {})
    for name in frames:
        assert 0 <= details["groups"][name]["miou"] <= 1


@pytest.mark.slow
def test_classes_are_reported_by_name_where_there_are_several(results):
    subset, figures, details, _ = results
    names = classes.CLASS_NAMES if subset == "avss" else ()
    assert tuple(details["classes"]) == names
    if names:
        mean = sum(row["iou"] for row in details["classes"].values()) / len(names)
        assert figures["strict/miou"] == pytest.approx(mean)
        # What the three clips show is counted, whether it was found or not.
        assert details["classes"]["frying-food"]["frames"] >= 5


@pytest.mark.slow
def test_where_weights_come_from_is_told(results):
    subset, *_, printed = results
    loaded = "parameters of small_resnet from"
    assert (loaded in printed) == (subset == "ms3")
    assert ("CAREFUL: audio_backbone starts from random numbers" in printed) == (subset == "s4")
