"""The best and the worst clips of an evaluation: chosen, run once more, and laid out for a page."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from avs_jax.data import SAMPLE_RATE, transforms
from avs_jax.media import drawing
from avs_jax.reporting.embedding import embed_picture, embed_sound
from avs_jax.scoring import modes
from avs_jax.scoring.evaluators import Evaluator
from avs_jax.scoring.records import Clip, Records
from avs_jax.types import PyTree

# Bounds of what a page holds, whatever the data set.
EACH = 4  # clips at either end
_MOST_SECONDS = 10  # the first of a clip
CELL = 160  # pixels, the width of a picture


@dataclasses.dataclass(frozen=True)
class Shown:
    """A clip of the page, cut to so many seconds.

    Attributes:
      clip, score: what is known of it, and its `modes.clip_scores`.
      example: frames u8[t h w 3], label, label_mask, waveform f32[16000 t], see `avs_jax.data`.
      masks: u8[t y x], class ids that the model marks, or 0 and 1.
      ious: of each second; NaN where it has no label.
    """

    clip: Clip
    score: float
    example: dict[str, Any]
    masks: np.ndarray
    ious: np.ndarray


def choose(records: Records, each: int = EACH) -> tuple[list[int], list[int]]:
    """Places of the best clips, best first, and of the worst, worst first; none is in both.

    The best are of those in which something sounds, if there are any: silence is easily right.
    """
    scores = modes.clip_scores(records)
    order = np.argsort(-scores, kind="stable")  # NaN last
    order = order[: int(np.isfinite(scores).sum())].tolist()
    worst = order[::-1][: min(each, len(order) // 2)]
    rest = [place for place in order if place not in worst]
    if records.kind == "binary":
        sounding = (records.use & ~records["empty"]).any(1)
    else:
        sounding = (records.use & (records["labelled"][..., 1:] > 0).any(2)).any(1)
    return ([place for place in rest if sounding[place]] or rest)[:each], worst


def run(
    evaluator: Evaluator, variables: PyTree, size: int, records: Records, places: Sequence[int]
) -> list[Shown]:
    """Runs clips once more for their masks.

    Args:
      variables: the evaluator's. size: of pictures. records: of the clips' own sound.
    """
    masks = evaluator.masks(variables, places)
    scores, ious = modes.clip_scores(records), modes.frame_scores(records)
    ious = np.where(records.use, ious, np.nan)
    fit = transforms.Resize(size)
    shown = []
    for place, marked in zip(places, masks, strict=True):
        t = min(len(marked), _MOST_SECONDS)
        clip = fit.map(evaluator.source[place])
        example = {name: clip[name][:t] for name in ("frames", "label", "label_mask")}
        example["waveform"] = clip["waveform"][: t * SAMPLE_RATE]
        known = records.clips[place]
        shown.append(Shown(known, float(scores[place]), example, marked[:t], ious[place][:t]))
    return shown


# ------------------------------------------------------------------------------------------- cards


def make_card(shown: Shown, class_names: Sequence[str] | None) -> str:
    """HTML of a clip: its name and score, its sound to play, and a strip of its seconds.

    class_names: by id; None where masks only say whether a pixel sounds.
    """
    seconds = range(len(shown.masks))
    frames = [_shrink(frame) for frame in shown.example["frames"]]
    colours = drawing.BINARY_COLOURS if class_names is None else drawing.palette(256)
    label = shown.example["label"]
    label = np.minimum(label, 1) if class_names is None else label

    def paint(ids, second):
        height, width = frames[second].shape[:2]
        ids = cv2.resize(ids.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        return drawing.overlay(frames[second], ids, colours)

    known = shown.example["label_mask"]
    rows = {
        "frame": [_img(frames[s], f"second {s}") for s in seconds],
        "truth": [
            _img(paint(label[s], s), f"truth of second {s}") if known[s] else "no label"
            for s in seconds
        ],
        "marked": [_img(paint(shown.masks[s], s), f"marked in second {s}") for s in seconds],
        "IoU": ["" if np.isnan(iou) else f"{iou:.2f}" for iou in shown.ious],
    }
    head = "".join(f"<th scope=col>{s} s</th>" for s in seconds)
    body = "".join(
        f"<tr><th scope=row>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    )
    heard = drawing.draw_spectrogram(
        shown.example["waveform"], len(seconds), 64, len(seconds) * CELL
    )
    body += (
        f"<tr><th scope=row>sound</th><td colspan={len(seconds)}>"
        f"{_img(heard, 'log-mel spectrogram')}</td></tr>"
    )
    name = html.escape(shown.clip.id)
    return (
        f'<article class=clip data-score="{shown.score:.6f}"><h4>{name} '
        f"<span class=score>IoU {shown.score:.3f}</span></h4>"
        f"{_tell_classes(shown, label, class_names, colours)}"
        f'<audio controls preload=metadata src="{embed_sound(shown.example["waveform"])}" '
        f'aria-label="sound of {name}"></audio>'
        f'<div class=scroll tabindex=0 role=region aria-label="seconds of {name}"><table '
        f"class=strip><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        "</article>"
    )


def _tell_classes(shown, label, class_names, colours) -> str:
    """What sounds, and, where masks are of classes, a legend."""
    if class_names is None:
        sounding = sorted(name for name in shown.clip.sounding if not name.isdigit())
        return f"<p class=meta>{html.escape(', '.join(sounding))}</p>" if sounding else ""
    ids: Mapping[int, None] = dict.fromkeys(
        np.unique(np.concatenate([label.ravel(), shown.masks.ravel()])).tolist()
    )
    entries = []
    for i in (i for i in ids if i):
        red, green, blue = colours[i].tolist()
        where = "" if (label == i).any() else " (marked, not true)"
        where = where if (shown.masks == i).any() else " (not marked)"
        entries.append(
            f'<span class=key><i style="background:rgb({red},{green},{blue})"></i>'
            f"{html.escape(class_names[i])}{where}</span>"
        )
    return f"<p class=meta>{''.join(entries) or 'nothing sounds or is marked'}</p>"


def _shrink(frame: np.ndarray) -> np.ndarray:
    """To the width of a cell; small pictures of test data become larger."""
    height = max(1, min(round(frame.shape[0] * CELL / frame.shape[1]), 2 * CELL))
    how = cv2.INTER_AREA if frame.shape[1] > CELL else cv2.INTER_CUBIC
    return cv2.resize(frame, (CELL, height), interpolation=how)


def _img(picture: np.ndarray, text: str) -> str:
    height, width = picture.shape[:2]
    return f'<img src="{embed_picture(picture)}" alt="{text}" width={width} height={height}>'
