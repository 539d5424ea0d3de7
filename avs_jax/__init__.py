"""avs_jax: audio-visual segmentation (AVS) in JAX and Flax.

Given a video and its sound, mark the pixels of whatever is sounding.

Axis letters, the same in every file:

    b clip   t second (one frame each)   n = b * t   h w pixels   c channels
    k classes   d features   s samples of sound (16 kHz)

A batch, from the host to the devices:

    frames        u8[b t h w 3]   RGB, 0..255
    waveform      f32[b s]        16 kHz mono in [-1, 1], s = 16000 * seconds
    label         u8[b t h w]     class id of what sounds there, 0 = background; i32 inside a step
    label_mask    bool[b t]       frames that carry a label (S4 trains on the first frame only)
    frame_mask    bool[b t]       frames that exist (AVSS mixes clips of 5 and 10 seconds)
    example_mask  bool[b]         False for the padding of the last evaluation batch
    id            str[b]          stays on the host

A model is a Linen module, a pure function of its variables:

    get_model(name, backbone=..., num_classes=1, **fields).apply(
        variables, frames f32[b t h w 3] (normalised), log_mel f32[b t 96 64],
        frame_mask bool[b t] | None, train=False) -> {"logits": f32[b t h w k], ...}

with k = 1 where the question is "does it sound?" (S4, MS3) and k = 71 on AVSS. Normalisation and
log-mel run on the device, inside the same jit as the model.

Someone who only wants masks needs none of this:

    model = avs_jax.load("lite")
    masks = model.segment(frames, waveform, sample_rate)     (see `prediction.model.Model`)
"""

import importlib

__version__ = "0.1.0"

# What is imported when it is first asked for: `import avs_jax` is light.
_LATER = {"load": "avs_jax.prediction.model"}


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
