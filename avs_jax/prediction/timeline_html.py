"""A timeline as HTML: rows of what sounds over spectrogram and waveform, and a table by second.

Nothing in it runs or is fetched: `demo.css` gives its look, `demo.js` moves its head and seeks.
"""

import base64
import html
import io
import itertools
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.media.drawing import paint_log_mel

_MOST_HEARD = 5  # rows of names
_SHOWN = 0.15  # probability a name has to reach at some time for a row of its own
_MEL_HEIGHT = 96  # pixels, stretched by the browser


def draw_timeline(described: dict[str, Any]) -> str:
    """What `Timeline.describe` says, as one element with the class `timeline`."""
    length = max(described["film"]["seconds"], 1e-3)
    rows = _marked_rows(described, length) + _heard_rows(described, length)
    return (
        f'<div class="timeline" data-seconds="{length}">'
        '<div class="stage" role="slider" tabindex="0" aria-label="Time of the film" '
        f'aria-valuemin="0" aria-valuemax="{length}" aria-valuenow="0">'
        f"{''.join(rows)}{_draw_sound(described, length)}{_draw_axis(length)}"
        '<div class="head"></div></div>'
        f"{_draw_table(described)}</div>"
    )


def _clock(second: int) -> str:
    return f"{second // 60}:{second % 60:02d}"


def _percent(part: int | float) -> str:
    return "<1 %" if 0 < part < 0.01 else f"{100 * part:.0f} %"


def _place(begin: int | float, end: int | float, length: float) -> str:
    end = min(end, length)
    return f"left:{100 * begin / length:.2f}%;width:{100 * max(end - begin, 0) / length:.2f}%"


def _draw_row(name: str, about: str, cells: list[str], colour: str) -> str:
    return (
        f'<div class="row" style="--colour:{colour}"><span class="name">'
        f'<i class="swatch"></i>{html.escape(name)} <small>{about}</small></span>'
        f'<div class="track">{"".join(cells)}</div></div>'
    )


def _marked_rows(described: dict[str, Any], length: float) -> list[str]:
    """A row a class: bars as high as the probability, pale where nothing is marked."""
    marks = described["marks"]
    edges = _find_edges([mark["time"] for mark in marks], length)
    rows = []
    for place, kind in enumerate(described["classes"]):
        cells = []
        for begin, end, mark in zip(edges, edges[1:], marks, strict=False):
            one = mark["marked"][place]
            pale = "" if one["share"] else ' class="pale"'
            height = f"height:{100 * one['probability']:.0f}%"
            cells.append(f'<b{pale} style="{_place(begin, end, length)};{height}">')
            cells.append("</b>")
        rows.append(_draw_row(kind["name"], "marked in the picture", cells, kind["colour"]))
    return rows


def _find_edges(times: list[float], length: float) -> list[float]:
    """Where each mask gives way to the next, as in the overlay: halfway between them."""
    if not times:
        return []
    halfway = [(before + after) / 2 for before, after in itertools.pairwise(times)]
    return [0.0, *halfway, length]


def _heard_rows(described: dict[str, Any], length: float) -> list[str]:
    """A row for each of the names most heard."""
    by_name: dict[str, dict[int, float]] = {}
    for second in described["seconds"]:
        for one in second["heard"]:
            by_name.setdefault(one["name"], {})[second["second"]] = one["probability"]
    names = [name for name in by_name if max(by_name[name].values()) >= _SHOWN]
    names.sort(key=lambda name: -sum(by_name[name].values()))
    rows = []
    for name in names[:_MOST_HEARD]:
        cells = [
            f'<b style="{_place(second, second + 1, length)};height:{100 * chance:.0f}%"></b>'
            for second, chance in by_name[name].items()
        ]
        rows.append(_draw_row(name, "heard", cells, "var(--heard)"))
    return rows


def _draw_sound(described: dict[str, Any], length: float) -> str:
    """Spectrogram and waveform, as wide as the film is long."""
    columns = np.array(described["log_mel"]["columns"], np.float32)
    if not len(columns):
        return ""
    wanted = round(length * described["log_mel"]["per_second"])
    columns = columns[: max(wanted, 1)]
    covers = 100 * min(1.0, len(columns) / described["log_mel"]["per_second"] / length)
    picture = io.BytesIO()
    pixels = paint_log_mel(columns, _MEL_HEIGHT, len(columns))
    Image.fromarray(pixels).save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    wave = described["waveform"]
    loudest = max(1e-3, *map(abs, wave["low"]), *map(abs, wave["high"]))
    top = [f"{x},{50 - 48 * high / loudest:.1f}" for x, high in enumerate(wave["high"])]
    bottom = [f"{x},{50 - 48 * low / loudest:.1f}" for x, low in enumerate(wave["low"])]
    points = " ".join(top + bottom[::-1])
    width = round(length * wave["per_second"])
    return (
        '<div class="sound"><span class="name">sound <small>125 to 7500 Hz, waveform</small></span>'
        f'<img alt="spectrogram" style="width:{covers:.2f}%" src="data:image/png;base64,{encoded}">'
        f'<svg viewBox="0 0 {max(width, 1)} 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<polygon points="{points}"/></svg></div>'
    )


def _draw_axis(length: float) -> str:
    step = next((step for step in (1, 2, 5, 10, 15, 30, 60, 120) if length / step <= 8), 300)
    ticks = [
        f'<span style="left:{100 * second / length:.2f}%">{_clock(second)}</span>'
        for second in range(0, int(length) + 1, step)
        if second / length < 0.96  # a longer label would stick out
    ]
    return f'<div class="axis">{"".join(ticks)}</div>'


def _draw_table(described: dict[str, Any]) -> str:
    has_names = any(second["heard"] for second in described["seconds"])
    rows = []
    for second in described["seconds"]:
        marked = [
            f"{html.escape(one['name'])} {_percent(one['probability'])}"
            f" <small>({_percent(one['share'])} of the picture)</small>"
            for one in second["marked"]
            if one["share"]
        ]
        heard = [
            f"{html.escape(one['name'])} <small>{_percent(one['probability'])}</small>"
            for one in second["heard"][:3]
        ]
        at = second["second"]
        rows.append(
            f'<tr><td><button type="button" data-second="{at}">{_clock(at)}</button></td>'
            f"<td>{', '.join(marked) or '–'}</td>"
            + (f"<td>{', '.join(heard) or '–'}</td></tr>" if has_names else "</tr>")
        )
    return (
        '<details open><summary>Second by second</summary><div class="scroll"><table><thead><tr>'
        f"<th>time</th><th>marked</th>{'<th>heard</th>' if has_names else ''}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
