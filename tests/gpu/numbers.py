"""A model's logits and one gradient, by the programs that predict and train; CPUs' beside others'.

    JAX_PLATFORMS=cpu python -m tests.gpu.numbers FOLDER full

is what `tests.gpu.check` starts beside itself: the weights that a run would start from, and what
they give in float32 on the CPU, FOLDER/NETWORK.npz, one after the other.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from avs_jax import devices, errors
from avs_jax.backbones import get_normalization
from avs_jax.benchmarking import steps
from avs_jax.benchmarking.variant import Shape
from avs_jax.models.forward import make_forward
from avs_jax.training import state
from avs_jax.training.program import plan_program
from avs_jax.types import PyTree
from tests.gpu.forms import FORMS, register
from tests.gpu.report import Budget, TimeIsUpError

# How it computes -> (dtype, matmul_precision).
PRECISIONS = {
    "float32, highest": ("float32", "highest"),
    "float32, default": ("float32", None),  # TF32 on NVIDIA's from Ampere on
    "bfloat16": ("bfloat16", None),
}
_DECAY = 0.9  # of Adam's first moment, `optim.make_optimizer`'s


def compute(
    fields: dict,
    shape: Shape,
    precision: str,
    get_weights: Callable[[], dict[str, PyTree]] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, PyTree]]:
    """Runs a step of training and a prediction on noise.

    Args:
      fields: of `get_model`. precision: a key of PRECISIONS.
      get_weights: {"params", "batch_stats"}, asked for when all is compiled; None: a run's first.

    Returns:
      {"logits": f32[b t h w k], "gradient": f32[all that learns]}, and the weights.
    """
    dtype, products = PRECISIONS[precision]
    fields = fields | {"dtype": dtype}
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    config = steps.make_config(fields, shape, "sharded")
    config.matmul_precision = products
    program = plan_program(config, mesh, steps=100)
    batch = state.batch_shapes(*shape, devices.batch_sharding(mesh))
    start = program.create_state()
    step = jax.jit(program.make_step(shape.size)).lower(start, batch).compile()
    forward = make_forward(
        program.model, normalization=get_normalization(fields["backbone"]), size=shape.size
    )
    predict = jax.jit(state.at_precision(forward, products))
    predict = predict.lower(start.variables(), batch).compile()
    if get_weights is not None:
        start = start.with_variables(get_weights())
    batch = jax.device_put(
        steps.make_batch(batch, fields["num_classes"]), devices.batch_sharding(mesh)
    )
    new, _ = step(start, batch)
    numbers = {"logits": np.asarray(predict(start.variables(), batch), np.float32)}
    return numbers | {"gradient": find_gradient(new.opt_state)}, start.variables()


def find_gradient(opt_state: PyTree) -> np.ndarray:
    """That of the first step, from Adam's state after it: its first moment is a share of it."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    (adam,) = (x for x in leaves if isinstance(x, optax.ScaleByAdamState))
    moments = [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(adam.mu)]
    return np.concatenate(moments) / np.float32(1 - _DECAY)


def compare(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(largest error, root of the mean square of errors), each by the standard deviation of what
    was expected. NaN or infinite where what was found is.

    Raises:
      BadValueError: arrays of two shapes.
    """
    if found.shape != expected.shape:
        raise errors.BadValueError(f"found {found.shape}, expected {expected.shape}.")
    difference = found.astype(np.float64) - expected
    std = expected.std(dtype=np.float64)
    return float(np.abs(difference).max() / std), float(np.sqrt((difference**2).mean()) / std)


class Reference:
    """The CPU's numbers, which another process computes meanwhile."""

    def __init__(self, folder: Path, form: str, budget: Budget):
        self._folder, self._budget, self._log = folder, budget, folder / "log"
        # It sees no GPU, whose memory would be taken from what is measured.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "tests.gpu.numbers", str(folder), form]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait(self, network: str) -> tuple[dict[str, np.ndarray], dict[str, PyTree]]:
        """As `compute`, of float32.

        Raises:
          TimeIsUpError: there is no time left. BadValueError: the process died.
        """
        path = self._folder / f"{network}.npz"
        while not path.exists():
            if self._process.poll() is not None and not path.exists():
                last = (self._log.read_text(errors="replace").splitlines() or ["no word"])[-1]
                raise errors.BadValueError(f"no numbers of the CPU: {last}")
            if self._budget.left() <= 0:
                raise TimeIsUpError
            time.sleep(0.1)
        with np.load(path) as file:
            numbers = {name: file[name] for name in ("logits", "gradient")}
            flat = {name: file[name] for name in file.files if "/" in name}
        return numbers, {"batch_stats": {}} | unflatten_dict(flat, sep="/")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def main(folder: str, form: str) -> None:
    register()
    chosen = FORMS[form]
    for name, fields in chosen.networks.items():
        numbers, weights = compute(fields, chosen.numbers_shape, "float32, highest")
        flat = jax.tree.map(np.asarray, flatten_dict(weights, sep="/"))
        hidden = Path(folder, f".{name}.npz")
        np.savez(hidden, **numbers, **flat)
        hidden.replace(Path(folder, f"{name}.npz"))


if __name__ == "__main__":
    main(*sys.argv[1:])
