"""The evaluator: one pass over a split gives the records of every sound, and all figures.

    see      once a batch: all that a model makes of the pictures alone
    decide   once a batch and sound: logits, and of them the scores of each frame (`records`)

A model that listens is told from one that only sees by its scores with other sounds (`sounds`), and
by an oracle that hears nothing: perfect masks of all visible objects, scored by the same code.
Training validates by `Evaluator.run`, `avs_jax.evaluate` makes its families of `Evaluator.records`.

Scores come to the host a few batches late, so that the devices never wait for it.
"""

import collections
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding

from avs_jax import errors
from avs_jax.data import pipeline, transforms
from avs_jax.devices import gather, replicated
from avs_jax.scoring import calibration, modes, sounds
from avs_jax.scoring.records import (
    Clip,
    Records,
    Table,
    describe_clip,
    frames_in_use,
    gather_clips,
    score_frames,
)
from avs_jax.scoring.views import Network
from avs_jax.types import Array, Float, Int, PyTree, UInt8

ORACLE = "all_objects_oracle"

# Batches that may wait on the devices while earlier ones are worked through: enough to keep them
# busy, few enough that a fast host does not fill their memory.
_MAX_AHEAD = 3


class Evaluator:
    """One pass over a split.

    Args:
      network: see `views.make_network`.
      config: reads model.num_classes, data {size, num_threads} and eval {batch_size (over all
        processes), split, sounds, oracle}.
      source: of the split, see `avs_jax.data.open_split`.
      sharding: of the batch axis.
      batch_size: over all processes, instead of eval.batch_size.
      boundaries: the own sound's records get region and boundary.
      temperature: the own sound's records get tenths, see `calibration.count_tenths`; None: not.
      on_masks: called with each clip and, for its own sound, the masks u8[t h w] of the seconds it
        has; each process gets its own clips.
      original_size: scores at the size of the labels on disk. Pictures differ in it, so that the
        network, which sees them at data.size, is compiled apart from the scores: once.

    Raises:
      UnknownNameError: for a sound.
      BadValueError: the oracle is asked for and the data set does not know its objects.
      NoOffscreenError: for the sound "offscreen", see `sounds.choose_offscreen`.
    """

    def __init__(
        self,
        network: Network,
        config: ml_collections.ConfigDict,
        source: Any,
        sharding: NamedSharding,
        *,
        batch_size: int | None = None,
        boundaries: bool = False,
        temperature: float | None = None,
        on_masks: Callable[[Clip, np.ndarray], Any] | None = None,
        original_size: bool = False,
    ):
        self.network = network
        self.kind = "binary" if config.model.num_classes == 1 else "semantic"
        self.split = split_name(config.eval.split)
        self.sounds = tuple(config.eval.sounds)
        self._num_classes = config.model.num_classes
        self.sharding = sharding
        self._length = len(source)
        self.source = source
        self._boundaries, self._on_masks = boundaries, on_masks
        self._temperature = temperature
        self._oracle = config.eval.oracle
        if self._oracle and "objects" not in source[0]:
            raise errors.BadValueError(
                f"eval.oracle needs the masks of all objects, which {source!r} does not have; "
                "set eval.oracle=False."
            )
        self._batch_size = (batch_size or config.eval.batch_size) // jax.process_count()
        self._num_threads = config.data.num_threads
        self._fit = transforms.eval_transforms(config.data.size, masks=not original_size)
        self.batches = self._make_batches(source, self.sounds)
        self._compile(original_size)

    def _make_batches(self, source, names):
        shard = (jax.process_index(), jax.process_count())
        offscreen = None
        if "offscreen" in names:
            clips = sounds.describe_split(source, self.kind, self._fit, self._num_threads, shard)
            offscreen = sounds.choose_offscreen(
                [clip.visible for clip in clips], [clip.sounding for clip in clips]
            )
        return pipeline.eval_batches(
            sounds.Soundtracks(source, names, offscreen),
            batch_size=self._batch_size,
            transforms=self._fit,
            shard=shard,
            num_threads=self._num_threads,
        )

    def _compile(self, original_size):
        mesh = self.sharding.mesh
        everywhere = replicated(mesh)

        def see(variables, batch):
            return self.network.see(gather(variables, mesh), batch)

        def decide(variables, seen, batch):
            return self.network.decide(gather(variables, mesh), seen, batch)

        def score(logits, batch, boundaries, masks, tenths):
            label = batch["label"].astype(jnp.int32)
            b, t, height, width = label.shape
            if logits.shape[2:4] != (height, width):
                size = (b, t, height, width, logits.shape[-1])
                logits = jax.image.resize(logits, size, "bilinear", antialias=False)
            scores = score_frames(logits, label, self.kind, boundaries=boundaries, masks=masks)
            if tenths:
                scores["tenths"] = calibration.count_tenths(logits, label, self._temperature)
            scores |= {"use": frames_in_use(batch), "exists": batch["frame_mask"]}
            # Given back too: on several hosts no other array holds those of all clips.
            return scores | {"index": batch["index"], "real": batch["example_mask"]}

        def decide_and_score(variables, seen, batch, **options):
            return score(decide(variables, seen, batch), batch, **options)

        def score_oracle(batch):
            logits = oracle_logits(batch["objects"], self._num_classes)
            return score(logits, batch, boundaries=False, masks=False, tenths=False)

        static = ("boundaries", "masks", "tenths")
        self.see = jax.jit(see)
        # Of several sizes: the network alone; of one: together, so that no logits wait in memory.
        self.decide = jax.jit(decide) if original_size else None
        self.score = jax.jit(score, static_argnames=static, out_shardings=everywhere)
        self.decide_and_score = jax.jit(
            decide_and_score, static_argnames=static, out_shardings=everywhere
        )
        self.score_oracle = jax.jit(score_oracle, out_shardings=everywhere)

    def records(
        self, variables: PyTree, track: Callable[[Iterable], Iterable] = lambda batches: batches
    ) -> dict[str, Records]:
        """{sound: its records}, and those of the oracle.

        Args:
          variables: what the network takes.
          track: wraps the iteration over batches, e.g. in a progress bar.

        Raises:
          BadValueError: no frame of the split is labelled, or logits are NaN or infinite; with the
            clips' names.
        """
        names = self.sounds + (ORACLE,) * self._oracle
        tables = {name: Table(self._length) for name in names}
        clips: dict[int, Clip] = {}
        waiting = collections.deque()

        def finish():
            for name, values in jax.device_get(waiting.popleft()).items():
                index, real = values.pop("index"), values.pop("real")
                if (masks := values.pop("mask", None)) is not None:
                    self._hand_over(masks, values["exists"], index, real, clips)
                tables[name].add(values, index, real)

        for batch in track(self.batches):
            for i in np.flatnonzero(batch["example_mask"]).tolist():
                example = {name: values[i] for name, values in batch.items()}
                clips[int(batch["index"][i])] = describe_clip(example, self.kind)
            on_device, _ = pipeline.to_device(batch, self.sharding)
            waiting.append(self._start(variables, on_device))
            if len(waiting) > _MAX_AHEAD:
                finish()
        while waiting:
            finish()
        clips = gather_clips(clips)
        found = {name: table.records(self.kind, clips) for name, table in tables.items()}
        for name, records in found.items():
            records.check_finite(records["exists"], name)
        return found

    def _start(self, variables, batch):
        """{sound: scores} of a batch, under way."""
        shared, labels = _part(batch)
        seen = self.see(variables, shared) if self.sounds else None
        scores = {}
        for sound in self.sounds:
            own = sound == "own"
            scores[sound] = self._decide(
                variables,
                seen,
                shared | {"waveform": batch[f"waveform/{sound}"]},
                labels,
                boundaries=own and self._boundaries,
                masks=own and self._on_masks is not None,
                tenths=own and self._temperature is not None,
            )
        if self._oracle:
            scores[ORACLE] = self.score_oracle(labels | {"objects": batch["objects"]})
        return scores

    def _decide(self, variables, seen, inputs, labels, **options):
        if self.decide is None:
            return self.decide_and_score(variables, seen, inputs | labels, **options)
        return self.score(self.decide(variables, seen, inputs), labels, **options)

    def masks(self, variables: PyTree, places: Sequence[int]) -> list[UInt8[np.ndarray, "_ _ _"]]:
        """What the model marks in some clips of the split with their own sound: u8[t h w] of each.

        One more pass of these alone, by the programs of the first. For one process.
        """
        found = []
        for batch in self._make_batches(Chosen(self.source, places), ("own",)):
            on_device, _ = pipeline.to_device(batch, self.sharding)
            shared, labels = _part(on_device)
            inputs = shared | {"waveform": on_device["waveform/own"]}
            options = {"boundaries": False, "masks": True, "tenths": False}
            seen = self.see(variables, shared)
            masks = np.asarray(self._decide(variables, seen, inputs, labels, **options)["mask"])
            real, exists = batch["example_mask"], batch["frame_mask"]
            found += [mask[e] for mask, e in zip(masks[real], exists[real], strict=True)]
        return found

    def _hand_over(self, masks, exists, index, real, clips):
        for i in np.flatnonzero(real).tolist():
            if int(index[i]) in clips:
                self._on_masks(clips[int(index[i])], masks[i][exists[i]])

    def run(
        self, variables: PyTree, track: Callable[[Iterable], Iterable] = lambda batches: batches
    ) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of every figure of `modes.summary`.

        Names are SPLIT/METRIC for a clip's own sound, else SPLIT/METRIC_SOUND, e.g. test/miou,
        test/miou_swap, test/miou_all_objects_oracle. Arguments and errors: see `records`.
        """
        for sound, records in self.records(variables, track).items():
            for metric, value in modes.summary(records).items():
                yield f"{self.split}/{metric}{suffix(sound)}", value


class Chosen:
    """Some clips of a source, in the order of their places."""

    def __init__(self, source: Any, places: Sequence[int]):
        self._source, self._places = source, tuple(places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"{self._source!r}, of which {len(self)}"

    def __getitem__(self, index) -> dict:
        return self._source[self._places[int(index)]]


def _part(batch):
    """What the network takes of a batch besides a sound, and what scores are made with."""
    shared = {name: batch[name] for name in ("frames", "frame_mask")}
    labels = ("label", "label_mask", "frame_mask", "example_mask", "index")
    return shared, {name: batch[name] for name in labels}


def suffix(sound: str) -> str:
    """What a sound adds to the names of its figures: "_mute"; nothing for a clip's own."""
    return "" if sound == "own" else f"_{sound}"


def oracle_logits(
    objects: UInt8[Array, "b t h w"] | Int[Array, "b t h w"], num_classes: int
) -> Float[Array, "b t h w k"]:
    """Logits of a model that sees perfectly and hears nothing: all visible objects, by class id."""
    if num_classes == 1:
        return jnp.where(objects > 0, 20.0, -20.0)[..., None]
    return 20.0 * jax.nn.one_hot(objects.astype(jnp.int32), num_classes)


def split_name(split: str) -> str:
    """The split that a slice is of: "test[:100]" -> "test"."""
    return re.split(r"[\[+]", split)[0]
