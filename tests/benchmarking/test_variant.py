"""Parts of every model, each alone."""

import jax.numpy as jnp

from avs_jax.benchmarking.flops import count_flops
from avs_jax.benchmarking.variant import Shape, Variant, find_slow
from avs_jax.media import audio

FIELDS = {
    "name": "catr",
    "backbone": "small_resnet",
    "audio_backbone": "audio_cnn",
    "dim": 16,
    "num_heads": 2,
    "hidden": 16,
    "num_queries": 4,
    "decoder_layers": 1,
    "pixel_widths": (8, 8, 8, 8),
    "mask_dim": 8,
    "norm_groups": 4,
}


def test_parts_together_compute_what_the_whole_does():
    variant = Variant("catr", FIELDS, Shape(1, 1, 32))
    parts = variant.parts()
    assert [part.name for part in parts] == [
        "picture backbone",
        "sound backbone",
        "neck, decoder, head",
    ]
    log_mel = count_flops(lambda x: audio.log_mel(x, 1), jnp.zeros((1, 16_000)))
    assert variant.flops == log_mel + sum(part.flops for part in parts)
    for part in parts:
        part.run()


def test_a_part_is_slow_below_a_third_of_the_others():
    flops = {"a": 10.0, "b": 10.0, "c": 1.0}
    assert find_slow({"a": 10.0, "b": 10.0, "c": 3.4}, flops) == {}
    assert find_slow({"a": 10.0, "b": 10.0, "c": 3.3}, flops) == {"c": 10.0}
