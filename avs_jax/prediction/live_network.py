"""A model that marks the newest picture of a stream, by what was heard until then.

network = LiveNetwork(open_model("lite"))
heard = network.hear(sound)           # f32[window], the last second; every 0.1 s is enough
logits = network.mark(pictures, exists, heard)

A model of AVESFormer's kind looks at each picture alone: it gets one, and `hear` is apart, so that
its sound backbone runs as often as sound is new and not for every picture. The others see clips:
they get one whose last picture is the newest and whose others are the seconds before; pictures that
were never seen, before the stream began, are masked as padding is in training.
"""

from typing import Any

import jax
import numpy as np

from avs_jax.backbones import get_normalization
from avs_jax.media import audio
from avs_jax.models.avesformer import AVESFormer
from avs_jax.models.forward import count_params, picture_inputs, sound_inputs
from avs_jax.prediction.masks import choose_precision, compile_forward
from avs_jax.types import Array, Bool, Float, UInt8
from avs_jax.weights.trained import Loaded

# The samples that one log-mel patch is made of: 96 windows of 25 ms, 10 ms apart.
_PATCH = (audio.PATCH_FRAMES - 1) * audio.HOP + audio.WINDOW

_SMALL = 20_000_000  # parameters: `lite` has 9, ResNet-50 alone 24 million


class LiveNetwork:
    """A model that was opened, compiled for one picture at a time.

    Attributes:
      size: side of the pictures. num_pictures: of a clip, a second apart, the newest last.
      window: samples at 16 kHz of the sound that ends with the newest picture.
      is_small: one run of it leaves a second core mostly idle.
    """

    def __init__(self, loaded: Loaded, matmul_precision: str | None = None):
        """matmul_precision: see `masks.compile_forward`."""
        self._precision = matmul_precision or choose_precision(loaded)
        self.size = loaded.config.data.size
        self.is_small = count_params(loaded.variables["params"]) < _SMALL
        self._is_alone = isinstance(loaded.model, AVESFormer)
        if not self._is_alone:
            self.num_pictures = loaded.config.data.seconds
            self.window = self.num_pictures * audio.SAMPLE_RATE
            self._forward = compile_forward(loaded, matmul_precision)
            return
        self.num_pictures, self.window = 1, _PATCH
        self._variables = jax.device_put(loaded.variables)
        model, normalization = loaded.model, get_normalization(loaded.config.model.backbone)

        def hear(variables, sound):
            log_mel = sound_inputs(sound, 1, loaded.config.data.alignment)
            return model.apply(variables, log_mel, method="listen")

        def mark(variables, pictures, heard):
            frames = picture_inputs(pictures, normalization)
            features = model.apply(variables, frames, method="look") | heard
            features = {name: x[None] for name, x in features.items()}  # [1 1 ...]
            outputs = model.apply(variables, features, method="decide_features")
            return outputs["logits"] / loaded.temperature

        self._hear, self._mark = jax.jit(hear), jax.jit(mark)

    def hear(self, sound: Float[np.ndarray, "s"]) -> Any:
        """What `mark` needs of the sound: f32[window], ending when the newest picture appears."""
        if not self._is_alone:
            return sound
        with jax.default_matmul_precision(self._precision):
            return self._hear(self._variables, sound[None])

    def mark(
        self,
        pictures: UInt8[np.ndarray, "t size size 3"],
        exists: Bool[np.ndarray, "t"],
        heard: Any,
    ) -> Float[Array, "1 1 size size k"]:
        """Logits of the newest picture, the last of `pictures`."""
        if not self._is_alone:
            sound = heard * np.repeat(exists, audio.SAMPLE_RATE)
            logits = self._forward(pictures[None], sound[None], exists[None])
            return logits[:, -1:]
        with jax.default_matmul_precision(self._precision):
            return self._mark(self._variables, pictures[None], heard)

    def warm_up(self) -> None:
        """Compiles, so that no picture waits for it."""
        pictures = np.zeros((self.num_pictures, self.size, self.size, 3), np.uint8)
        heard = self.hear(np.zeros(self.window, np.float32))
        jax.block_until_ready(self.mark(pictures, np.ones(self.num_pictures, bool), heard))
