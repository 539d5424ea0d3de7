"""Learning curves: of every kind of log."""

import json

import pytest
from PIL import Image

from avs_jax import errors
from avs_jax.reporting import curves
from avs_jax.weights import trained


def write_log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    return path


@pytest.mark.parametrize("count", [1, 2, 200])
def test_learning_curve_is_drawn_of_short_and_long_runs(tmp_path, count):
    lines = [
        {"step": s, "time": 1.0, "train/loss": 1 / (s + 1), "train/seconds": 2.0 * s}
        for s in range(count)
    ] + [{"step": count, "validation/miou": 0.5}]
    curves.learning_curve(write_log(tmp_path / "log.jsonl", lines), tmp_path / "x" / "curve.png")
    with Image.open(tmp_path / "x" / "curve.png") as image:
        assert min(image.size) > 400


def test_learning_curve_without_validation_has_one_panel(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [{"step": s, "train/loss": 1.0} for s in range(3)])
    curves.learning_curve(log, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > image.size[1]


def test_learning_curve_of_no_log_is_an_error(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"no log .*none\.jsonl"):
        curves.learning_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")


def test_learning_curve_of_an_empty_log_is_an_error(tmp_path):
    with pytest.raises(errors.BadValueError, match="holds no train/loss"):
        curves.learning_curve(write_log(tmp_path / "log.jsonl", []), tmp_path / "curve.png")


def test_last_value_is_the_newest_of_its_name(tmp_path):
    log = tmp_path / "log.jsonl"
    assert trained.last_value(log, "train/seconds") is None
    write_log(log, [{"step": 1, "train/seconds": 7.0}, {"step": 2, "validation/miou": 0.5}])
    assert trained.last_value(log, "train/seconds") == 7.0
    assert trained.last_value(log, "train/loss") is None
