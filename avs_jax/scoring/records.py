"""Scores of every frame of a split, kept on the host: what all further figures are made of.

`evaluators` adds scores up as it goes, which is all that training needs. A full report looks at the
same scores in many ways (per class, per subset, per second, resampled), so here they are kept, one
row per clip and second. A test holds both to the same figures.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from avs_jax.data import pipeline
from avs_jax.data.avsbench import classes
from avs_jax.scoring import boundary, evaluators, metrics
from avs_jax.types import Array, Bool, PyTree


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
        frame, exists (not padding), and, where asked for, region (J) and boundary (F) of the
        foreground.
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


def make_score(
    forward: Callable[[PyTree, dict], Array],
    kind: str,
    sharding: NamedSharding,
    *,
    boundaries: bool = False,
    masks: bool = False,
) -> Callable[[PyTree, dict], dict[str, Array]]:
    """One jitted step from a batch to scores [b t ...], the same on every device.

    Args:
      forward: (variables, device batch) -> logits f32[b t h w k] at the size of the labels.
      kind: "binary" or "semantic".
      boundaries: adds region and boundary.
      masks: adds mask u8[b t h w], the class id of every pixel (0 or 1 for binary).
    """

    def score(variables, batch):
        logits, label = forward(variables, batch), batch["label"].astype(jnp.int32)
        if kind == "binary":
            logits = logits[..., 0]
            predicted = jax.nn.sigmoid(logits.astype(jnp.float32)) > 0.5
            frames = metrics.binary_frames(logits, label)
            scores = frames._asdict() | {
                "predicted": predicted.sum((-2, -1), dtype=jnp.int32),
                "labelled": (label > 0).sum((-2, -1), dtype=jnp.int32),
            }
        else:
            predicted = jnp.argmax(logits, -1)
            frames = metrics.semantic_frames(logits, label)
            scores = {name: getattr(frames, name) for name in ("inter", "predicted", "labelled")}
        scores["pixels"] = jnp.full(label.shape[:2], label.shape[2] * label.shape[3], jnp.int32)
        scores["use"] = evaluators.frames_in_use(batch)
        scores["exists"] = batch["frame_mask"]
        if boundaries:
            scores["region"] = boundary.region_similarity(predicted > 0, label > 0)
            scores["boundary"] = boundary.boundary_accuracy(predicted > 0, label > 0)
        if masks:
            scores["mask"] = predicted.astype(jnp.uint8)
        return scores | {"index": batch["index"], "real": batch["example_mask"]}

    return jax.jit(score, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))


def collect(
    score: Callable[[PyTree, dict], dict[str, Array]],
    variables: PyTree,
    batches: Iterable[dict],
    sharding: NamedSharding,
    kind: str,
    *,
    track: Callable[[Iterable], Iterable] = lambda batches: batches,
    on_masks: Callable[[Clip, np.ndarray], Any] | None = None,
) -> Records:
    """One pass over a split.

    Args:
      score: of `make_score`.
      batches: host batches of a `sounds.Heard` source.
      track: wraps the iteration over batches, e.g. in a progress bar.
      on_masks: called with each clip and the masks u8[t h w] of the seconds it has; for a score
        made with masks=True.
    """
    rows: dict[int, dict[str, np.ndarray]] = {}
    clips: dict[int, Clip] = {}
    waiting = collections.deque()

    def finish():
        scores = jax.device_get(waiting.popleft())
        masks = scores.pop("mask", None)
        real = scores.pop("real")
        for i in np.flatnonzero(real).tolist():
            index = int(scores["index"][i])
            rows[index] = {name: value[i] for name, value in scores.items()}
            if on_masks is not None and index in clips:  # each process saves its own
                on_masks(clips[index], masks[i][rows[index]["exists"]])

    for batch in track(batches):
        for i in np.flatnonzero(batch["example_mask"]).tolist():
            clips[int(batch["index"][i])] = describe_clip(batch, i, kind)
        on_device, _ = pipeline.to_device(batch, sharding)
        waiting.append(score(variables, on_device))
        if len(waiting) > 3:  # let the devices work ahead, within their memory
            finish()
    while waiting:
        finish()
    clips = _gather(clips)
    order = sorted(rows)
    scores = {name: np.stack([rows[i][name] for i in order]) for name in rows[order[0]]}
    scores.pop("index")
    return Records(kind, tuple(clips[i] for i in order), scores.pop("use"), scores)


def describe_clip(batch: dict, i: int, kind: str) -> Clip:
    """What a host batch tells about its clip i.

    Classes come from the clip's category where the data set has one, else from the masks of all
    objects and of what sounds, else (binary masks alone) they are unknown.
    """

    def text(key):
        return str(batch[key][i]) if key in batch else ""

    label, category = _class_names(batch["label"][i]), text("category")
    knows_ids = kind == "semantic" or "objects" in batch
    if knows_ids:
        visible = _class_names(batch["objects"][i]) if "objects" in batch else label
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


def _gather(clips: dict[int, Clip]) -> dict[int, Clip]:
    """The clips of all processes; each has seen its own part of the split."""
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
