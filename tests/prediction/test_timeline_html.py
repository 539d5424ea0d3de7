"""The timeline as HTML: where its bars lie, and that names cannot break out of it."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from avs_jax.prediction.timeline_html import draw_timeline


def make_described(seconds=4.0, heard="Dog", share=0.2, columns=None):
    marks = [
        {"time": time, "marked": [{"id": 1, "probability": 0.5, "share": share}]}
        for time in np.arange(0.5, seconds).tolist()
    ]
    count = int(np.ceil(seconds))
    return {
        "film": {"name": "a.mp4", "seconds": seconds, "width": 8, "height": 4},
        "classes": [{"id": 1, "name": "sounding", "colour": "#ff2882"}],
        "marks": marks,
        "seconds": [
            {
                "second": second,
                "marked": [{"name": "sounding", "probability": 0.5, "share": share}],
                "heard": [{"name": heard, "probability": 0.9}],
            }
            for second in range(count)
        ],
        "waveform": {"per_second": 40, "low": [-0.5] * 40 * count, "high": [0.5] * 40 * count},
        "log_mel": {
            "per_second": 8,
            "hertz": [125.0, 7500.0],
            "columns": [[-4.0] * 64] * (8 * count if columns is None else columns),
        },
    }


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_tag_is_closed():
    assert Tags(draw_timeline(make_described())).open == []


def test_bars_lie_where_their_seconds_are():
    tags = Tags(draw_timeline(make_described(seconds=4.0))).found
    styles = [attributes["style"] for tag, attributes in tags if tag == "b"]
    marked, heard = styles[:4], styles[4:]
    assert marked[1] == "left:25.00%;width:25.00%;height:50%"
    assert heard[3] == "left:75.00%;width:25.00%;height:90%"


def test_last_bar_ends_with_the_film():
    styles = re.findall(r"left:([\d.]+)%;width:([\d.]+)%", draw_timeline(make_described(3.3)))
    assert max(float(left) + float(width) for left, width in styles) <= 100.01


def test_a_mask_lasts_until_halfway_to_the_next():
    described = make_described(seconds=4.0)
    for mark, time in zip(described["marks"], (0.5, 1.5, 2.5, 2.9), strict=True):
        mark["time"] = time
    styles = re.findall(r'<b style="left:([\d.]+)%;width:([\d.]+)%', draw_timeline(described))
    lefts = [float(left) / 25 for left, _ in styles[:4]]
    assert lefts == pytest.approx([0, 1, 2, 2.7], abs=0.01)
    assert float(styles[3][1]) / 25 == pytest.approx(1.3, abs=0.01)


def test_table_has_no_column_for_names_that_there_are_none_of():
    described = make_described()
    assert "<th>heard</th>" in draw_timeline(described)
    for second in described["seconds"]:
        second["heard"] = []
    assert "heard" not in draw_timeline(described)


def test_what_is_not_marked_is_pale():
    assert 'class="pale"' in draw_timeline(make_described(share=0.0))
    assert 'class="pale"' not in draw_timeline(make_described(share=0.1))


def test_names_are_text():
    drawn = draw_timeline(make_described(heard="<script>alert(1)</script>"))
    assert "<script" not in drawn and "&lt;script&gt;" in drawn


def test_table_has_a_button_for_each_second():
    tags = Tags(draw_timeline(make_described(seconds=61.0))).found
    seconds = [attributes["data-second"] for tag, attributes in tags if tag == "button"]
    assert seconds == [str(second) for second in range(61)]
    assert ">1:00</button>" in draw_timeline(make_described(seconds=61.0))


def test_it_asks_for_nothing():
    assert "http" not in draw_timeline(make_described())


@pytest.mark.parametrize("seconds", [0.2, 1.0, 59.9])
def test_films_of_any_length_are_drawn(seconds):
    described = make_described(seconds) | {"marks": make_described(1.0)["marks"]}
    assert f'data-seconds="{seconds}"' in draw_timeline(described)


def test_film_whose_sound_has_ended_before_it_began():
    described = make_described(columns=0)
    described["waveform"] |= {"low": [], "high": []}
    assert "<img" not in draw_timeline(described)
