"""What a training step will cost on accelerators that are not here: TPUs' own compiler tells.

libtpu (the extra `tpu`) compiles on any x86-64 Linux for a slice that need not exist: memory a
chip, messages between chips, and that the step compiles at all come from the very program that will
run. How long that takes is then reckoned from what chips are sold to do and the share of it that is
expected (`EXPECTED`): a guess, with its assumptions printed beside it.

NVIDIA's compiler needs a GPU (XLA tunes its programs on one). For these the step is compiled for as
many forced CPU devices: products, the state and the messages of a mesh are the same, what is kept
at work and touched is another program's, and is told as that.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence

import jax
import ml_collections
from jax.sharding import Mesh

from avs_jax import devices, errors
from avs_jax.benchmarking.flops import count_flops
from avs_jax.benchmarking.messages import count_messages
from avs_jax.config import check_fields, read_config
from avs_jax.training import state
from avs_jax.training.program import plan_program
from avs_jax.training.sharding import on_one_device
from avs_jax.types import PyTree
from avs_jax.weights.trained import MATMUL_PRECISIONS


@dataclasses.dataclass(frozen=True)
class Chip:
    """As sold. flops: of bfloat16 products a second; bandwidth: of its memory, wires: of its links
    to others, both bytes a second; memory: bytes; hosts: chips that one host feeds. passes: by
    MATMUL_PRECISIONS, products of bfloat16 that take as long as one of float32."""

    flops: float
    bandwidth: float
    wires: float
    memory: int
    per_host: int
    passes: tuple[int, int, int] = (1, 3, 6)  # default, high, highest: of a TPU


# Public data sheets: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; a TPU's links are all its ICI.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 300e9, 32 * 2**30, 4),
    "v5e": Chip(197e12, 819e9, 200e9, 16 * 2**30, 8),
    "v5p": Chip(459e12, 2765e9, 600e9, 95 * 2**30, 4),
    "v6e": Chip(918e12, 1640e9, 448e9, 32 * 2**30, 8),
}
# NVIDIA's data sheet of H100 SXM, without sparsity; a direction of NVLink. TF32 has half the rate
# of bfloat16, float32 outside the tensor cores (67 TFLOP/s) a fifteenth.
GPUS = {"h100": Chip(989e12, 3350e9, 450e9, 80 * 2**30, 8, (2, 2, 15))}
# Of a chip's peak what networks of convolutions reach; of its memory's and its links' bandwidth.
EXPECTED = {"flops": (0.4, 0.5), "bandwidth": 0.7, "wires": 0.7}
# What libtpu asks of machines that have no TPU.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "",
}


def _count_gpus(topology: str) -> int | None:
    """ "h100:8" -> 8; None: no GPUs, or more than a machine can stand in for."""
    kind, _, count = topology.partition(":")
    return int(count) if kind in GPUS and re.fullmatch(r"[1-9]\d{0,2}", count) else None


def force_devices(topology: str) -> None:
    """As many CPU devices as GPUs are planned for; before jax starts, else those that there are."""
    if count := _count_gpus(topology):
        devices.force_cpu_devices(count)


def find_chips(topology: str) -> tuple[Chip, list[jax.Device]]:
    """ "v5e:4x4" or "h100:8" -> what such a chip is, and the devices to compile for.

    Raises:
      BadValueError: not a slice of a known kind of TPU, none that there is, or no libtpu; or fewer
        CPU devices than GPUs are wanted.
    """
    kind, _, shape = topology.partition(":")
    if count := _count_gpus(topology):
        found = jax.devices("cpu")
        if len(found) < count:
            raise errors.BadValueError(
                f"--plan {topology}: {len(found)} CPU devices to compile for, wanted {shape}; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={shape}."
            )
        return GPUS[kind], found[:count]
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise errors.BadValueError(
            f"--plan {topology!r}: wanted KIND:SHAPE with KIND of {', '.join(CHIPS)} and SHAPE as "
            "Cloud TPU writes it: v5e:4x4, v6e:2x4, v4:2x2x1, v5p:2x2x1; or up to 999 GPUs: "
            f"{', '.join(f'{gpu}:8' for gpu in GPUS)}."
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu is missing, or knows no such slice: plain RuntimeErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.BadValueError(
            f"--plan {topology}: no such slice for the compiler ({reason}); is libtpu installed "
            "(pip install 'avs_jax[tpu]'), and is the shape one that Cloud TPU has?"
        ) from error
    return CHIPS[kind], list(found.devices)


def read_fields(spec: str, fields: Sequence[str]) -> ml_collections.ConfigDict:
    """A config file with fields set: "batch_size=64", "model.dtype=bfloat16".

    Raises:
      NotFoundError, UnknownNameError, BadValueError: as for the flags of `avs_jax.train`.
    """
    config = read_config(spec)
    for text in fields:
        name, equals, value = text.partition("=")
        if not equals:
            raise errors.BadValueError(f"--set {text!r}: wanted NAME=VALUE, e.g. fsdp=4.")
        check_fields(config, [name])
        with contextlib.suppress(json.JSONDecodeError):  # then it is a word
            value = json.loads(value)
        value = tuple(value) if isinstance(value, list) else value
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise errors.BadValueError(f"--set {text}: {error}.") from error
    return config


def compile_train_step(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[Callable, PyTree, int]:
    """The program of a training step as `avs_jax.train` makes it, from shapes (see
    `sharding.compile_step`); the state's shapes; FLOPs of the step on all devices.

    Raises:
      BadValueError: a batch that the devices cannot share evenly.
    """
    devices.check_batch_size(config.batch_size, mesh)
    # By platform it would be chosen for the machine that compiles.
    program = plan_program(
        config,
        mesh,
        config.steps or 10_000,
        two_pass_variance=bool(config.model.two_pass_variance),
    )
    size, shapes = config.data.size, program.state_shapes
    batch = state.batch_shapes(
        config.batch_size, config.data.seconds, size, devices.batch_sharding(mesh)
    )
    step = program.make_step(size)
    totals = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated(mesh)),
        jax.eval_shape(program.make_empty_totals(step, batch)),
    )
    compiled = program.compile_step(step, shapes, totals, batch)
    one = on_one_device(step, program.collectives)
    return compiled, shapes, count_flops(one, shapes, batch)


def count_state_bytes(shapes: PyTree) -> int:
    """What a device holds of arrays of these shapes and shardings."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(shapes)
    )


def plan_training(topology: str, config: ml_collections.ConfigDict) -> dict:
    """Compiles a training step for a slice and reckons what it costs.

    Returns:
      a dict of JSON's types; sizes in bytes, times in seconds, "a chip" where a name does not say
      otherwise. "fits" is False, with "reason", where the compiler says that memory is too small.

    Raises:
      BadValueError: see `find_chips`; a batch or fsdp that does not divide; parallel="pmap".
    """
    if config.parallel != "sharded":
        raise errors.BadValueError(
            f"parallel={config.parallel!r} cannot be planned: jax.pmap compiles for devices that "
            "are here alone; plan parallel='sharded'."
        )
    chip, found = find_chips(topology)
    mesh = devices.make_mesh(config.fsdp, found)
    hosts = max(1, mesh.size // chip.per_host)
    about = {
        "topology": topology,
        "chips": mesh.size,
        "hosts": hosts,
        "model": config.model.name,
        "backbone": config.model.backbone,
        "dtype": config.model.dtype,
        "norm": config.model.norm,
        "fsdp": config.fsdp,
        "batch_size": config.batch_size,
        "size": config.data.size,
        "seconds": config.data.seconds,
        "memory_there_is": chip.memory,
        "compiler": "its own" if found[0].platform == "tpu" else f"{found[0].platform}'s",
    }
    began = time.monotonic()
    try:
        compiled, shapes, flops = compile_train_step(_without_shortcuts(config, found), mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return about | {"fits": False, "reason": _say_what_is_short(str(error))}
    about["compile_seconds"] = time.monotonic() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    messages = count_messages(compiled.as_text())
    about |= {
        "fits": True,
        "state": count_state_bytes(shapes),
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "memory": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "flops": flops / mesh.size,
        "bytes_touched": cost["bytes accessed"],
        "messages": {kind: list(entry) for kind, entry in messages.items()},
        "checkpoint": sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(shapes)),
    }
    return about | reckon(about, chip, config)


def _without_shortcuts(
    config: ml_collections.ConfigDict, found: Sequence[jax.Device]
) -> ml_collections.ConfigDict:
    """The config, but for CPUs that stand in for GPUs at a precision at which they compute as these
    do (`layers.conv.convolve`)."""
    if found[0].platform != "cpu" or config.matmul_precision:
        return config
    exact = config.copy_and_resolve_references()
    exact.matmul_precision = "highest"
    return exact


def reckon(about: dict, chip: Chip, config: ml_collections.ConfigDict) -> dict:
    """Times of a step between the two shares of the peak, and what hosts must deliver."""
    precision = config.matmul_precision or "default"
    passes = dict(zip(MATMUL_PRECISIONS, chip.passes, strict=True)).get(precision, chip.passes[-1])
    if config.model.dtype == "bfloat16":
        passes = 1
    touching = about["bytes_touched"] / (chip.bandwidth * EXPECTED["bandwidth"])
    # A ring sends each byte of a sum twice, of a gather once; most of it while others compute.
    sent = sum(
        (2 if kind == "all-reduce" else 1) * size for kind, (_, size) in about["messages"].items()
    )
    sending = sent / (chip.wires * EXPECTED["wires"])
    computing = [passes * about["flops"] / (chip.flops * share) for share in EXPECTED["flops"]]
    slow, fast = (max(x, touching) + sending for x in computing)
    clips = config.batch_size / slow, config.batch_size / fast
    frames = config.data.seconds * config.data.size**2 * 3  # uint8, as pipelines hand them over
    sound = config.data.seconds * 16_000 * 4
    return {
        "computing": computing[::-1],
        "touching": touching,
        "sending": sending,
        "step_seconds": [fast, slow],
        "clips_per_second": list(clips),
        "clips_per_second_host": [x / about["hosts"] for x in clips],
        "input_bytes_per_second_host": [x / about["hosts"] * (frames + sound) for x in clips],
        "bound": max(
            ("products", computing[1]),
            ("memory", touching),
            ("messages", sending),
            key=lambda x: x[1],
        )[0],
    }


def advise(about: dict) -> list[str]:
    """What to set, one line each."""
    if not about["fits"]:
        return [
            "does not fit: config.fsdp = a divisor of the chips shares the state; "
            "config.model.remat='blocks' keeps fewer activations; config.accumulate=2 halves them; "
            "or a smaller config.batch_size"
        ]
    lines = []
    if about["memory"] > 0.9 * about["memory_there_is"]:
        lines.append("fits barely: config.model.remat='blocks' or config.accumulate=2")
    if about["memory"] < 0.4 * about["memory_there_is"]:
        lines.append(f"room for config.batch_size={2 * about['batch_size']}")
    if about["dtype"] == "float32":
        lines.append("config.model.dtype='bfloat16' halves what activations take and move")
    count, _ = about["messages"].get("all-reduce", (0, 0))
    if count > 40 and about["norm"] == "global":
        lines.append(
            f"{count} messages of sums, most of them BatchNorm's: config.model.norm='per_device' "
            "(as PyTorch's replicas) or 'frozen' has few"
        )
    return lines


def make_lines(about: dict) -> list[str]:
    """The plan as text."""
    gib = 2**30
    head = (
        f"{about['model']} with {about['backbone']}, {about['dtype']}, {about['batch_size']} clips "
        f"a step on {about['topology']} ({about['chips']} chips, {about['hosts']} hosts), "
        f"fsdp={about['fsdp']}"
    )
    if not about["fits"]:
        return [head, f"  {about['reason']}", *(f"  {line}" for line in advise(about))]
    fast, slow = (1e3 * x for x in about["step_seconds"])
    few, many = about["clips_per_second"]
    low, high = (x / 1e6 for x in about["input_bytes_per_second_host"])
    hosts, flops = about["hosts"], about["flops"] / 1e12
    state, temporary, used, there = (
        about[name] / gib for name in ("state", "temporary", "memory", "memory_there_is")
    )
    messages = ", ".join(
        f"{count} {kind} of {size / 1e6:.1f} MB in all"
        for kind, (count, size) in about["messages"].items()
    )
    rows = (
        (
            "memory a chip",
            f"{used:.2f} of {there:.0f} GiB: state {state:.2f}, temporary {temporary:.2f}",
        ),
        ("a step, a chip", f"{flops:.2f} TFLOP, {about['bytes_touched'] / 1e9:.1f} GB touched"),
        ("messages", messages or "none"),
        ("expected", f"{fast:.1f} to {slow:.1f} ms a step, {few:.0f} to {many:.0f} clips/s"),
        ("", f"bound by {about['bound']}, at {_say_assumptions()}"),
        (
            "input a host",
            f"{few / hosts:.0f} to {many / hosts:.0f} clips/s, {low:.0f} to {high:.0f} MB/s raw",
        ),
        ("checkpoint", f"{about['checkpoint'] / 1e6:.0f} MB"),
        ("compiled here in", f"{about['compile_seconds']:.0f} s, by {about['compiler']} compiler"),
        *(("to set", line) for line in advise(about)),
    )
    return [head, *(f"  {name:<18}{text}" for name, text in rows)]


def _say_assumptions() -> str:
    low, high = (round(100 * x) for x in EXPECTED["flops"])
    return (
        f"{low}-{high} % of the chip's products, {EXPECTED['bandwidth']:.0%} of its memory's and "
        f"{EXPECTED['wires']:.0%} of its links' bandwidth"
    )


def _say_what_is_short(message: str) -> str:
    """Of XLA's pages about memory the figure."""
    found = re.search(r"[Uu]sed ([\d.]+\w+) of ([\d.]+\w+) hbm", message)
    if found:
        return f"needs {found[1]} of {found[2]} of a chip's memory"
    return message.splitlines()[0][:200]
