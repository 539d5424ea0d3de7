"""Builds a data set from a download of AVSBench, once; training and evaluation read the result.

    python -m avs_jax.data.avsbench.build s4   SOURCE DEST      Single-source, one sounding object
    python -m avs_jax.data.avsbench.build ms3  SOURCE DEST      Multi-sources
    python -m avs_jax.data.avsbench.build avss SOURCE DEST      AVSBench-semantic, 71 classes

SOURCE is the folder where the release was unpacked, in any of its layouts; `python -m
avs_jax.data.check SOURCE` says what is in it and what is wrong with it. DEST becomes the `data_dir`
of training. Frames keep the bytes of the release, masks become class ids (0 and 1 in S4 and MS3),
sound becomes 16 kHz mono. A build that was killed goes on where it stopped when started again.

A broken clip does not stop the build, but keeps it from being finished: repair it and start again,
or leave it out with --skip-broken. With --rebuild_from semantic, S4 and MS3 are made from the v1s
and v1m clips of AVSBench-semantic, whose labels DIFFER from S4's and MS3's own: their scores cannot
be compared with published ones.
"""

import argparse
import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import sys
import typing
from collections import Counter
from collections.abc import Iterable, Sequence

import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import dataset_builder

from avs_jax import errors
from avs_jax.data import shards
from avs_jax.data.avsbench import clips as clips_lib
from avs_jax.data.avsbench import layouts
from avs_jax.data.avsbench.faults import KINDS, Finding

NAME = "avsbench"
SUBSETS = {  # of the data set -> those of the release
    "s4": ("s4",),
    "ms3": ("ms3",),
    "avss": ("v1s", "v1m", "v2"),
}
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # the tables' names -> ours
_LISTED = 20  # findings that are printed; all are in the file that the message names
_REBUILT = """
******************************************************************************************
  These are NOT the labels of {name}: they are rebuilt from AVSBench-semantic, which was
  labelled anew. Scores on them cannot be compared with published {name} scores.
******************************************************************************************"""


class AVSBench(dataset_builder.FileReaderBuilder, skip_registration=__name__ == "__main__"):
    """The TFDS builder, configs s4, ms3 and avss; SOURCE is its manual directory.

    `AVSBench(config="s4", data_dir=DEST).download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=SOURCE))`, or `build`.
    """

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: typing.ClassVar[list] = [
        tfds.core.BuilderConfig(name="s4", description="Single-source, binary masks"),
        tfds.core.BuilderConfig(name="ms3", description="Multi-sources, binary masks"),
        tfds.core.BuilderConfig(name="avss", description="AVSBench-semantic, 71 classes"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors of AVSBench for it; see README, 'Data'."
    url_infos: typing.ClassVar[dict] = {}  # nothing is downloaded, so no checksums to look for

    def __init__(
        self,
        *,
        skip_broken: bool = False,
        rebuild_from: str | None = None,
        repack: bool = False,
        num_workers: int | None = None,
        **kwargs,
    ):
        self._skip_broken = skip_broken
        self._rebuild_from = rebuild_from
        self._repack = repack
        self._num_workers = num_workers
        super().__init__(**{"file_format": "array_record"} | kwargs)

    @property
    def staging(self) -> pathlib.Path:
        """Where shards are until all of them are finished."""
        return pathlib.Path(self.data_dir_root, f".building-{NAME}-{self.builder_config.name}")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=clips_lib.features(),
            metadata=tfds.core.MetadataDict(),
            homepage="https://github.com/OpenNLPLab/AVSBench",
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        del download_config
        subset = self.builder_config.name
        layout, clips, row_findings = find_clips(dl_manager.manual_dir, subset, self._rebuild_from)
        with _hold(self.staging) as folder:
            self._remove_half_built()
            splits = {split: [clip for clip in clips if clip.split == split] for split in SPLITS}
            plan = shards.plan_shards(folder, splits, self._repack)
            title = f"{NAME}/{subset}"
            with tqdm.tqdm(desc=title, total=len(clips), unit="clip", smoothing=0.05) as bar:
                workers = self._num_workers or shards.count_workers(len(clips))
                reports = shards.write_shards(plan, workers, bar.update)
            findings = row_findings + [f for report in reports for f in report.findings]
            _check_broken(findings, len(clips), folder, self._skip_broken)
            self.info.set_splits(self._adopt(plan, reports))
            self.info.metadata.update(
                source=str(layout.root),
                labels="semantic" if layout.kind == "semantic" else "object",
                table=_tabulate(subset, clips, plan, reports),
                findings=dict(Counter(finding.kind for finding in findings)),
                left_out=sorted({finding.clip for finding in findings if finding.fatal}),
            )

    def _post_download_and_prepare_hook(self) -> None:
        shutil.rmtree(self.staging)  # not before the data set is under its own name

    def _remove_half_built(self) -> None:
        """What a build that was killed at its very end left beside the folder we write to."""
        for folder in pathlib.Path(self.data_path).parent.glob("incomplete.*"):
            if folder.name != pathlib.Path(self.data_path).name:
                shutil.rmtree(folder)

    def _adopt(self, plan: Sequence[shards.Shard], reports: Sequence[shards.Report]):
        """Puts the finished shards into the data set's folder; empty ones stay behind."""
        infos = []
        for split, name in SPLITS.items():
            parts = [
                (shard, report)
                for shard, report in zip(plan, reports, strict=True)
                if shard.split == split and report.num_clips
            ]
            template = tfds.core.ShardedFileTemplate(
                data_dir=self.data_path,
                dataset_name=self.name,
                split=name,
                filetype_suffix="array_record",
            )
            for index, (shard, _) in enumerate(parts):
                target = template.sharded_filepath(shard_index=index, num_shards=len(parts))
                # A link, so that no shard is lost if we are killed before the data set is finished.
                try:
                    os.link(shard.path, target)
                except OSError:
                    shutil.copyfile(shard.path, target)
            if parts:
                infos.append(
                    tfds.core.SplitInfo(
                        name=name,
                        shard_lengths=[report.num_clips for _, report in parts],
                        num_bytes=sum(report.num_bytes for _, report in parts),
                        filename_template=template,
                    )
                )
        if not infos:
            raise errors.BadValueError(
                f"not one clip of {NAME}/{self.builder_config.name} can be used; "
                "`python -m avs_jax.data.check SOURCE` says what is wrong."
            )
        return tfds.core.SplitDict(infos)


@contextlib.contextmanager
def _hold(folder: pathlib.Path):
    """The folder of unfinished shards, for one build at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            # The lock goes with the process, however that ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.BadValueError(
                f"another build writes {folder}; wait for it or stop it."
            ) from None
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        yield folder


def find_clips(
    source: str | os.PathLike, subset: str, rebuild_from: str | None = None
) -> tuple[layouts.Layout, list[layouts.Clip], list[Finding]]:
    """The clips of a subset under a folder: where they lie, their files, their table's bad rows.

    Raises:
      UnknownNameError: for a subset or `rebuild_from` that is not known.
      NotFoundError: the layout it needs is not there; the message says what is.
      BadValueError: `rebuild_from` for AVSS, or a table without a row.
    """
    if subset not in SUBSETS:
        raise errors.unknown_name(f"subset of {NAME}", subset, SUBSETS)
    if rebuild_from not in (None, "semantic"):
        raise errors.unknown_name("layout to rebuild from", rebuild_from, ["semantic"])
    if rebuild_from and subset == "avss":
        raise errors.BadValueError("avss is the semantic layout; leave out --rebuild_from.")
    found = layouts.find_layouts(source)
    kind = "semantic" if rebuild_from or subset == "avss" else subset
    if kind not in found:
        there = "; ".join(f"{layout.title} at {layout.root}" for layout in found.values())
        cure = "give the folder that has it."
        if subset != "avss" and "semantic" in found:
            cure = (
                f"give the folder that has it, or rebuild {subset.upper()} with other labels by "
                "--rebuild_from semantic."
            )
        raise errors.NotFoundError(
            f"no {layouts.TITLES[kind]} under {source}, only {there}; {cure}"
        )
    layout = found[kind]
    clips, bad_rows = layouts.read_clips(layout)
    if kind != subset and subset != "avss":
        clips = layouts.as_binary(clips, subset)
    if not clips:
        raise errors.BadValueError(f"{layout.table} names no clip of {subset}.")
    findings = [
        Finding(row.kind, f"line {row.line}", str(layout.table), row.why) for row in bad_rows
    ]
    return layout, clips, findings


def _check_broken(
    findings: Sequence[Finding], num_clips: int, folder: pathlib.Path, skip_broken: bool
) -> None:
    """Lists the broken clips; raises BadValueError unless they are to be left out."""
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        return
    lines = [f"{f.clip}: {f.kind} {f.path} {f.detail}".rstrip() for f in fatal]
    for line in lines[:_LISTED]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > _LISTED:
        print(f"  ... and {len(lines) - _LISTED} more", file=sys.stderr)
    count = len({finding.clip for finding in fatal})
    if skip_broken:
        print(f"left out: {count} of {num_clips} clips", file=sys.stderr)
        return
    listed = folder / "broken.txt"
    listed.write_text("\n".join(lines) + "\n")
    raise errors.BadValueError(
        f"{count} of {num_clips} clips are broken (all in {listed}); repair them, as `python -m "
        "avs_jax.data.check SOURCE` says, and start again (what is written stays), or leave them "
        "out with --skip-broken."
    )


def _tabulate(subset: str, clips: Iterable[layouts.Clip], plan, reports) -> list[dict]:
    """A line for each split and subset of the release: clips released, asked for, written."""
    rows = Counter((clip.split, clip.subset) for clip in clips)
    written = {}
    for shard, report in zip(plan, reports, strict=True):
        for name, counts in report.counts.items():
            written.setdefault((shard.split, name), Counter()).update(counts)
    subsets = sorted({name for _, name in rows}, key=list(layouts.NUM_FRAMES).index)
    return [
        {
            "split": SPLITS[split],
            "subset": name,
            "released": layouts.RELEASED[name, split][0],
            "rows": rows[split, name],
            **{
                key: written.get((split, name), {}).get(key, 0)
                for key in ("clips", "frames", "labelled")
            },
        }
        for split in SPLITS
        for name in subsets
    ]


def summarize(info: tfds.core.DatasetInfo) -> str:
    """What a finished data set holds, per split and subset of the release, as a text table."""
    metadata = info.metadata
    subset = info.full_name.split("/")[1]
    lines = [f"{info.full_name} in {info.data_dir}"]
    columns = ("split", "subset", "released", "rows", "clips", "frames", "labelled")
    lines.append("".join(f"{column:>12}" for column in (*columns, "left out")))
    for row in metadata["table"]:
        cells = [*(row[column] for column in columns), row["rows"] - row["clips"]]
        lines.append("".join(f"{cell:>12}" for cell in cells))
    for kind, count in sorted(metadata["findings"].items()):
        lines.append(f"{KINDS[kind].title}: {count}. Fix: {KINDS[kind].fix}.")
    if subset != "avss" and metadata["labels"] == "semantic":
        lines.append(_REBUILT.format(name=subset.upper()))
    return "\n".join(lines)


def build(
    subset: str,
    source: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    skip_broken: bool = False,
    rebuild_from: str | None = None,
    repack: bool = False,
    num_workers: int | None = None,
) -> tfds.core.DatasetInfo:
    """Builds a subset under `data_dir` unless it is there, and returns what is known about it.

    Args:
      subset: "s4", "ms3" or "avss".
      source: the folder where AVSBench was unpacked.
      data_dir: what training calls data_dir.
      skip_broken: leave broken clips out rather than refuse to finish.
      rebuild_from: "semantic": S4 or MS3 from AVSBench-semantic, with its labels.
      repack: store PNG frames (S4, MS3) as uncompressed PNGs: the same pixels, a fifth more space
        (the record is compressed as a whole), read about twice as fast.
      num_workers: processes; None: one for each core.

    Raises:
      UnknownNameError, NotFoundError, BadValueError: see `find_clips`; broken clips; a data set
        with other labels is there already; `data_dir` is no local folder or cannot be written.
    """
    if "://" in os.fspath(data_dir):
        raise errors.BadValueError(
            f"cannot build in {data_dir}; build in a local folder and copy the result there."
        )
    layout, _, _ = find_clips(source, subset, rebuild_from)
    tfds.disable_progress_bar()  # ours tells more: it knows the totals
    try:
        builder = AVSBench(
            config=subset,
            data_dir=os.fspath(data_dir),
            skip_broken=skip_broken,
            rebuild_from=rebuild_from,
            repack=repack,
            num_workers=num_workers,
        )
        if not builder.data_path.exists():
            if rebuild_from:
                print(_REBUILT.format(name=subset.upper()), file=sys.stderr)
            manual = tfds.download.DownloadConfig(manual_dir=os.fspath(source))
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
                builder.download_and_prepare(download_dir=builder.staging, download_config=manual)
    except OSError as error:
        if isinstance(error, errors.InputError):
            raise
        raise errors.BadValueError(f"cannot write {data_dir}: {error}.") from error
    info = tfds.builder_from_directory(builder.data_path).info
    labels = "semantic" if layout.kind == "semantic" else "object"
    if info.metadata["labels"] != labels:
        raise errors.BadValueError(
            f"{builder.data_path} has the labels of the {info.metadata['labels']} layout, not the "
            f"{labels} one's; choose another DEST or delete that folder."
        )
    return info


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.data.avsbench.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subset", choices=list(SUBSETS))
    parser.add_argument("source", metavar="SOURCE", help="folder where AVSBench was unpacked")
    parser.add_argument("dest", metavar="DEST", help="folder of data sets, made if need be")
    parser.add_argument(
        "--skip-broken",
        "--skip_broken",
        action="store_true",
        help="leave out clips that cannot be used, and count them",
    )
    parser.add_argument(
        "--rebuild_from",
        "--rebuild-from",
        choices=["semantic"],
        help="make s4 or ms3 from AVSBench-semantic, with ITS labels",
    )
    parser.add_argument(
        "--repack",
        action="store_true",
        help="s4, ms3: the pixels of PNG frames in a coding that is read twice as fast",
    )
    parser.add_argument(
        "--any_count",
        "--any-count",
        action="store_true",
        help="as for the checker; the table may name other clips than the released one anyway",
    )
    parser.add_argument(
        "--num_workers",
        "--num-workers",
        type=int,
        help="processes (default: one for each core)",
    )
    args = parser.parse_args(argv)
    info = build(
        args.subset,
        args.source,
        args.dest,
        skip_broken=args.skip_broken,
        rebuild_from=args.rebuild_from,
        repack=args.repack,
        num_workers=args.num_workers,
    )
    print(summarize(info))


if __name__ == "__main__":
    from avs_jax.data.avsbench import build as module  # worker processes cannot import __main__

    errors.run_program(module.main)
