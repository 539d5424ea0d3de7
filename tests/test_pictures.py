"""The pictures program on untrained networks of each model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from avs_jax import errors, models, pictures
from avs_jax.models.forward import example_inputs
from avs_jax.reporting import inside
from avs_jax.training import state
from avs_jax.training.checkpoints import Checkpoints
from avs_jax.weights.trained import build_model
from configs import common
from tests.data.tiny import build_tiny

SMALL = {
    "avesformer": {
        "dim": 16,
        "num_heads": 2,
        "num_prompts": 2,
        "pqg_layers": 1,
        "pqg_hidden": 16,
        "early_stages": 0,
        "late_stages": 1,
        "late_hidden": 16,
        "head_widths": (8, 8),
        "norm_groups": 4,
    },
    "pcmanet": {"dim": 16, "num_heads": 2, "groups": 2, "head_width": 8},
    "catr": {
        "mode": "reference",
        "dim": 16,
        "num_heads": 2,
        "hidden": 16,
        "decoder_layers": 1,
        "num_queries": 3,
        "pixel_widths": (8, 8, 8, 8),
        "mask_dim": 8,
        "norm_groups": 2,
    },
}
SIZE = 32


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("data"), "ms3", clips=(1, 1, 2))


def save_run(workdir, data_dir, name, fill_variables):
    """A network that was never trained, saved as a run's best."""
    config = common.get_config()
    common.fill_subset(config, "sounding_shapes", "ms3")
    config.data.size, config.data.data_dir = SIZE, data_dir
    small = {"name": name, "backbone": "small_resnet", "audio_backbone": "audio_cnn"}
    config.model.update(small | SMALL[name])
    model = build_model(config.lock())
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(5, SIZE)]
    variables = jax.tree.map(jnp.asarray, fill_variables(model, *inputs))
    checkpoints = Checkpoints(str(workdir), config)
    trained = state.TrainState(
        jnp.asarray(7), variables["params"], variables["batch_stats"], opt_state={}
    )
    checkpoints.save_if_best(trained, "validation/miou", 0.5)
    checkpoints.close()
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 7, "train/loss": 1.0}) + "\n")
    return workdir


KINDS = {
    "avesformer": {"strips", "prompts"},
    "pcmanet": {"strips", "confidence"},
    "catr": {"strips", "listening"},
}


@pytest.mark.parametrize("name", KINDS)
def test_program_draws_every_kind_of_picture_of_a_model(
    name, tmp_path, data_dir, fill_variables, capsys
):
    workdir = save_run(tmp_path, data_dir, name, fill_variables)
    pictures.main(["--checkpoint", str(workdir), "--count", "1"])
    drawn = {path.stem for path in workdir.glob("*.png")}
    assert drawn == KINDS[name] | {"learning_curve"}
    said = capsys.readouterr().out
    for kind in KINDS[name]:
        (path,) = (workdir / kind).glob("*.png")
        with Image.open(path) as image:
            assert image.size[0] > 5 * 144
        assert f"{workdir / kind} (1 clips)" in said


def test_every_model_has_its_kinds_tested():
    assert set(KINDS) == set(models.MODELS)
    assert {name: kinds - {"strips"} for name, kinds in KINDS.items() if len(kinds) > 1} == {
        name: set(kinds) for name, kinds in inside.INSIDE.items()
    }


def test_logits_that_are_no_numbers_are_not_drawn(tmp_path, data_dir, fill_variables):
    def fill_nan(module, *inputs):
        return jax.tree.map(lambda x: x * np.float32(np.nan), fill_variables(module, *inputs))

    workdir = save_run(tmp_path, data_dir, "avesformer", fill_nan)
    with pytest.raises(errors.BadValueError, match=r"logits of clip .*ms3.* are NaN or infinite"):
        pictures.main(["--checkpoint", str(workdir), "--count", "1"])


def test_too_many_clips_are_an_error(tmp_path, data_dir, fill_variables):
    workdir = save_run(tmp_path, data_dir, "avesformer", fill_variables)
    with pytest.raises(errors.BadValueError, match="--count=3: wanted 1 to 2"):
        pictures.main(["--checkpoint", str(workdir), "--count", "3"])
