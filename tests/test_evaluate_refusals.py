"""What the evaluate program refuses, and what is left of it when it is stopped."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from etils import epath

from avs_jax import errors, evaluate
from avs_jax.scoring import report
from avs_jax.weights import converted
from tests.data.tiny import build_tiny
from tests.scored_run import make_config, save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, fill_variables):
    """(checkpoint folder, data folder)."""
    data_dir = build_tiny(tmp_path_factory.mktemp("data"), "ms3", clips=(1, 1, 1))
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, make_config(data_dir), fill_variables)
    return workdir, data_dir


def _refuse(run, error, match, *arguments):
    with pytest.raises(error, match=match):
        evaluate.main(["--checkpoint", str(run[0]), *arguments])


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no checkpoint under"):
        evaluate.main(["--checkpoint", str(tmp_path)])


def test_unknown_step_is_refused(run):
    _refuse(run, errors.NotFoundError, "no checkpoint '8'", "--which", "8")


def test_unknown_sound_is_refused(run):
    _refuse(run, errors.UnknownNameError, "unknown sound 'loud'", "--sounds", "own,loud")


def test_unknown_family_is_refused(run):
    _refuse(run, errors.UnknownNameError, "unknown metric 'fj'; known: all", "--metrics", "fj")


def test_missing_config_file_is_refused(run):
    _refuse(run, errors.NotFoundError, "no config file 'nowhere.py'", "--config", "nowhere.py:a=1")


def test_converted_weights_without_config_are_refused(tmp_path):
    (tmp_path / converted.PROVENANCE).write_text("{}")
    with pytest.raises(errors.BadValueError, match="add --config"):
        evaluate.main(["--checkpoint", str(tmp_path)])


def test_unknown_split_is_refused(run):
    _refuse(run, errors.UnknownNameError, "unknown split", "--split", "tset")


def test_missing_data_is_refused(run, tmp_path):
    _refuse(run, errors.NotFoundError, "no data directory", "--data_dir", str(tmp_path / "none"))


def test_batch_size_that_the_devices_cannot_share_is_refused(run):
    _refuse(run, errors.BadValueError, r"--batch_size=3 .* 8 devices", "--batch_size", "3")


def test_batches_of_no_videos_are_refused_before_work_starts(run):
    _refuse(run, errors.BadValueError, "--f_batch_videos=0: wanted 1", "--f_batch_videos=0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "a,b"], "several runs have no folder in common for their mean; add --o"),
        (["--checkpoint", "a,a", "--output", "o"], "wanted the folders of different runs"),
        (["--checkpoint", "a,b", "--output", "o", "--save_masks", "m"], "one run at a time"),
        (["--checkpoint", "a", "--size", "0"], "--size=0: wanted a number of pixels"),
        (["--checkpoint", "a", "--tta", "flop"], "test-time augmentation 'flop'; known: all, flip"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(errors.InputError, match=message):
        evaluate.main(arguments)


def test_unwritable_output_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    _refuse(
        run,
        errors.BadValueError,
        "not writable",
        "--sounds",
        "own",
        "--split",
        "test[:1]",
        "--output",
        str(tmp_path / "file"),
    )


_HANGS = """
import sys
import numpy as np
from avs_jax import evaluate
from avs_jax.scoring.evaluators import Evaluator

def hang(*_):
    print("evaluating", flush=True)
    np.linalg.eig(np.random.default_rng(0).normal(size=(6000, 6000)))  # in C++, as XLA compiles

Evaluator.records = hang
evaluate.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_sigterm_ends_it_within_seconds_and_leaves_nothing(run, tmp_path):
    command = [sys.executable, "-c", _HANGS, "--checkpoint", run[0], "--output", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"evaluating\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=5) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert os.listdir(tmp_path) == []


def test_figures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    report.write(epath.Path(tmp_path), {"miou": 0.5}, {}, "old")
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}

    def stop(path, data):  # halfway through the file
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "write_bytes", stop)
    monkeypatch.setattr(pathlib.Path, "write_text", lambda p, text: stop(p, text.encode()))
    with pytest.raises(KeyboardInterrupt):
        report.write(epath.Path(tmp_path), {"miou": 0.7}, {}, "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before
