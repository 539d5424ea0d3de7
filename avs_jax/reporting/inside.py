"""What goes on inside a model, in pictures of clips of a data set.

Beside the strip that every model is drawn with: which cells look at AVESFormer's prompts, the
confidence of PCMANet's stages, and where CATR's queries look.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import errors
from avs_jax.backbones import get_normalization
from avs_jax.data import SAMPLE_RATE, transforms
from avs_jax.media import drawing
from avs_jax.models import catr
from avs_jax.models.forward import model_inputs
from avs_jax.types import Array, Bool, Float, PyTree
from avs_jax.weights.trained import Loaded

_PROMPTS = 3  # that are drawn


class Network:
    """A checkpoint's model, compiled once: a clip of the data set -> all it puts out for it."""

    def __init__(self, loaded: Loaded):
        data = loaded.config.data
        normalization = get_normalization(loaded.config.model.backbone)

        def inputs(batch):
            exists = batch["frame_mask"]
            pair = model_inputs(
                batch["frames"], batch["waveform"], normalization, data.size, data.alignment, exists
            )
            return *pair, exists

        self.names = loaded.class_names
        # Of one class: the logit from which on its pixels sound.
        self.least = loaded.temperature * np.log(loaded.threshold / (1 - loaded.threshold))
        self.model = loaded.model
        self._variables = loaded.variables
        self._matmul_precision = loaded.matmul_precision
        self._outputs = jax.jit(lambda v, batch: loaded.model.apply(v, *inputs(batch)))
        looks = {"catr": catr.query_attention, "avesformer": prompt_attention}
        look = looks.get(loaded.config.model.name)
        self._attention = jax.jit(lambda v, batch: look(loaded.model, v, *inputs(batch)))

    def __call__(self, clip: dict, waveform: np.ndarray | None = None) -> PyTree:
        """The model's outputs for one clip; `waveform`: what it hears instead of the clip's own."""
        return self._run(self._outputs, clip, waveform)

    def attention(self, clip: dict) -> PyTree:
        """What `catr.query_attention` or `prompt_attention` gives for one clip."""
        return self._run(self._attention, clip)

    def _run(self, function: Callable, clip: dict, waveform: np.ndarray | None = None) -> PyTree:
        batch = {name: clip[name][None] for name in ("frames", "waveform", "frame_mask")}
        if waveform is not None:
            batch["waveform"] = waveform[None]
        with jax.default_matmul_precision(self._matmul_precision):
            outputs = jax.device_get(function(self._variables, batch))
        exists = clip["frame_mask"]
        if function is self._outputs and not np.isfinite(outputs["logits"][0, exists]).all():
            raise errors.BadValueError(
                f"logits of clip {clip['id']} are NaN or infinite; there is nothing to draw. Take "
                "an earlier checkpoint (--which), or compute in float32 (model.dtype)."
            )
        return outputs


@dataclasses.dataclass
class Sample:
    """A clip in the pictures, another one whose sound it may be given, and what runs it.

    width: of a frame in the pictures of the inside, pixels, where it has more; None: as it is.
    """

    clip: dict
    other: dict
    run: Callable[[dict], PyTree]
    width: int | None = None

    @functools.cached_property
    def outputs(self) -> PyTree:
        """All that the model puts out for the clip; run when it is first asked for."""
        return self.run(self.clip)

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and truth of the seconds that exist."""
        frames, label = (self.clip[name][: self.seconds] for name in ("frames", "label"))
        height, width = frames.shape[1:3]
        if self.width is None or width <= self.width:
            return frames, label
        height = max(1, height * self.width // width)
        frames = transforms.resize_frames(frames, height, self.width)
        return frames, transforms.resize_masks(label, height, self.width)

    @property
    def seconds(self) -> int:
        return int(self.clip["frame_mask"].sum())


def predict_ids(logits: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Logits f32[.. k] -> class ids i32[..]; where there is one class 1 above the logit `least`."""
    ids = logits[..., 0] > least if logits.shape[-1] == 1 else logits.argmax(-1)
    return ids.astype(np.int32)


def draw_strip(network: Network, sample: Sample) -> np.ndarray:
    """What every model is drawn with: frames, truth, prediction, sound."""
    return drawing.strip(
        *sample.known(),
        predict_ids(sample.outputs["logits"][0], network.least)[: sample.seconds],
        sample.clip["waveform"][: SAMPLE_RATE * sample.seconds],
        class_names=network.names,
        binary=network.names is None,
    )


def prompt_attention(
    model: nn.Module,
    variables: dict,
    frames: Float[Array, "b t h w 3"],
    log_mel: Float[Array, "b t 96 64"],
    frame_mask: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b t y x tokens"]:
    """How much each cell of AVESFormer's last stage looks at the sound's token and its prompts.

    Mean over heads; the weights of a cell sum to 1. The sound's own token is the first. `model` is
    an AVESFormer with `late_stages`, static under jit.
    """
    name = f"late{model.late_stages - 1}"

    def looks(module, method):
        return module.name in ("query", "key") and module.path[:2] == (name, "cross_attention")

    _, state = model.apply(
        variables, frames, log_mel, frame_mask, capture_intermediates=looks, mutable="intermediates"
    )
    found = state["intermediates"][name]["cross_attention"]
    b, t, height, width, _ = frames.shape
    cells = (height // model.decoder_stride, width // model.decoder_stride)
    query, key = (
        found[role]["__call__"][0].reshape(b, t, -1, model.num_heads, model.dim // model.num_heads)
        for role in ("query", "key")
    )
    scores = jnp.einsum("btqHd,btsHd->btHqs", query, key) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(scores.astype(jnp.float32)).mean(2)
    return weights.reshape(b, t, *cells, -1)


def draw_prompts(network: Network, sample: Sample) -> np.ndarray:
    """AVESFormer: which cells look at which prompt, of the prompts that tell cells apart most."""
    weights = network.attention(sample.clip)[0, : sample.seconds]  # [t y x tokens]
    spread = weights.std((1, 2)).mean(0)
    maps = {}
    for token in np.argsort(-spread, kind="stable")[:_PROMPTS].tolist():
        name = f"prompt {token}" if token else "the sound's\nown token"
        maps[f"cells that\nlook at\n{name}"] = weights[..., token]
    return drawing.attention_strip(
        *sample.known(),
        maps,
        sample.clip["waveform"][: SAMPLE_RATE * sample.seconds],
        class_names=network.names,
        binary=network.names is None,
    )


def draw_confidence(network: Network, sample: Sample) -> np.ndarray:
    """PCMANet: the answers of its stages and the masks that they hand on."""
    stages = {k: f"stage {k}" for k in (4, 3, 2, 1)}  # coarse to fine
    logits = dict(zip((1, 2, 3, 4), sample.outputs["stage_logits"], strict=True))
    masks = dict(zip((4, 3, 2), sample.outputs["masks"], strict=True))
    seconds = sample.seconds
    return drawing.confidence_strip(
        *sample.known(),
        {name: predict_ids(logits[k][0])[:seconds] for k, name in stages.items()},
        {stages[k]: mask[0, :seconds] for k, mask in masks.items()},
        sample.clip["waveform"][: SAMPLE_RATE * seconds],
        class_names=network.names,
        binary=network.names is None,
    )


def draw_listening(network: Network, sample: Sample) -> np.ndarray:
    """CATR: its chosen queries' attention, and what it marks when it hears something else."""
    seconds = sample.seconds
    weights, on_sound = (x[0, :seconds] for x in network.attention(sample.clip))
    queries = sample.outputs["query"][0, :seconds]
    notes = [f"query {query}" for query in queries]
    if network.model.mode == "reference":  # in `paper` the memory of the decoder has no sound
        notes = [f"{a}, {b:.0%} on sound" for a, b in zip(notes, on_sound, strict=True)]
    own, other = sample.clip["waveform"], sample.other["waveform"]
    masks = {}
    for name, sound in {"own sound": own, "another clip's": other, "no sound": 0 * own}.items():
        logits = network(sample.clip, sound)["logits"]
        masks[name] = (predict_ids(logits[0])[:seconds], sound[: SAMPLE_RATE * seconds])
    return drawing.listening_strip(
        *sample.known(),
        weights,
        notes,
        masks,
        class_names=network.names,
        binary=network.names is None,
    )


# model name -> {folder of the pictures: (network, clip) -> picture}
INSIDE: dict[str, dict[str, Callable[[Network, Sample], np.ndarray]]] = {
    "avesformer": {"prompts": draw_prompts},
    "pcmanet": {"confidence": draw_confidence},
    "catr": {"listening": draw_listening},
}


def kinds_of(loaded: Loaded) -> dict[str, Callable[[Network, Sample], np.ndarray]]:
    """Those of INSIDE that a model can be drawn with; none of an AVESFormer without late stages."""
    if getattr(loaded.model, "late_stages", 1) == 0:
        return {}
    return INSIDE.get(loaded.config.model.name, {})
