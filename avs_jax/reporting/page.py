"""The page of an evaluation: one HTML file with everything in it, to be opened from a disk.

What it holds is bounded, whatever the size of the data set: a few clips, pictures of one size, rows
of groups and classes up to a number. No script runs in it, and nothing is fetched.
"""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from avs_jax import errors
from avs_jax.media.partial import write_whole
from avs_jax.reporting import curves
from avs_jax.reporting.clips import Shown, make_card
from avs_jax.reporting.embedding import embed_drawing, embed_picture
from avs_jax.reporting.style import STYLE
from avs_jax.scoring import calibration, modes, report, sounds
from avs_jax.scoring.evaluators import ORACLE, suffix
from avs_jax.scoring.records import Records

NAME = "report.html"
_MOST_ROWS = 100  # of groups or classes; details.json has all

_SOUNDS = {
    "own": "its own sound",
    "mute": "silence",
    "noise": "white noise",
    "offscreen": "a sound from off the screen",
    "swap": "another clip's sound",
    "shift": "its own, a second late",
    ORACLE: "all visible objects, marked by who hears nothing",
}
_MEANINGS = {
    "miou": "mean IoU over frames (over classes, where masks are of classes)",
    "f_measure": "best F-measure over thresholds, of each video (of each class)",
    "miou_nonempty": "mean IoU over frames in which something sounds",
    "miou_empty": "the share left blank of frames in which nothing sounds",
    "f_measure_set": "best F-measure with one threshold for the set",
    "iou_dataset": "pixels summed over the set before they are divided",
    "miou_nobg": "without the background",
    "miou_present": "over the classes that are labelled",
    "f_measure_nobg": "without the background",
    "f_measure_present": "over the classes that are labelled",
    "miou_dataset": "pixels summed over the set before they are divided, mean over classes",
}


@dataclasses.dataclass(frozen=True)
class Content:
    """What a page tells.

    Attributes:
      results: the flat line of figures, see `avs_jax.evaluate`; about: the part of it that says
        what the figures are of.
      split: in the names of figures. records: of every sound, and of the oracle.
      class_names: by id, where known; semantic: whether masks are of classes.
      temperature: by which logits were divided for `tenths`.
      best, worst: clips. inside: (clip, kind, picture u8[h w 3]). no_inside: why there is none.
      log: a run's curves, see `read_curves`.
    """

    results: Mapping[str, Any]
    about: Mapping[str, Any]
    split: str
    records: Mapping[str, Records]
    class_names: Sequence[str] | None = None
    semantic: bool = False
    temperature: float = 1.0
    best: Sequence[Shown] = ()
    worst: Sequence[Shown] = ()
    inside: Sequence[tuple[str, str, np.ndarray]] = ()
    no_inside: str = ""
    log: curves.Curves = dataclasses.field(default_factory=dict)


def write(folder: epath.Path, page: str) -> epath.Path:
    """Writes a page into a folder; returns its path.

    Raises:
      BadValueError: the folder cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / NAME, page)
    except OSError as error:
        raise errors.not_writable("--report", folder, error) from error
    return folder / NAME


def build(content: Content) -> str:
    """The page of one run."""
    parts = (
        ("figures", "Figures", _figures),
        ("robustness", "What it does with other sounds", _robustness),
        ("families", "Figures of other families", _families),
        ("groups", "By group", _groups),
        ("classes", "By class", _classes),
        ("clips", "Best and worst clips", _clips),
        ("reliability", "Reliability", _reliability),
        ("inside", "Inside the model", _inside),
        ("training", "Training", _training),
        ("about", "What the figures are of", _about),
    )
    found = [(name, title, make(content)) for name, title, make in parts]
    found = [part for part in found if part[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in found)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{inner}</section>' for name, title, inner in found
    )
    about = content.about
    title = f"{about.get('model', 'model')} on {about.get('data', content.split)}"
    line = f"{about.get('checkpoint', '')}, step {about.get('step', '')}"
    head = f"<h1>{_text(title)}</h1><p class=meta>{_text(line)}</p>{_tiles(content)}"
    return _frame(title, f"{head}<nav>{links}</nav>{body}")


def build_summary(results: Mapping[str, Any], pages: Mapping[str, str]) -> str:
    """The page of several runs: mean and deviation of every figure, and where each one's page is.

    Args:
      results: see `seeds.summarise`. pages: checkpoint -> path of its page, from this one.
    """
    runs = results["runs"]
    rows = [
        [_text(name), _figure(name, mean), _figure(f"{name}_std", results[f"{name}_std"])]
        + [f"{run[name]:.4f}" for run in runs.values()]
        for name, mean in results.items()
        if f"{name}_std" in results
    ]
    title = f"{len(runs)} runs of {results.get('model', 'a model')} on {results.get('data', '')}"
    links = "".join(
        f'<li><a href="{_text(path)}">{_text(name)}</a></li>' for name, path in pages.items()
    )
    table = _table(["figure", "mean", "deviation", *map(_text, runs)], rows)
    note = "<p class=note>The deviation is that of a sample, of one run of several seeds.</p>"
    return _frame(title, f"<h1>{_text(title)}</h1><ul>{links}</ul>{table}{note}")


# ---------------------------------------------------------------------------------------- sections


def _tiles(content: Content) -> str:
    key, tiles = content.split, []
    titles = {"miou": "mean IoU", "f_measure": "F-measure"}
    for name, title in titles.items():
        value = content.results[f"{key}/{name}"]
        low_high = _interval(content.results, name)
        tiles.append((title, f"{value:.3f}", f"95 %: {low_high}" if low_high else ""))
    for sound in ("swap", "mute"):
        other = content.results.get(f"{key}/miou_{sound}")
        if other is not None:
            drop = content.results[f"{key}/miou"] - other
            tiles.append((f"mean IoU lost with {_SOUNDS[sound]}", f"{drop:.3f}", ""))
    clips = f"{content.about.get('clips', '')} clips"
    tiles.append(("evaluated on", clips, f"{content.about.get('frames', '')} frames"))
    inner = "".join(f"<div class=tile>{a}<b>{b}</b><small>{c}</small></div>" for a, b, c in tiles)
    return f"<div class=tiles>{inner}</div>"


def _figures(content: Content) -> str:
    columns = list(content.records)
    names = [name for name in _MEANINGS if f"{content.split}/{name}" in content.results]
    rows = []
    for name in names:
        row = [f"{name}<small>{_MEANINGS[name]}</small>"]
        for sound in columns:
            key = f"{content.split}/{name}{suffix(sound)}"
            cell = _figure(key, content.results[key]) if key in content.results else ""
            if sound == "own" and (low_high := _interval(content.results, name)):
                cell += f"<small>{low_high}</small>"
            row.append(cell)
        rows.append(row)
    heads = ["", *(_text(sound.replace("_", " ")) for sound in columns)]
    return (
        _table(heads, rows)
        + "<p class=note>Under a figure: its 95 % interval, by a bootstrap over clips "
        f"({modes.RESAMPLES} resamples, seed 0). Own: the sound the clip came with.</p>"
    )


def _robustness(content: Content) -> str:
    own, rows = content.records["own"], []
    others = {s: r for s, r in content.records.items() if s in sounds.SOUNDS[1:]}
    if not others:
        return ""
    marks = modes.robust(own, others)
    for sound, records in content.records.items():
        key = f"{content.split}/miou{suffix(sound)}"
        value = content.results.get(key, modes.summary(records)["miou"])
        low, high = modes.intervals(records)["miou"]
        marked = marks.get(f"{sound}/fpr")
        kind = {"own": "", ORACLE: "oracle"}.get(sound, "other")
        rows.append(
            [
                _SOUNDS[sound],
                _bar(value, (low, high), kind),
                f"{_figure(key, value)}<small>{low:.3f} to {high:.3f}</small>",
                "" if marked is None else f"{marked:.1%}",
            ]
        )
    return (
        "<p>Mean IoU with the clips' own labels when the model hears something else. A model that "
        "listens falls; one that only looks does not.</p>"
        + _table(["it hears", "mean IoU", "", "marked of a frame"], rows, wide=1)
        + "<p class=note>Marked: the share of a frame that is marked although nothing in the "
        "picture makes that sound; none should be.</p>"
    )


def _families(content: Content) -> str:
    families: dict[str, list] = {}
    for name, value in content.results.items():
        family, _, figure = name.partition("/")
        if figure and family in (*modes.MODES, "robust"):
            families.setdefault(family, []).append([_text(figure), _figure(name, value)])
    return "".join(
        f"<h3>{family}</h3>{_table(['figure', 'value'], rows)}" for family, rows in families.items()
    )


def _groups(content: Content) -> str:
    own, rows = content.records["own"], []
    groups = modes.groups(own)
    for name, part in list(groups.items())[:_MOST_ROWS]:
        value, ends = modes.summary(part)["miou"], modes.intervals(part)["miou"]
        kind, _, which = report.name_group(name, content.class_names).partition("_")
        which = {"1_on": "1 and later"}.get(which, which)
        rows.append(
            [
                _text(f"{kind} {which}"),
                _bar(value, ends),
                f"{value:.4f}<small>{ends[0]:.3f} to {ends[1]:.3f}</small>",
                f"{int(part.use.sum())}",
            ]
        )
    if not rows:
        return ""
    return _table(["group", "mean IoU", "", "frames"], rows, wide=1) + _tell_more(groups)


def _classes(content: Content) -> str:
    if not content.semantic:
        return ""
    own = content.records["own"]
    table, ends = modes.per_class(own), modes.class_intervals(own)["iou"]
    names = content.class_names or [str(i) for i in range(len(table["iou"]))]
    order = [i for i in np.argsort(-table["iou"], kind="stable").tolist() if table["frames"][i]]
    rows = [
        [
            _text(names[i]),
            _bar(table["iou"][i], ends[i]),
            f"{table['iou'][i]:.4f}<small>{ends[i][0]:.3f} to {ends[i][1]:.3f}</small>",
            f"{table['f_measure'][i]:.4f}",
            f"{int(table['frames'][i])}",
        ]
        for i in order[:_MOST_ROWS]
    ]
    left = len(names) - len(order)
    note = f"<p class=note>{left} classes are neither labelled nor marked.</p>" if left else ""
    return _table(["class", "IoU", "", "F", "frames"], rows, wide=1) + _tell_more(order) + note


def _clips(content: Content) -> str:
    names = content.class_names if content.semantic else None
    parts = [
        f"<h3>{title}</h3>{''.join(make_card(shown, names) for shown in group)}"
        for title, group in (("Best", content.best), ("Worst", content.worst))
        if group
    ]
    return "".join(parts) and (
        "<p class=note>By the mean IoU over a clip's frames; where nothing sounds, that is the "
        "share of the frame left blank. The best are of those in which something sounds, if there "
        "are any. Pictures that do not fit scroll sideways. The sound is what the model hears, 16 "
        "kHz mono.</p>" + "".join(parts)
    )


def _reliability(content: Content) -> str:
    own = content.records["own"]
    if "tenths" not in own.scores:
        return ""
    rows, error = calibration.read_tenths(own["tenths"][own.use].sum(0, dtype=np.float64))

    def draw(figure):
        axes = figure.add_subplot(xlabel="probability said", ylabel="share that is true")
        axes.plot([0, 1], [0, 1], color="0.55", lw=1, ls="--")
        axes.plot([row[0] for row in rows], [row[1] for row in rows], "o-", color="#4a8fd0")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)

    what = (
        "Of pixels whose likeliest class is said to be so probable: how many are of it."
        if content.semantic
        else "Of pixels said to sound with such a probability: how many do."
    )
    table = [[f"{said:.3f}", f"{true:.3f}", f"{pixels:,}"] for said, true, pixels in rows]
    return (
        f"<p>{what} On the broken line probabilities are true; below it the model is too sure.</p>"
        + embed_drawing(draw, 3.8, 3.4, "reliability", "reliability of probabilities")
        + f"<p>Expected calibration error {error:.4f}, at temperature {content.temperature:g}.</p>"
        + f"<div class=narrow>{_table(['said', 'true', 'pixels'], table)}</div>"
    )


def _inside(content: Content) -> str:
    if not content.inside:
        return f"<p class=note>{_text(content.no_inside)}</p>" if content.no_inside else ""
    return "".join(
        f"<h3>{_text(kind)}: {_text(clip)}</h3><div class=scroll tabindex=0 role=region "
        f'aria-label="{_text(kind)}"><div class=picture style="width:{picture.shape[1] + 12}px">'
        f'<img src="{embed_picture(picture)}" alt="{_text(kind)} of {_text(clip)}" '
        f"width={picture.shape[1]} height={picture.shape[0]}></div></div>"
        for clip, kind, picture in content.inside
    )


def _training(content: Content) -> str:
    panels = curves.choose_panels(content.log)
    if not panels:
        return ""
    height = 0.4 + 2.4 * len(panels)

    def draw(figure):
        curves.draw(figure, panels, content.log.get("train/seconds"))

    return embed_drawing(draw, 5.6, height, "training", "losses and scores over steps")


def _about(content: Content) -> str:
    rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in content.about.items())
    return f"<dl>{rows}</dl>"


# ------------------------------------------------------------------------------------------- parts


def _text(value: Any) -> str:
    return html.escape(str(value))


def _frame(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="'
        'width=device-width,initial-scale=1"><link rel=icon href="data:,">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _figure(name: str, value: float | int) -> str:
    """A figure of the results, with its name for who reads the page by a program."""
    shown = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f'<span data-figure="{_text(name)}">{shown}</span>'


def _interval(results: Mapping[str, Any], name: str) -> str:
    ends = [results.get(f"interval/{name}_{end}") for end in ("low", "high")]
    return "" if None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], wide: int = -1) -> str:
    """Cells are HTML; the column `wide` gets what room there is."""
    head = "".join(f"<th scope=col>{cell}</th>" for cell in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<th scope=row>{cell}</th>"
            if i == 0
            else f"<td{' class=wide' * (i == wide)}>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=scroll><table class=figures><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _bar(value: float, ends: tuple[float, float], kind: str = "") -> str:
    """A bar of 0 to 1 with its interval; kind: "", "other" or "oracle", of another colour."""
    low, high = ends
    return (
        f'<span class="bar {kind}"><i style="width:{value:.2%}"></i>'
        f'<u style="left:{low:.2%};width:{high - low:.2%}"></u></span>'
    )


def _tell_more(rows: Sequence | Mapping) -> str:
    more = len(rows) - _MOST_ROWS
    return f"<p class=note>{more} more are in details.json (--metrics).</p>" if more > 0 else ""
