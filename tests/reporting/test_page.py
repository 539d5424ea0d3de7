"""The page of an evaluation, of made-up records: what stands in it, and that it needs nothing."""

import numpy as np
import pytest
from etils import epath

from avs_jax import errors
from avs_jax.reporting import clips, page
from avs_jax.scoring import modes
from avs_jax.scoring.records import Clip
from tests.reporting.read_page import Page, seconds_of
from tests.scoring.scored import make_records

HOSTILE = "<script>alert(1)</script>\"'&<img src=http://example.com>"
SIZE, SECONDS = 16, 3


def records_of(number=6, classes=1, seed=0, names=None):
    """Records in which clip i gets worse with i."""
    rng = np.random.default_rng(seed)
    label = np.zeros((number, SECONDS, SIZE, SIZE), np.int32)
    label[:, :, :8, :8] = 1 if classes == 1 else rng.integers(1, classes, (number, 1, 1, 1))
    noise = rng.normal(size=label.shape) * np.linspace(0.1, 3.0, number)[:, None, None, None]
    if classes == 1:
        logits = np.where(label > 0, 1.0, -1.0) + noise
    else:
        logits = 2.0 * np.eye(classes)[label] + noise[..., None] * rng.normal(size=classes)
    known = [Clip(names[i] if names else f"clip {i}", f"v{i % 2}") for i in range(number)]
    return make_records(logits, label, clips=known)


def shown_of(records, place):
    rng = np.random.default_rng(place)
    label = np.zeros((SECONDS, SIZE, SIZE), np.int32)
    label[:, :8, :8] = 1
    example = {
        "frames": rng.integers(0, 255, (SECONDS, SIZE, SIZE, 3)).astype(np.uint8),
        "label": label,
        "label_mask": np.arange(SECONDS) < 2,
        "waveform": rng.uniform(-0.3, 0.3, SECONDS * 16_000).astype(np.float32),
    }
    score = float(modes.clip_scores(records)[place])
    ious = np.where(example["label_mask"], score, np.nan)
    return clips.Shown(records.clips[place], score, example, label.astype(np.uint8), ious)


def content_of(records, others=None, **more):
    figures = {f"test/{name}": value for name, value in modes.summary(records).items()}
    for sound, other in (others or {}).items():
        figures |= {f"test/{n}_{sound}": v for n, v in modes.summary(other).items()}
    for name, (low, high) in modes.intervals(records).items():
        figures |= {f"interval/{name}_low": low, f"interval/{name}_high": high}
    about = {"model": "catr", "data": "made/up", "checkpoint": "WORKDIR", "clips": 6}
    best, worst = clips.choose(records)
    return page.Content(
        results=figures | about,
        about=about,
        split="test",
        records={"own": records} | (others or {}),
        semantic=records.kind == "semantic",
        class_names=[f"class {i}" for i in range(5)] if records.kind == "semantic" else None,
        best=[shown_of(records, i) for i in best],
        worst=[shown_of(records, i) for i in worst],
        **more,
    )


@pytest.fixture(scope="module", params=[1, 5], ids=["binary", "semantic"])
def content(request):
    records = records_of(classes=request.param, names=[f"{i} {HOSTILE}" for i in range(6)])
    log = {
        "train/loss": (np.arange(900), np.linspace(1, 0.1, 900)),
        "validation/miou": (np.arange(0, 900, 100), np.linspace(0.1, 0.5, 9)),
    }
    picture = np.zeros((40, 60, 3), np.uint8)
    inside = [(HOSTILE, "listening", picture)]
    others = {"mute": records_of(classes=request.param, seed=1)}
    return content_of(records, others, log=log, inside=inside)


@pytest.fixture(scope="module")
def built(content):
    return page.build(content)


def test_nothing_is_fetched_from_anywhere(built):
    resources = Page(built).resources
    assert len(resources) > 40
    assert [r[:60] for r in resources if not r.startswith(("data:", "#"))] == []
    assert "url(http" not in built and "@import" not in built


def test_text_of_the_data_set_is_text_and_nothing_else(built):
    found = Page(built)
    assert "script" not in found.tags
    assert found.text.count("<script>alert(1)</script>") == 6 + 1  # of clips and of an inside
    assert "xmlns" not in built and "style" in found.tags


def test_figures_are_those_of_the_results(content, built):
    figures = Page(built).figures
    assert {"test/miou", "test/f_measure", "test/miou_mute"} <= set(figures)
    for name, text in figures.items():
        assert text == f"{content.results[name]:.4f}"


def test_best_come_before_worst_and_each_in_its_order(built):
    scores = Page(built).scores
    assert len(scores) == 6
    best, worst = scores[:3], scores[3:]
    assert best == sorted(best, reverse=True) and worst == sorted(worst)
    assert min(best) >= max(worst)


def test_sounds_of_clips_play_as_long_as_the_clips(built):
    sounds = Page(built).of_kind("audio/mpeg")
    assert len(sounds) == 6
    for sound in sounds:
        assert seconds_of(sound) == pytest.approx(SECONDS, abs=0.15)


def test_curves_are_drawn_in_the_ink_of_the_page(built):
    drawing = built[built.index('<section id="training">') :]
    drawing = drawing[: drawing.index("</section>")]
    assert "currentColor" in drawing and "validation" in drawing
    assert len(drawing) < 60_000  # however long the log


def test_drawings_share_no_ids(built):
    ids = [part.split('"')[0] for part in built.split(' id="')[1:]]
    assert len(ids) > 10 and len(set(ids)) == len(ids)


def test_interval_holds_its_figure_and_narrows_with_more_clips():
    widths = []
    for number in (6, 60):
        content = content_of(records_of(number))
        low, high = (content.results[f"interval/miou_{end}"] for end in ("low", "high"))
        assert low < content.results["test/miou"] < high
        assert f"{low:.3f} to {high:.3f}" in page.build(content)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_page_is_no_larger_for_more_clips():
    few, many = (len(page.build(content_of(records_of(n)))) for n in (8, 80))
    assert many < 1.2 * few < 1_000_000


@pytest.mark.parametrize(("number", "best", "worst"), [(1, 1, 0), (2, 1, 1), (5, 3, 2), (9, 4, 4)])
def test_no_clip_is_among_the_best_and_the_worst(number, best, worst):
    found = clips.choose(records_of(number))
    assert [len(part) for part in found] == [best, worst]
    assert len({*found[0], *found[1]}) == best + worst


@pytest.mark.parametrize("classes", [1, 3])
def test_best_clips_are_of_those_in_which_something_sounds(classes):
    label = np.zeros((5, 1, 4, 4), np.int32)
    label[2:, :, :2] = 1
    marked = label.copy()
    marked[2:, :, 0] = 0  # half of what sounds; silent clips are all right
    logits = marked * 2.0 - 1.0 if classes == 1 else 9.0 * np.eye(classes)[marked]
    best, worst = clips.choose(make_records(logits, label))
    assert len(best) == 1 and len(worst) == 2 and set(best + worst) == {2, 3, 4}
    assert clips.choose(make_records(logits[:2], label[:2])) == ([0], [1])


def test_clip_without_a_label_is_not_chosen():
    records = records_of(3)
    kept = records.only(clips=np.array([True, False, True]))
    best, worst = clips.choose(kept)
    assert (best, worst) == ([0], [2])


def test_page_of_several_runs_leads_to_each():
    runs = {HOSTILE: {"test/miou": 0.5}, "b": {"test/miou": 0.7}}
    results = {"test/miou": 0.6, "test/miou_std": 0.1414, "runs": runs}
    found = Page(page.build_summary(results, {HOSTILE: "run_0/report.html"}))
    assert found.figures == {"test/miou": "0.6000", "test/miou_std": "0.1414"}
    assert "run_0/report.html" in found.resources and "script" not in found.tags


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.BadValueError, match=r"--report .*file is not writable \(File exis"):
        page.write(epath.Path(tmp_path / "file"), "page")
    assert (tmp_path / "file").read_text() == "mine"
