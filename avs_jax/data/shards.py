"""Writes clips into ArrayRecord shards, by all cores; a build that was killed goes on where it was.

A shard is a file of 64 clips and, once it is whole, a report beside it (JSON): what was written,
what was wrong, and a fingerprint of the clips and of the size and date of every file they are made
of. A shard whose report still fits is not written again, except where it left out a broken clip.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import cv2
from array_record.python import array_record_module

from avs_jax import errors
from avs_jax.data.avsbench import clips as clips_lib
from avs_jax.data.avsbench.faults import Finding
from avs_jax.data.avsbench.layouts import Clip

CLIPS_PER_SHARD = 64  # 30 MB of S4, 150 MB of AVSS: enough of them for a hundred cores
_WORTH_PROCESSES = 200  # clips; 5 seconds of work
# One record a group, for random access. Level 6 sees that PNG and JPEG bytes do not shrink and
# leaves them as they are: as small as the default level 3, and read twice as fast.
_WRITER_OPTIONS = "group_size:1,zstd:6"
FORMAT = "1"  # of records: shards written with another one are written again


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write, its clips, and whether to repack them (see `clips.read_clip`)."""

    split: str
    path: str
    clips: tuple[Clip, ...]
    repack: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a shard."""

    fingerprint: str
    num_bytes: int
    counts: dict[str, dict[str, int]]  # subset -> clips, frames, labelled
    findings: tuple[Finding, ...]

    @property
    def num_clips(self) -> int:
        return sum(count["clips"] for count in self.counts.values())

    @property
    def is_whole(self) -> bool:
        return not any(finding.fatal for finding in self.findings)


def plan_shards(
    folder: pathlib.Path, splits: dict[str, Sequence[Clip]], repack: bool = False
) -> list[Shard]:
    """Deals the clips of each split into shards.

    "train" in an order that is random but always the same: in the table's order neighbours are
    alike; so shuffled, `train[:10%]` is a fair sample. Other splits in the table's order, in which
    AVSBench's code evaluates: its F-measure depends on which clips share a batch.
    """
    shards = []
    for split, clips in splits.items():
        if split == "train":
            clips = sorted(clips, key=lambda clip: hashlib.sha256(clip.id.encode()).digest())
        for index, start in enumerate(range(0, len(clips), CLIPS_PER_SHARD)):
            path = folder / f"{split}-{index:05d}.array_record"
            part = tuple(clips[start : start + CLIPS_PER_SHARD])
            shards.append(Shard(split, os.fspath(path), part, repack))
    return shards


def write_shards(
    shards: Sequence[Shard], num_workers: int, progress: Callable[[int], object]
) -> list[Report]:
    """Writes what is not written yet.

    Args:
      shards: see `plan_shards`; their folder exists.
      num_workers: processes; 1 writes in this one.
      progress: called with a number of clips when that many more are done.

    Returns:
      The report of each shard, in order.
    """
    reports: dict[int, Report] = {}
    for index, report in run_parallel(write_shard, shards, num_workers):
        reports[index] = report
        progress(len(shards[index].clips))
    return [reports[index] for index in range(len(shards))]


def run_parallel(
    function: Callable, items: Sequence, num_workers: int
) -> Iterator[tuple[int, object]]:
    """Yields (index, function(item)) as they come, from as many processes; 1 works in this one."""
    num_workers = min(num_workers, len(items))
    if num_workers <= 1:
        yield from ((index, function(item)) for index, item in enumerate(items))
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        futures = {pool.submit(function, item): index for index, item in enumerate(items)}
        for future in concurrent.futures.as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def count_workers(num_clips: int) -> int:
    """A process for each core that we may use; one where it is done before others have started."""
    if num_clips < _WORTH_PROCESSES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # a killed parent would leave workers that wait for it forever

    threading.Thread(target=follow_parent, daemon=True).start()


def write_shard(shard: Shard) -> Report:
    """Writes one shard, unless it is written already, and returns its report."""
    report_path = f"{shard.path}.json"
    fingerprint = _fingerprint(shard)
    report = _load_report(report_path)
    fits = report is not None and report.is_whole and report.fingerprint == fingerprint
    if fits and os.path.exists(shard.path):
        return report
    findings, counts = [], {}
    temporary = f"{shard.path}.{os.getpid()}.tmp"
    features = clips_lib.features()
    with _open_writer(temporary) as writer:
        for clip in shard.clips:
            example, found = clips_lib.read_clip(clip, shard.repack)
            findings += found
            if example is None:
                continue
            count = counts.setdefault(clip.subset, {"clips": 0, "frames": 0, "labelled": 0})
            count["clips"] += 1
            count["frames"] += example["num_frames"]
            count["labelled"] += example["num_labelled"]
            for key in ("frames", "label"):
                example[key] = [io.BytesIO(data) for data in example[key]]
            writer.write(features.serialize_example(example))
    report = Report(fingerprint, os.path.getsize(temporary), counts, tuple(findings))
    with contextlib.suppress(FileNotFoundError):
        os.remove(report_path)  # it tells of the file that is replaced now
    os.replace(temporary, shard.path)
    _save_report(report, report_path)
    return report


@contextlib.contextmanager
def _open_writer(path: str) -> Iterator[array_record_module.ArrayRecordWriter]:
    """An ArrayRecord that is closed whatever happens; raises BadValueError if it cannot be."""
    writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
    try:
        try:
            yield writer
        finally:
            writer.close()  # most of the data are written here
    except RuntimeError as error:  # ArrayRecord's only kind
        reason = str(error).partition(";")[0]
        raise errors.BadValueError(f"cannot write {path}: {reason}.") from error


def _fingerprint(shard: Shard) -> str:
    digest = hashlib.sha256(f"{FORMAT} {shard.repack}".encode())
    for clip in shard.clips:
        digest.update(repr(clip).encode())
        for path in (*clip.frames, *clip.masks, *clip.colours, clip.wav):
            try:
                status = os.stat(path)
                digest.update(f"{status.st_size} {status.st_mtime_ns};".encode())
            except OSError:
                digest.update(b"none;")
    return digest.hexdigest()


def _load_report(path: str) -> Report | None:
    try:
        with open(path) as file:
            content = json.load(file)
        findings = tuple(Finding(**finding) for finding in content.pop("findings"))
        return Report(**content, findings=findings)
    except (OSError, ValueError, TypeError, KeyError):  # none, or cut off
        return None


def _save_report(report: Report, path: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as file:
        json.dump(dataclasses.asdict(report), file)
    os.replace(temporary, path)
