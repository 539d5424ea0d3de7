"""Clips made up in memory, for tests of everything that scores masks."""

import jax.numpy as jnp
import numpy as np

from avs_jax.scoring.views import Network

CLIPS, SECONDS, SIZE, CLASSES = 5, 3, 16, 6


class MadeUpSource:
    """Clips with two squares a frame, the first of which sounds except in its last second.

    Clip 3 is a second shorter than the others; every second clip's last frame has no label.
    """

    def __init__(self, objects=True, **more):
        self._objects = objects
        self._more = more

    def __len__(self):
        return CLIPS

    def __repr__(self):
        return "Source('made_up/test')"

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        frames = rng.integers(0, 128, (SECONDS, SIZE, SIZE, 3)).astype(np.uint8)
        objects = np.zeros((SECONDS, SIZE, SIZE), np.uint8)
        label = np.zeros((SECONDS, SIZE, SIZE), np.uint8)
        top = 1 + index
        objects[:, top : top + 5, 1:7] = 1 + index % 3
        label[:-1] = objects[:-1]
        objects[:, 5:12, 9:15] = 4
        frames[objects > 0] += np.uint8(100)
        waveform = rng.normal(size=SECONDS * 16_000).astype(np.float32)
        waveform[-16_000:] = 0
        example = {
            "frames": frames,
            "waveform": waveform,
            "label": label,
            "objects": objects,
            "label_mask": np.arange(SECONDS) < SECONDS - index % 2,
            "frame_mask": np.arange(SECONDS) < SECONDS - (index == 3),
            "id": f"clip {index}",
        } | {name: values[index] for name, values in self._more.items()}
        return example if self._objects else {k: v for k, v in example.items() if k != "objects"}


def see(variables, batch):
    """How bright the pictures are."""
    # of an integer sum and never 0, so that no rounding decides between two classes
    return (batch["frames"].astype(jnp.int32).sum(-1) - 384.5) / 384.0  # [b t h w]


def decide(variables, bright, batch):
    """Logits that mark what is bright, in the seconds that are not silent."""
    b, t = bright.shape[:2]
    loudness = jnp.abs(batch["waveform"].reshape(b, t, -1)).mean(-1)
    sounds = (loudness > 0.01)[..., None, None]
    logits = jnp.where(sounds, bright, -1.0) * variables["scale"]
    return logits[..., None] * variables["classes"]


LISTEN = Network(see, decide)


def listen(variables, batch):
    """Logits of LISTEN."""
    return decide(variables, see(variables, batch), batch)


def listen_variables(num_classes):
    """The variables of LISTEN."""
    classes = np.ones(1) if num_classes == 1 else np.linspace(-1, 1, num_classes)
    return {"scale": jnp.float32(3.0), "classes": jnp.asarray(classes, jnp.float32)}
