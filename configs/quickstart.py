"""A small AVESFormer that learns to listen in minutes on two CPU cores.

    python -m avs_jax.train --config configs/quickstart.py --workdir DIR

`bash launch/quickstart.sh` runs this and all around it. 1.02 M parameters; 64 x 64 pixels for three
quarters of the steps, then 96 x 96 (the network is fully convolutional, its parameters go on). Two
auxiliary heads, for training only, make the difference: without pretrained backbones the
segmentation loss alone stays at what the picture tells. What came of it, beside what a deaf model
with perfect masks would get: README, "Two commands".
"""

from configs import common


def get_config(arguments: str | None = None):
    """steps: of which 3/4 at 64 x 64."""
    arg = common.parse_arguments(arguments, steps=1450)
    config = common.get_config()
    common.fill_subset(config, "sounding_shapes", "ms3")
    config.model.name = "avesformer"
    config.model.backbone = "small_resnet"
    config.model.audio_backbone = "audio_cnn"
    config.model.dim = 64
    config.model.num_heads = 4
    config.model.pqg_layers = 1
    config.model.pqg_hidden = 256
    config.model.early_stages = 1
    config.model.late_stages = 2
    config.model.late_hidden = 256
    config.model.decoder_stride = 8  # of 64 x 64 pixels a sixteenth is 4 x 4 cells
    config.model.refine = ()
    config.model.head_widths = (32, 16)
    config.model.norm_groups = 8
    common.fill_small_recipe(config, arg.steps, learning_rate=2e-3, warmup_steps=40)
    return common.finish(config)
