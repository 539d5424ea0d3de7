"""The program around a model: precision, names, a film from end to end."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import errors, predict
from avs_jax.media import video
from avs_jax.models import get_model
from avs_jax.prediction import masks
from avs_jax.weights import trained
from tests.test_predict import make_film, read_masks
from tests.weights.zoo import stand_in


@pytest.fixture
def loaded(fill_variables):
    """A small model that was never trained, at step 7."""
    model = {
        "name": "avesformer",
        "backbone": "small_resnet",
        "audio_backbone": "audio_cnn",
        "num_classes": 1,
    }
    data = {"name": "sounding_shapes", "size": 32, "seconds": 2, "frame_offset": 0.5}
    data["alignment"] = "paper"
    config = ml_collections.FrozenConfigDict({"model": model, "data": data})
    module = get_model(**model)
    inputs = jnp.zeros((1, 2, 32, 32, 3)), jnp.zeros((1, 2, 96, 64))
    variables = fill_variables(module, *inputs)
    return trained.Loaded(config, module, variables, 7)


@pytest.mark.parametrize(
    ("step", "asked", "config", "expected"),
    [
        (7, None, None, "DEFAULT"),
        (7, None, "highest", "HIGHEST"),
        (7, "highest", None, "HIGHEST"),
        (0, None, None, "DEFAULT"),  # converted weights, on a CPU
        (0, None, "highest", "HIGHEST"),
        (0, "highest", None, "HIGHEST"),
    ],
)
def test_program_is_lowered_with_the_precision(loaded, step, asked, config, expected):
    config = dict(loaded.config) | ({"matmul_precision": config} if config else {})
    loaded = loaded._replace(step=step, config=ml_collections.FrozenConfigDict(config))
    forward = predict.compile_forward(loaded, asked)
    inputs = jnp.zeros((1, 2, 32, 32, 3), np.uint8), jnp.zeros((1, 32_000)), jnp.ones((1, 2), bool)
    lines = jax.jit(forward).lower(*inputs).as_text().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    assert len(convolutions) > 10
    assert all(expected in line for line in convolutions)


def test_converted_weights_are_multiplied_exactly_where_it_is_not_a_cpu(loaded, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert masks.choose_precision(loaded._replace(step=0)) == "highest"
    assert masks.choose_precision(loaded) is None


def test_program_segments_a_film_with_a_model(tmp_path, loaded, monkeypatch, capsys):
    monkeypatch.setattr(predict, "open_model", lambda directory, which, config: loaded)
    monkeypatch.setattr(predict.devices, "start_jax", lambda: None)
    path = make_film(tmp_path / "a.mp4", seconds=3)
    arguments = ["--checkpoint", "run", "--output", "out.mp4", "--masks", "masks"]
    monkeypatch.chdir(tmp_path)
    predict.main([path, *arguments])
    assert video.probe("out.mp4").has_audio
    marked = read_masks(tmp_path / "masks")
    assert list(marked) == ["000000.500.png", "000001.500.png", "000002.500.png"]
    assert all(set(np.unique(mask).tolist()) <= {0, 255} for mask in marked.values())
    printed = capsys.readouterr().out
    assert "avesformer of run, step 7" in printed
    assert "x real time" in printed


def test_program_needs_nothing_but_a_film(tmp_path, monkeypatch, capsys):
    stand_in.write(tmp_path, monkeypatch)
    monkeypatch.setattr(predict.devices, "start_jax", lambda: None)
    path = make_film(tmp_path / "my dog.mp4", seconds=2)
    monkeypatch.chdir(tmp_path)
    predict.main([path])
    assert video.probe("my dog_overlay.mp4").has_audio
    assert "model lite: avesformer of the package, step 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fps"), [([], 4), (["--model", "run"], 1), (["--fps", "25"], 25)]
)
def test_masks_a_second_unless_told(arguments, fps):
    assert predict.parse_arguments(["a.mp4", *arguments]).fps == fps


@pytest.mark.parametrize(("asked", "threshold"), [([], 0.3), (["--threshold", "0.6"], 0.6)])
def test_threshold_is_the_model_s_unless_given(tmp_path, monkeypatch, asked, threshold):
    stand_in.write(tmp_path, monkeypatch, threshold=0.3)
    monkeypatch.setattr(predict.devices, "start_jax", lambda: None)
    seen = {}
    monkeypatch.setattr(predict, "predict_video", lambda *args, **settings: seen.update(settings))
    path = make_film(tmp_path / "a.mp4", seconds=1)
    predict.main([path, "--model", "lite", "--masks", str(tmp_path / "masks"), *asked])
    assert seen["threshold"] == threshold


@pytest.mark.parametrize(
    ("data", "num_classes", "last"),
    [("avsbench", 71, "woman"), ("sounding_shapes", 11, "engine star"), ("avsbench", 1, None)],
)
def test_class_names_are_the_data_set_s(data, num_classes, last):
    config = {"model": {"num_classes": num_classes}, "data": {"name": data}}
    loaded = trained.Loaded(ml_collections.FrozenConfigDict(config), None, {}, 0)
    names = loaded.class_names
    assert (None if last is None else (len(names), names[-1])) == (last and (num_classes, last))


# --- live -------------------------------------------------------------------------------------


def run_live(loaded, monkeypatch, *arguments):
    monkeypatch.setattr(predict, "open_model", lambda directory, which, config: loaded)
    monkeypatch.setattr(predict.devices, "start_jax", lambda: None)
    monkeypatch.setattr(predict, "leave_hanging_threads", lambda: None)
    predict.main(["--live", *map(str, arguments)])


def test_live_marks_a_film_at_its_pace_and_logs_it(tmp_path, loaded, monkeypatch, capsys):
    path = make_film(tmp_path / "a.mp4", seconds=3)
    out, log = tmp_path / "out.mkv", tmp_path / "log.jsonl"
    run_live(loaded, monkeypatch, path, "--output", out, "--live_log", log, "--live_speed", 2)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("model") and told[-1].endswith("out.mkv")
    *_, last = map(json.loads, log.read_text().splitlines())
    assert last["summary"] and last["frames"] + last["dropped"] == 12
    info = video.probe(out)
    assert (info.width, info.height) == (64, 48)
    assert sum(1 for _ in video.read_frames(info)) == last["frames"]


def test_live_ends_when_its_seconds_are_over(tmp_path, loaded, monkeypatch, capsys):
    path = make_film(tmp_path / "a.mp4", seconds=1)
    run_live(loaded, monkeypatch, path, "--live_loop", "--live_seconds", "0.5")
    assert "masks in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "wanted a VIDEO or --live SOURCE"),
        (["a.mp4", "--live", "b.mp4"], "wanted a VIDEO or --live SOURCE"),
        (["--live", "b.mp4", "--masks", "m"], "--masks is not for --live"),
        (["--live", "b.mp4", "--fps", "4"], "--fps is not for --live"),
        (["--live", "b.mp4", "--output", "-", "--live_log", "-"], "both stdout"),
        (["--live", "no_such.mp4"], "no live source 'no_such.mp4'"),
    ],
)
def test_live_refuses_what_cannot_be(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.InputError, match=says):
        predict.main(arguments)
    assert list(tmp_path.iterdir()) == []
