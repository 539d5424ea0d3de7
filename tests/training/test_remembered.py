"""What frozen backbones gave, kept for training."""

import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from avs_jax import devices, errors, models
from avs_jax.layers import losses
from avs_jax.models.forward import example_inputs, model_inputs
from avs_jax.training import freezing, optim, state
from avs_jax.training.remembered import Remembered, features_of
from tests.test_configs import load
from tests.training.test_state import FIELDS, NORMALIZATION

SECONDS, SIZE = 2, 32
BOTH = ("backbone/.*", "audio_backbone/.*")


class Clips:
    """Three clips, each with one sound."""

    name = "clips"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return make_takes(index, 1)[0]


class Takes(Clips):
    """... or with several."""

    def takes(self, index, count, near=0.0):
        return make_takes(index + (100 if near else 0), count)


def make_takes(index, count):
    rng = np.random.default_rng(index)
    frames = rng.integers(0, 256, (SECONDS, SIZE, SIZE, 3), np.uint8)
    return [
        {
            "frames": frames,
            "waveform": rng.uniform(-0.5, 0.5, 16_000 * SECONDS).astype(np.float32),
            "label": rng.integers(0, 3, (SECONDS, SIZE, SIZE)).astype(np.uint8),
        }
        for _ in range(count)
    ]


def make_config(clips=3, takes=1, folder="", near=0.0):
    config = load("avesformer", "size=lite")
    with config.unlocked():
        config.data.seconds, config.data.size = SECONDS, SIZE
        config.remember.clips, config.remember.takes = clips, takes
        config.remember.folder, config.remember.near = str(folder), near
    return config


def build(fill_variables, freeze=BOTH):
    shapes = jax.eval_shape(
        models.get_model(**FIELDS).init, jax.random.key(0), *example_inputs(SECONDS, SIZE)
    )
    frozen = freezing.find_frozen(shapes["params"], freeze)
    model = models.get_model(**FIELDS, frozen=frozen.modules)
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(SECONDS, SIZE)]
    return model, fill_variables(model, *inputs), frozen


@pytest.fixture(scope="module")
def filled(fill_variables, tmp_path_factory):
    """Three clips with two sounds each, and the model that looked and listened."""
    memory = Remembered(make_config(takes=2), Takes(), epath.Path(tmp_path_factory.mktemp("run")))
    model, variables, frozen = build(fill_variables)
    lines = []
    memory.fill(model, variables, NORMALIZATION, lines.append)
    assert lines == ["remembered 3 of 3 clips"]
    return memory, model, variables, frozen


def test_a_second_has_its_picture_its_sound_and_its_label(filled):
    memory, model, variables, _ = filled
    assert len(memory) == 3 * 2 * SECONDS
    clip, take, second = 2, 1, 1
    example = memory[(clip * 2 + take) * SECONDS + second]
    wanted = make_takes(clip, 2)[take]
    np.testing.assert_array_equal(example["label"][0], wanted["label"][second])

    frames = jnp.float32((wanted["frames"] / 255.0 - 0.5) / 0.25)[None]
    looked = model.apply(variables, frames, method="look")
    np.testing.assert_allclose(
        example["features/c4"][0], looked["c4"][second], rtol=2e-3, atol=1e-3
    )
    other = make_takes(clip, 2)[0]
    assert not np.array_equal(wanted["waveform"], other["waveform"])
    first = memory[clip * 2 * SECONDS + second]
    np.testing.assert_array_equal(first["features/c4"], example["features/c4"])
    assert not np.array_equal(first["features/sound"], example["features/sound"])


def as_batch(examples):
    names = examples[0].keys() - {"id"}
    return {name: jnp.stack([example[name] for example in examples]) for name in names}


def step_of(filled, batch):
    _, model, variables, frozen = filled
    learning, _ = freezing.split(variables["params"], frozen.params)
    optimizer = optim.make_optimizer(
        variables["params"], lambda _: 0.1, name="sgd", b1=0.0, freeze=BOTH
    )
    old = state.TrainState(
        jnp.int32(0), variables["params"], variables["batch_stats"], optimizer.init(learning)
    )
    step = state.make_train_step(
        model,
        models.get_loss("avesformer"),
        optimizer,
        devices.make_mesh(devices=jax.devices()[:1]),
        normalization=NORMALIZATION,
        size=SIZE,
        seed=0,
        alignment=make_config().data.alignment,
        frozen=frozen,
    )
    return jax.jit(step)(old, batch)


def test_a_step_on_what_is_remembered_is_a_step_on_the_clips(filled):
    memory = filled[0]
    seconds = [memory[i] for i in range(2 * SECONDS)]  # both sounds of clip 0
    new, parts = step_of(filled, as_batch(seconds))
    whole = make_takes(0, 2)
    clips = {name: jnp.stack([take[name] for take in whole]) for name in whole[0]}
    clips |= {name: jnp.ones((2, SECONDS), bool) for name in ("label_mask", "frame_mask")}
    _, model, variables, _ = filled

    @jax.jit
    def loss_of(clips):
        alignment = make_config().data.alignment
        masks = clips["frame_mask"]
        inputs = model_inputs(
            clips["frames"], clips["waveform"], NORMALIZATION, SIZE, alignment, masks
        )
        outputs, _ = model.apply(variables, *inputs, masks, train=True, mutable=["batch_stats"])
        clips["label"] = clips["label"].astype(jnp.int32)
        return losses.total(models.get_loss("avesformer")(outputs, clips))

    assert float(parts["loss"]) == pytest.approx(float(loss_of(clips)), rel=1e-3)  # float16
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, variables["params"])
    assert max(jax.tree.leaves(moved["neck"])) > 0
    assert max(jax.tree.leaves(moved["backbone"])) == 0


def test_features_of_a_batch_have_the_model_s_names(filled):
    assert {"c2", "c3", "c4", "c5", "sound"} == set(features_of(as_batch([filled[0][0]])))


def test_what_is_full_is_not_computed_again(filled):
    memory = Remembered(make_config(takes=2, folder=filled[0].folder), Takes(), epath.Path("x"))
    model, variables = filled[1:3]
    lines = []
    memory.fill(model, variables, NORMALIZATION, lines.append)
    assert lines == []
    np.testing.assert_array_equal(memory[3]["label"], filled[0][3]["label"])
    again = pickle.loads(pickle.dumps(memory))  # as for reader processes
    np.testing.assert_array_equal(again[3]["label"], memory[3]["label"])


def test_a_folder_of_other_features_is_refused(filled):
    config = make_config(takes=2, clips=2, folder=filled[0].folder)
    with pytest.raises(errors.BadValueError, match=r"'clips': 3.*wanted.*'clips': 2.*delete it"):
        Remembered(config, Takes(), epath.Path("x"))


def test_a_folder_of_before_there_were_near_clips_is_taken(filled, tmp_path):
    folder = tmp_path / "remembered"
    shutil.copytree(filled[0].folder, folder)
    about = json.loads((folder / "about.json").read_text())
    del about["near"]
    (folder / "about.json").write_text(json.dumps(about))
    memory = Remembered(make_config(takes=2, folder=folder), Takes(), epath.Path("x"))
    assert memory.is_full()


def test_half_a_folder_is_filled_anew(filled, tmp_path):
    memory, model, variables, _ = filled
    folder = tmp_path / "remembered"
    folder.mkdir()
    (folder / "c2.npy").write_bytes(b"cut")
    fresh = Remembered(make_config(takes=2), Takes(), epath.Path(tmp_path))
    fresh.fill(model, variables, NORMALIZATION, lambda _: None)
    np.testing.assert_array_equal(fresh[5]["features/c2"], memory[5]["features/c2"])
    assert json.loads((folder / "about.json").read_text())["clips"] == 3


@pytest.mark.parametrize("takes", [1, 2])
def test_near_clips_are_asked_for(takes, fill_variables, tmp_path):
    memory = Remembered(make_config(takes=takes, near=1.0), Takes(), epath.Path(tmp_path))
    model, variables, _ = build(fill_variables)
    memory.fill(model, variables, NORMALIZATION, lambda _: None)
    np.testing.assert_array_equal(memory[0]["label"][0], make_takes(100, takes)[0]["label"][0])


def test_a_folder_of_other_shares_of_near_clips_is_refused(filled):
    config = make_config(takes=2, near=0.5, folder=filled[0].folder)
    with pytest.raises(errors.BadValueError, match=r"'near': 0.0.*wanted.*'near': 0.5"):
        Remembered(config, Takes(), epath.Path("x"))


def test_backbones_that_learn_are_refused(fill_variables, tmp_path):
    _, _, frozen = build(fill_variables, ("audio_backbone/.*",))
    memory = Remembered(make_config(), Clips(), epath.Path(tmp_path))
    with pytest.raises(errors.BadValueError, match=r"but backbone learns.*optimizer\.freeze"):
        memory.check(frozen)


@pytest.mark.parametrize(
    "source, asked, message",
    [
        (Clips(), {"takes": 2}, "clips has one sound for each clip"),
        (Clips(), {"near": 0.5}, "and no near ones"),
        (Takes(), {"near": 1.5}, "a share, 0 to 1"),
        (Takes(), {"clips": 4}, "clips has 3 clips"),
        (Takes(), {"takes": 0}, "one take or more"),
    ],
)
def test_what_data_cannot_give_is_refused(source, asked, message, tmp_path):
    with pytest.raises(errors.BadValueError, match=message):
        Remembered(make_config(**asked), source, epath.Path(tmp_path))


@pytest.mark.parametrize(
    "field, value", [("data.augment.flip", 0.5), ("size_schedule", ((0, 32), (4, 64)))]
)
def test_pictures_that_are_to_be_changed_are_refused(field, value, tmp_path):
    config = make_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(errors.BadValueError, match=f"as they are, but {field}=.*clips=0"):
        Remembered(config, Clips(), epath.Path(tmp_path))


def test_features_of_other_weights_are_refused(filled):
    memory, model, variables, _ = filled
    others = jax.tree.map(lambda x: x + 1, variables)
    with pytest.raises(errors.BadValueError, match=r"holds features of .*weights.*, wanted"):
        memory.fill(model, others, NORMALIZATION)
