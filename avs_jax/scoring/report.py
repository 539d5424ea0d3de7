"""Figures for people and programs: Markdown tables, JSON, saved masks."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from avs_jax import errors
from avs_jax.media.drawing import BINARY_COLOURS, palette, write_png
from avs_jax.media.partial import write_whole
from avs_jax.scoring import modes
from avs_jax.scoring.records import Clip, Records
from avs_jax.types import UInt8


def make_table(
    title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float | int]]
) -> str:
    """Markdown: a row per name in `rows`; numbers with four digits, blanks where there is none."""

    def cell(value):
        if value is None:
            return ""
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell(row.get(c)) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def table_of_sounds(split: str, figures: Mapping[str, Mapping[str, float | int]]) -> str:
    """A row per metric, a column per sound: {sound: {metric: value}}."""
    rows: dict[str, dict[str, float]] = {}
    for sound, values in figures.items():
        for metric, value in values.items():
            rows.setdefault(metric, {})[sound.replace("_", " ")] = value
    return make_table(split, [sound.replace("_", " ") for sound in figures], rows)


def table_of_figures(title: str, figures: Mapping[str, float | int]) -> str:
    """A row per figure."""
    return make_table(title, ["value"], {name: {"value": v} for name, v in figures.items()})


def breakdown(records: Records, class_names: Sequence[str] | None) -> dict[str, Any]:
    """{"groups": {group: figures}, "classes": {name: figures}, "clips": {id: mean IoU}}."""
    parts = modes.groups(records)
    details: dict[str, Any] = {
        "groups": {
            name_group(name, class_names): {"frames": int(part.use.sum())} | modes.strict(part)
            for name, part in parts.items()
        },
        "classes": {},
        "clips": {},
    }
    if records.kind == "semantic":
        table = modes.per_class(records)
        names = class_names or [str(i) for i in range(len(table["iou"]))]
        details["classes"] = {
            name: {figure: values[i].item() for figure, values in table.items()}
            for i, name in enumerate(names)
        }
        return details
    details["clips"] = {
        clip.id: round(float(value), 6)
        for clip, value in zip(records.clips, modes.clip_scores(records), strict=True)
        if not np.isnan(value)
    }
    return details


def name_group(group: str, class_names: Sequence[str] | None) -> str:
    """class_7 -> class_drum where the data set knows its classes by their ids alone."""
    kind, _, value = group.partition("_")
    if kind == "class" and value.isdigit() and class_names:
        return f"class_{class_names[int(value)]}"
    return group


def table_of_groups(details: Mapping[str, Any]) -> str:
    """Markdown of `breakdown`'s groups; empty if there are none."""
    rows = details.get("groups")
    if not rows:
        return ""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    return make_table("strict, by group", list(columns), rows)


def table_of_classes(details: Mapping[str, Any]) -> str:
    """Markdown of those of `breakdown`'s classes that are labelled or predicted; or empty."""
    rows = {name: row for name, row in details.get("classes", {}).items() if row["frames"]}
    if not rows:
        return ""
    return make_table("strict, by class", list(next(iter(rows.values()))), rows)


def write(output: epath.Path, results: Mapping[str, Any], details: Mapping, text: str) -> None:
    """results.json (one flat line), results.md, and details.json where there are any.

    Raises:
      BadValueError: the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / "results.json", json.dumps(results) + "\n")
        write_whole(output / "results.md", text)
        if details:
            write_whole(output / "details.json", json.dumps(details, indent=1) + "\n")
    except OSError as error:
        raise errors.not_writable("--output", output, error) from error


class MaskFolder:
    """Saves masks: FOLDER/CLIP/masks/SECOND.png (L) and FOLDER/CLIP/palette/SECOND.png (RGB).

    Masks hold class ids, or 0 and 255 where the question is only what sounds. Characters of an id
    that a file name cannot have become "_".
    """

    def __init__(self, folder: str, num_classes: int):
        self._folder = epath.Path(folder)
        self._binary = num_classes == 1
        self._colours = BINARY_COLOURS if self._binary else palette(num_classes)
        errors.check_writable("--save_masks", self._folder)

    def save(self, clip: Clip, masks: UInt8[np.ndarray, "t h w"]) -> None:
        folder = self._folder / re.sub(r"[^\w.+-]", "_", clip.id)
        for second, mask in enumerate(masks):
            write_png(folder / "masks" / f"{second}.png", mask * 255 if self._binary else mask)
            write_png(folder / "palette" / f"{second}.png", self._colours[mask])
