"""Models that come with the package: packed, opened, damaged, missing."""

import json

import jax
import numpy as np
import pytest

from avs_jax import errors
from avs_jax.weights import load_weights, merge_init, open_model, zoo
from tests.training.small_run import same
from tests.weights.zoo import stand_in


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """The folder, with a model `lite` in it."""
    stand_in.write(tmp_path, monkeypatch, temperature=1.5, threshold=0.4)
    return tmp_path


def test_a_model_comes_out_as_it_was_packed(tmp_path, monkeypatch):
    loaded = stand_in.write(tmp_path, monkeypatch, temperature=1.5, threshold=0.4)
    opened = open_model("lite")
    assert same(opened.variables, loaded.variables)
    assert (opened.step, opened.temperature, opened.threshold) == (7, 1.5, 0.4)
    assert opened.model == loaded.model
    assert opened.config.data.size == loaded.config.data.size


def test_weights_are_halved_on_disk_but_for_what_has_one_dimension(packed):
    with np.load(packed / "lite.npz") as arrays:
        kinds = {(arrays[path].ndim > 1, str(arrays[path].dtype)) for path in arrays.files}
    assert kinds == {(True, "float16"), (False, "float32")}
    assert {x.dtype for x in jax.tree.leaves(open_model("lite").variables)} == {
        np.dtype(np.float32)
    }


def test_packing_twice_gives_the_same_bytes(packed, monkeypatch):
    before = (packed / "lite.npz").read_bytes()
    stand_in.write(packed, monkeypatch)
    assert (packed / "lite.npz").read_bytes() == before


def test_the_file_does_not_say_where_it_was_trained(packed):
    assert "/home/me" not in (packed / "lite.json").read_text()


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path):
    loaded = stand_in.make_loaded()
    loaded.variables["params"]["head"]["logits"]["kernel"][:] = 1e5
    with pytest.raises(errors.BadValueError, match="cannot hold params/head/logits/kernel"):
        zoo.save_zoo(tmp_path / "lite", loaded)


def damage(folder):
    data = bytearray((folder / "lite.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "lite.npz").write_bytes(data)


def cut(folder):
    (folder / "lite.npz").write_bytes((folder / "lite.npz").read_bytes()[:1000])


def remove_weights(folder):
    (folder / "lite.npz").unlink()


def remove_about(folder):
    (folder / "lite.json").unlink()


def garble_about(folder):
    (folder / "lite.json").write_text("{")


def empty_about(folder):
    (folder / "lite.json").write_text("{}")


def pack_for_another_network(folder):
    about = json.loads((folder / "lite.json").read_text())
    about["config"]["model"]["dim"] = 16
    about["versions"]["avs_jax"] = "0.0.9"
    (folder / "lite.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("mishap", "message"),
    [
        (damage, "are damaged: .* another sha256"),
        (cut, "are damaged: 1,000 bytes"),
        (remove_weights, r"lite.npz of this installation cannot be read \(No such file"),
        (remove_about, r"lite.json of this installation cannot be read \(No such file"),
        (garble_about, "lite.json is damaged"),
        (empty_about, "lite.json is damaged: no config, step"),
        (
            pack_for_another_network,
            "do not fit its network in .*: params/audio_token/bias",
        ),
    ],
)
def test_mishaps_are_one_line_with_the_cure(packed, mishap, message):
    mishap(packed)
    with pytest.raises(errors.InputError, match=f"{message}.*; install avs_jax again") as caught:
        open_model("lite")
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_same_name_is_given_with_a_dot(packed, monkeypatch, capsys):
    monkeypatch.chdir(packed)
    (packed / "lite").mkdir()
    assert open_model("lite").step == 7
    assert "for the folder of that name give ./lite" in capsys.readouterr().err
    with pytest.raises(errors.NotFoundError, match=r"no checkpoint under .*lite"):
        open_model("./lite")


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(errors.NotFoundError, match="that come with avs_jax: lite"):
        open_model("light")


def test_training_may_start_from_it(packed):
    loaded = open_model("lite")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded.variables)
    merged, report = merge_init(shapes, {"model": "lite"})
    assert same(merged, loaded.variables)
    assert "avesformer from lite (step 7)" in report[0]
    assert load_weights("lite")[1]["network"] == "avesformer"
