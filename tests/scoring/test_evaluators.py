"""The evaluator on five clips: names, sounds, the oracle, what must not change a figure, NaN."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from avs_jax import devices, errors
from avs_jax.data.transforms import resize_masks
from avs_jax.scoring import boundary, evaluators, modes, sounds
from avs_jax.scoring.evaluators import Evaluator
from avs_jax.scoring.views import Network
from tests.scoring.made_up import (
    CLASSES,
    CLIPS,
    LISTEN,
    SECONDS,
    SIZE,
    MadeUpSource,
    decide,
    listen,
    listen_variables,
    see,
)
from tests.scoring.scored import make_records


def _config(num_classes, batch_size=2, sounds=("own",), oracle=False):
    return ml_collections.ConfigDict(
        {
            "model": {"num_classes": num_classes},
            "data": {"size": SIZE, "num_threads": 0},
            "eval": {"batch_size": batch_size, "split": "test", "sounds": sounds, "oracle": oracle},
        }
    )


def _sharding(number=1):
    return devices.batch_sharding(devices.make_mesh(devices=jax.devices()[:number]))


def _evaluator(num_classes, *, number=1, network=LISTEN, source=None, options=(), **eval_fields):
    return Evaluator(
        network,
        _config(num_classes, **eval_fields),
        source or MadeUpSource(),
        _sharding(number),
        **dict(options),
    )


@functools.cache
def _records(num_classes, number=1, batch_size=2, sounds=("own",), oracle=False, boundaries=False):
    evaluator = _evaluator(
        num_classes,
        number=number,
        batch_size=batch_size,
        sounds=sounds,
        oracle=oracle,
        options=(("boundaries", boundaries),),
    )
    return evaluator.records(listen_variables(num_classes))


def _figures(family, num_classes, batch_size=2, number=1):
    found = _records(num_classes, number, batch_size, sounds.SOUNDS, True, True)
    if family == "robust":
        return modes.robust(found["own"], {s: found[s] for s in sounds.SOUNDS[1:]})
    return (modes.MODES | {"summary": modes.summary})[family](found["own"])


def _run(num_classes, **fields):
    return dict(_evaluator(num_classes, **fields).run(listen_variables(num_classes)))


@pytest.fixture(params=[1, CLASSES], ids=["binary", "semantic"])
def num_classes(request):
    return request.param


def _batch(*names):
    source = MadeUpSource()
    return {key: jnp.stack([source[i][key] for i in range(CLIPS)]) for key in names}


# -------------------------------------------------------------------------------------- the figures


def test_figures_are_those_of_the_whole_split_in_one_piece(num_classes):
    batch = _batch("frames", "waveform", "label", "label_mask", "frame_mask")
    logits = listen(listen_variables(num_classes), batch)
    if num_classes == 1:
        logits = logits[..., 0]
    use = batch["label_mask"] & batch["frame_mask"]
    expected = modes.summary(make_records(logits, batch["label"], use))
    expected = {f"test/{name}": value for name, value in expected.items()}
    assert _run(num_classes) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", ["summary", *modes.MODES, "robust"])
@pytest.mark.parametrize(("batch_size", "number"), [(1, 1), (3, 1), (8, 1), (8, 8)])
def test_every_family_is_the_same_for_all_batches_and_devices(
    family, num_classes, batch_size, number
):
    figures = _figures(family, num_classes, batch_size, number)
    assert figures == pytest.approx(_figures(family, num_classes), abs=1e-6)


@pytest.mark.parametrize(("batch_size", "number"), [(1, 1), (3, 1), (8, 8)])
def test_records_are_the_same_for_all_batches_and_devices(num_classes, batch_size, number):
    found = _records(num_classes, number, batch_size, sounds.SOUNDS, True, True)
    expected = _records(num_classes, 1, 2, sounds.SOUNDS, True, True)
    for sound, one in expected.items():
        assert found[sound].clips == one.clips
        np.testing.assert_array_equal(found[sound].use, one.use)
        for name in one.scores:
            np.testing.assert_allclose(found[sound][name], one[name], atol=1e-6, err_msg=name)


def test_names_tell_the_sound(num_classes):
    names = _run(num_classes, sounds=("own", "mute", "swap"), oracle=True)
    wanted = {
        f"test/{metric}{suffix}"
        for metric in ("miou", "f_measure")
        for suffix in ("", "_mute", "_swap", "_all_objects_oracle")
    }
    assert wanted <= set(names)


def test_muting_a_model_that_needs_sound_empties_its_masks():
    results = _run(1, sounds=("own", "mute"))
    assert results["test/miou_nonempty_mute"] == 0 and results["test/miou_empty_mute"] == 1
    assert results["test/miou_nonempty"] > 0


def test_oracle_is_the_score_of_all_objects():
    source, ious = MadeUpSource(), []
    for i in range(CLIPS):
        example = source[i]
        use = example["label_mask"] & example["frame_mask"]
        objects, label = example["objects"][use] > 0, example["label"][use] > 0
        for seen, true in zip(objects, label, strict=True):
            inter, union = (seen & true).sum(), (seen | true).sum()
            ious.append(inter / union if true.any() else 1 - seen.mean())
    results = _run(1, sounds=(), oracle=True)
    np.testing.assert_allclose(results["test/miou_all_objects_oracle"], np.mean(ious), atol=1e-6)


def test_frames_in_use_exist_and_are_labelled():
    source = MadeUpSource()
    expected = [source[i]["label_mask"] & source[i]["frame_mask"] for i in range(CLIPS)]
    np.testing.assert_array_equal(_records(1)["own"].use, expected)


def test_boundaries_are_those_of_the_foreground():
    found = _records(CLASSES, boundaries=True)["own"]
    batch = _batch("frames", "waveform", "label")
    predicted = jnp.argmax(listen(listen_variables(CLASSES), batch), -1) > 0
    expected = boundary.boundary_accuracy(predicted, batch["label"] > 0)
    np.testing.assert_allclose(found["boundary"], expected, atol=1e-6)


def test_run_can_be_repeated(num_classes):
    evaluator = _evaluator(num_classes)
    variables = listen_variables(num_classes)
    assert dict(evaluator.run(variables)) == dict(evaluator.run(variables))


def test_progress_sees_every_batch(num_classes):
    evaluator, ids = _evaluator(num_classes), []

    def track(batches):
        for batch in batches:
            ids.append(batch["id"])
            yield batch

    list(evaluator.run(listen_variables(num_classes), track))
    assert len(ids) == len(evaluator.batches) == 3


# ------------------------------------------------------------------------- seen once, decided often


class Counting:
    """LISTEN that counts how often it is compiled (traced) and run."""

    def __init__(self):
        self.traced, self.ran = collections.Counter(), collections.Counter()

    def _count(self, name):
        self.traced[name] += 1
        jax.debug.callback(lambda: self.ran.update([name]))

    @property
    def network(self):
        def count_see(variables, batch):
            self._count("see")
            return see(variables, batch)

        def count_decide(variables, seen, batch):
            self._count("decide")
            return decide(variables, seen, batch)

        return Network(count_see, count_decide)


def test_pictures_are_seen_once_for_all_sounds(num_classes):
    counting = Counting()
    evaluator = _evaluator(num_classes, network=counting.network, sounds=sounds.SOUNDS)
    evaluator.records(listen_variables(num_classes))
    jax.effects_barrier()
    assert counting.ran == {"see": 3, "decide": 3 * len(sounds.SOUNDS)}


def test_clips_are_read_once_for_sounds_of_their_own():
    class Reading(MadeUpSource):
        read = 0

        def __getitem__(self, index):
            Reading.read += 1
            return super().__getitem__(index)

    evaluator = _evaluator(
        1, source=Reading(), batch_size=CLIPS, sounds=("own", "mute", "noise", "shift")
    )
    evaluator.records(listen_variables(1))
    assert Reading.read == CLIPS


def test_sounds_share_one_compilation(num_classes):
    counting = Counting()
    evaluator = _evaluator(num_classes, network=counting.network, sounds=("own", "mute", "swap"))
    list(evaluator.run(listen_variables(num_classes)))
    assert counting.traced == {"see": 1, "decide": 1}


# ------------------------------------------------------------------------------------ original size


class ManySizes(MadeUpSource):
    """Clips of which each has another size on disk."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        height, width = 20 + 3 * index, 40 - 2 * index
        for key in ("label", "objects"):
            example[key] = resize_masks(example[key], height, width)
        example["frames"] = np.stack(
            [resize_masks(example["frames"][..., c], height, width) for c in range(3)], -1
        )
        return example


def test_original_size_compiles_the_network_once(num_classes):
    counting = Counting()
    evaluator = _evaluator(
        num_classes,
        network=counting.network,
        source=ManySizes(),
        batch_size=1,
        options={"original_size": True},
    )
    found = evaluator.records(listen_variables(num_classes))["own"]
    assert counting.traced == {"see": 1, "decide": 1}
    pixels = [(20 + 3 * i) * (40 - 2 * i) for i in range(CLIPS)]
    assert found["pixels"][:, 0].tolist() == pixels


def test_original_size_scores_the_resized_logits_of_the_model_s_size():
    evaluator = _evaluator(1, source=ManySizes(), batch_size=1, options={"original_size": True})
    found = evaluator.records(listen_variables(1))["own"]
    fitted = next(iter(evaluator.batches))
    assert fitted["frames"].shape == (1, SECONDS, SIZE, SIZE, 3)
    logits = listen(
        listen_variables(1), {"frames": fitted["frames"], "waveform": fitted["waveform/own"]}
    )
    large = jax.image.resize(logits, (1, SECONDS, 20, 40, 1), "bilinear", antialias=False)
    assert found["predicted"][0].tolist() == (large[0, ..., 0] > 0).sum((1, 2)).tolist()


# -------------------------------------------------------------------------------------------- masks


def test_masks_are_handed_over_for_the_seconds_that_exist():
    masks = {}
    evaluator = _evaluator(
        1,
        sounds=("own", "mute"),
        options={"on_masks": lambda clip, found: masks.update({clip.id: found})},
    )
    found = evaluator.records(listen_variables(1))["own"]
    shapes = {name: mask.shape for name, mask in masks.items()}
    assert shapes == {f"clip {i}": (SECONDS - (i == 3), SIZE, SIZE) for i in range(CLIPS)}
    assert masks["clip 0"].sum() == found["predicted"][0].sum()


# ---------------------------------------------------------------------------------------- bad input


def _nan_for(sound_is_silent):
    """A network that gives NaN for its second second where the sound is (or is not) silence."""

    def broken(variables, seen, batch):
        silent = jnp.abs(batch["waveform"]).sum(-1) == 0
        bad = (silent == sound_is_silent)[:, None] & (jnp.arange(SECONDS) == 1)
        logits = decide(variables, seen, batch)
        return jnp.where(bad[..., None, None, None], jnp.nan, logits)

    return Network(see, broken)


def test_nan_logits_fail_the_run_with_their_number_and_the_clips(num_classes):
    evaluator = _evaluator(num_classes, network=_nan_for(sound_is_silent=False))
    message = "logits are NaN or infinite in 5 of 14 frames (sound: own), of 5 clip(s): clip 0, cl"
    with pytest.raises(errors.BadValueError, match=re.escape(message)) as caught:
        list(evaluator.run(listen_variables(num_classes)))
    assert "\n" not in str(caught.value)


def test_nan_logits_of_another_sound_fail_the_run_too(num_classes):
    evaluator = _evaluator(
        num_classes, network=_nan_for(sound_is_silent=True), sounds=("own", "mute")
    )
    with pytest.raises(errors.BadValueError, match=r"5 of 14 frames \(sound: mute\)"):
        evaluator.records(listen_variables(num_classes))


def test_nan_logits_of_padding_do_not_matter(num_classes):
    def broken(variables, seen, batch):
        missing = ~batch["frame_mask"][..., None, None, None]
        return jnp.where(missing, jnp.nan, decide(variables, seen, batch))

    assert _run(num_classes, network=Network(see, broken)) == _run(num_classes)


def test_oracle_without_known_objects_is_refused(num_classes):
    with pytest.raises(errors.BadValueError, match=r"eval.oracle needs .*made_up/test"):
        _evaluator(num_classes, source=MadeUpSource(objects=False), oracle=True)


def test_unknown_sound_is_refused(num_classes):
    with pytest.raises(errors.UnknownNameError, match="unknown sound 'louder'; known: mute, noise"):
        _evaluator(num_classes, sounds=("louder",))


def test_split_without_labels_is_refused(num_classes):
    evaluator = _evaluator(num_classes)
    evaluator.batches = [
        dict(batch, label_mask=np.zeros_like(batch["label_mask"])) for batch in evaluator.batches
    ]
    with pytest.raises(errors.BadValueError, match="no labelled frame"):
        list(evaluator.run(listen_variables(num_classes)))


def test_split_name_is_that_without_its_slice():
    assert evaluators.split_name("test[:100]") == "test"
