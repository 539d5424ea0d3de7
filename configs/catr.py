r"""CATR on AVSBench, as published and as drawn; a small one on the synthetic set.

    python -m avs_jax.train --config configs/catr.py:subset=s4,backbone=pvt_v2_b5 \
        --config.init_from.backbone=PVT --config.init_from.audio_backbone=VGGISH --workdir DIR
    python -m avs_jax.train --config configs/catr.py:data=sounding_shapes,mode=paper --workdir DIR

Arguments: subset = s4, ms3, avss; backbone = pvt_v2_b5, resnet50, any other of BACKBONES;
mode = reference (the published code), paper (the figure); data = avsbench, sounding_shapes (with
backbone small_resnet and the small recipe, unless another backbone is named); steps: of the small
recipe.

The published recipe (S4): Adam 1e-5 for all but VGGish, no decay, no schedule, 2 clips a step, 100
epochs, gradient norm cut at 5, frames of 224 enlarged to 448, loss on the first frame only; clips
turned by up to 20 degrees, shrunk to 0.5-1, sheared by up to 10 degrees, mirrored; validation after
each epoch (the code picks the best by the test split, this one by validation). MS3 and AVSS alike,
on all frames: the code has no recipe for them. PVT (ImageNet's) and VGGISH are folders of
`python -m avs_jax.convert`.

Published mIoU with PVTv2-B5 (by third parties; not run here, AVSBench has to be asked for): S4
81.4, MS3 59.0, AVSS 32.8; ResNet-50 on MS3 52.8.
"""

from configs import common


def get_config(arguments: str | None = None):
    """One row of subset x backbone x mode."""
    arg = common.parse_arguments(
        arguments,
        subset=common.SUBSETS,
        backbone="",
        mode=("reference", "paper"),
        data=common.DATASETS,
        steps=3000,
    )
    config = common.get_config()
    common.fill_subset(config, arg.data, arg.subset)
    small = arg.data == "sounding_shapes"
    config.model.name = "catr"
    config.model.mode = arg.mode
    config.model.backbone = arg.backbone or ("small_resnet" if small else "pvt_v2_b5")
    if config.model.backbone == "small_resnet":
        fill_small(config, arg.steps)
        return common.finish(config)

    config.model.input_scale = 2
    config.loss.labelled_frames = 1 if arg.subset == "s4" else config.data.seconds
    config.seed = 123
    config.batch_size = 2
    config.epochs = 100
    # An epoch of AVSBench: 3452, 296, 8498 training clips.
    config.eval.every = {"s4": 1726, "ms3": 148, "avss": 4249}[arg.subset]
    config.eval.batch_size = 2
    config.checkpoint_every = config.eval.every
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.clip_norm = 5.0
    config.optimizer.freeze = ("audio_backbone/.*",)

    config.data.augment.flip = 0.5
    config.data.augment.rotate = 20.0
    config.data.augment.zoom = (0.5, 1.0)
    config.data.augment.shear = 10.0
    return common.finish(config)


def fill_small(config, steps: int) -> None:
    """A network and a recipe for two CPU cores, as configs/quickstart.py has them."""
    model = config.model
    model.audio_backbone = "audio_cnn"
    model.dim = 64
    model.num_heads = 4
    model.hidden = 256
    model.num_queries = 8
    model.pixel_widths = (64, 64, 48, 32)
    model.mask_dim = 32
    model.dropout = 0.0
    model.empty_if_silent = True  # a fifth of the frames is silent
    model.input_scale = 2 if model.mode == "reference" else 1  # its masks are at 1/16
    config.loss.dice_weight = 1.0
    config.loss.focal_weight = 0.0
    config.loss.bce_weight = 1.0
    config.loss.is_referred_weight = 0.5
    config.loss.double_sigmoid_bce = False
    common.fill_small_recipe(config, steps, learning_rate=1e-3, warmup_steps=100, small_first=False)
