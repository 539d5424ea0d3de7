"""Converted weights on disk, and models that start from them."""

import gc
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import convert, errors, weights
from avs_jax.backbones import get_backbone
from avs_jax.models import get_model

SOURCE = {"file": "resnet18.pth", "sha256": "0" * 64}


def random_variables(network, seed=0):
    rng = np.random.default_rng(seed)
    shapes = convert.target_shapes(network)
    return weights.unflatten(
        {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    )


@pytest.fixture(scope="module")
def resnet18():
    return random_variables("resnet18")


@pytest.fixture
def directory(tmp_path, resnet18):
    weights.save_converted(tmp_path / "resnet18", "resnet18", resnet18, SOURCE)
    return tmp_path / "resnet18"


@pytest.fixture(scope="module")
def model_variables():
    """Shapes of a model on ResNet-18 and the light sound net."""
    model = get_model("avesformer", "resnet18", audio_backbone="audio_cnn")
    frames, log_mel = jnp.zeros((1, 1, 64, 64, 3)), jnp.zeros((1, 1, 96, 64))
    return jax.eval_shape(model.init, jax.random.key(0), frames, log_mel, None)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_saved_is_loaded(directory, resnet18):
    loaded, _ = weights.load_converted(directory)
    assert_same(loaded, resnet18)


def test_loaded_arrays_stay_on_the_host(directory):
    loaded, _ = weights.load_converted(directory)
    assert {type(leaf) for leaf in jax.tree.leaves(loaded)} == {np.ndarray}


def test_provenance_tells_source_network_and_normalization(directory):
    _, provenance = weights.load_converted(directory)
    assert provenance["network"] == "resnet18"
    assert provenance["source"] == SOURCE
    assert provenance["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert provenance["parameters"] == 11_176_512


def test_sound_has_no_normalization(tmp_path):
    rng = np.random.default_rng(0)
    tiny = {"params": {"dense": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)}}}
    provenance = weights.save_converted(tmp_path / "sound", "vggish", tiny, SOURCE)
    assert provenance["normalization"] is None


def test_folder_that_cannot_be_written_is_refused(tmp_path, resnet18):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadValueError, match="cannot write to"):
        weights.save_converted(tmp_path / "file" / "out", "resnet18", resnet18, SOURCE)


def test_weights_are_not_overwritten(directory, resnet18):
    with pytest.raises(errors.BadValueError, match="holds converted weights already; remove it"):
        weights.save_converted(directory, "resnet18", resnet18, SOURCE)


def test_folder_without_weights_is_refused_with_the_command(tmp_path):
    with pytest.raises(errors.NotFoundError, match=r"python -m avs_jax.convert NETWORK FILE"):
        weights.load_converted(tmp_path / "nothing")


def test_conversion_cut_short_is_not_taken(directory):
    (directory / "provenance.json").unlink()
    with pytest.raises(errors.NotFoundError, match="no converted weights"):
        weights.load_converted(directory)


# Tensorstore complains a second time about files it cannot read, when its futures are collected.
orbax_complains = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def refuse(directory, message):
    with pytest.raises(errors.BadValueError, match=message):
        weights.load_converted(directory)
    gc.collect()  # here, where the complaints are expected, not in some later test


@orbax_complains
def test_changed_bytes_are_noticed(directory):
    files = [path for path in (directory / "weights").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    largest.write_bytes(content)
    refuse(directory, "convert them again")


@orbax_complains
def test_missing_data_is_a_clear_error(directory):
    for path in (directory / "weights").rglob("*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            path.unlink()
    refuse(directory, "cannot be read")


def test_changed_checksum_names_the_array(directory):
    provenance = json.loads((directory / "provenance.json").read_text())
    provenance["crc32"]["params/conv1/kernel"] += 1
    (directory / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(errors.BadValueError, match=r"1 arrays .* e.g. params/conv1/kernel"):
        weights.load_converted(directory)


def test_part_is_poured_in_and_the_rest_left(directory, resnet18, model_variables):
    merged, report = weights.merge_init(model_variables, {"backbone": directory})
    assert_same(merged["params"]["backbone"], resnet18["params"])
    assert_same(merged["batch_stats"]["backbone"], resnet18["batch_stats"])
    rest = {name: tree for name, tree in merged["params"].items() if name != "backbone"}
    assert {type(leaf) for leaf in jax.tree.leaves(rest)} == {jax.ShapeDtypeStruct}
    assert report[0].startswith("backbone: 11,176,512 parameters of resnet18 from")
    assert report[1].startswith("not loaded, from scratch: audio_backbone, audio_token")


def test_structure_is_kept(directory, model_variables):
    merged, _ = weights.merge_init(model_variables, {"backbone": directory})
    assert jax.tree.structure(merged) == jax.tree.structure(dict(model_variables))


def test_part_of_a_whole_model_is_poured_in(tmp_path, model_variables):
    rng = np.random.default_rng(0)
    whole = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), dict(model_variables))
    fields = {"backbone": "resnet18", "audio_backbone": "audio_cnn"}
    weights.save_converted(tmp_path / "run", "avesformer", whole, SOURCE, **fields)
    merged, report = weights.merge_init(model_variables, {"audio_backbone": tmp_path / "run"})
    assert_same(merged["params"]["audio_backbone"], whole["params"]["audio_backbone"])
    assert "backbone" in report[1].split(": ")[1].split(", ")


def test_whole_model_is_poured_in(directory, resnet18):
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(get_backbone("resnet18").init, jax.random.key(0), x)
    merged, report = weights.merge_init(shapes, {"model": directory})
    assert_same(merged, resnet18)
    assert len(report) == 1


def test_every_mismatch_of_every_part_is_told(directory, model_variables):
    parts = {"head": directory, "audio_backbone": directory}
    with pytest.raises(convert.ConversionError, match="init_from does not fit") as caught:
        weights.merge_init(model_variables, parts)
    problems = {kind.split(" of ")[0]: [] for kind in caught.value.problems}
    for kind, names in caught.value.problems.items():
        problems[kind.split(" of ")[0]] += names
    assert list(problems) == ["head from resnet18", "audio_backbone from resnet18"]
    missing = "params/audio_backbone/conv2/kernel"
    assert missing in problems["audio_backbone from resnet18"]


def test_part_that_the_model_lacks_is_refused(directory, model_variables):
    with pytest.raises(convert.ConversionError, match="unknown entries: batch_stats/ear/bn1/mean"):
        weights.merge_init(model_variables, {"ear": directory})


def test_other_shapes_are_refused_with_both(directory):
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(get_backbone("resnet18", stem_width=32).init, jax.random.key(0), x)
    with pytest.raises(convert.ConversionError, match=r"\[7, 7, 3, 64\] for \[7, 7, 3, 32\]"):
        weights.merge_init(shapes, {"model": directory})


def test_other_normalization_is_refused(directory, model_variables):
    provenance = json.loads((directory / "provenance.json").read_text())
    provenance["normalization"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (directory / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(convert.ConversionError, match=r"other normalisation: .*0.5.*0.485"):
        weights.merge_init(model_variables, {"backbone": directory})


def test_pytorch_is_not_imported():
    program = "import avs_jax.convert, sys; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
