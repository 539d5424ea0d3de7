"""A batch becomes what models take."""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.forward import make_forward, model_inputs
from tests.training.test_state import MIRROR, NORMALIZATION, Mirror, make_batch


def test_inputs_are_normalised_and_resized():
    frames = jnp.full((1, 2, 8, 8, 3), 255, jnp.uint8)
    waveform = jnp.zeros((1, 32_000))
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    pictures, log_mel = model_inputs(frames, waveform, (mean, std), size=4)
    assert pictures.shape == (1, 2, 4, 4, 3)
    assert log_mel.shape == (1, 2, 96, 64)
    np.testing.assert_allclose(pictures[0, 0, 0, 0], [2.0, 3.0, 7.0], rtol=1e-5)


def test_padded_frames_are_zero_after_normalisation():
    # AVSBench pads clips of 5 s with zeros: the mean colour, not black, and no log-mel at all.
    batch = make_batch(b=1) | {"frame_mask": jnp.array([[True, False]])}
    forward = make_forward(Mirror(), normalization=NORMALIZATION, size=16)
    seen = np.asarray(jax.jit(forward)(MIRROR, batch))
    assert (seen[0, 1] == 0).all()
    assert seen[0, 0, ..., :3].std() > 0.1 and (seen[0, 0, ..., 3] != 0).all()
