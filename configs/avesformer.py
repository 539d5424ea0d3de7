r"""AVESFormer (arXiv 2408.01708) on AVSBench.

    python -m avs_jax.train --config configs/avesformer.py:subset=s4,backbone=resnet50 \
        --config.init_from.backbone=RESNET50 --config.init_from.audio_backbone=VGGISH --workdir DIR

RESNET50 and VGGISH are folders of `python -m avs_jax.convert`: from random numbers a backbone that
learns at a tenth of the rate, or not at all, leaves the rest to make do with noise. Without such
weights `--config.optimizer.rate_rules="()" --config.optimizer.freeze="()"` trains all of it.

Arguments: size = base; subset = s4, ms3, avss; backbone = resnet50, resnet18, pvt_v2_b0..b5;
data = avsbench, sounding_shapes, stamps (real cut-outs and sounds).
Or size = lite; steps.

The paper gives no recipe; this one is ours: AdamW 1e-4, weight decay 0.05, backbone x 0.1, VGGish
frozen, 500 warm-up steps, cosine to 0, 8 clips a step, 30 / 60 / 30 epochs on S4 / MS3 / AVSS;
flips, scale jitter 0.5-2, colour jitter. MS3 may start from S4's weights instead:
`--config.init_from.model=WORKDIR_OF_S4`. On AVSS, where background takes most pixels,
`--config.loss.balanced_ce_weight=1` (ours, untried there) adds a cross-entropy in which the classes
of a frame count alike, `--config.loss.ce_weight=0` takes out the ordinary one.

`size=lite` is another network of the same design, 8.9 million parameters, for two CPU cores: a
narrow decoder on EfficientNet-Lite0 and YAMNet, which stay as they are, and evidence, which brings
the names of both together. It learns on real cut-outs and sounds:

    launch/fetch_media.sh data/media
    python -m avs_jax.convert efficientnet_lite0 --field num_classes=1000 \
        data/media/backbones/efficientnet-lite0-57934424.pth --output data/lite0
    python -m avs_jax.convert yamnet --field num_classes=521 data/media/backbones/yamnet \
        --output data/yamnet
    python -m avs_jax.train --config configs/avesformer.py:size=lite \
        --config.init_from.backbone=data/lite0 --config.init_from.audio_backbone=data/yamnet \
        --workdir DIR

What both backbones give for 2000 clips, each with five sounds, is computed once (12 minutes, 7 GB
under DIR/remembered), then a step is of 12 single seconds.

Published mIoU (the paper's, with ResNet-50; not run here, AVSBench has to be asked for):
S4 79.9, MS3 57.9, AVSS 31.2.
"""

from configs import common


def get_config(arguments: str | None = None):
    """One row of subset x backbone, or the small network."""
    if "size=lite" in (arguments or "").replace(" ", "").split(","):
        return get_lite(common.parse_arguments(arguments, size=("lite",), steps=1500).steps)
    arg = common.parse_arguments(
        arguments,
        size=("base", "lite"),
        subset=common.SUBSETS,
        backbone="resnet50",
        data=common.DATASETS,
    )
    config = common.get_config()
    common.fill_subset(config, arg.data, arg.subset)
    config.model.name = "avesformer"
    config.model.backbone = arg.backbone

    config.batch_size = 8
    config.epochs = {"s4": 30, "ms3": 60, "avss": 30}[arg.subset]
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 500
    config.optimizer.decay = "cosine"
    config.optimizer.rate_rules = (("backbone/.*", 0.1),)
    config.optimizer.freeze = ("audio_backbone/.*",)

    config.data.augment.flip = 0.5
    config.data.augment.scale = (0.5, 2.0)
    config.data.augment.brightness = 0.4
    config.data.augment.contrast = 0.4
    config.data.augment.saturation = 0.4
    return common.finish(config)


def get_lite(steps: int):
    """The narrow decoder on two frozen classifiers, for stamps."""
    config = common.get_config()
    common.fill_subset(config, "stamps", "ms3")
    config.data.size = 288  # cells of 32 pixels: of 224 they are too coarse for evidence
    config.model.name = "avesformer"
    config.model.backbone = "efficientnet_lite0"
    config.model.audio_backbone = "yamnet"
    config.model.dim = 64
    config.model.num_heads = 2  # of 4 the weights of 18 x 18 cells take half a step's time
    config.model.pqg_layers = 1
    config.model.pqg_hidden = 256
    config.model.early_stages = 1
    config.model.late_stages = 2
    config.model.late_hidden = 256
    config.model.decoder_stride = 16
    config.model.head_widths = (16, 8)  # its last layer alone is used
    config.model.norm_groups = 8
    config.model.standardise = True
    config.model.refine = (32, 16)
    config.model.audio_hidden = 128
    config.model.sound_drop = 0.2
    config.model.evidence = True
    config.model.match = 1.0
    config.model.match_drop = 0.2
    config.model.silence = 0.02
    common.fill_small_recipe(config, steps, learning_rate=2e-3, warmup_steps=40, small_first=False)
    config.loss.tag_weight = 10.0
    config.optimizer.freeze = ("backbone/.*", "audio_backbone/.*")
    config.ema_decay = 0.99
    config.remember.clips = 2000
    config.remember.takes = 5
    config.remember.near = 0.4
    config.batch_size = 12
    config.data.augment.flip = 0.0  # clips have their own, and more
    config.data.augment.gain_db = (0.0, 0.0)
    config.eval.batch_size = 4
    config.eval.every = max(min(steps // 4, 500), 1)
    config.checkpoint_every = max(min(steps // 8, 250), 1)
    return common.finish(config)
