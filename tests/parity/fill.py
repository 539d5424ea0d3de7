"""Weights and inputs that anyone can rebuild from names, so that parity fixtures store none.

The expected values in this folder come from the published PyTorch code, run with every `state_dict`
entry filled by `weight(name, shape)`. A manifest lists the entries (name -> shape), in PyTorch's
layout; `gains` (name pattern -> factor) scale some of them.
"""

import fnmatch
import hashlib
import json
import math
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def uniform(name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """f32 of `shape`, uniform in [low, high): the same for a name on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    unit = generator.random(math.prod(shape)).reshape(shape)
    return (low + (high - low) * unit).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The entry `name` of a `state_dict`, scaled to keep activations of order one."""
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return uniform(name, shape, 0.5, 1.5)
    if leaf == "running_mean" or leaf.endswith("bias"):
        return uniform(name, shape, -0.1, 0.1)
    if len(shape) < 2:  # scales of norms, slopes
        return uniform(name, shape, 0.9, 1.1)
    bound = math.sqrt(3.0 / math.prod(shape[1:]))  # variance 1 / fan-in
    return uniform(name, shape, -bound, bound)


def manifest(network: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's `state_dict`, in its order."""
    entries = json.loads((FOLDER / "manifests" / f"{network}.json").read_text())
    return {name: tuple(shape) for name, shape in entries.items()}


def weights(network: str) -> dict[str, np.ndarray]:
    """The filled `state_dict` of a network, with its gains where it has any."""
    gains_file = FOLDER / "manifests" / f"{network}.gains.json"
    gains = json.loads(gains_file.read_text()) if gains_file.exists() else {}
    filled = {}
    for name, shape in manifest(network).items():
        array = weight(name, shape)
        for pattern, gain in gains.items():
            if fnmatch.fnmatchcase(name, pattern):
                array = (array * np.float32(gain)).astype(np.float32)
        filled[name] = array
    return filled


def expected(fixture: str) -> dict[str, np.ndarray]:
    """All entries of `expected/FIXTURE.npz`."""
    with np.load(FOLDER / "expected" / f"{fixture}.npz") as archive:
        return dict(archive)
