"""A small AVESFormer that learns to listen in about five minutes on two CPU cores.

    python -m avs_jax.train --config configs/quickstart.py --workdir DIR

`bash launch/quickstart.sh` runs this and all around it. 1.07 M parameters; 64 x 64 pixels for three
quarters of the steps, then 96 x 96 (the network is fully convolutional, its parameters go on). Two
auxiliary heads, for training only, make the difference: without pretrained backbones the
segmentation loss alone stays at what the picture tells. See README, "Quickstart", for the measured
result beside what a deaf model with perfect masks would get.
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
    config.model.head_widths = (32, 16)
    config.model.norm_groups = 8
    config.model.freeze_audio = False
    config.model.num_tags = 10
    config.model.num_semantic = 10
    config.loss.tag_weight = 1.0
    config.loss.semantic_weight = 0.25

    config.batch_size = 8
    config.steps = arg.steps
    config.size_schedule = ((0, 64), (arg.steps * 3 // 4, 96))
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 40
    config.optimizer.decay = "cosine"

    config.data.augment.flip = 0.5
    config.data.augment.gain_db = (-6.0, 4.0)

    config.eval.batch_size = 16
    config.eval.every = max(arg.steps // 5, 1)
    config.checkpoint_every = max(arg.steps // 5, 1)
    return config.lock()
