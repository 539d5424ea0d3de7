"""Models that start from weights, in whole or in part."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import weights
from avs_jax.backbones import get_backbone
from avs_jax.weights import converted
from avs_jax.weights.converted import ConversionError
from tests.weights.conftest import SOURCE
from tests.weights.test_converted import assert_same


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
    converted.save_converted(tmp_path / "run", "avesformer", whole, SOURCE, **fields)
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
    with pytest.raises(ConversionError, match="init_from does not fit") as caught:
        weights.merge_init(model_variables, parts)
    problems = {kind.split(" of ")[0]: [] for kind in caught.value.problems}
    for kind, names in caught.value.problems.items():
        problems[kind.split(" of ")[0]] += names
    assert list(problems) == ["head from resnet18", "audio_backbone from resnet18"]
    missing = "params/audio_backbone/conv2/kernel"
    assert missing in problems["audio_backbone from resnet18"]


def test_part_that_the_model_lacks_is_refused(directory, model_variables):
    with pytest.raises(ConversionError, match="unknown entries: batch_stats/ear/bn1/mean"):
        weights.merge_init(model_variables, {"ear": directory})


def test_other_shapes_are_refused_with_both(directory):
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(get_backbone("resnet18", stem_width=32).init, jax.random.key(0), x)
    with pytest.raises(ConversionError, match=r"\[7, 7, 3, 64\] for \[7, 7, 3, 32\]"):
        weights.merge_init(shapes, {"model": directory})


def test_other_normalization_is_refused(directory, model_variables):
    provenance = json.loads((directory / "provenance.json").read_text())
    provenance["normalization"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (directory / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ConversionError, match=r"other normalisation: .*0.5.*0.485"):
        weights.merge_init(model_variables, {"backbone": directory})
