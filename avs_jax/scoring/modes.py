"""What a split's records say: every way in which audio-visual segmentation is reported.

    summary   what training and every evaluation report
    paper     AVSBench's evaluation code to the digit: means of batches of `f_batch_videos` clips
              (4 in AVSBench's test script, 2 in AVSegFormer's), one best threshold for each batch;
              on AVSS padded frames score too, and its mean "without background" drops the last
              class ("woman") instead
    strict    what we recommend: every frame weighs the same, one threshold for the whole set,
              frames that do not exist do not count, class 0 is the background
    dataset   pixels summed over the whole set before anything is divided (CAVP's family)
    jf        DAVIS: region J and boundary F, mean over clips; on AVSS of all classes together

The families differ by ten points and more on the same masks: compare within one only. All
arithmetic here is float64 on the host, over frames in the split's order.
"""

from collections.abc import Callable

import numpy as np

from avs_jax import errors
from avs_jax.scoring import metrics, sounds
from avs_jax.scoring.records import Records
from avs_jax.types import Float

RESAMPLES = 1000  # of the bootstrap: the ends of a 95 % interval then move by about 0.001


def summary(records: Records) -> dict[str, float]:
    """Plain names are means over frames (or videos), *_dataset are of pixels summed over the set.

    Binary:
      miou           mean IoU over frames, the empty ones (nothing sounds) by `binary_frames`' rule
      miou_nonempty  the same over the frames with a target; miou_empty over those without
      f_measure      best F over thresholds of each video's mean curve, mean over videos (a video in
                     which nothing sounds scores 0): the published figure for batches of one video
      f_measure_set  best F over thresholds of the mean curve over all frames with a target: one
                     threshold for the whole set
      iou_dataset    intersections over unions, both summed over all frames
    Semantic:
      miou, f_measure  mean over all k classes, background included, of the mean over the frames in
                     which the class is labelled or predicted; a class never seen is 0 (AVSBench)
      *_nobg         the same without class 0, the background
      *_present      over the classes that occur in the labels
      miou_dataset   intersections over unions summed over all frames, mean over those classes

    A figure over no frames (miou_empty of a set without silence) is left out.

    Raises:
      BadValueError: no frame is in use, or logits were NaN or infinite; so do all families.
    """
    records.check()
    if records.kind == "semantic":
        return _class_figures(records) | {"miou_dataset": dataset(records)["miou_present"]}
    nonempty, empty = _split_empty(records)
    figures = {
        "miou": records["iou"][records.use].mean(dtype=np.float64),
        "f_measure": _f_of_batches(records, 1),
    }
    if nonempty.any():
        figures["miou_nonempty"] = records["iou"][nonempty].mean(dtype=np.float64)
        figures["f_measure_set"] = records["curve"][nonempty].mean(0, dtype=np.float64).max()
    if empty.any():
        figures["miou_empty"] = records["iou"][empty].mean(dtype=np.float64)
    union = _total(records, "union")
    if union:
        figures["iou_dataset"] = _total(records, "inter") / union
    return _floats(figures)


def paper(
    records: Records, f_batch_videos: int = 4, padded_frames: bool = True
) -> dict[str, float | int]:
    """AVSBench's figures, from unweighted means of batches, the last of which may be smaller.

    Args:
      f_batch_videos: clips of a batch; decides which frames share a threshold (S4, MS3).
      padded_frames: AVSS: frames beyond a clip's end, and without label, count as background.
    """
    records.check()
    if f_batch_videos < 1:
        raise errors.BadValueError(f"f_batch_videos={f_batch_videos}: wanted at least 1.")
    if records.kind == "binary":
        means = [
            part["iou"][part.use].mean(dtype=np.float64)
            for part in _batches(records, f_batch_videos)
        ]
        f = _f_of_batches(records, f_batch_videos)
        return _floats({"miou": np.mean(means), "f_measure": f}) | {
            "f_batch_videos": f_batch_videos
        }
    everything = np.ones_like(records.use) if padded_frames else records.use
    records.check_finite(everything)
    iou, f = _class_means(records, everything)
    return _floats(
        {
            "miou": iou.mean(),
            "miou_without_last_class": iou[:-1].mean(),
            "f_measure": f.mean(),
            "f_measure_without_last_class": f[:-1].mean(),
        }
    ) | {"padded_frames": padded_frames}


def strict(records: Records) -> dict[str, float]:
    """Frame-weighted; one threshold for the set; only frames that exist and are labelled."""
    records.check()
    if records.kind == "binary":
        names = {"f_measure_set": "f_measure"}
        wanted = ("miou", "miou_nonempty", "miou_empty", "f_measure_set")
        figures = summary(records)
        return {names.get(name, name): figures[name] for name in wanted if name in figures}
    figures = _class_figures(records)
    blank = records.use & (records["labelled"][..., 0] == records["pixels"])
    if blank.any():  # frames in which nothing sounds
        hits = records["inter"][..., 0][blank]
        figures["miou_empty"] = float((hits / records["pixels"][blank]).mean(dtype=np.float64))
    return figures


def _class_figures(records: Records) -> dict[str, float]:
    """Semantic: means over all classes, all but background, and those that are labelled."""
    iou, f = _class_means(records, records.use)
    present = _sum_frames(records, "labelled", records.use) > 0
    figures = {}
    for name, values in (("miou", iou), ("f_measure", f)):
        figures[name] = values.mean()
        figures[f"{name}_nobg"] = values[1:].mean()
        figures[f"{name}_present"] = values[present].mean()
    return _floats(figures)


def dataset(records: Records) -> dict[str, float]:
    """From sums of pixels: IoU, F1, F with beta^2 0.3, false discovery rate FP / (FP + TP).

    Binary: of the foreground; miou is the mean of foreground and background. Semantic: means over
    the classes for which a figure is defined; *_present over those that are labelled.
    """
    records.check()
    hits, predicted, labelled = (
        _sum_frames(records, name, records.use) for name in ("inter", "predicted", "labelled")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / (predicted + labelled - hits)
        precision, recall = hits / predicted, hits / labelled
        scores = {"f1": _f(precision, recall, 1.0), "f03": _f(precision, recall, metrics.BETA2)}
        scores["fdr"] = 1 - precision
        if records.kind == "binary":
            pixels = _total(records, "pixels")
            misses = predicted + labelled - 2 * hits
            background = (pixels - misses - hits) / (pixels - hits)
            figures = scores | {"iou": iou, "miou": np.nanmean([iou, background])}
        else:
            present = labelled > 0
            figures = {name: _nanmean(values) for name, values in scores.items()}
            figures |= {"miou": _nanmean(iou), "miou_present": iou[present].mean()}
    return _floats({name: value for name, value in figures.items() if not np.isnan(value)})


def jf(records: Records) -> dict[str, float]:
    """Means over clips of the mean over their frames; the scores of `boundary`."""
    records.check()
    use = records.use[records.use.any(1)]
    clips = {}
    for name, score in (("j", records["region"]), ("f", records["boundary"])):
        score = score[records.use.any(1)]
        clips[name] = (score * use).sum(1, dtype=np.float64) / use.sum(1)
    figures = {name: values.mean() for name, values in clips.items()}
    return _floats(figures | {"j_and_f": (figures["j"] + figures["f"]) / 2})


def robust(own: Records, others: dict[str, Records]) -> dict[str, float]:
    """What another sound does, as SOUND/FIGURE.

    drop is by how much miou, against the clip's own label, falls. For a sound that belongs to
    nothing in the picture every mask should be empty: miou_silent is then the IoU against the empty
    mask (the part of a frame left blank), fpr the part marked, s_null the mean of its root
    (Ref-AVS). The published combination with the clean score is not computed: its code does not say
    how it is made. An F-measure against empty masks is 0 by definition.
    """
    clean = summary(own)["miou"]
    figures = {}
    for sound, records in others.items():
        miou = summary(records)["miou"]
        figures |= {f"{sound}/miou": miou, f"{sound}/drop": clean - miou}
        if sound in sounds.NEGATIVE:
            marked = _marked(records)
            figures[f"{sound}/miou_silent"] = 1 - marked.mean()
            figures[f"{sound}/fpr"] = marked.mean()
            figures[f"{sound}/s_null"] = np.sqrt(marked).mean()
    return _floats(figures)


def per_class(records: Records) -> dict[str, np.ndarray]:
    """{"iou", "f_measure", "iou_dataset", "frames"} of shape [k], as in `strict` and `dataset`.

    `frames` counts those in which the class is labelled or predicted; a class without any is 0.
    """
    iou, f = _class_means(records, records.use)
    hits, predicted, labelled = (
        _sum_frames(records, name, records.use) for name in ("inter", "predicted", "labelled")
    )
    counted = (records["predicted"] + records["labelled"] > 0) & records.use[..., None]
    return {
        "iou": iou,
        "f_measure": f,
        "iou_dataset": hits / np.maximum(predicted + labelled - hits, 1),
        "frames": counted.sum((0, 1)),
    }


def groups(records: Records) -> dict[str, Records]:
    """The same records by subset, number of sources, class, second, and without the first second.

    By class where each clip has a single one (S4; AVSS has per-class figures of its own). Only
    groupings that tell something apart are there, and only groups with frames in use.
    """
    subsets = np.asarray([clip.subset for clip in records.clips])
    numbers = [clip.num_sources for clip in records.clips]
    sources = np.asarray(["unknown" if n is None else str(n) for n in numbers])
    found = {}
    groupings = {"subset": subsets, "sources": sources}
    if records.kind == "binary" and all(len(clip.sounding) == 1 for clip in records.clips):
        groupings["class"] = np.asarray([min(clip.sounding) for clip in records.clips])
    for title, values in groupings.items():
        if len(set(values.tolist())) > 1:
            for value in sorted(set(values.tolist())):
                found[f"{title}_{value}"] = records.only(clips=values == value)
    seconds = np.arange(records.use.shape[1])
    if len(seconds) > 1:
        found |= {f"second_{s}": records.only(seconds=seconds == s) for s in seconds}
        found["second_1_on"] = records.only(seconds=seconds > 0)
    return {name: group for name, group in found.items() if group.use.any()}


def frame_scores(records: Records) -> Float[np.ndarray, "c t"]:
    """IoU of every frame: semantic of the classes that are labelled or predicted in it."""
    if records.kind == "binary":
        return records["iou"].astype(np.float64)
    counted = _counted(records)
    return (_class_scores(records)[0] * counted).sum(2) / np.maximum(counted.sum(2), 1)


def clip_scores(records: Records) -> Float[np.ndarray, "c"]:
    """Mean of `frame_scores` over a clip's frames in use; NaN for a clip without any."""
    return _ratio(np.where(records.use, frame_scores(records), 0).sum(1), records.use.sum(1))


def intervals(
    records: Records, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the figures of `summary`, by name: clips drawn with replacement.

    A class, or a kind of frame, of which a resample holds none is left out of its mean.
    """
    records.check()
    kept, weights = _draw_clips(records, resamples, seed)
    if records.kind == "binary":
        draws = _draw_binary(records, kept, weights)
    else:
        draws = {}
        hits, predicted, labelled = (
            (records[name] * records.use[..., None])[kept].sum(1, dtype=np.float64)
            for name in ("inter", "predicted", "labelled")
        )
        present = labelled.sum(0) > 0
        for name, ratio in _draw_classes(records, kept, weights).items():
            draws[name] = _mean_of_drawn(ratio)
            draws[f"{name}_nobg"] = _mean_of_drawn(ratio[:, 1:])
            draws[f"{name}_present"] = _mean_of_drawn(ratio[:, present])
        union = _ratio(weights @ hits, weights @ (predicted + labelled - hits))
        draws["miou_dataset"] = _mean_of_drawn(union[:, present])
    return {name: _ends(values) for name, values in draws.items() if np.isfinite(values).any()}


def class_intervals(
    records: Records, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """`intervals` of `per_class`: {"iou", "f_measure"} -> one a class; (0, 0) of one never seen."""
    records.check()
    kept, weights = _draw_clips(records, resamples, seed)
    return {
        {"miou": "iou"}.get(name, name): [_ends(values) for values in ratio.T]
        for name, ratio in _draw_classes(records, kept, weights).items()
    }


# name -> its figures
MODES: dict[str, Callable[..., dict[str, float | int]]] = {
    "paper": paper,
    "strict": strict,
    "dataset": dataset,
    "jf": jf,
}


# ------------------------------------------------------------------------------------ arithmetic


def _draw_clips(records, resamples, seed):
    """The clips with frames in use, and how often each is drawn in each resample, [r c]."""
    kept = np.flatnonzero(records.use.any(1))
    rng = np.random.default_rng(seed)
    return kept, rng.multinomial(len(kept), np.full(len(kept), 1 / len(kept)), resamples)


def _draw_binary(records, kept, weights):
    """{figure: [r]}; NaN where a resample holds no frame of its kind."""
    nonempty, empty = (part[kept] for part in _split_empty(records))
    iou = records["iou"][kept].astype(np.float64)
    draws = {"f_measure": weights @ _video_f(records)[kept] / len(kept)}
    kinds = {"miou": nonempty | empty, "miou_nonempty": nonempty, "miou_empty": empty}
    for name, frames in kinds.items():
        draws[name] = _ratio(weights @ (iou * frames).sum(1), weights @ frames.sum(1))
    curves = np.einsum("cti,ct->ci", records["curve"][kept].astype(np.float64), nonempty)
    draws["f_measure_set"] = _ratio((weights @ curves).max(1), weights @ nonempty.sum(1))
    inter, union = (
        (records[name] * records.use)[kept].sum(1, dtype=np.float64) for name in ("inter", "union")
    )
    return draws | {"iou_dataset": _ratio(weights @ inter, weights @ union)}


def _draw_classes(records, kept, weights):
    """{"miou", "f_measure"}: [r k], NaN where a resample lacks a class; 0 of one never seen."""
    counted = (_counted(records) & records.use[..., None])[kept]
    drawn = weights @ counted.sum(1)
    draws = {}
    for name, score in zip(("miou", "f_measure"), _class_scores(records), strict=True):
        ratio = _ratio(weights @ (score[kept] * counted).sum(1), drawn)
        draws[name] = np.where(counted.any((0, 1)), ratio, 0.0)
    return draws


def _mean_of_drawn(ratio):
    """[r k] -> [r], over the classes that are not NaN; all are where there is no class."""
    drawn = np.isfinite(ratio)
    return _ratio(np.where(drawn, ratio, 0).sum(1), drawn.sum(1))


def _ends(values):
    low, high = np.quantile(values[np.isfinite(values)], (0.025, 0.975))
    return float(low), float(high)


def _ratio(top, bottom):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _batches(records, size):
    """Records of `size` clips at a time, without clips that have no frame in use."""
    kept = np.flatnonzero(records.use.any(1))
    for start in range(0, len(kept), size):
        rows = kept[start : start + size]
        scores = {name: value[rows] for name, value in records.scores.items()}
        clips = tuple(records.clips[i] for i in rows)
        yield Records(records.kind, clips, records.use[rows], scores)


def _f_of_batches(records, size):
    """Mean over batches of the maximum of the mean curve over non-empty frames; 0 without any."""
    best = []
    for part in _batches(records, size):
        nonempty, _ = _split_empty(part)
        curve = part["curve"][nonempty]
        best.append(curve.mean(0, dtype=np.float64).max() if len(curve) else 0.0)
    return np.mean(best)


def _video_f(records):
    """[c]: each clip's best F of its mean curve; 0 where nothing sounds."""
    nonempty, _ = _split_empty(records)
    total = np.einsum("cti,ct->ci", records["curve"].astype(np.float64), nonempty)
    return total.max(1) / np.maximum(nonempty.sum(1), 1)


def _split_empty(records):
    return records.use & ~records["empty"], records.use & records["empty"]


def _counted(records):
    return records["predicted"] + records["labelled"] > 0


def _class_scores(records):
    """IoU and F of every class in every frame, [c t k]; 0 where undefined."""
    hits = records["inter"].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / (records["predicted"] + records["labelled"] - hits)
        f = _f(hits / records["predicted"], hits / records["labelled"], metrics.BETA2)
    return np.nan_to_num(iou), np.nan_to_num(f)


def _class_means(records, use):
    """[k]: means over the frames of `use` in which a class is labelled or predicted; else 0."""
    counted = _counted(records) & use[..., None]
    number = np.maximum(counted.sum((0, 1)), 1)
    iou, f = _class_scores(records)
    return (iou * counted).sum((0, 1)) / number, (f * counted).sum((0, 1)) / number


def _f(precision, recall, beta2):
    return (1 + beta2) * precision * recall / (beta2 * precision + recall)


def _sum_frames(records, name, use):
    return records[name][use].sum(0, dtype=np.float64)


def _total(records, name):
    return float(records[name][records.use].sum(dtype=np.float64))


def _marked(records):
    """The part of each frame in use that is predicted to be foreground."""
    predicted = records["predicted"][records.use].astype(np.float64)
    pixels = records["pixels"][records.use]
    if records.kind == "semantic":
        predicted = pixels - predicted[:, 0]
    return predicted / pixels


def _nanmean(values):
    defined = values[~np.isnan(values)]
    return defined.mean() if len(defined) else np.nan


def _floats(figures):
    return {name: float(value) for name, value in figures.items()}
