"""What a device holds and sends as devices grow in number, with as many clips each: a run on more
of them must not cost each of them more. Read off the train step compiled for forced CPU devices.

Counted in bytes, not timed: devices that share one processor do not get faster together.
"""

from collections.abc import Callable, Sequence

import jax
import ml_collections

from avs_jax import devices, errors
from avs_jax.benchmarking.messages import count_messages
from avs_jax.benchmarking.plan import compile_train_step, count_state_bytes

# How a step lies on n devices -> fields of the config; what one device cannot do is left out.
WAYS: dict[str, Callable[[int], dict]] = {
    "sharded, fsdp=1": lambda n: {"parallel": "sharded", "fsdp": 1},
    "sharded, fsdp=N": lambda n: {"parallel": "sharded", "fsdp": n},
    "pmap": lambda n: {"parallel": "pmap", "fsdp": 1},
}
SIZES = ("state", "temporary", "collective")
# Of what a device keeps: names of devices and offsets in tables, which do grow, are far less.
TOLERANCE = 0.01
HEADER = """\
| model | way | devices | clips a device | state MiB | temporary MiB | messages | their MiB |
|---|---|---|---|---|---|---|---|"""


def measure(config: ml_collections.ConfigDict, way: str, count: int, clips: int) -> dict:
    """Compiles a config's train step for some of the CPU devices that are here.

    Args:
      way: a key of WAYS. count: devices. clips: a device's, of every step.

    Returns:
      a dict of JSON's types; sizes in bytes a device: "state", "temporary" (what the program keeps
      at work), "collective" (results of its messages, "messages" in number).

    Raises:
      BadValueError: fewer devices than that.
    """
    found = jax.devices("cpu")
    if len(found) < count:
        raise errors.BadValueError(
            f"--scaling: {len(found)} CPU devices to compile for, wanted {count}; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}."
        )
    config = config.copy_and_resolve_references()
    config.update(WAYS[way](count) | {"batch_size": clips * count})
    mesh = devices.make_mesh(config.fsdp, found[:count], by_process=config.parallel == "pmap")
    compiled, shapes, _ = compile_train_step(config, mesh)
    messages = count_messages(compiled.as_text()).values()
    return {
        "model": config.model.name,
        "backbone": config.model.backbone,
        "way": way,
        "devices": count,
        "clips": clips,
        "state": count_state_bytes(shapes),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "messages": sum(number for number, _ in messages),
        "collective": sum(size for _, size in messages),
    }


def find_growth(rows: Sequence[dict]) -> dict[tuple[str, str], float]:
    """{(way, one of SIZES): its largest value by its value on the fewest devices}, 1.0: no growth.

    The fewest of more than one, for one device sends nothing, and keeps nothing of others.
    """
    growth = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        several = [row for row in rows if row["way"] == way and row["devices"] > 1]
        several.sort(key=lambda row: row["devices"])
        for name in SIZES if several else ():
            first, most = several[0][name], max(row[name] for row in several)
            growth[way, name] = most / first if first else 1.0
    return growth


def make_row(row: dict) -> str:
    """A line of HEADER's table."""
    state, temporary, sent = (f"{row[name] / 2**20:.2f}" for name in SIZES)
    return (
        f"| {row['model']}, {row['backbone']} | {row['way']} | {row['devices']} | {row['clips']} | "
        f"{state} | {temporary} | {row['messages']} | {sent} |"
    )
