"""The program that measures loading: what it prints, and that it leaves the machine as it was."""

import json
import os

import cv2
import numpy as np
import pytest

from avs_jax import data, errors
from avs_jax.data import benchmark
from tests.data.tiny import build_tiny

STAGES = {"read", "decode", "transform", "train", "eval"}
QUICK = ("--size", "32", "--clips", "8", "--runs", "1")


def run(capsys, *args):
    benchmark.main([*args, *QUICK])
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def test_made_up_clips_are_measured_as_released_and_repacked(capsys):
    out, results = run(capsys)
    assert set(results) == {"made-up s4, as released", "made-up s4, --repack"}
    for title, stages in results.items():
        assert f"{title}, 32 x 32, one core" in out
        assert set(stages) == STAGES
        for row in stages.values():
            assert row["clips_per_second"] == pytest.approx(1e3 / row["ms"])


def test_built_sets_are_measured(tmp_path, capsys):
    folder = build_tiny(tmp_path, "ms3", clips=(3, 1, 1))
    where = ("--data_dir", str(folder), "--name", "sounding_shapes", "--subset", "ms3")
    _, results = run(capsys, *where, "--augment")
    assert set(results["sounding_shapes/ms3/train"]) == STAGES


def test_cores_and_threads_are_given_back():
    before = cv2.getNumThreads(), os.sched_getaffinity(0)
    with benchmark.one_core():
        assert cv2.getNumThreads() == 1 and len(os.sched_getaffinity(0)) == 1
    assert (cv2.getNumThreads(), os.sched_getaffinity(0)) == before


def test_made_up_pictures_compress_like_photographs():
    picture = benchmark.draw_picture(np.random.default_rng(0), 224)
    size = len(cv2.imencode(".png", picture)[1])
    assert 80_000 < size < 115_000  # as the three frames of AVSBench that were at hand


@pytest.mark.parametrize("name", ["clips", "runs", "size"])
def test_nothing_to_measure_is_refused(name):
    with pytest.raises(errors.BadValueError, match=f"--{name}=0: wanted 1 or more"):
        benchmark.main([f"--{name}", "0"])


def test_set_that_is_not_built_is_refused(tmp_path):
    with pytest.raises(errors.NotFoundError, match="build it with"):
        benchmark.main(["--data_dir", str(tmp_path)])


def test_records_and_examples_can_be_had_apart(tmp_path):
    folder = build_tiny(tmp_path, "ms3", clips=(2, 1, 1))
    source = data.open_split("sounding_shapes", "ms3", "train", folder)
    np.testing.assert_array_equal(source.decode(source.read(1))["frames"], source[1]["frames"])
