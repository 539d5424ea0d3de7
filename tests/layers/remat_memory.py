"""The memory of one training step under each policy of rematerialisation.

    JAX_PLATFORMS=cpu python -m tests.layers.remat_memory pcmanet pvt_v2_b0 128

Arguments: model, picture backbone, pixels. One clip of five frames; prints a Markdown table of the
temporary memory of the compiled loss with its gradient, and of the floating-point operations in it.
"""

import sys

import jax
import jax.numpy as jnp

from avs_jax import models
from avs_jax.layers import losses
from avs_jax.layers.remat import POLICIES
from avs_jax.models.forward import init_shapes

SECONDS = 5


def compile_gradient(name: str, backbone: str, size: int, remat: str):
    """Loss and gradient of everything but the sound backbone, compiled."""
    model = models.get_model(name, backbone, audio_backbone="audio_cnn", remat=remat)
    shapes = dict(init_shapes(model, SECONDS, size))

    def total(params, batch_stats, batch):
        outputs, new = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["frames"],
            batch["log_mel"],
            batch["frame_mask"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return losses.total(models.get_loss(name)(outputs, batch)), new

    batch = {
        "frames": jax.ShapeDtypeStruct((1, SECONDS, size, size, 3), jnp.float32),
        "log_mel": jax.ShapeDtypeStruct((1, SECONDS, 96, 64), jnp.float32),
        "label": jax.ShapeDtypeStruct((1, SECONDS, size, size), jnp.int32),
        "label_mask": jax.ShapeDtypeStruct((1, SECONDS), jnp.bool_),
        "frame_mask": jax.ShapeDtypeStruct((1, SECONDS), jnp.bool_),
    }
    gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
    return gradient.lower(shapes["params"], shapes.get("batch_stats", {}), batch).compile()


def main(name: str = "pcmanet", backbone: str = "pvt_v2_b0", size: str = "128") -> None:
    print("| remat | temporary memory | GFLOP |\n|---|---|---|")
    for remat in POLICIES:
        compiled = compile_gradient(name, backbone, int(size), remat)
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(f"| {remat} | {memory:.0f} MB | {compiled.cost_analysis()['flops'] / 1e9:.1f} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
