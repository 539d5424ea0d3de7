"""AVSBench on disk: which release lies under a folder, and which files belong to each of its clips.

Three layouts are known, each beside a table (CSV) that names its clips:

    s4         table: name, category, split
               visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
               gt_masks/{split}/{category}/{name}/{name}_{1..5}.png      (train: only _1)
               audio_wav/{split}/{category}/{name}.wav
    ms3        table: video_id, split
               visual_frames/{video_id}/{video_id}.mp4_{1..5}.png
               gt_masks/{split}/{video_id}/{video_id}_{1..5}.png
               audio_wav/{split}/{video_id}.wav
    semantic   table: uid, a_obj, split, label
               {label}/{uid}/frames/{i}.jpg                              (label: v1s, v1m or v2)
               {label}/{uid}/labels_semantic/{i}.png and/or labels_rgb/{i}.png
               {label}/{uid}/audio.wav

Folders may have other names and lie up to three levels below the one that is given: a layout is
known by the folders it is made of, a table by its columns. Nothing here opens a picture or a sound.
"""

import csv
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

from avs_jax import errors

SPLITS = ("train", "val", "test")  # as the tables call them
# Of the semantic layout: one source, several sources, clips of 10 seconds.
SUBSETS = ("v1s", "v1m", "v2")
NUM_FRAMES = {"s4": 5, "ms3": 5, "v1s": 5, "v1m": 5, "v2": 10}
KINDS = ("s4", "ms3", "semantic")
# (subset, split) -> how many clips the release's table names, and `row_digest` of them.
RELEASED = {
    ("s4", "train"): (3452, "b34999d81188"),
    ("s4", "val"): (740, "ea51ef3dea79"),
    ("s4", "test"): (740, "73c6d0b1a799"),
    ("ms3", "train"): (296, "57a7b81be366"),
    ("ms3", "val"): (64, "3fddfd98d89e"),
    ("ms3", "test"): (64, "15ee102a992b"),
    ("v1s", "train"): (3452, "f0a84506c1e1"),
    ("v1s", "val"): (740, "02c24057d33c"),
    ("v1s", "test"): (740, "9d4f6ecd4ff0"),
    ("v1m", "train"): (296, "209bfa564ae6"),
    ("v1m", "val"): (64, "71eb5774860e"),
    ("v1m", "test"): (64, "f2051cf3e7fd"),
    ("v2", "train"): (4750, "d0d81a384e85"),
    ("v2", "val"): (500, "5a5a29e1c189"),
    ("v2", "test"): (750, "5325ae86ac4c"),
}
TITLES = {
    "s4": "S4 (Single-source, object layout)",
    "ms3": "MS3 (Multi-sources, object layout)",
    "semantic": "AVSS (semantic layout)",
}
_COLUMNS = {
    "s4": ("name", "category", "split"),
    "ms3": ("video_id", "split"),
    "semantic": ("uid", "a_obj", "split", "label"),
}
_FIRST = {"s4": 1, "ms3": 1, "semantic": 0}  # frames are counted from
_FRAMES = {  # as released, then as seen in copies
    "s4": tuple(
        f"visual_frames/{{split}}/{{category}}/{{name}}/{{name}}_{{i}}.{suffix}"
        for suffix in ("png", "jpg")
    ),
    "ms3": tuple(
        f"visual_frames/{folder}{{video_id}}/{{video_id}}{infix}_{{i}}.{suffix}"
        for suffix in ("png", "jpg")
        for folder in ("", "{split}/")
        for infix in (".mp4", "")
    ),
    "semantic": tuple(f"{{label}}/{{uid}}/frames/{{i}}.{suffix}" for suffix in ("jpg", "png")),
}
_MASKS = {
    "s4": "gt_masks/{split}/{category}/{name}/{name}_{i}.png",
    "ms3": "gt_masks/{split}/{video_id}/{video_id}_{i}.png",
    "semantic": "{label}/{uid}/labels_semantic/{i}.png",
}
_COLOURS = "{label}/{uid}/labels_rgb/{i}.png"
_WAVS = {
    "s4": "audio_wav/{split}/{category}/{name}.wav",
    "ms3": "audio_wav/{split}/{video_id}.wav",
    "semantic": "{label}/{uid}/audio.wav",
}
_TABLE_NAMES = ("s4_meta_data.csv", "ms3_meta_data.csv", "metadata.csv")  # as released
_DEPTH = 3
# Folders with thousands of entries, where nothing has to be looked for.
_CLIP_FOLDERS = {"visual_frames", "gt_masks", "audio_wav", "audio_log_mel", "raw_videos", *SUBSETS}
_PROBES = 40  # clips looked at to learn how a release names its frames


@dataclasses.dataclass(frozen=True)
class Clip:
    """One row of a table and the files that belong to it, whether they are there or not.

    `masks` are S4's and MS3's 0/255 pictures or the semantic layout's class ids; `colours` are the
    latter in palette colours, else empty. Both are as many as the clip has labelled frames, which
    are always its first ones. `binary`: the labels are wanted as 0 and 1 whatever they are on disk.
    """

    id: str
    split: str
    subset: str  # "s4" "ms3" (object layout) or "v1s" "v1m" "v2"
    category: str  # S4: its category, semantic layout: a_obj, MS3: ""
    frames: tuple[str, ...]
    masks: tuple[str, ...]
    colours: tuple[str, ...]
    wav: str
    binary: bool


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row of a table that names no clip."""

    line: int
    kind: str  # "bad_row" or "duplicate_row"
    why: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A release found on disk: its kind, the folder of its clips, and its table."""

    kind: str
    root: pathlib.Path
    table: pathlib.Path

    @property
    def title(self) -> str:
        return TITLES[self.kind]


def find_layouts(source: str | os.PathLike) -> dict[str, Layout]:
    """Finds the AVSBench releases in or below a folder, at most one of each kind.

    Returns:
      {"s4" | "ms3" | "semantic": Layout}, at least one.

    Raises:
      NotFoundError: no such folder, no release below it, or a release without its table.
      BadValueError: two releases of one kind.
    """
    source = pathlib.Path(source).absolute()
    if not source.is_dir():
        raise errors.NotFoundError(
            f"no folder {source}; give the folder where AVSBench was unpacked (README, 'Data')."
        )
    folders = list(_walk(source, _DEPTH))
    roots: dict[str, pathlib.Path] = {}
    for folder in folders:
        kind = _kind_of(folder)
        if kind in roots:
            raise errors.BadValueError(
                f"two {TITLES[kind]} under {source}: {roots[kind]} and {folder}; give one of them."
            )
        if kind:
            roots[kind] = folder
    if not roots:
        raise errors.NotFoundError(
            f"no AVSBench under {source}: expected visual_frames/, gt_masks/ and audio_wav/ (S4, "
            "MS3) or v1s/, v1m/ and v2/ (AVSS) at most three levels down; see README, 'Data'."
        )
    return {
        kind: Layout(kind, roots[kind], _find_table(kind, roots[kind], folders)) for kind in roots
    }


def _walk(folder: pathlib.Path, depth: int) -> Iterable[pathlib.Path]:
    """The folder and those below it, nearest first, without the folders that hold clips."""
    level = [folder]
    for _ in range(depth + 1):
        yield from level
        level = [
            child
            for parent in level
            if not _kind_of(parent)
            for child in _subfolders(parent)
            if child.name not in _CLIP_FOLDERS and not child.name.startswith(".")
        ]


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, by name; none where it is missing or closed to us."""
    try:
        return sorted(pathlib.Path(entry) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []


def _kind_of(folder: pathlib.Path) -> str | None:
    if any((folder / subset).is_dir() for subset in SUBSETS):
        return "semantic"
    frames = folder / "visual_frames"
    if not frames.is_dir():
        return None
    # S4 files its clips by split and category, MS3 by nothing (or, in some copies, by split).
    for split in SPLITS:
        for category in _subfolders(frames / split)[:_PROBES]:
            if _subfolders(category):
                return "s4"
    return "ms3"


def _find_table(kind: str, root: pathlib.Path, folders: Sequence[pathlib.Path]) -> pathlib.Path:
    """The table with the columns of `kind`: beside the clips, above them, or anywhere found."""
    seen = []
    for folder in dict.fromkeys([root, root.parent, root.parent.parent, *folders]):
        tables = sorted(
            (path for path in folder.glob("*.csv") if path.is_file()),
            key=lambda path: (path.name not in _TABLE_NAMES, path.name),
        )
        for table in tables:
            columns = _read_columns(table)
            if table_kind(columns) == kind:
                return table
            seen.append(f"{table.name} ({', '.join(columns)})")
    raise errors.NotFoundError(
        f"no table for {TITLES[kind]} at {root}: expected a CSV with the columns "
        f"{', '.join(_COLUMNS[kind])} beside it; found {'; '.join(seen) or 'none'}. "
        "Copy the released CSV there."
    )


def table_kind(columns: Iterable[str]) -> str | None:
    """The kind of layout that a table with these columns, in any order, describes."""
    columns = set(columns)
    return next((kind for kind in KINDS if columns >= set(_COLUMNS[kind])), None)


def _open_table(path: pathlib.Path):
    # utf-8-sig: Excel and PowerShell put a byte order mark in front of the first column's name.
    return open(path, encoding="utf-8-sig", errors="replace", newline="")


def _read_columns(path: pathlib.Path) -> list[str]:
    try:
        with _open_table(path) as file:
            header = next(csv.reader(file), [])
    except (csv.Error, OSError):  # some other file that is called .csv, or one that is not ours
        header = []
    return [name.strip().lower() for name in header]


def read_clips(layout: Layout) -> tuple[list[Clip], list[BadRow]]:
    """The clips a table names, in its order, and its rows that name none.

    Columns are found by name, whatever their order. Names stay text, also such as "-_wznbUu3DY".

    Raises:
      BadValueError: the table cannot be read to its end.
    """
    columns = _read_columns(layout.table)
    rows, bad_rows, lines = [], [], {}
    with _open_table(layout.table) as file:
        reader = csv.reader(file)
        next(reader)
        for cells in _read_rows(reader, layout.table):
            if not any(cell.strip() for cell in cells):
                continue
            found = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
            # Only what a layout asks for: others may be called like the fields of our templates.
            row = {name: found[name] for name in _COLUMNS[layout.kind] if name in found}
            fault = _row_fault(layout.kind, row)
            if any("\n" in cell for cell in cells):
                fault = 'a quote (") that is not closed: the lines up to the next one are lost'
            key = (row.get("label"), row.get(_COLUMNS[layout.kind][0]))
            if fault:
                bad_rows.append(BadRow(reader.line_num, "bad_row", fault))
            elif key in lines:
                why = f"{key[1]} is in line {lines[key]} already"
                bad_rows.append(BadRow(reader.line_num, "duplicate_row", why))
            else:
                lines[key] = reader.line_num
                rows.append(row)
    make_clip = _clip_maker(layout, rows)
    return [make_clip(row) for row in rows], bad_rows


def _read_rows(reader, table: pathlib.Path) -> Iterable[list[str]]:
    try:
        yield from reader
    except (csv.Error, OSError) as error:
        raise errors.BadValueError(
            f"{table} cannot be read beyond line {reader.line_num} ({error}); put back the "
            "release's CSV."
        ) from error


def _row_fault(kind: str, row: dict[str, str]) -> str | None:
    for column in _COLUMNS[kind]:
        if not row.get(column) and column != "a_obj":
            return f"no {column}"
    name = row[_COLUMNS[kind][0]]
    for text in (name, row.get("category", "")):
        if "/" in text or "\\" in text or text in (".", ".."):
            return f"{text!r} is not the name of a file"
    if row["split"] not in SPLITS:
        return f"{name}: split {row['split']!r} is none of {', '.join(SPLITS)}"
    if kind == "semantic" and row["label"] not in SUBSETS:
        return f"{name}: label {row['label']!r} is none of {', '.join(SUBSETS)}"
    return None


def _clip_maker(layout: Layout, rows: Sequence[dict]) -> Callable[[dict], Clip]:
    """How to make the Clip of a row, with the names this copy of the release gives its frames."""
    root = layout.root
    # A copy is uniform: its first clips tell how all of them are named.
    template = next(
        (
            template
            for row in rows[:_PROBES]
            for template in _FRAMES[layout.kind]
            if (root / template.format(i=_FIRST[layout.kind], **row)).exists()
        ),
        _FRAMES[layout.kind][0],
    )
    return lambda row: _make_clip(layout.kind, root, template, row)


def _make_clip(kind: str, root: pathlib.Path, template: str, row: dict) -> Clip:
    subset = row["label"] if kind == "semantic" else kind
    num_frames = NUM_FRAMES[subset]
    num_labelled = 1 if subset in ("s4", "v1s") and row["split"] == "train" else num_frames
    first = _FIRST[kind]

    def paths(template, count):
        return tuple(
            os.path.join(root, template.format(i=i, **row)) for i in range(first, first + count)
        )

    return Clip(
        id=row[_COLUMNS[kind][0]],
        split=row["split"],
        subset=subset,
        category=row.get({"s4": "category", "semantic": "a_obj"}.get(kind), ""),
        frames=paths(template, num_frames),
        masks=paths(_MASKS[kind], num_labelled),
        colours=paths(_COLOURS, num_labelled) if kind == "semantic" else (),
        wav=os.path.join(root, _WAVS[kind].format(**row)),
        binary=kind != "semantic",
    )


def as_binary(clips: Iterable[Clip], kind: str) -> list[Clip]:
    """S4 or MS3 rebuilt from the clips of the semantic layout that both releases share.

    Their labels are the semantic release's, which differ from S4's and MS3's own: for training
    without the object layout, not for numbers beside published ones. Clips get S4's and MS3's ids.
    """
    subset = {"s4": "v1s", "ms3": "v1m"}[kind]
    return [
        dataclasses.replace(
            clip,
            # v1s: {name}_{start}_{end} in milliseconds; v1m: MS3's own video_id
            id=re.sub(r"_\d+_\d+$", "", clip.id) if kind == "s4" else clip.id,
            binary=True,
        )
        for clip in clips
        if clip.subset == subset
    ]


def find_strays(layout: Layout, clips: Iterable[Clip]) -> list[str]:
    """Folders of frames that no row of the table names."""
    named = {os.path.dirname(clip.frames[0]) for clip in clips}
    if layout.kind == "semantic":
        level = [folder for subset in SUBSETS for folder in _subfolders(layout.root / subset)]
        level = [folder / "frames" for folder in level]
    else:
        level = [layout.root / "visual_frames"]
        depth = len(next(iter(named), "").split(os.sep)) - len(level[0].parts)
        for _ in range(max(depth, 1)):
            level = [child for folder in level for child in _subfolders(folder)]
    return sorted(str(folder) for folder in level if str(folder) not in named)


def row_digest(clips: Iterable[Clip]) -> str:
    """A fingerprint of which clips there are, whatever their order, to compare with `RELEASED`."""
    rows = sorted(f"{clip.id} {clip.category}" for clip in clips)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:12]
