"""Logs: lines that survive a kill, and are not written twice."""

import json
import resource

import numpy as np
import pytest
from etils import epath

from avs_jax.training.logs import Logs
from avs_jax.weights import trained
from tests.training.event_files import read_events


def read(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_scalars_become_json_lines_and_tensorboard(tmp_path):
    logs = Logs(tmp_path)
    logs.write(3, {"train/loss": 0.5})
    logs.close()
    (line,) = read(tmp_path)
    assert line["step"] == 3
    assert line["train/loss"] == 0.5
    assert any(tmp_path.joinpath("tensorboard").iterdir())


def test_rewind_drops_later_lines_and_a_cut_one(tmp_path):
    logs = Logs(tmp_path)
    for step in (1, 2, 3):
        logs.write(step, {"train/loss": float(step)})
    with logs.path.open("a") as file:
        file.write('{"step": 2, "tr')
    logs.rewind(2)
    logs.close()
    assert [line["step"] for line in read(tmp_path)] == [1, 2]


def test_rewind_drops_scores_that_are_made_again(tmp_path):
    logs = Logs(tmp_path)
    for step in (1, 2):
        logs.write(step, {"train/loss": 1.0})
        logs.write(step, {"validation/miou": 0.5})
    logs.rewind(2, owed="validation/miou")
    logs.close()
    assert [(x["step"], "train/loss" in x) for x in read(tmp_path)] == [
        (1, True),
        (1, False),
        (2, True),
    ]


def test_rewind_purges_later_points_from_tensorboard(tmp_path):
    for steps in ((1, 2, 3), (3, 4)):
        logs = Logs(tmp_path)
        logs.rewind(steps[0] - 1)
        for step in steps:
            logs.write(step, {"train/loss": float(step)})
        logs.close()
    files = tmp_path.joinpath("tensorboard").iterdir()
    purges = [
        event.step for file in files for event in read_events(file) if event.HasField("session_log")
    ]
    assert purges == [3]


def test_a_full_disk_is_told_at_once_and_not_waited_for(tmp_path):
    logs = Logs(tmp_path)
    logs.write(1, {"train/loss": 0.5})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # bytes of any file
    try:
        with pytest.raises(OSError, match="File too large"):
            for step in range(1, 40):  # more than any queue holds
                logs.draw(step, "clip", picture)
        logs.draw(41, "clip", picture)
        logs.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [line["step"] for line in read(tmp_path)] == [1]


def test_logs_of_a_run_in_a_bucket_are_there_after_a_flush(bucket):
    logs = Logs(f"{bucket}/run")
    logs.write(1, {"train/loss": 0.5})
    logs.flush()
    run = epath.Path(bucket) / "run"
    assert [line["step"] for line in read(run)] == [1]
    (events,) = (run / "tensorboard").iterdir()
    before = events.stat().length
    logs.write(2, {"train/loss": 0.25})
    logs.close()
    assert [line["step"] for line in read(run)] == [1, 2]
    assert events.stat().length > before > 0


def test_a_run_in_a_bucket_goes_on_with_its_log(bucket):
    for steps in ((1, 2, 3), (3, 4)):
        logs = Logs(f"{bucket}/run")
        logs.rewind(steps[0] - 1)
        for step in steps:
            logs.write(step, {"train/loss": float(step)})
        logs.close()
    assert [line["step"] for line in read(epath.Path(bucket) / "run")] == [1, 2, 3, 4]
    assert trained.last_value(f"{bucket}/run/metrics.jsonl", "train/loss") == 4


def test_pictures_become_tensorboard_images(tmp_path):
    logs = Logs(tmp_path)
    logs.draw(3, "validation/clip", np.full((4, 6, 3), 200, np.uint8))
    logs.close()
    (file,) = tmp_path.joinpath("tensorboard").iterdir()
    (image,) = [
        (event.step, value.tag, value.image)
        for event in read_events(file)
        for value in event.summary.value
    ]
    assert image[:2] == (3, "validation/clip")
    assert (image[2].height, image[2].width) == (4, 6)
