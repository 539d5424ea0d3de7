"""Clips that are shown: their masks are those that were scored."""

import jax
import ml_collections
import numpy as np

from avs_jax import devices
from avs_jax.reporting import clips
from avs_jax.scoring.evaluators import Evaluator
from tests.scoring.made_up import CLIPS, LISTEN, SIZE, MadeUpSource, listen_variables


def test_masks_of_the_chosen_are_those_that_were_scored():
    data = {"size": SIZE, "num_threads": 0}
    evaluation = {"batch_size": 8, "split": "test", "sounds": ("own", "mute"), "oracle": True}
    config = ml_collections.ConfigDict(
        {"model": {"num_classes": 1}, "data": data, "eval": evaluation}
    )
    sharding = devices.batch_sharding(devices.make_mesh(devices=jax.devices()))
    masks = {}
    evaluator = Evaluator(
        LISTEN, config, MadeUpSource(), sharding, on_masks=lambda c, m: masks.update({c.id: m})
    )
    records = evaluator.records(listen_variables(1))["own"]
    best, worst = clips.choose(records)
    assert len(best + worst) == CLIPS
    shown = clips.run(evaluator, listen_variables(1), SIZE, records, best + worst)
    for place, one in zip(best + worst, shown, strict=True):
        assert one.clip is records.clips[place]
        np.testing.assert_array_equal(one.masks, masks[f"clip {place}"])
        t = 2 if place == 3 else 3  # seconds that clip 3 has
        assert len(one.masks) == len(one.ious) == len(one.example["frames"]) == t
        assert len(one.example["waveform"]) == 16_000 * t
        np.testing.assert_array_equal(np.isnan(one.ious), ~records.use[place][:t])
