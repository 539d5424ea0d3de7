"""A run of two checkpoints, of the smallest model, and what may happen to its files."""

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from avs_jax import models
from avs_jax.models.forward import init_shapes
from avs_jax.training import state
from avs_jax.training.checkpoints import Checkpoints

FIELDS = {
    "name": "avesformer",
    "backbone": "small_resnet",
    "audio_backbone": "audio_cnn",
    "dim": 8,
    "num_heads": 2,
    "pqg_layers": 1,
    "pqg_hidden": 8,
    "early_stages": 1,
    "late_stages": 1,
    "late_hidden": 8,
    "decoder_stride": 8,
    "refine": (),
    "head_widths": (8, 8),
    "norm_groups": 4,
}


def make_config(**model):
    config = ml_collections.ConfigDict({"model": FIELDS | model, "ema_decay": None})
    config.data = {"seconds": 2, "size": 32}
    return config


def make_state(step, seed=0):
    shapes = init_shapes(models.get_model(**FIELDS), 2, 32)
    rng = np.random.default_rng(seed + step)
    device = jax.devices()[0]

    def fill(x):
        return jax.device_put(rng.normal(size=x.shape).astype(x.dtype), device)

    variables = jax.tree.map(fill, shapes)
    return state.TrainState(
        step=jax.device_put(jnp.int32(step), device),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state={"mu": jax.tree.map(fill, shapes["params"])},
    )


def make_iterator():
    return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset())


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def largest_file(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and "meta" not in p.parts]
    return max(files, key=lambda p: p.stat().st_size)


def truncate(step):
    path = largest_file(step)
    path.write_bytes(path.read_bytes()[:100])


def delete(step):
    largest_file(step).unlink()


def overwrite(step):
    path = largest_file(step)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(range(64))
    path.write_bytes(data)


def empty(step):
    for path in sorted(step.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def save_two(tmp_path):
    """A workdir with steps 2 and 4; the iterator had given 3 and 6 elements."""
    checkpoints, iterator = Checkpoints(str(tmp_path), make_config()), make_iterator()
    for step in (2, 4):
        for _ in range(3):
            next(iterator)
        checkpoints.save(make_state(step), iterator)
    checkpoints.close()
    return tmp_path
