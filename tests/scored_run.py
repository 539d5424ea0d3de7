"""A run whose model was never trained, to be evaluated."""

import json

import jax
import jax.numpy as jnp
import ml_collections

from avs_jax.models.forward import example_inputs
from avs_jax.training import state
from avs_jax.training.checkpoints import Checkpoints
from avs_jax.weights.trained import build_model
from configs import common


def make_config(data_dir, subset="ms3"):
    config = common.get_config()
    common.fill_subset(config, "sounding_shapes", subset)
    num_classes = config.model.num_classes
    config.model = ml_collections.ConfigDict(
        {
            "name": "avesformer",
            "backbone": "small_resnet",
            "audio_backbone": "audio_cnn",
            "num_classes": num_classes,
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
        }
    )
    config.data.size = 32
    config.data.data_dir = data_dir
    config.eval.batch_size = 6  # evaluation makes it a multiple of the eight devices
    return config.lock()


def save_run(workdir, config, fill_variables, seed=0, factor=1.0):
    """A model that was never trained, saved as a run's best."""
    model = build_model(config)
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(config.data.seconds, 32)]
    variables = jax.tree.map(jnp.asarray, fill_variables(model, *inputs, seed=seed))
    variables["params"] = jax.tree.map(lambda x: x * factor, variables["params"])
    checkpoints = Checkpoints(str(workdir), config)
    train_state = state.TrainState(
        jnp.asarray(7), variables["params"], variables["batch_stats"], opt_state={}
    )
    checkpoints.save_if_best(train_state, "validation/miou", 0.5)
    checkpoints.close()
    line = json.dumps({"step": 7, "train/seconds": 12.34})
    (workdir / "metrics.jsonl").write_text(f'{line}\n{{"step": 8, "tra')  # a run that was killed
