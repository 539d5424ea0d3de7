"""The smallest run that has all of a run: for what kills it and what becomes of its files.

    python -m avs_jax.train --config tests/faults/config.py:steps=6 --workdir DIR

A second or two of work beside starting the program; on 16 clips of 2 s and 32 x 32 pixels.
"""

from configs import common
from tests.faults import small_network


def get_config(arguments: str | None = None):
    """steps: of 6 clips, so that a pass over 16 ends within one of them."""
    arg = common.parse_arguments(arguments, steps=6)
    small_network.register()
    config = common.get_config()
    common.fill_subset(config, "sounding_shapes", "ms3")
    config.model.name = "small_network"
    config.model.backbone = "small_resnet"
    config.model.audio_backbone = "audio_cnn"
    common.fill_small_recipe(config, arg.steps, learning_rate=1e-2, warmup_steps=2)
    config.model.num_tags = config.model.num_semantic = 0
    del config.loss.tag_weight, config.loss.semantic_weight
    config.size_schedule = ()
    config.batch_size = 6
    config.data.size = 32
    config.data.num_threads = 0
    config.eval.batch_size = 4
    config.log_every = 1
    config.checkpoint_every = 2
    config.eval.every = 3
    return common.finish(config)
