"""Two processes of one training run, of which one is killed, hangs or is told to end.

    python -m tests.faults.torture --only pairs

The other has to end within 40 s with status 1 and a line that says which went silent and from which
step the same command goes on; where one is told to end (SIGTERM), both save one step and exit with
0. Then the same command goes on from that step and ends as a run that nobody disturbed.
"""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 40.0  # in which the others have to have ended
# Signal and the process that gets it; None: both.
FAULTS = {
    "one of two processes killed": (signal.SIGKILL, 1),
    "the first of two processes killed": (signal.SIGKILL, 0),
    "one of two processes stopped (a silent host)": (signal.SIGSTOP, 1),
    "the first of two processes stopped": (signal.SIGSTOP, 0),
    "SIGTERM to one of two processes": (signal.SIGTERM, 1),
    "SIGTERM to both processes": (signal.SIGTERM, None),
}


def start_pair(start: Callable, workdir: Path, **fields) -> list[subprocess.Popen]:
    """Both, each of two devices. start: as `Torture.start`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    return [
        start(workdir, devices=2, options=(*place, f"--process_id={i}"), **fields) for i in (0, 1)
    ]


def befall(
    processes: list[subprocess.Popen], number: signal.Signals, whom: int | None
) -> tuple[str, int | None]:
    """Sends a signal to one of the processes, or to both (None).

    Returns:
      What is wrong with how the others end, "" if nothing is; the step that they say goes on.
    """
    for process in processes if whom is None else [processes[whom]]:
        process.send_signal(number)
    gentle = number == signal.SIGTERM
    rest = processes if gentle else [processes[1 - whom]]
    began = time.monotonic()
    wrong, steps = "", set()
    for process in rest:
        try:
            output, _ = process.communicate(timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            wrong = "the others hang"
            break
        seconds = time.monotonic() - began
        if seconds > SECONDS:
            wrong = f"the others ended after {seconds:.0f} s"
        wrong = judge(output, process.returncode, None if gentle else whom) or wrong
        steps |= read_steps(output)
    for process in processes:
        process.kill()
        process.communicate()
    if len(steps) > 1:
        wrong = f"they name different steps: {steps}"
    return wrong, max(steps, default=None)


def judge(output: str, code: int, gone: int | None) -> str:
    """What is wrong with an end; "" if nothing is. gone: the process that went, None: none did."""
    # Of a first process that is gone jax and Gloo have their own say; ours is the last line.
    last = output.strip().splitlines()[-1]
    wanted = rf"process {gone} (went silent|gave no sign of life .*): .* it goes on from step \d+\."
    good = re.fullmatch(wanted, last) if gone is not None else "Traceback" not in output
    if code == (gone is not None) and good:
        return ""
    return f"ended with {code}: {output[-3000:]}"


def read_steps(output: str) -> set[int]:
    """From which the same command was said to go on."""
    found = re.search(r"goes on from step (\d+)\.|SIGTERM: saved step (\d+);", output)
    return {int(found[1] or found[2])} if found else set()
