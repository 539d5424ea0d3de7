"""Configs: arguments after the colon, locked fields, models that exist."""

import importlib
from pathlib import Path

import pytest

from avs_jax import errors
from avs_jax.data import load_class_names, transforms
from avs_jax.models.forward import init_shapes
from avs_jax.training import optim
from avs_jax.weights import trained
from configs import common

ROOT = Path(__file__).parents[1]
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem[0] != "_")
NAMES.remove("common")


def load(name, arguments=None):
    return importlib.import_module(f"configs.{name}").get_config(arguments)


def test_arguments_are_parsed_by_the_type_of_their_default():
    values = common.parse_arguments("b=true,n=3", subset=("s4", "ms3"), b=False, n=1, x="y")
    assert values.to_dict() == {"subset": "s4", "b": True, "n": 3, "x": "y"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("c=1", "unknown config argument 'c'; known: b, n, subset"),
        ("subset=s5", "unknown subset 's5'; known: ms3, s4"),
        ("n=x", "config argument n='x' is not of type int"),
        ("b=maybe", "wanted true or false"),
        ("n", "is not of the form name=value"),
    ],
)
def test_bad_arguments_are_refused(text, message):
    with pytest.raises(errors.InputError, match=message):
        common.parse_arguments(text, subset=("s4", "ms3"), b=False, n=1)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked(name):
    with pytest.raises(AttributeError):
        load(name).bach_size = 4


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_model_and_optimiser(name):
    config = load(name)
    model = trained.build_model(config)
    params = init_shapes(model, config.data.seconds, config.data.size)["params"]
    settings = config.optimizer.to_dict()
    for field in ("learning_rate", "warmup_steps", "decay"):
        del settings[field]
    optim.make_optimizer(params, lambda _: 1.0, **settings)


def test_quickstart_of_one_step_sees_one_size():
    assert not load("quickstart", "steps=1").size_schedule
    assert load("quickstart", "steps=8").size_schedule == ((0, 64), (6, 96))


@pytest.mark.parametrize("name", ["catr", "pcmanet"])
@pytest.mark.parametrize(
    "data, classes",
    [
        ("sounding_shapes,subset=ms3", 10),
        ("sounding_shapes,subset=avss", 10),
        ("avsbench,subset=s4", 0),
        ("avsbench,subset=avss", 70),
    ],
)
def test_auxiliary_heads_name_the_classes_that_labels_have(name, data, classes):
    config = load(name, f"data={data},backbone=small_resnet")
    assert config.model.num_tags == config.model.num_semantic == classes


@pytest.mark.parametrize("subset", ["s4", "ms3", "avss"])
@pytest.mark.parametrize("name", sorted({*NAMES} - {"quickstart"}))
def test_augmentation_of_every_row_is_understood(name, subset):
    config = load(name, f"subset={subset}")
    steps = transforms.train_transforms(config.data.size, **config.data.augment.to_dict())
    assert transforms.Flip(config.data.augment.flip) in steps


def test_catr_turns_shrinks_and_shears_as_published():
    config = load("catr", "subset=s4")
    steps = transforms.train_transforms(config.data.size, **config.data.augment.to_dict())
    assert transforms.Affine(20.0, (0.5, 1.0), 10.0) in steps


@pytest.mark.parametrize(
    "subset, classes, seconds", [("s4", 1, 5), ("ms3", 1, 5), ("avss", 71, 10)]
)
def test_avesformer_has_a_row_per_subset(subset, classes, seconds):
    config = load("avesformer", f"subset={subset},backbone=resnet18")
    assert config.model.num_classes == classes
    assert config.data.seconds == seconds
    assert config.model.backbone == "resnet18"


def test_stamps_have_a_class_for_each_that_sounds():
    config = load("avesformer", "data=stamps,subset=avss")
    assert config.model.num_classes == len(load_class_names("stamps"))
    assert (config.data.seconds, config.data.size, config.data.alignment) == (5, 224, "second")
