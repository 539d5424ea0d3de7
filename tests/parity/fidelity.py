"""How close this library's networks are to the published code: prints a table in Markdown.

    python -m tests.parity.fidelity                  all networks, some minutes
    python -m tests.parity.fidelity vggish resnet50  these
    python -m tests.parity.fidelity --matmul_precision default  with a CPU's faster convolutions

Every row compares stored outputs of the published PyTorch code, whole networks and what is inside
them, with ours for the same weights: made from names by `fill.py`, converted by `avs_jax.convert`.
An error is the largest absolute difference of an entry, divided by the entry's standard deviation.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from avs_jax import errors
from avs_jax.backbones import get_backbone
from avs_jax.backbones.efficientnet_lite import relu6
from avs_jax.backbones.resnet import max_pool
from avs_jax.backbones.yamnet import own_log_mel
from avs_jax.convert import from_torch
from avs_jax.media import audio
from avs_jax.weights.trained import MATMUL_PRECISIONS
from tests.parity import fill

Entries = dict[str, np.ndarray]


class Difference(NamedTuple):
    """Of one entry: largest absolute difference, and the standard deviation of the whole entry."""

    largest: float
    std: float
    size: int  # values compared

    @property
    def within(self) -> bool:
        """1e-4 of the spread, some eight times what float32 runs of one code differ by."""
        return self.largest <= 1e-4 * self.std + 1e-5


def differences(fixture: str, entries: Entries) -> dict[str, Difference]:
    """Compares `entries`, whole and in the published code's layout, with what is stored of them."""
    stored, about = fill.expected(fixture), {}
    companion = fill.FOLDER / "expected" / f"{fixture}.json"
    if companion.exists():
        about = json.loads(companion.read_text())
        about = about.get("entries", about)
    found = {}
    for name, array in entries.items():
        steps = stored.get(f"{name}@step", about.get(name, {}).get("stride", ()))
        array = np.asarray(array)[tuple(slice(None, None, int(step)) for step in steps)]
        reference = stored[name]
        assert array.shape == reference.shape, (name, array.shape, reference.shape)
        std = reference.std()
        if f"{name}@stats" in stored:
            std = stored[f"{name}@stats"][1]
        elif name in about:
            std = about[name]["std"]
        largest = np.abs(array.astype(np.float64) - reference).max()
        found[name] = Difference(float(largest), float(std), reference.size)
    return found


def channels_first(x: jax.Array) -> np.ndarray:
    """[n h w c] -> [n c h w]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def _capture(name: str, state_dict: Entries, x: np.ndarray) -> tuple:
    """-> (what the backbone returns, {path of a module: its output})."""
    module, variables = get_backbone(name), from_torch(name, state_dict)

    @jax.jit
    def forward(variables, x):
        return module.apply(variables, x, capture_intermediates=True, mutable="intermediates")

    output, state = forward(variables, x)
    return output, state["intermediates"]


def vggish_entries() -> Entries:
    """The four pools and the embedding."""
    patches = fill.uniform("vggish/log_mel", (5, 1, 96, 64), -4, 1)[:, 0]
    embedding, inside = _capture("vggish", fill.weights("vggish"), patches)
    entries = {"embedding": np.asarray(embedding)}
    for pool, convolution in ((2, 0), (5, 3), (10, 8), (15, 13)):
        x = nn.relu(inside[f"features_{convolution}"]["__call__"][0])
        entries[f"features.{pool}"] = channels_first(nn.max_pool(x, (2, 2), (2, 2)))
    return entries


def resnet50_entries() -> Entries:
    """Stem, four layers, and AVSBench's second branch, run in place of the first."""
    x = fill.uniform("resnet50/image", (2, 3, 224, 224), -2, 2).transpose(0, 2, 3, 1)
    weights = fill.weights("resnet50")
    pyramid, inside = _capture("resnet50", weights, x)
    names = ("layer1", "layer2", "layer3_1", "layer4_1")
    entries = {name: channels_first(y) for name, y in zip(names, pyramid, strict=True)}
    entries["stem"] = channels_first(max_pool(nn.relu(inside["bn1"]["__call__"][0])))
    second = {
        name.replace("_2.", "_1.", 1) if name.startswith(("layer3_2", "layer4_2")) else name: array
        for name, array in weights.items()
        if not name.startswith(("layer3_1", "layer4_1"))
    }
    entries["forward.second_branch"] = channels_first(_capture("resnet50", second, x)[0][-1])
    return entries


def pvt_v2_b5_entries() -> Entries:
    """First patch embedding, first block, four stages."""
    x = fill.uniform("pvt_v2_b5/image", (2, 3, 224, 224), -2, 2).transpose(0, 2, 3, 1)
    pyramid, inside = _capture("pvt_v2_b5", fill.weights("pvt_v2_b5"), x)
    entries = {f"stage{i}": channels_first(y) for i, y in enumerate(pyramid, start=1)}
    for name in ("patch_embed1", "block1.0"):
        y = np.asarray(inside[name.replace(".", "_")]["__call__"][0])
        entries[name] = y.reshape(2, -1, y.shape[-1])  # tokens, row by row
    return entries


def efficientnet_lite0_entries() -> Entries:
    """Stem, all blocks, ImageNet's logits; the reference is efficientnet-lite-pytorch 0.1.0."""
    name = "efficientnet_lite0"
    module = get_backbone(name, num_classes=1000)
    variables = from_torch(name, fill.weights(name), num_classes=1000)
    x = fill.uniform(f"{name}/image", (1, 3, 224, 224), -1, 1).transpose(0, 2, 3, 1)

    @jax.jit
    def forward(variables, x):
        maps, state = module.apply(
            variables, x, capture_intermediates=True, mutable="intermediates"
        )
        return module.apply(variables, maps[-1], method="classify"), state["intermediates"]

    cells, inside = forward(variables, x)
    entries = {
        name.replace("_", "."): channels_first(found["__call__"][0])
        for name, found in inside.items()
        if name.startswith("blocks_")
    }
    entries["stem"] = channels_first(relu6(inside["bn0"]["__call__"][0]))
    return entries | {"logits": np.asarray(cells.mean(axis=(1, 2)))}


def yamnet_weights() -> Entries:
    """A filled TensorFlow checkpoint: kernels of variance 2 / fan-in, as for a ReLU."""
    filled = {}
    for name, shape in fill.manifest("yamnet").items():
        low, high = (0.5, 1.5) if name.endswith("variance") else (-0.1, 0.1)
        if len(shape) > 1:
            fan_in = np.prod(shape[:2]) if "depthwise" in name else np.prod(shape[:-1])
            low, high = -np.sqrt(6 / fan_in), np.sqrt(6 / fan_in)
        filled[name] = fill.uniform(f"yamnet/{name}", shape, low, high)
    return filled


def yamnet_entries() -> Entries:
    """A chirp and silence: all layers, features, AudioSet's logits.

    The reference is numpy's float64 for the log-mel and torch-vggish-yamnet 0.2.1 for the network.
    """
    module = get_backbone("yamnet", num_classes=521)
    variables = from_torch("yamnet", yamnet_weights(), num_classes=521)
    t = np.arange(32_000) / 16_000
    chirp = np.where(t < 0.9, 0.3 * np.sin(2 * np.pi * (200 * t + 800 * t**2)), 0.0)

    @jax.jit
    def forward(variables, wave):
        log_mel = audio.log_mel(wave, 2)
        features, state = module.apply(
            variables, log_mel, capture_intermediates=True, mutable="intermediates"
        )
        logits = module.apply(variables, features, method="classify")
        return own_log_mel(log_mel), features, logits, state["intermediates"]

    log_mel, features, logits, inside = forward(variables, chirp.astype(np.float32))
    entries = {
        name: channels_first(found["__call__"][0])
        for name, found in inside.items()
        if name.startswith("layer")
    }
    entries["layer1"] = channels_first(nn.relu(inside["bn1"]["__call__"][0]))
    return entries | {"log_mel": log_mel, "features": features, "logits": logits}


def log_mel_entries() -> Entries:
    """The sound front end; 16 kHz."""
    t = np.arange(80_000) / 16_000
    chirp = np.where(t < 4, 0.3 * np.sin(2 * np.pi * (200 * t + 300 * t**2)), 0.0)
    noise = fill.uniform("log_mel/wave", (80_000,), -0.5, 0.5)
    waves = {"wave_16k": noise, "tone_16k": chirp.astype(np.float32)}
    return {name: np.asarray(jax.jit(audio.log_mel)(wave)) for name, wave in waves.items()}


def pcmanet_entries(fixture: str) -> Entries:
    """Every float that the PCMANet fixture stores, from the convolutions to the four outputs."""
    from tests.parity import pcmanet

    left_out = ("mask", "losses", "per")
    return {k: x for k, x in pcmanet.entries(fixture).items() if not k.startswith(left_out)}


def catr_entries(fixture: str) -> Entries:
    """Every activation that the CATR fixture stores and that reaches an output."""
    from tests.parity import catr

    entries, _, _ = catr.run(fixture)
    return {name: x for name, x in entries.items() if name != "inference.query"}


# fixture -> function that computes its entries, whole, in the published code's layout
NETWORKS: dict[str, Callable[[], Entries]] = {
    "log_mel": log_mel_entries,
    "vggish": vggish_entries,
    "resnet50": resnet50_entries,
    "pvt_v2_b5": pvt_v2_b5_entries,
    "efficientnet_lite0": efficientnet_lite0_entries,
    "yamnet": yamnet_entries,
    "pcmanet_resnet50_s4": partial(pcmanet_entries, "pcmanet_resnet50_s4"),
    "pcmanet_pvt_s4": partial(pcmanet_entries, "pcmanet_pvt_s4"),
    "catr_resnet50_s4": partial(catr_entries, "catr_resnet50_s4"),
    "catr_pvt_s4": partial(catr_entries, "catr_pvt_s4"),
    "catr_pvt_s4_448": partial(catr_entries, "catr_pvt_s4_448"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--matmul_precision", default="highest", choices=MATMUL_PRECISIONS)
    args = parser.parse_args()
    names = args.networks or list(NETWORKS)
    for name in names:
        if name not in NETWORKS:
            raise errors.unknown_name("network", name, NETWORKS)
    print("| network | entries | values compared | largest error / std | at |")
    print("|---|---|---|---|---|")
    for name in names:
        with jax.default_matmul_precision(args.matmul_precision):
            found = differences(name, NETWORKS[name]())
        worst = max(found, key=lambda entry: found[entry].largest / found[entry].std)
        error = found[worst].largest / found[worst].std
        values = sum(difference.size for difference in found.values())
        print(f"| {name} | {len(found)} | {values:,} | {error:.1e} | {worst} |", flush=True)


if __name__ == "__main__":
    errors.run_program(main)
