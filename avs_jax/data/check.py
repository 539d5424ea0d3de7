"""Checks a download of AVSBench: what is there, what is wrong, and what to do about it.

    python -m avs_jax.data.check SOURCE

Finds the layouts in SOURCE (S4 and MS3 as AVSBench-object has them, AVSBench-semantic), compares
their tables with the released ones, and reads every frame, mask and wav that a table names, as the
builder does. Exit code: 0 if all is well, 1 if anything is wrong, 2 if SOURCE holds no AVSBench.
"""

import argparse
import collections
import csv
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Sequence

import tqdm

from avs_jax import errors
from avs_jax.data import shards
from avs_jax.data.avsbench import clips as clips_lib
from avs_jax.data.avsbench import layouts
from avs_jax.data.avsbench.faults import KINDS, Finding

_CHUNK = 16  # clips that a process checks at a time


@dataclasses.dataclass(frozen=True)
class Count:
    """Clips of one split of one subset: released, named by the table, and fit for a data set."""

    subset: str
    split: str
    released: int
    rows: int
    usable: int


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found in one layout."""

    layout: layouts.Layout
    counts: tuple[Count, ...]
    findings: tuple[Finding, ...]


def check(
    source: str | os.PathLike, *, any_count: bool = False, num_workers: int | None = None
) -> list[Check]:
    """Checks every layout under a folder.

    Args:
      source: the folder where AVSBench was unpacked.
      any_count: do not compare the tables with the released ones (for a part of AVSBench).
      num_workers: processes; None: one for each core.

    Raises:
      NotFoundError, BadValueError: no layout, or two of a kind; see `layouts.find_layouts`.
    """
    found = layouts.find_layouts(source)
    kinds = [kind for kind in layouts.KINDS if kind in found]
    return [_check_layout(found[kind], any_count, num_workers) for kind in kinds]


def _check_layout(layout: layouts.Layout, any_count: bool, num_workers: int | None) -> Check:
    clips, bad_rows = layouts.read_clips(layout)
    findings = [
        Finding(row.kind, f"line {row.line}", str(layout.table), row.why) for row in bad_rows
    ]
    if not any_count:
        findings += _compare_rows(layout, clips)
    findings += [
        Finding("stray", os.path.basename(path), path, "")
        for path in layouts.find_strays(layout, clips)
    ]
    usable = collections.Counter()
    chunks = [clips[start : start + _CHUNK] for start in range(0, len(clips), _CHUNK)]
    found: list = [None] * len(chunks)
    num_workers = num_workers or shards.count_workers(len(clips))
    with tqdm.tqdm(desc=layout.kind, total=len(clips), unit="clip", smoothing=0.05) as bar:
        for index, part in shards.run_parallel(_check_clips, chunks, num_workers):
            found[index] = part
            bar.update(len(chunks[index]))
    for clip, part in zip(clips, itertools.chain.from_iterable(found), strict=True):
        usable[clip.subset, clip.split] += not any(finding.fatal for finding in part)
        findings += part
    rows = collections.Counter((clip.subset, clip.split) for clip in clips)
    counts = [
        Count(*key, layouts.RELEASED[key][0], rows[key], usable[key]) for key in _keys(layout)
    ]
    return Check(layout, tuple(counts), tuple(findings))


def _check_clips(clips: Sequence[layouts.Clip]) -> list[list[Finding]]:
    return [clips_lib.read_clip(clip)[1] for clip in clips]


def _keys(layout: layouts.Layout) -> list[tuple[str, str]]:
    subsets = layouts.SUBSETS if layout.kind == "semantic" else (layout.kind,)
    return list(itertools.product(subsets, layouts.SPLITS))


def _compare_rows(layout: layouts.Layout, clips: Iterable[layouts.Clip]) -> list[Finding]:
    parts = collections.defaultdict(list)
    for clip in clips:
        parts[clip.subset, clip.split].append(clip)
    findings = []
    for key in _keys(layout):
        count, digest = layouts.RELEASED[key]
        name = " ".join(key)
        if len(parts[key]) != count:
            detail = f"{name}: {len(parts[key])}, released {count}"
            findings.append(Finding("row_count", name, str(layout.table), detail))
        elif layouts.row_digest(parts[key]) != digest:
            findings.append(Finding("other_rows", name, str(layout.table), f"{name}: {count}"))
    return findings


def describe(result: Check, listed: int = 5) -> str:
    """The findings of one layout as text: counts, then each kind of fault, examples, and a fix."""
    rows = sum(count.rows for count in result.counts)
    lines = [
        result.layout.title,
        f"  clips in {result.layout.root}",
        f"  table    {result.layout.table}, {rows} clips",
        f"  {'subset':<8}{'split':<8}{'released':>10}{'in table':>10}{'usable':>10}",
    ]
    for count in result.counts:
        if count.rows or count.released:
            numbers = f"{count.released:>10}{count.rows:>10}{count.usable:>10}"
            lines.append(f"  {count.subset:<8}{count.split:<8}{numbers}")
    by_kind = collections.defaultdict(list)
    for finding in result.findings:
        by_kind[finding.kind].append(finding)
    for name in sorted(by_kind, key=list(KINDS).index):
        kind, found = KINDS[name], by_kind[name]
        clips = len({finding.clip for finding in found})
        effect = f"clips that cannot be used: {clips}" if kind.fatal else "used all the same"
        lines.append(
            f"\n  {kind.title[0].upper()}{kind.title[1:]} [{name}]: {len(found)}; {effect}"
        )
        for finding in found[:listed]:
            detail = f"  ({finding.detail})" if finding.detail else ""
            lines.append(f"      {finding.path}{detail}")
        if len(found) > listed:
            lines.append(f"      ... and {len(found) - listed} more")
        lines.append(f"    Fix: {kind.fix}.")
    return "\n".join(lines)


def summarize(results: Sequence[Check]) -> str:
    """The last line: whether a build will go through."""
    findings = [finding for result in results for finding in result.findings]
    if not findings:
        return "All is well."
    faults = f"{len(findings)} fault{'s' * (len(findings) > 1)}"
    broken = {(r.layout.kind, f.clip) for r in results for f in r.findings if f.fatal}
    if not broken:
        return f"{faults}; all clips can be used all the same."
    return f"{faults}; clips that cannot be used: {len(broken)}; repair them or --skip-broken."


def write_report(results: Iterable[Check], path: str | os.PathLike) -> None:
    """All findings as a CSV: layout, kind, clip, path, detail, fix."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layout", "kind", "clip", "path", "detail", "fix"])
        for result in results:
            for f in result.findings:
                fix = KINDS[f.kind].fix
                writer.writerow([result.layout.kind, f.kind, f.clip, f.path, f.detail, fix])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder where AVSBench was unpacked")
    parser.add_argument(
        "--list", type=int, default=5, metavar="N", help="files shown of each kind of fault (5)"
    )
    parser.add_argument("--report", metavar="FILE", help="write all findings to a CSV")
    parser.add_argument(
        "--any_count",
        "--any-count",
        action="store_true",
        help="the tables may name other clips than the released ones (a part of AVSBench)",
    )
    parser.add_argument(
        "--num_workers",
        "--num-workers",
        type=int,
        help="processes (default: one for each core)",
    )
    args = parser.parse_args(argv)
    results = check(args.source, any_count=args.any_count, num_workers=args.num_workers)
    for result in results:
        print(describe(result, args.list), end="\n\n")
    print(summarize(results))
    if args.report:
        write_report(results, args.report)
    if any(result.findings for result in results):
        sys.exit(1)


if __name__ == "__main__":
    from avs_jax.data import check as module  # worker processes cannot import __main__

    errors.run_program(module.main)
