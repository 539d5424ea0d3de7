"""Exported programs: the numbers of the model, without its code, and what is refused."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from unittest import mock

import jax
import jax.export
import ml_collections
import numpy as np
import pytest

from avs_jax import errors, export
from avs_jax.models import get_model
from avs_jax.models.forward import init_shapes
from avs_jax.weights import trained
from tests.models.test_see_and_decide import COMMON, SMALL


def load(name, num_classes=1, data="sounding_shapes", size=32):
    """A model that was never trained, with numbers of a seed."""
    fields = {"name": SMALL[name][0], "num_classes": num_classes} | COMMON | SMALL[name][1]
    model = get_model(**fields)
    rng = np.random.default_rng(0)

    def fill(path, shape):
        positive = any(word in jax.tree_util.keystr(path) for word in ("var", "scale"))
        return np.float32(rng.uniform(0.5, 1.5, shape) if positive else rng.normal(0, 0.1, shape))

    shapes = init_shapes(model, 2, size)
    variables = jax.tree_util.tree_map_with_path(lambda path, x: fill(path, x.shape), shapes)
    about = {"name": data, "subset": "ms3", "data_dir": "nowhere"}
    about |= {"size": size, "seconds": 2, "alignment": "paper"}
    config = ml_collections.FrozenConfigDict({"model": fields, "data": about})
    return trained.Loaded(config, model, variables, 7)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(loaded, *options)` -> path of the file that the program wrote."""

    def start(loaded, *options, output="model.npz"):
        monkeypatch.setattr(export, "open_model", lambda *_: loaded)
        monkeypatch.setattr(export.devices, "start_jax", lambda: None)
        monkeypatch.chdir(tmp_path)
        export.main(["run", "--output", output, *options])
        return tmp_path / output

    return start


def noise(clips, size=32):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (clips, 2, size, size, 3), dtype=np.uint8)
    return frames, rng.normal(0, 0.1, (clips, 32_000)).astype(np.float32)


def loader():
    """The lines that the program's help gives to a user."""
    _, _, rest = export.__doc__.partition("    import jax")
    code, _, _ = ("    import jax" + rest).partition("\n    frames ")
    return textwrap.dedent(code)


@pytest.mark.parametrize("name", ["pcmanet", "catr reference"])
def test_every_model_can_be_exported_for_any_number_of_clips(run, capsys, name):
    manifest, *_ = open_file(run(load(name)))
    assert manifest["inputs"]["frames"] == "u8['b', '2', '32', '32', '3']"
    assert manifest["largest_difference"] < 1e-5
    assert "for cpu, cuda, tpu" in capsys.readouterr().out


def open_file(path):
    with np.load(path) as file:
        weights = {name: file[name] for name in file.files if "/" in name}
        return json.loads(str(file["manifest"])), bytearray(file["program"]), weights


def test_the_lines_of_the_help_give_the_models_numbers_without_its_code(run, tmp_path):
    loaded = load("avesformer", num_classes=71, data="avsbench")
    path = run(loaded, "--half")
    frames, waveform = noise(3)
    np.savez(tmp_path / "inputs.npz", frames=frames, waveform=waveform)
    code = (
        "import sys\n"
        "for name in ('flax', 'avs_jax', 'optax', 'orbax', 'ml_collections'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np\n"
        "inputs = np.load('inputs.npz')\n"
        "frames, waveform = inputs['frames'], inputs['waveform']\n"
        + loader().replace("FILE.npz", path.name)
        + "np.save('found.npy', probabilities)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "found.npy")
    manifest, _, weights = open_file(path)
    assert len(manifest["classes"]) == 71
    assert {x.dtype for x in weights.values()} == {np.dtype("float16")}
    expected = jax.jit(export.make_segment(loaded))(export.half(loaded), frames, waveform)
    assert found.shape == (3, 2, 32, 32, 71)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def simple(monkeypatch):
    """`simple(shift)`: from now on models mark what is red, and a little more, `scale` of it."""

    def install(shift, scale=1.0):
        def segment(weights, frames, waveform):
            red = frames[..., :1].astype(np.float32) / 255.0
            return scale * (red + shift * waveform[0, 0] ** 0)

        monkeypatch.setattr(export, "make_segment", lambda loaded: segment)

    return install


def test_a_batch_can_be_fixed_for_an_older_jax(run, simple):
    simple(0.0)
    manifest, program, weights = open_file(run(load("avesformer"), "--batch", "2"))
    assert manifest["inputs"] == {
        "frames": "u8['2', '2', '32', '32', '3']",
        "waveform": "f32['2', '32000']",
    }
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    frames, waveform = noise(2)
    found = jax.export.deserialize(program).call(weights, frames, waveform)
    np.testing.assert_allclose(found, frames[..., :1] / 255.0, atol=1e-6)


@pytest.mark.parametrize("scale, told", [(1.0, r"0\.1"), (1e-3, "0.0001")])  # loud, all but silent
def test_a_program_that_gives_other_numbers_is_not_written(
    run, simple, monkeypatch, tmp_path, scale, told
):
    simple(0.0, scale)
    deserialize = jax.export.deserialize

    def open_and_change_the_model(data):
        simple(0.1, scale)
        return deserialize(data)

    monkeypatch.setattr(export.jax_export, "deserialize", open_and_change_the_model)
    with pytest.raises(
        errors.BadValueError, match=f"differs from the model by {told}.*not written"
    ):
        run(load("avesformer"))
    assert not list(tmp_path.iterdir())


def test_probabilities_are_calibrated():
    loaded = load("avesformer")
    weights = export.flatten(loaded.variables)
    p, q = (
        np.asarray(jax.jit(export.make_segment(loaded._replace(temperature=t)))(weights, *noise(1)))
        for t in (1.0, 2.0)
    )
    np.testing.assert_allclose(np.log(p / (1 - p)), 2 * np.log(q / (1 - q)), atol=1e-4)


def test_the_model_of_the_package_is_exported_unless_told():
    assert export.parse_arguments(["--output", "a.npz"]).model == "lite"


def test_weights_beyond_float16_are_refused_by_name():
    loaded = load("avesformer")
    large = jax.tree.map(lambda x: x * 1e7, loaded.variables)
    with pytest.raises(errors.BadValueError, match=r"--half: \S+ holds .*float16 ends at 65504"):
        export.half(loaded._replace(variables=large))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output", "a.bin"], "wanted a name that ends with .npz"),
        (["--output", "nowhere/a.npz"], "there is no folder .*nowhere"),
        (["--output", "a.npz", "--batch", "0"], "--batch=0: wanted 1 or more"),
        (["--output", "a.npz", "--time", "3"], r"--time is for \.onnx files"),
        (["--output", "a.npz", "--int8"], r"--int8 is for \.onnx files, not for a\.npz"),
        (["--output", "a.onnx", "--int8", "--half"], "--int8 and --half: wanted one"),
        (["--output", "a.onnx", "--data_dir", "x"], "--data_dir is where --int8 finds its clips"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.InputError, match=told):
        export.main(["run", *options])


def test_without_flatbuffers_the_extra_is_named():
    program = mock.Mock(spec=jax.export.Exported)
    program.serialize.side_effect = ImportError("flatbuffers")
    with pytest.raises(errors.NotFoundError, match=r"avs_jax\[export\]"):
        export.serialize(program)


ONNX = {
    "avesformer": (2, {"num_classes": 71, "data": "avsbench"}),
    "pcmanet": (1, {}),
    "catr reference": (1, {}),
    "catr paper": (1, {}),
}


@pytest.mark.parametrize("name", ONNX)
def test_every_model_runs_by_onnx_runtime(run, onnx, name):
    clips, fields = ONNX[name]
    loaded = load(name, **fields)
    options = ["--batch", "2"] if clips == 2 else []
    session = onnx[1].InferenceSession(run(loaded, *options, output="model.onnx"))
    frames, waveform = noise(clips)
    (found,) = session.run(None, {"frames": frames, "waveform": waveform})
    weights = export.flatten(loaded.variables)
    expected = np.asarray(jax.jit(export.make_segment(loaded))(weights, frames, waveform))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["manifest"])
    classes = fields.get("num_classes", 1)
    assert manifest["inputs"]["frames"] == f"u8['{clips}', '2', '32', '32', '3']"
    assert manifest["output"] == f"f32['{clips}', '2', '32', '32', '{classes}']"
    assert manifest["weights"]["count"] == sum(x.size for x in weights.values())
    assert manifest["versions"]["opset"] == 18


def test_the_model_of_the_package_runs_by_onnx_runtime(onnx, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(export.devices, "start_jax", lambda: None)
    path = tmp_path / "lite.onnx"
    export.main(["--output", str(path), "--size", "64", "--seconds", "1"])
    (frames, waveform) = onnx[1].InferenceSession(path).get_inputs()
    assert (frames.shape, waveform.shape) == ([1, 1, 64, 64, 3], [1, 16_000])
    assert "for ONNX Runtime" in capsys.readouterr().out


def test_without_onnx_the_extra_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name)
    )
    with pytest.raises(errors.NotFoundError, match=r"needs onnx, not installed: .*avs_jax\[onnx\]"):
        export.main(["--output", "a.onnx"])


def test_an_onnx_file_is_timed_beside_xla(run, simple, onnx, capsys):
    simple(0.0)
    run(load("avesformer"), "--time", "1", "--half", output="model.onnx")
    assert "ONNX Runtime" in capsys.readouterr().out.split("ratio")[-1]


def test_a_model_in_int8_says_how_far_its_masks_are_the_models(run, onnx, capsys):
    session = onnx[1].InferenceSession(run(load("avesformer"), "--int8", output="model.onnx"))
    frames, waveform = noise(1)
    (found,) = session.run(None, {"frames": frames, "waveform": waveform})
    assert found.shape == (1, 2, 32, 32, 1)
    agreement = json.loads(session.get_modelmeta().custom_metadata_map["manifest"])["int8"]
    assert agreement["clips"] == 16 and 0.8 < agreement["iou"] <= 1
    captured = capsys.readouterr()
    assert "on 16 clips its masks have an IoU of" in captured.out
    assert "calibrated on drawings" in captured.err


def test_int8_without_clips_where_they_are_said_to_be_is_refused(run, onnx, tmp_path):
    with pytest.raises(errors.NotFoundError, match="build it with"):
        run(load("avesformer"), "--int8", "--data_dir", "empty", output="model.onnx")
    assert not list(tmp_path.iterdir())
