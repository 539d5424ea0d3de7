"""Every family of figures: the reference's numbers, worked examples, definitions."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax import errors
from avs_jax.scoring import metrics, modes
from avs_jax.scoring.records import Clip
from tests.scoring import test_metrics
from tests.scoring.scored import make_records

EXPECTED = np.load(Path(__file__).parents[1] / "parity/expected/metrics.npz")
few_examples = settings(max_examples=15, deadline=None)


def _clips(seed, number=8, frames=3, size=8, classes=1):
    rng = np.random.default_rng(seed)
    shape = (number, frames, size, size)
    logits = rng.normal(size=shape if classes == 1 else (*shape, classes)).astype(np.float32) * 3
    label = rng.integers(0, max(classes, 2), shape).astype(np.int32)
    label *= rng.random((number, frames, 1, 1)) > 0.3  # some frames are empty
    return logits, label, rng.random((number, frames)) > 0.2


def _random(seed=0, clips=7, seconds=3, size=8, classes=1):
    logits, label, use = _clips(seed, clips, seconds, size, classes)
    use[:, 0] = True
    return logits, label, use


# ------------------------------------------------------------------------------------------ summary


@pytest.mark.parametrize(
    ("name", "cases"),
    [("final_few", ["few_classes"]), ("final_correlated_plus_few", ["correlated", "few_classes"])],
)
def test_summary_reaches_the_reference_s_final_figures(name, cases):
    logits, label = (
        np.stack(x) for x in zip(*(test_metrics.SEMANTIC[c] for c in cases), strict=True)
    )
    records = make_records(logits, label)
    results, per_class = modes.summary(records), modes.per_class(records)
    # the reference's "no background" drops the last class; its mean over all is ours
    ours = [
        results["miou"],
        per_class["iou"][:-1].mean(),
        results["f_measure"],
        per_class["f_measure"][:-1].mean(),
    ]
    np.testing.assert_allclose(ours, EXPECTED[f"avss/{name}"], rtol=0, atol=1e-6)


def test_semantic_background_frame_with_a_hallucinated_class():
    logits = np.zeros((1, 1, 4, 4, 71))
    logits[..., 0] = 1.0
    logits[0, :, :2, :, 5] = 2.0
    results = modes.summary(make_records(logits, np.zeros((1, 1, 4, 4))))
    np.testing.assert_allclose(results["miou"], 0.5 / 71)


def test_silent_video_scores_f_zero_and_counts():
    target = np.zeros((2, 1, 4, 4))
    target[0, 0, 0] = 7
    results = modes.summary(make_records(np.where(target > 0, 5.0, -5.0), target))
    np.testing.assert_allclose(results["f_measure"], 0.5)
    np.testing.assert_allclose(results["f_measure_set"], 1.0)


def test_empty_and_other_frames_are_told_apart():
    target = np.zeros((1, 2, 4, 4))
    target[0, 0, 0] = 1  # second frame: nothing sounds
    results = modes.summary(make_records(np.full((1, 2, 4, 4), 5.0), target))
    assert results["miou_empty"] == 0
    np.testing.assert_allclose(results["miou_nonempty"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(results["miou"], 0.125, rtol=1e-6)
    np.testing.assert_allclose(results["iou_dataset"], 4 / 32)


def test_figure_over_no_frames_is_left_out():
    records = make_records(np.ones((1, 1, 4, 4)), np.ones((1, 1, 4, 4)))
    assert "miou_empty" not in modes.summary(records)


@pytest.mark.parametrize("classes", [1, 3])
def test_figures_are_exact_for_any_number_of_frames_in_a_batch(classes):
    number = 9000  # more than 2^13 scores of 2^18 units each, which an int32 cannot hold
    label = np.ones((number, 1, 2, 2))
    label[0, 0, 0, 0] = 0
    logits = np.full((number, 1, 2, 2), 5.0)
    miou = 1 - 1 / 4 / number
    if classes > 1:
        logits = 5 * np.eye(3)[np.ones_like(label, int)]
        miou = (0 + miou + 0) / 3
    figures = modes.summary(make_records(logits, label))
    assert figures["miou"] == pytest.approx(miou, abs=1e-6)
    if classes == 1:
        precision = 1 - 1 / 4
        f = 1.3 * precision / (0.3 * precision + 1)
        assert figures["f_measure_set"] == pytest.approx(1 - (1 - f) / number, abs=1e-6)
        assert figures["iou_dataset"] == pytest.approx((4 * number - 1) / (4 * number), abs=1e-12)
    else:
        assert figures["miou_dataset"] == pytest.approx((0 + 1 - 1 / 4 / number) / 2, abs=1e-12)


@given(st.integers(0, 2**16))
@few_examples
def test_scores_lie_between_zero_and_one(seed):
    results = modes.summary(make_records(*_random(seed)))
    assert all(0 <= value <= 1 for value in results.values()), results


@given(st.integers(0, 2**16))
@few_examples
def test_perfect_predictions_score_one(seed):
    _, label, use = _random(seed, clips=8)
    label[0, 0, 0, 0] = 1
    results = modes.summary(make_records(np.where(label > 0, 20.0, -20.0), label, use))
    videos = use.any(1).sum()
    sounding = ((label > 0).any((2, 3)) & use).any(1).sum()
    expected = dict.fromkeys(results, 1.0) | {"f_measure": sounding / videos}
    assert results == pytest.approx(expected, abs=1e-6)


def test_perfect_semantic_predictions_score_one_on_the_classes_present():
    _, label, use = _clips(0, classes=5)
    label = np.minimum(label, 3)  # class 4 never occurs
    results = modes.summary(make_records(9 * np.eye(5)[label], label, use))
    assert results["miou_present"] == results["f_measure_present"] == results["miou_dataset"] == 1
    np.testing.assert_allclose(results["miou"], 4 / 5)
    np.testing.assert_allclose(results["miou_nobg"], 3 / 4)


@given(st.integers(0, 2**16), st.randoms())
@few_examples
def test_order_of_the_frames_of_a_video_does_not_matter(seed, random):
    logits, label, use = _random(seed)
    order = random.sample(range(3), 3)
    once = modes.summary(make_records(logits, label, use))
    again = modes.summary(make_records(logits[:, order], label[:, order], use[:, order]))
    assert once == pytest.approx(again, abs=1e-12)


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batch_size_and_padding_change_no_bit(classes, batch_size):
    logits, label, use = _clips(3, classes=classes)
    whole = modes.summary(make_records(logits, label, use))
    assert modes.summary(make_records(logits, label, use, batch_size=batch_size)) == whole


@pytest.mark.parametrize("classes", [1, 5])
def test_eight_devices_change_no_bit(classes):
    logits, label, use = _clips(5, classes=classes)

    def run(devices):
        mesh = jax.make_mesh(
            (devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
        )
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        return modes.summary(make_records(logits, label, use, sharding=sharding))

    assert run(8) == run(1)


# -------------------------------------------------------------------------------------------- paper


@pytest.mark.parametrize("case", test_metrics.BINARY)
def test_paper_equals_the_reference_on_one_video(case):
    logits, target = test_metrics.BINARY[case]
    figures = modes.paper(make_records(logits[None], target[None]), f_batch_videos=1)
    assert figures["miou"] == pytest.approx(EXPECTED[f"mask_iou/{case}"], abs=1e-6)
    assert figures["f_measure"] == pytest.approx(EXPECTED[f"fmeasure/{case}"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "cases"),
    [("final_few", ["few_classes"]), ("final_correlated_plus_few", ["correlated", "few_classes"])],
)
def test_paper_equals_the_reference_on_avss(name, cases):
    logits, label = (
        np.stack(x) for x in zip(*(test_metrics.SEMANTIC[c] for c in cases), strict=True)
    )
    figures = modes.paper(make_records(logits, label))
    order = ("miou", "miou_without_last_class", "f_measure", "f_measure_without_last_class")
    np.testing.assert_allclose([figures[n] for n in order], EXPECTED[f"avss/{name}"], atol=1e-6)


def _reference_batch(logits, target):
    """AVSBench's two functions on the frames of one batch [n h w], written out plainly."""
    p = 1 / (1 + np.exp(-logits.astype(np.float32)))
    ious, curves = [], []
    for probability, truth in zip(p, target > 0, strict=True):
        mask = probability > 0.5
        if truth.any():
            ious.append((mask & truth).sum() / ((mask | truth).sum() + 1e-7))
            above = probability >= metrics.THRESHOLDS[:, None, None]
            hits = (above & truth).sum((1, 2))
            precision, recall = hits / (above.sum((1, 2)) + 1e-20), hits / truth.sum()
            with np.errstate(invalid="ignore"):
                curve = 1.3 * precision * recall / (0.3 * precision + recall)
            curves.append(np.nan_to_num(curve))
        else:
            ious.append((~mask).sum() / (mask.size + 1e-7))
    return np.mean(ious), np.mean(curves, 0).max() if curves else 0.0


@pytest.mark.parametrize("f_batch_videos", [1, 2, 4, 7])
def test_paper_takes_unweighted_means_of_batches(f_batch_videos):
    logits, label, _ = _random(seed=1)
    label[4:6] = 0  # a batch of two silent clips
    batches = []
    for start in range(0, 7, f_batch_videos):
        rows = slice(start, start + f_batch_videos)
        batches.append(
            _reference_batch(logits[rows].reshape(-1, 8, 8), label[rows].reshape(-1, 8, 8))
        )
    miou, f = np.mean(batches, 0)
    figures = modes.paper(make_records(logits, label), f_batch_videos)
    assert figures["miou"] == pytest.approx(miou, abs=1e-6)
    assert figures["f_measure"] == pytest.approx(f, abs=1e-6)
    assert figures["f_batch_videos"] == f_batch_videos


def test_paper_scores_padded_avss_frames_as_background():
    label = np.zeros((1, 2, 4, 4))  # the second frame does not exist
    label[0, 0] = 3
    logits = 9 * np.eye(5)[label.astype(int)]
    logits[0, 1, :2] = 9 * np.eye(5)[2]  # hallucinated there
    records = make_records(logits, label, use=[[True, False]])
    assert modes.paper(records)["miou"] == pytest.approx((0.5 + 0 + 1) / 5)
    assert modes.paper(records, padded_frames=False)["miou"] == pytest.approx(1 / 5)


def test_paper_refuses_batches_of_no_videos():
    logits, label, _ = _random()
    with pytest.raises(errors.BadValueError, match="f_batch_videos=0"):
        modes.paper(make_records(logits, label), 0)


# ---------------------------------------------------------------------------------- strict, dataset


def test_strict_f_takes_one_threshold_for_the_set():
    logits, label, use = _random(seed=2)
    figures = modes.strict(make_records(logits, label, use))
    rows = use & (label > 0).any((2, 3))
    _, expected = _reference_batch(logits[rows], label[rows])
    assert figures["f_measure"] == pytest.approx(expected, abs=1e-6)


def test_strict_leaves_out_padded_frames_and_the_background():
    label = np.zeros((1, 2, 4, 4))
    label[0, 0, :2] = 3
    logits = 9 * np.eye(5)[label.astype(int)]
    logits[0, 1] = 9 * np.eye(5)[2]
    figures = modes.strict(make_records(logits, label, use=[[True, False]]))
    assert figures["miou"] == pytest.approx(2 / 5)
    assert figures["miou_nobg"] == pytest.approx(1 / 4)
    assert figures["miou_present"] == pytest.approx(1)


def test_strict_tells_semantic_frames_without_a_sound_apart():
    logits = np.zeros((1, 2, 2, 2, 3), np.float32)
    logits[..., 0] = 1.0
    logits[0, 0, 0, 0, 2] = 2.0  # a quarter of the first frame is marked
    label = np.zeros((1, 2, 2, 2), np.int32)
    label[0, 1] = 1
    assert modes.strict(make_records(logits, label))["miou_empty"] == pytest.approx(3 / 4)
    assert "miou_empty" not in modes.strict(make_records(logits[:, 1:], label[:, 1:]))


def test_binary_dataset_figures_are_made_of_summed_pixels():
    logits, label, use = _random(seed=3)
    mask, truth = (logits > 0)[use], (label > 0)[use]
    tp, fp, fn = (mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum()
    tn = (~mask & ~truth).sum()
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    expected = {
        "iou": tp / (tp + fp + fn),
        "miou": (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2,
        "f1": 2 * precision * recall / (precision + recall),
        "f03": 1.3 * precision * recall / (0.3 * precision + recall),
        "fdr": fp / (fp + tp),
    }
    assert modes.dataset(make_records(logits, label, use)) == pytest.approx(expected, abs=1e-9)


def test_semantic_dataset_figures_are_means_over_classes():
    logits, label, use = _random(seed=4, classes=4)
    label[label == 3] = 2  # predicted, but never labelled
    guess, truth = np.argmax(logits, -1)[use], label[use]
    iou, fdr = [], []
    for k in range(4):
        inter = ((guess == k) & (truth == k)).sum()
        iou.append(inter / ((guess == k) | (truth == k)).sum())
        fdr.append(1 - inter / (guess == k).sum())
    figures = modes.dataset(make_records(logits, label, use))
    assert figures["miou"] == pytest.approx(np.mean(iou))
    assert figures["miou_present"] == pytest.approx(np.mean(iou[:3]))
    assert figures["fdr"] == pytest.approx(np.mean(fdr))


# ------------------------------------------------------------------------------- jf, robust, groups


def test_jf_averages_over_the_frames_of_a_clip_first():
    logits, label, _ = _random(seed=5, clips=2)
    use = np.array([[True, True, True], [True, False, False]])
    records = make_records(logits, label, use)
    clips = [records["region"][0].mean(), records["region"][1, 0]]
    figures = modes.jf(records)
    assert figures["j"] == pytest.approx(np.mean(clips), abs=1e-6)
    assert figures["j_and_f"] == pytest.approx((figures["j"] + figures["f"]) / 2)


def test_robust_measures_what_is_marked_without_its_sound():
    label = np.zeros((1, 1, 4, 4))
    label[..., :2, :] = 1
    perfect = np.where(label > 0, 5.0, -5.0).astype(np.float32)
    quarter = np.full_like(perfect, -5.0)
    quarter[..., 0, :] = 5
    others = {"mute": make_records(quarter, label), "swap": make_records(quarter, label)}
    figures = modes.robust(make_records(perfect, label), others)
    assert figures == pytest.approx(
        {
            "mute/miou": 0.5,
            "mute/drop": 0.5,
            "mute/miou_silent": 0.75,
            "mute/fpr": 0.25,
            "mute/s_null": 0.5,
            "swap/miou": 0.5,
            "swap/drop": 0.5,
        },
        abs=1e-6,
    )


def test_robust_counts_every_class_as_marked():
    label = np.zeros((1, 1, 4, 4))
    logits = 9 * np.eye(5)[np.arange(16).reshape(1, 1, 4, 4) % 4]
    figures = modes.robust(make_records(logits, label), {"noise": make_records(logits, label)})
    assert figures["noise/fpr"] == pytest.approx(3 / 4)


def test_groups_tell_subsets_sources_and_seconds_apart():
    logits, label, use = _random(seed=6, clips=3)
    clips = [Clip("a", "v1s", num_sources=1), Clip("b", "v2", num_sources=2), Clip("c", "v2")]
    records = make_records(logits, label, use, clips=clips)
    found = modes.groups(records)
    names = {"subset_v1s", "subset_v2", "sources_1", "sources_2", "sources_unknown", "second_0"}
    assert names <= set(found) and "second_1_on" in found
    assert found["subset_v2"].use.sum() == use[1:].sum()
    assert found["second_0"].use.sum() == use[:, 0].sum()
    assert found["second_1_on"].use.sum() == use[:, 1:].sum()


def test_clips_of_one_class_each_are_grouped_by_it():
    logits, label, use = _random(seed=6, clips=3)
    clips = [Clip(name, sounding=frozenset({name[:3]})) for name in ("dog1", "cat1", "dog2")]
    found = modes.groups(make_records(logits, label, use, clips=clips))
    assert {name for name in found if "class" in name} == {"class_cat", "class_dog"}
    assert found["class_dog"].use.sum() == use[[0, 2]].sum()
    clips[1] = Clip("b", sounding=frozenset({"cat", "dog"}))
    found = modes.groups(make_records(logits, label, use, clips=clips))
    assert not any("class" in name for name in found)


def test_groups_of_one_are_left_out():
    logits, label, _ = _random(seed=6, clips=3)
    assert not any(
        name.startswith(("subset", "sources")) for name in modes.groups(make_records(logits, label))
    )


def test_per_class_counts_the_frames_of_each_class():
    logits, label, use = _random(seed=7, classes=4)
    table = modes.per_class(make_records(logits, label, use))
    seen = [((np.argmax(logits, -1) == k) | (label == k)).any((2, 3))[use].sum() for k in range(4)]
    assert table["frames"].tolist() == seen


# ---------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("classes", [1, 4])
def test_interval_holds_the_figure_and_is_the_same_every_time(classes):
    records = make_records(*_random(seed=8, clips=30, classes=classes))
    figures = modes.summary(records)
    found = modes.intervals(records, resamples=300)
    assert set(found) == set(figures)
    for name, (low, high) in found.items():
        assert low < figures[name] < high
    assert found == modes.intervals(records, resamples=300)


def test_interval_of_equal_clips_has_no_width():
    logits, label, use = _random(seed=9, clips=1)
    records = make_records(*(np.repeat(x, 6, 0) for x in (logits, label, use)))
    for low, high in modes.intervals(records, resamples=50).values():
        assert high - low < 1e-9


def test_class_of_a_single_clip_does_not_draw_the_interval_below_the_figure():
    label = np.zeros((20, 1, 4, 4), np.int32)
    label[:, :, :2] = 1
    label[0, :, :2] = 2  # is missing from a third of all resamples
    records = make_records(9.0 * np.eye(3)[label], label)
    low, high = modes.intervals(records)["miou"]
    assert low == high == modes.summary(records)["miou"] == pytest.approx(1.0, abs=1e-6)
    for name, ends in modes.class_intervals(records).items():
        np.testing.assert_allclose(ends, np.stack([modes.per_class(records)[name]] * 2, -1))


@pytest.mark.parametrize("classes", [1, 4])
def test_scores_of_clips_are_means_of_their_frames_in_use(classes):
    records = make_records(*_random(classes=classes)[:2])
    kept = records.only(clips=np.arange(len(records.clips)) != 1)
    scores = modes.clip_scores(kept)
    assert np.isnan(scores[1]) and np.isfinite(np.delete(scores, 1)).all()
    if classes == 1:
        assert np.nanmean(scores) == pytest.approx(modes.summary(kept)["miou"])
    else:
        alone = records.only(clips=np.arange(len(records.clips)) == 0)
        alone = alone.only(seconds=np.arange(alone.use.shape[1]) == 0)
        seen = modes.per_class(alone)
        assert modes.clip_scores(alone)[0] == pytest.approx(seen["iou"][seen["frames"] > 0].mean())


def _robust(records):
    return modes.robust(make_records(*_random()), {"mute": records})


FAMILIES = [modes.summary, modes.paper, modes.strict, modes.dataset, modes.jf, _robust]


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("mode", FAMILIES)
def test_nan_logits_are_an_error_that_counts_them_and_names_the_clips(mode, classes):
    logits, label, use = _random(classes=classes)
    logits[2, 0, 3, 3] = np.nan
    logits[5, 0] = np.inf
    with pytest.raises(errors.BadValueError, match=r"in 2 of \d+ frames.*2 clip\(s\): 2, 5;"):
        mode(make_records(logits, label, use))


@pytest.mark.parametrize("mode", FAMILIES)
def test_nan_logits_of_frames_that_are_not_in_use_do_not_matter(mode):
    logits, label, use = _random()
    use[1, 2] = False
    expected = mode(make_records(logits, label, use))
    logits[1, 2] = np.nan
    if mode is not modes.jf:
        assert mode(make_records(logits, label, use)) == expected


def test_paper_scores_padded_frames_and_so_refuses_their_nan():
    logits, label, use = _random(classes=4)
    use[1, 2] = False
    logits[1, 2] = np.nan
    records = make_records(logits, label, use)
    assert modes.paper(records, padded_frames=False)
    with pytest.raises(errors.BadValueError, match="NaN or infinite"):
        modes.paper(records)


@pytest.mark.parametrize("mode", FAMILIES[:-1])
def test_no_frame_in_use_is_an_error(mode):
    logits, label, use = _random()
    with pytest.raises(errors.BadValueError, match="no labelled frame"):
        mode(make_records(logits, label, np.zeros_like(use)))
