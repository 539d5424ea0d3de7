r"""PCMANet (arXiv 2406.02345) on AVSBench, published or corrected; a small one on synthetic clips.

    python -m avs_jax.train --config configs/pcmanet.py:subset=s4,backbone=pvt_v2_b5 \
        --config.init_from.backbone=PVT --config.init_from.audio_backbone=VGGISH --workdir DIR
    python -m avs_jax.train --config configs/pcmanet.py:data=sounding_shapes --workdir DIR

Arguments: subset = s4, ms3, avss; backbone = resnet50 (the default), pvt_v2_b5, any other of
BACKBONES; corrected = true mends what the published code does against the paper (the fields are
listed at the head of avs_jax/models/pcmanet.py); data = avsbench, sounding_shapes (with backbone
small_resnet and the small recipe, unless another backbone is named); steps: of the small recipe.

The published recipe: Adam 1e-4 for everything but VGGish, no decay, no schedule, no augmentation, 4
clips a step, 15 / 30 / 60 epochs on S4 / MS3 / AVSS, validation after each (published on AVSS: from
the 15th on after every other one); binary cross-entropy + IoU (AVSS: cross-entropy) of four
outputs, on S4 of the first frame only. PVT (ImageNet's) and VGGISH are folders of
`python -m avs_jax.convert`.

Not run here on AVSBench, which has to be asked for. Memory of a training step in float32, measured
on a CPU: PVTv2-B5 9 GB for one clip of five frames, ResNet-50 4.5 GB for two;
`--config.model.remat=blocks` trades time for memory, `--config.accumulate=4` works clip by
clip: the gradient is the whole batch's, whatever clips are labelled; batch statistics are a clip's.
"""

from configs import common


def get_config(arguments: str | None = None):
    """One row of subset x backbone, as published or corrected."""
    arg = common.parse_arguments(
        arguments,
        subset=common.SUBSETS,
        backbone="",
        corrected=False,
        data=common.DATASETS,
        steps=3000,
    )
    config = common.get_config()
    common.fill_subset(config, arg.data, arg.subset)
    small = arg.data == "sounding_shapes"
    config.model.name = "pcmanet"
    config.model.backbone = arg.backbone or ("small_resnet" if small else "resnet50")
    config.model.restore_token_order = arg.corrected
    config.model.gradient_through_masked_attention = arg.corrected
    config.model.mask_padded_frames = arg.corrected
    if config.model.backbone == "small_resnet":
        fill_small(config, arg.steps)
        return common.finish(config)

    # Published: the S4 script with ResNet-50 has 4 groups, all others have 8.
    config.model.groups = 4 if (arg.subset, config.model.backbone) == ("s4", "resnet50") else 8
    config.data.augment.centre = arg.subset == "avss"
    config.seed = 123
    config.batch_size = 4
    config.epochs = {"s4": 15, "ms3": 30, "avss": 60}[arg.subset]
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.freeze = ("audio_backbone/.*",)
    # An epoch of AVSBench: 3452, 296, 8498 training clips.
    config.eval.every = {"s4": 863, "ms3": 74, "avss": 2125}[arg.subset]
    config.checkpoint_every = config.eval.every
    return common.finish(config)


def fill_small(config, steps: int) -> None:
    """A network and a recipe for two CPU cores, as configs/quickstart.py has them."""
    model = config.model
    model.audio_backbone = "audio_cnn"
    model.dim = 64
    model.num_heads = 4
    model.groups = 4
    model.head_width = 32
    common.fill_small_recipe(config, steps, learning_rate=2e-3, warmup_steps=100)
