"""Scores of every frame of a split: what all figures are made of, in training and after it.

A batch of logits becomes one row of scores per clip and second (`score_frames`, on the devices);
rows are kept on the host in the split's order (`Table`) and never added up before a figure is made
(`modes`), in float64. So a figure is added in one place, and does not depend on batches, padding,
order, devices or the size of the split. A frame takes 1048 bytes, or 12 k + 7 for k classes: 4 MB
for S4's test split, 13 MB for AVSS's.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from avs_jax import errors
from avs_jax.data.avsbench import classes
from avs_jax.scoring import boundary, metrics
from avs_jax.types import Array, Bool, Float, Int

_NAMED = 10  # clips in an error message


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is known of a clip besides its scores."""

    id: str
    subset: str = ""  # of the release, e.g. v1m
    visible: frozenset[str] = frozenset()  # classes in the picture; empty if unknown
    sounding: frozenset[str] = frozenset()  # classes in the sound; empty if unknown or silent
    num_sources: int | None = None  # classes that sound at some time; None if unknown


@dataclasses.dataclass(frozen=True)
class Records:
    """Scores of the frames of a split.

    Attributes:
      kind: "binary" or "semantic".
      clips: what is known of each of the c clips, in the split's order.
      use: bool[c t], frames that exist and carry a label.
      scores: name -> [c t ...]. Binary: iou, curve [c t 255], empty, inter, union, predicted,
        labelled (pixels). Semantic, by class [c t k]: inter, predicted, labelled. Both: pixels of a
        frame, exists (not padding), finite (every logit is a number), and, where asked for, region
        (J) and boundary (F) of the foreground, tenths [c t 10 3] (`calibration.count_tenths`).
    """

    kind: str
    clips: tuple[Clip, ...]
    use: Bool[np.ndarray, "c t"]
    scores: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.scores[name]

    def only(
        self,
        clips: Bool[np.ndarray, "c"] | None = None,
        seconds: Bool[np.ndarray, "t"] | None = None,
    ) -> "Records":
        """The same records with only the frames of these clips and seconds in use."""
        use = self.use
        if clips is not None:
            use = use & clips[:, None]
        if seconds is not None:
            use = use & seconds
        return dataclasses.replace(self, use=use)

    def check(self) -> None:
        """Raises BadValueError if no frame is in use, or a logit of one that is is no number."""
        if not self.use.any():
            raise errors.BadValueError(
                "no labelled frame was evaluated: the split is empty, or no frame of it is "
                "labelled."
            )
        self.check_finite(self.use)

    def check_finite(self, frames: Bool[np.ndarray, "c t"], sound: str | None = None) -> None:
        """Raises BadValueError with the clips' names if a logit of these frames is no number.

        NaN is neither a mark nor silence: comparing it says background, and an empty mask is right
        wherever nothing sounds.
        """
        bad = frames & ~self["finite"]
        if not bad.any():
            return
        names = [clip.id for clip, is_bad in zip(self.clips, bad.any(1), strict=True) if is_bad]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise errors.BadValueError(
            f"logits are NaN or infinite in {bad.sum()} of {frames.sum()} frames"
            + (f" (sound: {sound})" if sound else "")
            + f", of {len(names)} clip(s): {', '.join(names[:_NAMED])}{more}; no figure can be "
            "made of them. Take an earlier checkpoint, or compute in float32 (model.dtype)."
        )


# --------------------------------------------------------------------------------------- on devices


def score_frames(
    logits: Float[Array, "b t h w k"],
    label: Int[Array, "b t h w"],
    kind: str,
    *,
    boundaries: bool = False,
    masks: bool = False,
) -> dict[str, Array]:
    """Scores [b t ...] of every frame, see `Records`; `use` and `exists` are the caller's to add.

    Args:
      kind: "binary" (k = 1) or "semantic".
      boundaries: adds region and boundary.
      masks: adds mask u8[b t h w], the class id of every pixel (0 or 1 for binary).
    """
    if kind == "binary":
        predicted = jax.nn.sigmoid(logits[..., 0].astype(jnp.float32)) > 0.5
        scores = metrics.binary_frames(logits[..., 0], label)._asdict() | {
            "predicted": predicted.sum((-2, -1), dtype=jnp.int32),
            "labelled": (label > 0).sum((-2, -1), dtype=jnp.int32),
        }
    else:
        predicted = jnp.argmax(logits, -1)
        frames = metrics.semantic_frames(logits, label)
        scores = {name: getattr(frames, name) for name in ("inter", "predicted", "labelled")}
    scores["pixels"] = jnp.full(label.shape[:2], label.shape[2] * label.shape[3], jnp.int32)
    scores["finite"] = jnp.isfinite(logits).all((2, 3, 4))
    if boundaries:
        scores["region"] = boundary.region_similarity(predicted > 0, label > 0)
        scores["boundary"] = boundary.boundary_accuracy(predicted > 0, label > 0)
    if masks:
        scores["mask"] = predicted.astype(jnp.uint8)
    return scores


def frames_in_use(batch: dict[str, Array]) -> Array:
    """bool[b t]: frames that exist, carry a label, and belong to a clip that is not padding."""
    return batch["frame_mask"] & batch["label_mask"] & batch["example_mask"][:, None]


# -------------------------------------------------------------------------------------- on the host


class Table:
    """Rows of scores as batches bring them, for a split of `length` clips."""

    def __init__(self, length: int):
        self._length = length
        self._scores: dict[str, np.ndarray] = {}

    def add(
        self,
        scores: dict[str, np.ndarray],
        index: Int[np.ndarray, "b"],
        real: Bool[np.ndarray, "b"],
    ) -> None:
        """Keeps the rows of real clips; `index` is their place in the split."""
        for name, values in scores.items():
            if name not in self._scores:
                self._scores[name] = np.zeros((self._length, *values.shape[1:]), values.dtype)
            self._scores[name][index[real]] = values[real]

    def records(self, kind: str, clips: dict[int, Clip]) -> Records:
        """All of them; `clips` by their place in the split."""
        scores = dict(self._scores)
        return Records(kind, tuple(clips[i] for i in sorted(clips)), scores.pop("use"), scores)


def describe_clip(example: dict, kind: str) -> Clip:
    """What an example (of `avs_jax.data`) tells about its clip.

    Classes come from the clip's category where the data set has one, else from the masks of all
    objects and of what sounds, else (binary masks alone) they are unknown.
    """

    def text(key):
        return str(example[key]) if key in example else ""

    label, category = _class_names(example["label"]), text("category")
    knows_ids = kind == "semantic" or "objects" in example
    if knows_ids:
        visible = _class_names(example["objects"]) if "objects" in example else label
        return Clip(text("id"), text("subset"), visible, label, len(label))
    if not category:
        return Clip(text("id"), text("subset"))
    # A category of S4 is one name, with underscores in it; those of AVSS are joined by them.
    joined = text("subset") not in ("", "s4")
    names = frozenset(classes.sources(category) if joined else [category])
    return Clip(text("id"), text("subset"), names, names, len(names))


def _class_names(masks):
    ids = np.flatnonzero(np.bincount(np.asarray(masks).ravel().astype(np.int64)))
    return frozenset(str(i) for i in ids if i)


def gather_clips(clips: dict[int, Clip]) -> dict[int, Clip]:
    """The clips of all processes; each has read its own part of the split."""
    if jax.process_count() == 1:
        return clips
    entries = [
        [index, c.id, c.subset, sorted(c.visible), sorted(c.sounding), c.num_sources]
        for index, c in clips.items()
    ]
    text = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    padded = np.pad(text, (0, length - len(text)), constant_values=ord(" "))
    everyone = multihost_utils.process_allgather(padded)
    found = [entry for part in everyone for entry in json.loads(part.tobytes())]
    return {
        index: Clip(id_, subset, frozenset(visible), frozenset(sounding), num)
        for index, id_, subset, visible, sounding, num in found
    }
