"""From a folder of AVSBench to figures, by the programs a user types, in all three subsets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avs_jax import evaluate
from avs_jax.data import avsbench, classes
from tests.data import mini_avsbench as mini

ROOT = Path(__file__).parents[2]
TINY = {
    "model.dim": 16,
    "model.num_heads": 2,
    "model.pqg_hidden": 16,
    "model.early_stages": 0,
    "model.late_stages": 1,
    "model.late_hidden": 16,
    "model.head_widths": "(8,8)",
    "model.num_tags": 0,
    "model.num_semantic": 0,
    "loss.tag_weight": 0.0,
    "loss.semantic_weight": 0.0,
    "data.size": 32,
    "data.num_threads": 0,
    "size_schedule": "((0,32),)",
    "batch_size": 2,
    "eval.batch_size": 2,
    "eval.every": 2,
}
SETS = {
    "s4": {"model.num_classes": 1, "data.seconds": 5},
    "ms3": {"model.num_classes": 1, "data.seconds": 5},
    "avss": {"model.num_classes": 71, "data.seconds": 10},
}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return mini.write_all(tmp_path_factory.mktemp("release"), size=48)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What one run compiled, the next one reuses."""
    return str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="module", params=SETS)
def results(request, release, cache, tmp_path_factory):
    """(subset, results.json, details.json) after building, training and evaluating."""
    subset, folder = request.param, tmp_path_factory.mktemp(request.param)
    avsbench.main([subset, str(release), str(folder / "data")])
    fields = TINY | SETS[subset]
    fields |= {
        "data.name": "avsbench",
        "data.subset": subset,
        "data.data_dir": folder / "data",
        "data.frame_offset": 15 / 16,
    }
    command = [sys.executable, "-m", "avs_jax.train", "--config", "configs/quickstart.py:steps=2"]
    command += ["--workdir", folder / "run"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
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
    return subset, figures, details


@pytest.mark.slow
def test_every_clip_and_frame_of_the_test_split_is_scored(results):
    subset, figures, _ = results
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
    subset, _, details = results
    frames = {name: row["frames"] for name, row in details["groups"].items() if "subset" in name}
    expected = {"subset_v1s": 5, "subset_v1m": 5, "subset_v2": 10}
    assert frames == (expected if subset == "avss" else {})
    for name in frames:
        assert 0 <= details["groups"][name]["miou"] <= 1


@pytest.mark.slow
def test_classes_are_reported_by_name_where_there_are_several(results):
    subset, figures, details = results
    names = classes.CLASS_NAMES if subset == "avss" else ()
    assert tuple(details["classes"]) == names
    if names:
        mean = sum(row["iou"] for row in details["classes"].values()) / len(names)
        assert figures["strict/miou"] == pytest.approx(mean)
        # What the three clips show is counted, whether it was found or not.
        assert details["classes"]["frying-food"]["frames"] >= 5
