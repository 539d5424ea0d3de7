"""Three lines of Python: frames and sound in memory -> what sounds.

model = avs_jax.load("lite")
masks = model.segment(frames, waveform, sample_rate)
names = model.listen(waveform, sample_rate)
"""

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import errors
from avs_jax.backbones.yamnet import YAMNet, read_class_names
from avs_jax.media import audio
from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.prediction import arrays
from avs_jax.prediction.masks import Decision, compile_forward, run_clips
from avs_jax.types import Bool, Float, UInt8
from avs_jax.weights import open_model, zoo
from avs_jax.weights.trained import Loaded

_HEARD_AT_ONCE = 10  # seconds


class Heard(NamedTuple):
    """A class of AudioSet, and the probability that it is heard."""

    name: str
    probability: float


class Model:
    """A network with its weights: what `avs_jax.load` gives."""

    def __init__(self, loaded: Loaded, matmul_precision: str | None = None):
        """matmul_precision: see `compile_forward`, which makes `self.forward`."""
        self.loaded = loaded
        self.forward = compile_forward(loaded, matmul_precision)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """By the ids of masks; None where masks only say whether a pixel sounds."""
        return self.loaded.class_names

    @property
    def names_sounds(self) -> bool:
        """Whether `listen` has names for what it hears."""
        backbone = self.loaded.model.audio_backbone
        return isinstance(backbone, YAMNet) and backbone.num_classes == len(read_class_names())

    def segment(
        self,
        frames: np.ndarray,
        waveform: np.ndarray,
        sample_rate: int | float,
        *,
        frames_per_second: int | float | None = None,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Bool[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"] | Float[np.ndarray, "t h w"]:
        """Marks what sounds in every frame.

        Each frame is looked at with the second of sound around it, as `predict` does with a film.

        Args:
          frames: u8[t h w 3] RGB, 0..255; any number of any size, in the order of time.
          waveform: f32[s] or f32[s c] in [-1, 1], or int16, of any length; its first sample is
            heard when the first frame appears. More channels than one are averaged.
          sample_rate: of the waveform, Hz.
          frames_per_second: None spreads the frames evenly over the sound: an hour's 3600 frames
            are one a second.
          threshold: of the probability above which a pixel sounds; None: the model's own.
          probabilities: returns f32[t h w], the probability that a pixel sounds.

        Returns:
          bool[t h w] of the frames' size, True where something sounds; u8[t h w], class ids as in
          `class_names`, 0 where nothing does, of a model that names what sounds.

        Raises:
          BadValueError: frames or a waveform of another type or shape, a rate or threshold out of
            its range.
        """
        threshold = self.loaded.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise errors.BadValueError(f"threshold={threshold}: wanted a number between 0 and 1.")
        frames = arrays.check_frames(frames)
        sound = arrays.prepare_sound(waveform, sample_rate)
        length = len(waveform) / sample_rate
        times = arrays.spread_frames(len(frames), length, frames_per_second)
        return self.segment_at(
            frames, times, sound, threshold=threshold, probabilities=probabilities
        )

    def segment_at(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        times: Float[np.ndarray, "t"],
        sound: Float[np.ndarray, "s"],
        *,
        threshold: float = 0.5,
        probabilities: bool = False,
    ) -> Bool[np.ndarray, "t h w"] | UInt8[np.ndarray, "t h w"] | Float[np.ndarray, "t h w"]:
        """As `segment`, of frames at any rising `times` (seconds) and of 16 kHz mono sound."""
        height, width = frames.shape[1:3]
        decision = Decision(height, width, threshold=threshold, probabilities=probabilities)
        data = self.loaded.config.data
        places = []

        def clips():
            for clip, chosen in arrays.cut_clips(
                frames,
                times,
                sound,
                seconds=data.seconds,
                frame_offset=float(data.frame_offset),
                size=data.size,
            ):
                places.append(chosen)
                yield clip

        binary = self.loaded.config.model.num_classes == 1
        kind = np.float32 if probabilities else (bool if binary else np.uint8)
        found = np.zeros((len(frames), height, width), kind)
        # Clips are cut a batch ahead of the one that comes back.
        for i, (_, decided, _) in enumerate(run_clips(clips(), self.forward, decision, 1)):
            is_new = places[i] >= 0
            found[places[i][is_new]] = decided[is_new]
        return found

    def listen(
        self, waveform: np.ndarray, sample_rate: int | float, *, top: int = 5
    ) -> list[list[Heard]]:
        """What is heard in each second, by AudioSet's names, the likeliest `top` first.

        Several may be heard at once: probabilities do not add up to one. A last second that is not
        full is filled up with silence; it counts if half of it is there, or if it is the only one.

        Args:
          waveform, sample_rate: as in `segment`.

        Raises:
          BadValueError: as in `segment`, or the model has no sound backbone that knows names.
        """
        sound = arrays.prepare_sound(waveform, sample_rate)
        names = read_class_names()
        count = max(1, int(len(sound) / SAMPLE_RATE + 0.5))
        scores = []
        for begin in range(0, count, _HEARD_AT_ONCE):
            part = sound[begin * SAMPLE_RATE : (begin + _HEARD_AT_ONCE) * SAMPLE_RATE]
            part = np.pad(part, (0, _HEARD_AT_ONCE * SAMPLE_RATE - len(part)))
            scores.append(np.asarray(self._tag(part)))
        heard = np.concatenate(scores)[:count]
        best = np.argsort(-heard, axis=1)[:, :top]
        return [
            [Heard(names[k], float(second[k])) for k in chosen]
            for second, chosen in zip(heard, best, strict=True)
        ]

    @functools.cached_property
    def _tag(self):
        """sound f32[160000] -> f32[10 521], probability of each class of AudioSet by second."""
        backbone = self.loaded.model.audio_backbone
        if not self.names_sounds:
            raise errors.BadValueError(
                f"this model's sound backbone, {self.loaded.config.model.audio_backbone}, has no "
                "names for what it hears; yamnet with its head has (e.g. the model 'lite')."
            )
        variables = {
            kind: tree["audio_backbone"] for kind, tree in self.loaded.variables.items() if tree
        }

        @jax.jit
        def tag(variables, sound):
            patches = audio.log_mel(sound, _HEARD_AT_ONCE, "second")
            features = backbone.apply(variables, patches)
            return jax.nn.sigmoid(backbone.apply(variables, features, method="classify"))

        return lambda sound: tag(variables, jnp.asarray(sound))


def load(
    checkpoint: str | os.PathLike = zoo.DEFAULT, *, which: str = "best", config: str | None = None
) -> Model:
    """A model to segment with.

    Args:
      checkpoint: a model of the package ("lite"), WORKDIR of a training run, or a folder of
        converted weights.
      which: of a run: best, latest or a step.
      config: FILE[:arguments] that converted weights are for.

    Raises:
      NotFoundError, BadValueError: what is not there, is damaged, or does not fit.
    """
    return Model(open_model(checkpoint, which, config))
