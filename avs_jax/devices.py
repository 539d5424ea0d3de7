"""The devices that a program runs on, and how a batch lies on them: one mesh, two axes.

`data` splits the batch, `fsdp` splits the batch and the parameters. Programs are `jax.jit` over
arrays with shardings; the same code runs on one CPU, eight GPUs or a pod of hosts. All means are
over the global batch, and so are statistics of batch normalisation unless `model.norm` says
otherwise.
"""

import contextlib
import ctypes
import sys
from collections.abc import Sequence
from logging import CRITICAL, LogRecord, getLogger
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from avs_jax import errors, hosts
from avs_jax.types import PyTree


def quiet_libraries() -> None:
    """Keeps the info lines of orbax, grain and absl off the console; --verbosity=0 shows them."""
    if not any(argument.startswith("--verbosity") for argument in sys.argv):
        logging.set_verbosity(logging.WARNING)
        # What orbax could not write it raises; besides it is told by asyncio, for each array and
        # after the program's own last line, and by its threads, with their stack traces.
        getLogger("asyncio").setLevel(CRITICAL)
        logging.get_absl_logger().addFilter(_without_trace_of_orbax)
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _tell_unless_loop_is_closed
        if sys.unraisablehook is sys.__unraisablehook__:  # else another's, e.g. pytest's
            sys.unraisablehook = _tell_unraisable_unless_loop_is_closed


def _is_of_closed_loop(error: BaseException | None) -> bool:
    """TensorStore's threads bring results of writing to who has given up after the first error."""
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _tell_unless_loop_is_closed(kind, error, trace) -> None:
    if not _is_of_closed_loop(error):
        sys.__excepthook__(kind, error, trace)


def _tell_unraisable_unless_loop_is_closed(unraisable) -> None:
    if not _is_of_closed_loop(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _without_trace_of_orbax(record: LogRecord) -> bool:
    if "orbax" in record.pathname:
        record.exc_info = record.exc_text = None
    return True


def start_jax(job: hosts.Job | None = None) -> None:
    """Joins the other processes, if any, and keeps compiled programs on disk for the next start.

    The cache is ~/.cache/avs_jax, or wherever JAX_COMPILATION_CACHE_DIR says.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path.home() / ".cache" / "avs_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if job:
        hosts.join(job)
    if jax.default_backend() == "cpu":
        # Caches that XLA keeps for GPUs: their path is a part of each program's key, so that a
        # folder that was moved, or is mounted elsewhere, would hit nothing.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def give_back_memory() -> None:
    """Gives the system what this process no longer uses: glibc keeps what compiling left, hundreds
    of megabytes beside a network of a hundred millions. A few milliseconds."""
    with contextlib.suppress(OSError, AttributeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def force_cpu_devices(count: int) -> None:
    """As many CPU devices; before jax starts, else there are those that there were."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def make_mesh(
    fsdp: int = 1, devices: Sequence[jax.Device] | None = None, by_process: bool = False
) -> Mesh:
    """All devices (of all hosts) as [data, fsdp].

    by_process: one host's after the other's, as `jax.pmap` needs them; else in the order in which
      messages are fastest, which on TPUs follows the wires.

    Raises:
      BadValueError: fsdp does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or len(devices) % fsdp:
        raise errors.BadValueError(
            f"fsdp={fsdp} does not divide the {len(devices)} devices; use a divisor."
        )
    shape, names, types = (len(devices) // fsdp, fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2
    if by_process:
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return Mesh(np.reshape(ordered, shape), names, axis_types=types)
    return jax.make_mesh(shape, names, axis_types=types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Clips are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def gather(variables: PyTree, mesh: Mesh) -> PyTree:
    """Inside a program: weights that lie in parts, whole on every device.

    Said where they are used, or some releases of XLA gather what layers give, where that is less
    (jax 0.12).
    """
    return jax.lax.with_sharding_constraint(variables, replicated(mesh))


def check_batch_size(batch_size: int, mesh: Mesh, name: str = "batch_size") -> None:
    """Raises BadValueError where clips cannot be split evenly over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise errors.BadValueError(
            f"{name}={batch_size} is not divisible by the {mesh.size} devices of mesh axes 'data' "
            f"x 'fsdp'; use a multiple of {mesh.size}."
        )


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The next batch size that splits evenly over the devices; evaluation pads its last batch."""
    return -(-max(batch_size, 1) // mesh.size) * mesh.size
