"""A model of the package that is tiny and was never trained, in a folder of its own."""

import jax
import ml_collections
import numpy as np

from avs_jax.models.forward import init_shapes
from avs_jax.weights import trained, zoo
from tests.training.small_run import FIELDS

SIZE, SECONDS = 32, 2


def make_loaded(seed=0, **fields):
    """Random weights that float16 holds exactly; the masks of noise are neither empty nor full."""
    config = ml_collections.ConfigDict({"model": FIELDS | {"num_classes": 1} | fields})
    config.data = {"name": "sounding_shapes", "subset": "ms3", "size": SIZE, "seconds": SECONDS}
    config.data.update({"frame_offset": 0.5, "alignment": "second", "data_dir": "/home/me/data"})
    config.init_from = {"model": "", "backbone": "/home/me/lite0"}
    model = trained.build_model(config)
    rng = np.random.default_rng(seed)

    def fill(shape):
        if len(shape.shape) < 2:
            return rng.uniform(0.5, 1.0, shape.shape).astype(np.float32)
        scale = np.sqrt(np.prod(shape.shape[:-1]))
        return (rng.normal(size=shape.shape) / scale).astype(np.float16).astype(np.float32)

    variables = jax.tree.map(fill, dict(init_shapes(model, SECONDS, SIZE)))
    logits = variables["params"]["head"]["logits"]
    logits["bias"] = np.zeros_like(logits["bias"])
    return trained.Loaded(ml_collections.FrozenConfigDict(config), model, variables, 7)


def write(folder, monkeypatch, loaded=None, **settings):
    """Packs it, as the package's only model, and returns what was packed."""
    loaded = loaded or make_loaded()
    zoo.save_zoo(folder / "lite", loaded, **settings)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return loaded
