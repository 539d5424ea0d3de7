"""Several processes that run one program together: how they find each other, and who is missing.

    --distributed                                               found by jax: TPU, GKE, Slurm, MPI
    --coordinator HOST:PORT --process_id I --num_processes N    told

With the second, processes meet on HOST:PORT before jax starts there, for jax itself aborts with a
stack trace where the coordinator cannot be reached or a process comes twice, and says nothing where
two process 0 listen on one port or the processes disagree about their number.
"""

import argparse
import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from avs_jax import errors

WAIT = 300.0  # seconds for all processes to come: images are pulled, queues are waited in

_GREETING = "avs_jax"
_LONGEST = 10_000  # bytes of a message
_RETRY = 0.5  # seconds between two tries to connect


class Job(NamedTuple):
    """This process among its peers; coordinator None: jax finds all of it."""

    coordinator: str | None = None
    process_id: int | None = None
    num_processes: int | None = None
    wait: float = WAIT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `read_job` takes."""
    add = parser.add_argument
    add("--distributed", action="store_true", help="one of several processes, which jax finds")
    add("--coordinator", metavar="HOST:PORT", help="of process 0, where jax does not find it")
    add("--process_id", type=int, metavar="I", help="which of several this is, from 0")
    add("--num_processes", type=int, metavar="N", help="how many there are")
    add("--wait_seconds", type=float, default=WAIT, help="that all have to come")


def read_job(
    distributed: bool,
    coordinator: str | None,
    process_id: int | None,
    num_processes: int | None,
    wait: float = WAIT,
) -> Job | None:
    """What the command line says; None: one process alone.

    Raises:
      BadValueError: options that are missing, contradict each other, or cannot be.
    """
    told = {
        "coordinator": coordinator,
        "process_id": process_id,
        "num_processes": num_processes,
    }
    missing = [f"--{name}" for name, value in told.items() if value is None]
    if len(missing) == len(told):
        return _read_environment(wait) if distributed else None
    if distributed:
        raise errors.BadValueError(
            "--distributed has jax find the other processes, --coordinator says where they are; "
            "use one of them."
        )
    if missing:
        raise errors.BadValueError(
            f"{' and '.join(missing)} missing: wanted --coordinator HOST:PORT --process_id I "
            "--num_processes N together."
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise errors.BadValueError(
            f"--process_id {process_id} of --num_processes {num_processes}: wanted 0 to N - 1."
        )
    split_address(coordinator)
    if wait <= 0:
        raise errors.BadValueError(f"--wait_seconds {wait}: wanted more than 0.")
    return Job(coordinator, process_id, num_processes, wait)


def _read_environment(wait: float) -> Job:
    """jax itself reads JAX_COORDINATOR_ADDRESS alone, and the rest of no variable."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
    address, *numbers = (os.environ.get(name) for name in names)
    if any(number is None for number in numbers):
        return Job(wait=wait)
    for name, number in zip(names[1:], numbers, strict=True):
        if not number.isdecimal():
            raise errors.BadValueError(f"{name}={number}: wanted a number.")
    process_id, num_processes = map(int, numbers)
    if address is None:
        return Job(None, process_id, num_processes, wait)
    return read_job(False, address, process_id, num_processes, wait)


def split_address(address: str) -> tuple[str, int]:
    """ "host:1234" or "[::1]:1234" -> host and port.

    Raises:
      BadValueError: it is of another form.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise errors.BadValueError(
            f"--coordinator {address}: wanted HOST:PORT of process 0, a free port of 1 to 65535."
        )
    return host, int(port)


def join(job: Job) -> None:
    """Returns when all processes are there and jax knows them.

    Raises:
      BadValueError: the coordinator cannot be reached, somebody does not come, a process comes
        twice, or they disagree about their number.
    """
    if job.coordinator is None:
        given = {"process_id": job.process_id, "num_processes": job.num_processes}
        try:
            jax.distributed.initialize(**given, initialization_timeout=int(job.wait))
        except ValueError as error:
            raise errors.BadValueError(
                f"--distributed: jax finds no cluster here ({str(error).splitlines()[0]}); on TPU "
                "VMs, GKE, Slurm and Open MPI it does, elsewhere use --coordinator HOST:PORT "
                "--process_id I --num_processes N."
            ) from error
        return
    if job.num_processes > 1:
        if job.process_id == 0:
            _receive_all(job)
        else:
            _report(job)
    jax.distributed.initialize(
        job.coordinator, job.num_processes, job.process_id, initialization_timeout=int(job.wait)
    )


# ------------------------------------------------------------------------------------- the meeting


def _introduce(job: Job) -> dict[str, Any]:
    return {
        "program": _GREETING,
        "process_id": job.process_id,
        "num_processes": job.num_processes,
        "name": f"process {os.getpid()} on {socket.gethostname()}",
    }


def send(peer: socket.socket, message: Mapping) -> None:
    """One message: JSON and a newline."""
    peer.sendall(json.dumps(message).encode() + b"\n")


def receive(peer: socket.socket) -> dict:
    """The next message; {} where the other end said something else, or went."""
    text = b""
    while not text.endswith(b"\n") and len(text) < _LONGEST:
        part = peer.recv(1)  # what follows the newline stays
        if not part:
            return {}
        text += part
    try:
        message = json.loads(text)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _receive_all(job: Job) -> None:
    """Process 0: waits for all others, and tells them that, or why not, they may go on."""
    _, port = split_address(job.coordinator)
    try:
        listener = socket.create_server(("", port))
    except OSError as error:
        raise errors.BadValueError(
            f"--coordinator {job.coordinator}: process 0 cannot listen on port {port} "
            f"({error.strerror}); is --process_id 0 given twice, or another run there? Use another "
            "port."
        ) from error
    with contextlib.ExitStack() as stack, listener:
        came: list[socket.socket] = []
        try:
            _wait_for_all(listener, job, stack, came)
            word = {"go": True}
        except errors.BadValueError as error:
            word = {"refused": str(error)}
            raise
        finally:
            for peer in came:
                with contextlib.suppress(OSError):
                    send(peer, word)
                    peer.settimeout(5)
                    peer.recv(1)  # they hang up first: else the port is kept from jax for a minute


def _wait_for_all(
    listener: socket.socket, job: Job, stack: contextlib.ExitStack, came: list[socket.socket]
) -> None:
    """Fills `came` with the connections of those that wait for a word."""
    until, own = time.monotonic() + job.wait, _introduce(job)
    there: dict[int, tuple[socket.socket, dict]] = {}
    while len(there) < job.num_processes - 1:
        listener.settimeout(max(until - time.monotonic(), 0.01))
        try:
            peer = stack.enter_context(listener.accept()[0])
            peer.settimeout(5)
            other = receive(peer)
        except OSError:
            if time.monotonic() < until:
                continue
            missing = [str(i) for i in range(1, job.num_processes) if i not in there]
            raise errors.BadValueError(
                f"--process_id {', '.join(missing)} of {job.num_processes} did not come to "
                f"{job.coordinator} within {job.wait:.0f} s; start one on each host, all with the "
                "same --coordinator and --num_processes."
            ) from None
        number = other.get("process_id")
        if other.get("program") != _GREETING or not isinstance(number, int):
            continue  # whoever looks at ports
        came.append(peer)
        if other["num_processes"] != job.num_processes:
            raise errors.BadValueError(
                f"--num_processes is {other['num_processes']} for {other['name']} and "
                f"{job.num_processes} for {own['name']}; give all the same."
            )
        before = own if number == 0 else None
        if number in there and _is_there(there[number][0]):  # else it went, and came again
            before = there[number][1]
        if before:
            raise errors.BadValueError(
                f"--process_id {number} is given twice: to {before['name']} and to "
                f"{other['name']}; give each of the {job.num_processes} its own, from 0."
            )
        there[number] = peer, other


def _is_there(peer: socket.socket) -> bool:
    """Whether the other end has not hung up; it has nothing to say now."""
    peer.setblocking(False)
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        peer.settimeout(5)


def _report(job: Job) -> None:
    """Another process: tells process 0 that it is there, and waits for its word."""
    address, until = split_address(job.coordinator), time.monotonic() + job.wait
    reason = "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as peer:
                send(peer, _introduce(job))
                peer.settimeout(max(until - time.monotonic(), 0.01) + 5)  # it gives up first
                answer = receive(peer)
        except socket.gaierror as error:
            raise errors.BadValueError(
                f"--coordinator {job.coordinator}: no such host ({error.strerror}); name the host "
                "of process 0."
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(_RETRY)
            continue
        if answer.get("go"):
            return
        if "refused" in answer:
            raise errors.BadValueError(answer["refused"])
        reason = "something else answers there"
        time.sleep(_RETRY)
    raise errors.BadValueError(
        f"--coordinator {job.coordinator} was not reached within {job.wait:.0f} s ({reason}); "
        "start --process_id 0 on that host, and let the others reach that port."
    )


# --------------------------------------------------------------------------------- the same command

# May differ: where a host has its data, and how many readers suit it.
_OF_A_HOST = ("data.data_dir", "data.num_threads", "data.num_workers")


def check_same(fields: Mapping[str, Any]) -> None:
    """Compares flat fields, names as on the command line, over all processes.

    Raises:
      BadValueError: on every process, naming the first field that differs, and who has what.
    """
    if jax.process_count() == 1:
        return
    own = {name: value for name, value in fields.items() if name not in _OF_A_HOST}
    text = np.frombuffer(json.dumps(own, default=str, sort_keys=True).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.asarray(len(text))).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: len(text)] = text
    of_all = [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
    for i, other in enumerate(of_all[1:], 1):
        for name in sorted(of_all[0].keys() | other.keys()):
            a, b = of_all[0].get(name), other.get(name)
            if a != b:
                raise errors.BadValueError(
                    f"processes run different commands: {name} is {a!r} for process 0 and {b!r} "
                    f"for process {i}; start all with the same."
                )
