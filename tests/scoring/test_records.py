"""Records: what is kept of each frame and known of each clip."""

import numpy as np
import pytest

from avs_jax.scoring import records
from tests.scoring.made_up import MadeUpSource
from tests.scoring.scored import make_records


def _made_up(classes=1, clips=5, seconds=3):
    rng = np.random.default_rng(0)
    shape = (clips, seconds, 8, 8)
    logits = rng.normal(size=shape if classes == 1 else (*shape, classes))
    return make_records(logits, rng.integers(0, max(classes, 2), shape))


def test_only_keeps_the_frames_asked_for():
    found = _made_up()
    first = found.only(seconds=np.arange(3) == 0)
    assert first.use[:, 0].all() and not first.use[:, 1:].any()
    third = found.only(clips=np.arange(5) == 2)
    assert third.use.any(1).tolist() == [i == 2 for i in range(5)]


@pytest.mark.parametrize(("classes", "size"), [(1, 1048), (71, 12 * 71 + 7)])
def test_a_frame_takes_the_memory_that_is_documented(classes, size):
    found = _made_up(classes)
    kept = {k: v for k, v in found.scores.items() if k not in ("region", "boundary")}
    assert sum(x.nbytes for x in (*kept.values(), found.use)) == size * found.use.size


def test_rows_come_in_the_order_of_the_split_whatever_that_of_the_batches():
    table = records.Table(3)
    ones = np.ones((2, 1), bool)
    for index, values in (([2, 0], [20, 0]), ([1, 1], [10, 99])):
        scores = {"pixels": np.array(values)[:, None], "use": ones, "finite": ones}
        table.add(scores, np.array(index), np.array([True, index != [1, 1]]))
    found = table.records("binary", {i: records.Clip(str(i)) for i in (2, 0, 1)})
    assert found["pixels"].ravel().tolist() == [0, 10, 20]
    assert [clip.id for clip in found.clips] == ["0", "1", "2"]


# ------------------------------------------------------------------------ what is known of a clip


def _describe(kind, source):
    return records.describe_clip(source[1], kind)


def test_classes_come_from_the_masks_of_all_objects():
    clip = _describe("binary", MadeUpSource())
    assert clip.visible == {"2", "4"} and clip.sounding == {"2"} and clip.num_sources == 1


def test_classes_come_from_semantic_labels():
    clip = _describe("semantic", MadeUpSource(objects=False))
    assert clip.visible == clip.sounding == {"2"}


def test_classes_of_binary_clips_come_from_their_category():
    source = MadeUpSource(objects=False, category=["dog_barking"] * 5, subset=["s4"] * 5)
    clip = _describe("binary", source)
    assert clip.visible == clip.sounding == {"dog_barking"} and clip.subset == "s4"


def test_joined_categories_are_taken_apart():
    source = MadeUpSource(objects=False, category=["girl_guitar"] * 5, subset=["v2"] * 5)
    assert _describe("binary", source).sounding == {"girl", "guitar"}


def test_classes_of_binary_clips_are_unknown_otherwise():
    clip = _describe("binary", MadeUpSource(objects=False))
    assert not clip.visible and not clip.sounding and clip.num_sources is None
