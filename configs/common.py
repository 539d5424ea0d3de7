"""What all configs share: every field that the programs read, with its default, and arguments.

    --config configs/avesformer.py:subset=ms3,backbone=resnet50 --config.batch_size=16

What follows the colon is parsed by `parse_arguments`; any field can be overridden by a flag.
Configs are locked: a field that does not exist is an error that lists those that do.
"""

import dataclasses
import inspect

import ml_collections
from ml_collections.config_dict import placeholder

from avs_jax import errors, models

SUBSETS = ("s4", "ms3", "avss")
DATASETS = ("avsbench", "sounding_shapes", "stamps")


def parse_arguments(text: str | None, **defaults) -> ml_collections.ConfigDict:
    """ "subset=ms3,corrected=true" -> values by name, each of its default's type.

    A default that is a tuple lists what is allowed, the first being the default.

    Raises:
      UnknownNameError: a name or value that is not allowed, with those that are.
      BadValueError: not of the form name=value, or of another type.
    """
    values = {name: d[0] if isinstance(d, tuple) else d for name, d in defaults.items()}
    for part in filter(None, (text or "").split(",")):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not equals:
            raise errors.BadValueError(
                f"config argument {part!r} is not of the form name=value; e.g. "
                + ",".join(f"{n}={v}" for n, v in values.items())
            )
        if name not in defaults:
            raise errors.unknown_name("config argument", name, defaults)
        values[name] = _parse(name, value, defaults[name])
    return ml_collections.ConfigDict(values)


def _parse(name: str, value: str, default):
    if isinstance(default, tuple):
        if value not in default:
            raise errors.unknown_name(name, value, default)
        return value
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise errors.BadValueError(f"config argument {name}={value!r}: wanted true or false.")
        return value.lower() == "true"
    try:
        return type(default)(value)
    except ValueError as error:
        wanted = type(default).__name__
        raise errors.BadValueError(
            f"config argument {name}={value!r} is not of type {wanted}."
        ) from error


def get_config() -> ml_collections.ConfigDict:
    """All fields. A config file fills in what its paper says."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    # get_model's arguments; fields of the model's module may be added.
    config.model = ml_collections.ConfigDict()
    config.model.name = "avesformer"
    config.model.backbone = "resnet50"
    config.model.audio_backbone = "vggish"
    config.model.num_classes = 1
    config.model.dtype = "float32"  # "bfloat16": compute only; parameters and losses stay float32
    config.model.remat = "none"  # or "dots", "blocks": less memory, more time (layers/remat.py)
    config.model.norm = "global"  # or "per_device", "frozen": batch statistics (layers/regime.py)
    config.model.two_pass_variance = placeholder(bool)  # None: by platform (layers/regime.py)
    config.model.running_statistics = "first"  # or "mean": where each device has its own

    # Keyword arguments of the model's loss.
    config.loss = ml_collections.ConfigDict()

    config.data = ml_collections.ConfigDict()
    config.data.name = "avsbench"
    config.data.subset = "s4"
    config.data.data_dir = "data"
    config.data.size = 224
    config.data.seconds = 5  # frames of a clip
    config.data.frame_offset = 15 / 16  # where in its second a frame is taken; AVSBench's sampling
    config.data.alignment = "paper"  # log-mel windows: 0.96 s in a row; "second": one per second
    config.data.num_threads = 2
    config.data.num_workers = 0  # reader processes; 0 is fastest on few cores
    config.data.augment = ml_collections.ConfigDict()
    config.data.augment.flip = 0.0  # the chance of it
    config.data.augment.scale = (1.0, 1.0)  # of the frame before a random crop
    config.data.augment.centre = False  # the middle square, as AVSBench trains on AVSS
    config.data.augment.rotate = 0.0  # degrees, either way, about the middle
    config.data.augment.zoom = (1.0, 1.0)  # about the middle, black outside
    config.data.augment.shear = 0.0  # degrees, either way
    config.data.augment.brightness = 0.0  # strength of the jitter, 0 to 1
    config.data.augment.contrast = 0.0
    config.data.augment.saturation = 0.0
    config.data.augment.gain_db = (0.0, 0.0)  # of the sound
    config.data.augment.gain_chance = 0.5

    # What frozen backbones give for that many clips, computed once; 0: as clips are read, always.
    config.remember = ml_collections.ConfigDict()  # see avs_jax/training/remembered.py
    config.remember.clips = 0
    config.remember.takes = 1  # sounds for each picture, of data that can give several
    config.remember.near = 0.0  # share of clips whose things fill the picture, of such data
    config.remember.folder = ""  # where; "": WORKDIR/remembered

    config.batch_size = 8  # clips a step, over all devices; of what is remembered, seconds
    config.epochs = 30  # passes over the training split, unless `steps` is set
    config.steps = placeholder(int)
    config.accumulate = 1  # parts a batch is worked through in
    config.size_schedule = ()  # ((first step, size), ...): smaller frames first; () = data.size
    # Or "pmap": a program per device, with batch statistics of its own clips whether model.norm is
    # "global" or "per_device"; see avs_jax/training/sharding.py.
    config.parallel = "sharded"
    config.fsdp = 1  # devices that share each parameter
    config.sharding_rules = ()  # ((regex, axes), ...), see avs_jax/training/sharding.py
    # Of products and convolutions in training: None is the platform's (on a TPU bfloat16 passes, on
    # NVIDIA TF32), or "high", "highest" (float32). Steps take longer.
    config.matmul_precision = placeholder(str)

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # or "adam", "sgd": their decay is an L2 penalty
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "constant"  # or "cosine", "poly"
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = placeholder(float)
    config.optimizer.rate_rules = ()  # ((regex, factor), ...), see avs_jax/training/rules.py
    config.optimizer.decay_rules = ()
    config.optimizer.freeze = ()  # regexes of what does not learn, see avs_jax/training/freezing.py
    config.ema_decay = placeholder(float)  # of weights and batch statistics, for evaluation

    # Weights to start from: folders that avs_jax.convert wrote; "model" also a run's WORKDIR.
    config.init_from = ml_collections.ConfigDict(
        {"model": "", "backbone": "", "audio_backbone": ""}
    )

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 8
    config.eval.split = "validation"
    config.eval.every = 500  # steps
    config.eval.sounds = ("own",)  # and "mute", "swap"
    config.eval.pictures = 4  # clips that are drawn for TensorBoard at each evaluation
    config.eval.oracle = False  # the deaf model with perfect masks, where objects are known

    config.log_every = 20
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.keep_best = 1  # models with the best validation scores
    # Evaluations in a row without a better score that end the run; not set: it goes to its end.
    config.early_stop = placeholder(int)
    return config


def fill_subset(config: ml_collections.ConfigDict, data: str, subset: str) -> None:
    """What follows from the data set and its subset alone."""
    config.data.name = data
    config.data.subset = subset
    if subset == "avss":
        config.model.num_classes = 71 if data == "avsbench" else 11  # with background
        config.data.seconds = 10
    if data == "sounding_shapes":
        config.data.size = 96
        config.data.frame_offset = 0.5
    if data == "stamps":
        config.data.data_dir = "data/media"  # launch/fetch_media.sh; clips are made when read
        config.data.seconds = 5
        config.data.frame_offset = 0.5
        config.data.alignment = "second"  # sounds change with the second
        if subset == "avss":
            config.model.num_classes = 55  # background, 53 that sound, what never does


def finish(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adds every field of the model and of its loss at its default, so that all of them can be set
    by a flag and are saved with each checkpoint, and locks the config."""
    module, network = models.MODELS[config.model.name]
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(network)
        if isinstance(field.default, bool | int | float | str | tuple)
    }
    for name, default in defaults.items():
        if name not in config.model and name not in ("name", "parent"):
            config.model[name] = default
    for name, parameter in inspect.signature(module.loss).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in config.loss:
            config.loss[name] = parameter.default
    return config.lock()


def fill_small_recipe(
    config: ml_collections.ConfigDict,
    steps: int,
    *,
    learning_rate: float,
    warmup_steps: int,
    small_first: bool = True,
) -> None:
    """How a small network learns `sounding_shapes` on two CPU cores, whatever its architecture.

    small_first: 3/4 of the steps see 64 x 64 pixels, which costs half as much and tests as well at
    96 x 96.
    """
    config.batch_size = 8
    config.steps = steps
    if small_first and steps > 1:
        config.size_schedule = ((0, 64), (steps * 3 // 4, 96))
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = warmup_steps
    config.optimizer.decay = "cosine"

    # The auxiliary heads name what sounds: all classes but background. In S4 and MS3 of AVSBench
    # labels have no names.
    named = {"sounding_shapes": 10, "stamps": 53}
    named = named.get(config.data.name, config.model.num_classes - 1)
    config.model.num_tags = named
    config.model.num_semantic = named
    config.loss.tag_weight = 1.0
    config.loss.semantic_weight = 0.25

    config.data.augment.flip = 0.5
    config.data.augment.gain_db = (-6.0, 4.0)

    config.eval.batch_size = 16
    config.eval.every = max(steps // 5, 1)
    config.checkpoint_every = max(steps // 5, 1)
