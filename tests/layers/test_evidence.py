"""Two classifiers and a table: where it may sound."""

import jax
import numpy as np
import pytest
from PIL import Image

from avs_jax.backbones import get_backbone, get_normalization
from avs_jax.convert import from_torch
from avs_jax.data.evidence import ROWS, Row, make_table
from avs_jax.layers.evidence import (
    EvidenceReader,
    evidence_map,
    look_for_sources,
    weigh_sounds,
)
from avs_jax.media import audio
from avs_jax.weights.tensorflow_files import read_bundle
from avs_jax.weights.torch_files import read_torch_file

DOG, CAT = 200, 281  # ImageNet
BARK, MEOW, ANIMAL = (ROWS[name].sound for name in ("Bark", "Meow", "Animal"))
TABLE = make_table({name: ROWS[name] for name in ("Bark", "Meow", "Animal")})


def cells(*certain):
    """A map of 1 x len(certain) cells, each sure of its class; None: of nothing."""
    logits = np.zeros((1, 1, len(certain), 1000), np.float32)
    for i, picture in enumerate(certain):
        if picture is not None:
            logits[0, 0, i, picture] = 30.0
    return logits


def sounds(**scores):
    logits = np.full((1, 521), -30.0, np.float32)
    for name, score in scores.items():
        logits[0, {"bark": BARK, "meow": MEOW, "animal": ANIMAL}[name]] = np.log(
            score / (1 - score)
        )
    return logits


def look(picture, **scores):
    sources = look_for_sources(jax.numpy.asarray(picture), TABLE.members)
    heard = weigh_sounds(jax.numpy.asarray(sounds(**scores)), TABLE.sounds, TABLE.weights)
    return np.asarray(evidence_map(sources, heard))[0, 0]


def test_evidence_is_where_the_picture_looks_like_the_sound():
    best, _, deaf = look(cells(DOG, CAT, None), bark=0.81).T
    np.testing.assert_allclose(best[:2], [0.9, 0.0], atol=1e-3)
    np.testing.assert_allclose(deaf[:2], [1.0, 1.0], atol=1e-3)
    assert best[2] < deaf[2] < 0.6  # unsure: 1 of 1000 each


def test_channels_are_the_best_row_their_sum_and_no_sound():
    """A dog that barks (1 x 0.25) and is an animal (0.3 x 0.5)."""
    best, total, deaf = look(cells(DOG), bark=0.25, animal=0.5)[0]
    assert best**2 == pytest.approx(0.25, abs=1e-3)
    assert total**2 == pytest.approx(0.25 + ROWS["Animal"].weight * 0.5, abs=1e-3)
    assert deaf == pytest.approx(1.0, abs=1e-3)


def test_sum_ends_at_one():
    _, total, _ = look(cells(DOG), bark=0.99, animal=0.99)[0]
    assert total == 1.0


def test_silence_leaves_the_deaf_channel_alone():
    best, total, deaf = look(cells(DOG))[0]
    assert max(best, total) < 1e-5
    assert deaf > 0.99


def test_row_adds_the_probabilities_of_its_classes():
    table = make_table({"Two": Row(5, 1.0, (10, (20, 21)))})
    logits = np.full((1, 1, 1, 1000), -30.0, np.float32)
    logits[..., [10, 20, 21, 400]] = 0.0
    found = look_for_sources(jax.numpy.asarray(logits), table.members)
    assert float(found[0, 0, 0, 0]) == pytest.approx(0.75, abs=1e-5)


def test_real_dog_is_found_by_a_real_bark(torch, media):
    """And hardly by a cow's moo or a trumpet, in the same picture."""
    del torch  # it reads the file
    lite0 = get_backbone("efficientnet_lite0", num_classes=1000)
    yamnet = get_backbone("yamnet", num_classes=521)
    file = media / "backbones" / "efficientnet-lite0-57934424.pth"
    seeing = from_torch("efficientnet_lite0", read_torch_file(file), num_classes=1000)
    hearing = from_torch("yamnet", read_bundle(media / "backbones/yamnet"), num_classes=521)
    mean, std = get_normalization("efficientnet_lite0")
    picture = Image.open(media / "pictures/examples/farm_animals/dog.webp").convert("RGB")
    x = (np.asarray(picture.resize((224, 224)), np.float32) / 255 - mean) / std
    table = make_table()

    @jax.jit
    def run(x, waveform):
        last = lite0.apply(seeing, x[None])[-1]
        sources = look_for_sources(lite0.apply(seeing, last, method="classify"), table.members)
        features = yamnet.apply(hearing, audio.log_mel(waveform, 1))
        heard = yamnet.apply(hearing, features, method="classify")
        heard = weigh_sounds(heard, table.sounds, table.weights)
        return evidence_map(sources, heard)[0]

    def best(sound):
        samples = np.frombuffer((media / "sounds" / sound).read_bytes()[44:], "<i2")
        return np.asarray(run(x, np.resize(samples / np.float32(32768), 16_000)))[..., 0].max()

    bark, moo, trumpet = (best(f"{name}.wav") for name in ("F/dog", "F/cow", "I/trumpet"))
    assert bark > 0.9
    assert moo < 0.5 * bark  # a cow is heard as an animal, too
    assert trumpet < 0.2


def read(found, heard=0.5, **fields):
    """Discounts of an `EvidenceReader`, without the bias of a frame."""
    found = jax.numpy.asarray(found, jax.numpy.float32)[None, None, :, None] * np.ones(3)
    reader = EvidenceReader(dim=4, **fields)
    heard = jax.numpy.full((1, 2), heard)
    variables = reader.init(jax.random.key(0), found, heard)
    variables["params"]["frame2"]["kernel"] *= 0.0
    maps, discount = reader.apply(variables, found, heard)
    assert maps.shape == (1, 1, found.shape[2], 4)
    return np.asarray(discount)[0, 0, :, 0]


def test_where_evidence_is_seen_elsewhere_is_discounted():
    trust = np.log1p(np.exp(-2.0))  # as it begins
    best, none = read([0.9, 0.0])
    assert best == pytest.approx(0.0, abs=1e-6)
    assert none == pytest.approx(trust * np.log(0.001 / 0.811), rel=1e-4)


def test_where_no_evidence_is_seen_nothing_is_discounted():
    np.testing.assert_allclose(read([0.0, 0.0, 0.001]), 0.0, atol=2e-4)


def test_trust_of_one_s_own_comes_on_top_of_what_is_learnt():
    learnt, more = read([0.9, 0.0]), read([0.9, 0.0], trust=(0.5, 0.25))
    peak, ratio = np.log(0.811), np.log(0.001 / 0.811)
    np.testing.assert_allclose(more - learnt, [0.25 * peak, 0.25 * peak + 0.5 * ratio], rtol=1e-4)
