"""Whether anything is lost when the train program is killed, and its disk or its files fail.

    python -m tests.faults.torture [--kills 200] [--minutes 60] [--seed 0] [--only NAME ...]

The real program (`python -m avs_jax.train`) on the smallest run; every run that a fault befell is
gone on with by the same command, and has to end with the parameters, statistics, optimiser state,
losses and scores of a run that nobody disturbed, bit for bit. Prints a table and exits 1 if a step
beyond the last checkpoint was lost, if anything differs, or if a program ended in another way than
it should: with one line, or by going on.
"""

import argparse
import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.data.tiny import build_tiny
from tests.faults import files, pairs
from tests.faults.runs import finish, read_clips, read_log, read_sums, start

FIELDS = {"checkpoint_every": 2, "eval.every": 3, "keep_best": 2}
LOG = ("train/loss", "train/learning_rate", "validation/miou", "validation/f_measure")


@dataclasses.dataclass
class Row:
    """A line of the table. steps lost: beyond the last checkpoint that is whole."""

    tried: int = 0
    lost: int = 0
    corrupted: int = 0


class Torture:
    """Runs, faults, and what became of them."""

    def __init__(self, folder: Path, seed: int, minutes: float, steps: int = 24):
        self.folder, self.steps = folder, steps
        self.dice = random.Random(seed)
        self.ends = time.monotonic() + 60 * minutes
        self.data = folder / "data"
        build_tiny(self.data, clips=(20, 4, 4))
        self.rows: dict[str, Row] = {}
        self.count = 0
        self.began = time.monotonic()
        finish(self.start("whole"))
        self.seconds = time.monotonic() - self.began

    def start(self, name: str | Path, **fields) -> subprocess.Popen:
        return start(self.folder / name, self.data, self.steps, **(FIELDS | fields))

    def in_time(self) -> bool:
        return time.monotonic() < self.ends

    def new_workdir(self) -> Path:
        self.count += 1
        return self.folder / f"run{self.count}"

    def note(self, fault: str, lost: int = 0, wrong: str = "") -> None:
        row = self.rows.setdefault(fault, Row())
        row.tried += 1
        row.lost += lost
        row.corrupted += bool(wrong)
        minutes = (time.monotonic() - self.began) / 60
        told = f"{lost} steps lost, {wrong}" if lost or wrong else "nothing lost"
        print(f"{minutes:5.1f} min: {fault}: {told}", flush=True)

    def compare(self, workdir: Path, whole: Path | None = None) -> str:
        """In what a finished run differs from the one that nobody disturbed; "" if in nothing."""
        whole = whole or self.folder / "whole"
        if read_sums(workdir, self.steps) != read_sums(whole, self.steps):
            return "the state differs"
        for name in LOG:
            if read_log(workdir, name) != read_log(whole, name):
                return f"{name} differs"
        if read_best(workdir) != read_best(whole):
            return "best/ differs"
        return ""

    def go_on(self, workdir: Path, expected: int | None = None, **fields) -> tuple[int, str]:
        """(steps lost, what is wrong) of a run that goes on to its end.

        expected: step of the last checkpoint that is whole.
        """
        process = self.start(workdir, **fields)
        output, _ = process.communicate(timeout=600)
        if process.returncode or "Traceback" in output:
            print(output)
            return 0, f"ended with {process.returncode}"
        lost = 0 if expected is None else expected - read_start(output)
        return lost, self.compare(workdir)


def read_start(output: str) -> int:
    """The step at which a program said that it goes on."""
    for line in output.splitlines():
        if line.startswith("going on at step "):
            return int(line.split()[4])
    return 0


def read_best(workdir: Path) -> dict[str, str]:
    steps = sorted(p.name for p in (workdir / "best").iterdir() if p.name.isdigit())
    return {step: files.meta(workdir / "best" / step)["checksums"] for step in steps}


def last_whole(workdir: Path) -> int:
    """The last step whose checkpoint has its own name: until then it has another."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


# ------------------------------------------------------------------ kills


def in_a_checkpoint(workdir: Path, _before: int) -> bool:
    folders = (workdir / "checkpoints", workdir / "best")
    return any("tmp" in name for x in folders if x.exists() for name in os.listdir(x))


def in_an_evaluation(workdir: Path, before: int) -> bool:
    """Between the line of a step that is evaluated and that of its scores."""
    if not (workdir / "metrics.jsonl").exists():
        return False
    try:
        trained, scored = (read_log(workdir, x)[-1][0] for x in ("train/loss", "validation/miou"))
    except (IndexError, ValueError):  # none yet; a line that is being written
        return False
    return trained > max(scored, before) and trained % FIELDS["eval.every"] == 0


def kill(torture: Torture, workdir: Path, process: subprocess.Popen) -> tuple[str, str]:
    """Kills a program at a moment of one of three kinds.

    Returns:
      Which one, or "" if the program ended before; and its output.
    """
    dice = torture.dice
    kind = dice.choice(["any moment", "in a checkpoint", "in an evaluation"])
    before = last_whole(workdir)
    if kind == "any moment":
        until = time.monotonic() + dice.uniform(0, 1.2 * torture.seconds)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.005)
    else:
        looks = {"in a checkpoint": in_a_checkpoint, "in an evaluation": in_an_evaluation}[kind]
        skipped = dice.randrange(4)  # of such moments, so that the run gets on
        seen = False
        while process.poll() is None:
            now = looks(workdir, before)
            if now and not seen and (skipped := skipped - 1) < 0:
                time.sleep(dice.uniform(0, 0.1))
                break
            seen = now
            time.sleep(0.001)
    killed = process.poll() is None
    process.kill()
    output, _ = process.communicate(timeout=600)  # comes back once its readers have ended too
    return (f"SIGKILL, {kind}" if killed else ""), output


def kills(torture: Torture, count: int) -> None:
    """The same run is killed again and again until it reaches its end; then the next one."""
    killed = 0
    while killed < count and torture.in_time():
        faults, wrong = kill_to_the_end(torture, count - killed)
        for fault, lost in faults:
            torture.note(fault, lost, wrong)
        killed += len(faults)


def kill_to_the_end(torture: Torture, count: int) -> tuple[list[tuple[str, int]], str]:
    """The faults that befell a run, at most `count`, with the steps each lost; what is wrong."""
    workdir, faults = torture.new_workdir(), []
    fault, wrong = "none yet", ""
    while fault:
        whole = last_whole(workdir)
        process = torture.start(workdir, **{"data.num_workers": torture.dice.choice([0, 0, 0, 1])})
        if len(faults) < count and torture.in_time():
            fault, output = kill(torture, workdir, process)
        else:
            fault, (output, _) = "", process.communicate(timeout=600)
        if faults and "going on at step" in output:
            faults[-1] = (faults[-1][0], whole - read_start(output))
        if "cannot be read" in output or "Traceback" in output:
            wrong = f"something cannot be read: {output}"
        if fault:
            faults.append((fault, 0))
            print(f"    {fault}; saved: step {last_whole(workdir)}", flush=True)
    if process.returncode:
        wrong = f"ended with {process.returncode}: {output}"
    return faults, wrong or torture.compare(workdir)


# ------------------------------------------------------------------ files, disks, other runs


def make_stopped(torture: Torture) -> Path:
    """A run of two checkpoints that was killed after the second."""
    workdir = torture.folder / "stopped"
    if not workdir.exists():
        process = torture.start(workdir)
        while last_whole(workdir) < 8:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        process.kill()
        process.communicate()
    return workdir


def damage(torture: Torture, count: int) -> None:
    """Every kind of file of the last checkpoint, damaged in each of four ways: `count` of them."""
    stopped = make_stopped(torture)
    last = last_whole(stopped)
    cases = [
        (kind, how)
        for kind in files.kinds(stopped / "checkpoints" / str(last))
        for how in files.DAMAGES
    ]
    torture.dice.shuffle(cases)
    for kind, how in cases[:count]:
        if not torture.in_time():
            return
        workdir = torture.new_workdir()
        shutil.copytree(stopped, workdir)
        files.damage(workdir / "checkpoints" / str(last), kind, how, torture.dice)
        before = last - FIELDS["checkpoint_every"]
        lost, wrong = torture.go_on(workdir, before)  # or at the last: it may have no need of it
        torture.note(f"file of a checkpoint {how}", max(lost, 0), wrong and f"{kind}: {wrong}")
        shutil.rmtree(workdir)


def full_disk(torture: Torture, count: int) -> None:
    for _ in range(count):
        if not torture.in_time():
            return
        workdir = torture.new_workdir()
        size = torture.dice.randrange(100_000, 500_000)
        with files.small_disk(workdir, size) as grow:
            if grow is None:
                print("no disk of its own can be mounted here: needs root")
                return
            process = torture.start(workdir)
            output, _ = process.communicate(timeout=600)
            wrong = files.wrong_end(process, output, "no space left on device")
            expected = last_whole(workdir)
            grow()
            lost, differs = torture.go_on(workdir, expected)
            torture.note("disk full during a save", lost, wrong or differs)


def second_run(torture: Torture) -> None:
    workdir = torture.new_workdir()
    first = torture.start(workdir)
    while last_whole(workdir) < 2:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    second = torture.start(workdir)
    output, _ = second.communicate(timeout=600)
    first.send_signal(signal.SIGCONT)
    wrong = files.wrong_end(second, output, f"in use by process {first.pid}")
    finish(first)
    torture.note("second run in a WORKDIR", 0, wrong or torture.compare(workdir))


def read_only(torture: Torture) -> None:
    workdir = torture.new_workdir()
    shutil.copytree(make_stopped(torture), workdir)
    expected = last_whole(workdir)
    with files.read_only(workdir):
        process = torture.start(workdir)
        output, _ = process.communicate(timeout=600)
        wrong = files.wrong_end(process, output, "is not writable")
    lost, differs = torture.go_on(workdir, expected)
    torture.note("WORKDIR that is read-only", lost, wrong or differs)


def data_removed(torture: Torture) -> None:
    """A file of the data goes while a run reads it; the run that goes on names it."""
    (path,) = torture.data.rglob("*-train.array_record-*")
    workdir, elsewhere = torture.new_workdir(), torture.folder / "away"
    process = torture.start(workdir)
    while last_whole(workdir) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    path.rename(elsewhere)
    process.kill()
    process.communicate()
    expected = last_whole(workdir)
    process = torture.start(workdir)
    output, _ = process.communicate(timeout=600)
    wrong = files.wrong_end(process, output, "sounding_shapes")
    elsewhere.rename(path)
    lost, differs = torture.go_on(workdir, expected)
    torture.note("data file removed under a run", lost, wrong or differs)


def elsewhere(torture: Torture, counts: tuple[int, ...] = (0, 1, 2, 4)) -> None:
    """Killed in mid-epoch, again and again, it goes on with other readers and devices."""
    fields = {"program": "tests.training.told_train", "batch_size": 8, "eval.every": 100}
    fields |= {"checkpoint_every": 1}
    whole, parts = torture.folder / "told", torture.new_workdir()
    finish(torture.start(whole, **fields))
    ways = [(workers, devices) for workers in counts for devices in (1, 2, 4)]
    torture.dice.shuffle(ways)
    for number, (workers, devices) in enumerate(ways):
        told = {"KILL_AT": str(number + 3)}
        process = torture.start(
            parts, **fields, devices=devices, environment=told, **{"data.num_workers": workers}
        )
        output, _ = process.communicate(timeout=600)
        wrong = "" if process.returncode == -signal.SIGKILL else f"ended: {output}"
        lost = number + 1 - read_start(output) if number else 0
        torture.note("SIGKILL in mid-epoch, other readers and devices", lost, wrong)
    finish(torture.start(parts, **fields, devices=2))
    wrong = "" if read_clips(parts) == read_clips(whole) else "other clips"
    a, b = (np.array(read_log(x, "train/loss")) for x in (whole, parts))
    if not np.allclose(a, b, rtol=1e-5, atol=0):
        wrong = "other losses"
    torture.note("SIGKILL in mid-epoch, other readers and devices", 0, wrong)


def one_of_two(torture: Torture, count: int, names: Sequence[str] = tuple(pairs.FAULTS)) -> None:
    """One of two processes is killed, hangs or is told to end; `count` times each."""
    start = functools.partial(torture.start, batch_size=8)
    whole = torture.folder / "pair"
    for process in pairs.start_pair(start, whole):
        finish(process)
    for fault in names * count:
        if not torture.in_time():
            return
        workdir = torture.new_workdir()
        processes = pairs.start_pair(start, workdir)
        while last_whole(workdir) < 2:
            assert processes[0].poll() is None, processes[0].communicate()[0]
            time.sleep(0.01)
        time.sleep(torture.dice.uniform(0, 1))
        wrong, told = pairs.befall(processes, *pairs.FAULTS[fault])
        expected = last_whole(workdir)
        if told != expected:
            wrong = wrong or f"step {expected} is saved, told was {told}"
        outputs = [finish(process) for process in pairs.start_pair(start, workdir)]
        lost = expected - read_start(outputs[0])
        torture.note(fault, lost, wrong or torture.compare(workdir, whole))


# ------------------------------------------------------------------ all


def print_table(rows: dict[str, Row]) -> None:
    print("\n| fault | times tried | steps lost beyond the last checkpoint | corrupted |")
    print("|---|---|---|---|")
    for fault, row in rows.items():
        print(f"| {fault} | {row.tried} | {row.lost} | {row.corrupted} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=88, help="files of checkpoints, damaged")
    parser.add_argument("--disks", type=int, default=6, help="full ones")
    parser.add_argument("--pairs", type=int, default=2, help="of processes, for each of six faults")
    parser.add_argument("--minutes", type=float, default=120, help="nothing new begins after them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="kills, damage, disk, second, readonly, ...")
    args = parser.parse_args()
    faults: dict[str, Callable] = {
        "second": second_run,
        "readonly": read_only,
        "data": data_removed,
        "disk": lambda torture: full_disk(torture, args.disks),
        "elsewhere": elsewhere,
        "pairs": lambda torture: one_of_two(torture, args.pairs),
        "damage": lambda torture: damage(torture, args.damages),
        "kills": lambda torture: kills(torture, args.kills),
    }
    with tempfile.TemporaryDirectory(prefix="torture_") as folder:
        torture = Torture(Path(folder), args.seed, args.minutes)
        print(f"a run takes {torture.seconds:.0f} s", flush=True)
        try:
            for name in args.only or faults:
                faults[name](torture)
        finally:
            print_table(torture.rows)
    sys.exit(any(row.lost or row.corrupted for row in torture.rows.values()))


if __name__ == "__main__":
    main()
