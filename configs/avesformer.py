r"""AVESFormer (arXiv 2408.01708) on AVSBench.

    python -m avs_jax.train --config configs/avesformer.py:subset=s4,backbone=resnet50 \
        --config.init_from.backbone=RESNET50 --config.init_from.audio_backbone=VGGISH --workdir DIR

RESNET50 and VGGISH are folders of `python -m avs_jax.convert`: from random numbers a backbone that
learns at a tenth of the rate, or not at all, leaves the rest to make do with noise. Without such
weights `--config.optimizer.rate_rules="()" --config.optimizer.freeze="()"` trains all of it.

Arguments: subset = s4, ms3, avss; backbone = resnet50, resnet18, pvt_v2_b0..b5;
data = avsbench, sounding_shapes, stamps (real cut-outs and sounds).

The paper gives no recipe; this one is ours: AdamW 1e-4, weight decay 0.05, backbone x 0.1, VGGish
frozen, 500 warm-up steps, cosine to 0, 8 clips a step, 30 / 60 / 30 epochs on S4 / MS3 / AVSS;
flips, scale jitter 0.5-2, colour jitter. MS3 may start from S4's weights instead:
`--config.init_from.model=WORKDIR_OF_S4`. On AVSS, where background takes most pixels,
`--config.loss.balanced_ce_weight=1` (ours, untried there) adds a cross-entropy in which the classes
of a frame count alike, `--config.loss.ce_weight=0` takes out the ordinary one.

Published mIoU (the paper's, with ResNet-50; not run here, AVSBench has to be asked for):
S4 79.9, MS3 57.9, AVSS 31.2.
"""

from configs import common


def get_config(arguments: str | None = None):
    """One row of subset x backbone."""
    arg = common.parse_arguments(
        arguments,
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
