"""The page in the browser: what a visitor sees of a film, of an error, and on a telephone.

The server runs in threads of this process, with a stand-in for the network that marks what is red
while it is loud, slowly enough to be watched; Chromium is a process of its own.
"""

import json
import os
import re
import socket
import tempfile
import time
import urllib.parse

import pytest

from avs_jax import demo, errors
from avs_jax.prediction.limited import Limits, Marker, kept_folder
from avs_jax.prediction.model import Model
from tests.test_predict import RedWhileLoud, make_film
from tests.weights.zoo import stand_in

HOST = "127.0.0.1"
SECONDS = 6
PATIENCE = 30_000  # milliseconds; a busy machine takes its time


class Slowly(RedWhileLoud):
    """Counts how many films it is busy with at a time."""

    busy = most = 0

    def __call__(self, *batch):
        self.busy += 1
        self.most = max(self.most, self.busy)
        time.sleep(0.4)
        self.busy -= 1
        return super().__call__(*batch)


@pytest.fixture(scope="module")
def model():
    model = Model(stand_in.make_loaded())
    model.forward = Slowly()
    return model


# --- without a browser ------------------------------------------------------------------------


def test_page_is_for_this_machine_alone_unless_told():
    args = demo.parse_arguments([])
    assert (args.host, args.model, args.fps, args.limits) == ("127.0.0.1", "lite", 4, Limits())


def test_limits_are_set_by_flags():
    limits = demo.parse_arguments(["--max-seconds", "90", "--at_once", "1"]).limits
    assert limits == Limits(max_seconds=90.0, at_once=1)
    assert "up to 90 s" in str(limits) and "1 at a time" in str(limits)


@pytest.mark.parametrize("wrong", [["--max_seconds", "0"], ["--fps", "0"], ["--at_once", "-1"]])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(errors.BadValueError, match=f"{wrong[0]}={wrong[1]}"):
        demo.parse_arguments(wrong)


def test_missing_gradio_is_said_with_its_cure(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.NotFoundError, match=r'pip install "avs_jax\[demo\]"'):
        demo.require_gradio()


def test_port_that_is_taken_is_said_or_passed_over():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.BadValueError, match=f"127.0.0.1, port {port}: Address already"):
            demo.find_port(HOST, port)
    with pytest.raises(errors.BadValueError, match="port 99999"):
        demo.find_port(HOST, 99999)
    assert demo.find_port(HOST, None) in demo._PORTS


@pytest.fixture
def visits(tmp_path, model):
    folder = tmp_path.resolve() / "kept"
    (folder / "sent").mkdir(parents=True)
    return demo.Visits(Marker(model, 2, Limits(), folder)), folder / "sent" / "a.mp4"


def test_broken_film_is_one_line_without_the_server_s_folders(visits):
    visits, path = visits
    path.write_bytes(b"no film")
    said, kept = visits.look(str(path))
    assert kept is None and 'role="alert"' in said
    assert "cannot read 'a.mp4' as a video" in said.replace("&#x27;", "'")
    assert "\n" not in said and str(path.parent) not in said
    assert not path.parent.exists()


def test_fault_of_ours_is_one_line_for_the_visitor_and_a_trace_in_the_log(
    visits, model, monkeypatch, caplog
):
    visits, path = visits
    make_film(path, seconds=1)
    monkeypatch.setattr(model, "forward", lambda *_: 1 / 0)
    said, kept, result = visits.mark(str(path), 0.45, "me", lambda *_: None)
    assert "Something went wrong on the server" in said
    assert (kept, result) == (None, None)
    assert "ZeroDivisionError" in caplog.text
    assert list(path.parents[1].iterdir()) == []


def test_visitor_who_leaves_takes_the_result_along(visits):
    visits, path = visits
    make_film(path, seconds=1)
    *_, mine = visits.mark(str(path), 0.45, "me", lambda *_: None)
    *_, other = visits.mark(str(path), 0.45, "other", lambda *_: None)
    visits.leave("me")
    visits.leave("nobody")
    assert not os.path.exists(mine.overlay) and os.path.exists(other.overlay)


def test_next_result_takes_the_place_of_the_last(visits):
    visits, path = visits
    make_film(path, seconds=1)
    *_, first = visits.mark(str(path), 0.45, "me", lambda *_: None)
    *_, second = visits.mark(str(path), 0.9, "me", lambda *_: None)
    assert not os.path.exists(first.overlay) and os.path.exists(second.overlay)


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(model):
    """(address of the page, folder of what visitors send and get)"""
    with kept_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        marker = Marker(model, 2, Limits(max_seconds=20), folder)
        patch.setattr(demo, "_EXAMPLES", (2,))
        examples = demo.write_examples(folder.with_name("examples"))
        page = demo.build_page(marker, examples, "stand-in")
        yield demo.launch(page, marker.limits, HOST, demo.find_port(HOST, None)), folder
        page.close(verbose=False)


@pytest.fixture
def visit(browser, server):
    """A new visitor's page, and the addresses that it asked for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(server[0])
    page.wait_for_selector("#go")
    yield page
    context.close()


def send(page, path):
    page.set_input_files("#film input[type=file]", str(path))


def wait_for_line(page, words):
    page.wait_for_function(
        "words => document.querySelector('#status').innerText.includes(words)", arg=words
    )


def film(page, wanted):
    """A property of the result's <video>."""
    return page.evaluate(f"document.querySelector('#result video').{wanted}")


@pytest.fixture
def marked(visit, tmp_path):
    """A page with a film that is marked; what it showed on the way is in `page.seen`."""
    send(visit, make_film(tmp_path / "beeps.mp4", seconds=SECONDS))
    wait_for_line(visit, "beeps.mp4: 6.0 s, 64 x 48, with sound")
    visit.click("#go")
    visit.seen = []
    end = time.monotonic() + PATIENCE / 1000
    while "Marked 6.0 s" not in visit.inner_text("#status") and time.monotonic() < end:
        visit.seen.append(visit.inner_text("#result"))
        visit.wait_for_timeout(50)
    wait_for_line(visit, "Marked 6.0 s of film")
    visit.wait_for_selector("#timeline .stage")
    visit.wait_for_function("document.querySelector('#result video')?.readyState >= 2")
    return visit


def test_film_is_marked_played_sought_and_taken_home(marked, tmp_path):
    page = marked
    assert any("s of film" in text and "s left" in text for text in page.seen)

    page.evaluate("document.querySelector('#result video').play()")
    page.wait_for_function("document.querySelector('#result video').currentTime > 0.3")
    assert film(page, "webkitAudioDecodedByteCount") > 0  # its sound track is there
    assert abs(film(page, "duration") - SECONDS) < 0.3
    page.evaluate("document.querySelector('#result video').pause()")

    stage = page.locator("#timeline .stage")
    width = stage.bounding_box()["width"]
    stage.click(position={"x": width * 0.75, "y": 12})
    page.wait_for_function("Math.abs(document.querySelector('#result video').currentTime-4.5)<0.1")
    head = page.evaluate("parseFloat(document.querySelector('#timeline .head').style.left)")
    assert abs(head - 75) < 2
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("Math.abs(document.querySelector('#result video').currentTime-3.5)<0.1")
    page.click("#timeline button[data-second='2']")
    page.wait_for_function("document.querySelector('#result video').currentTime == 2")

    kept = []
    for place, button in enumerate(page.locator("#downloads a, #downloads button").all()[:3]):
        with page.expect_download() as waiting:
            button.click()
        kept.append(tmp_path / f"{place}-{waiting.value.suggested_filename}")
        waiting.value.save_as(kept[-1])
    assert [path.name for path in kept] == [
        "0-beeps_overlay.mp4",
        "1-beeps_masks.zip",
        "2-beeps_timeline.json",
    ]
    described = json.loads(kept[2].read_text())
    marks = [mark for mark in described["marks"] if mark["time"] % 1 == 0.5]  # a second's middle
    loud = [mark["marked"][0]["share"] > 0.1 for mark in marks]
    assert loud == [False, True] * 3

    page.set_viewport_size({"width": 375, "height": 740})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    box = page.locator("#timeline .stage").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 375

    hosts = {urllib.parse.urlsplit(url).hostname for url in page.asked if url.startswith("http")}
    assert hosts == {"127.0.0.1"}


def test_program_serves_until_it_is_ended_and_leaves_nothing(
    browser, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # the program sets it: put back at the end
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "open_model", lambda *_: stand_in.make_loaded())
    monkeypatch.setattr(demo.devices, "start_jax", lambda: None)
    monkeypatch.setattr(demo.partial, "_hidden", set())  # the folder of `server` stays
    monkeypatch.setattr(demo, "_EXAMPLES", (2,))
    monkeypatch.setattr(demo, "_SWEPT_EVERY", 0.1)
    served, sweep = [], Marker.sweep

    def look(marker):
        sweep(marker)
        if "the page: http" in (printed := capsys.readouterr().out):  # not the trial's
            page = browser.new_page()
            served.append(page.goto(re.search(r"http\S+", printed)[0]).status)
            page.close()
            raise KeyboardInterrupt

    monkeypatch.setattr(Marker, "sweep", look)
    with pytest.raises(KeyboardInterrupt):
        demo.main(["--max_seconds", "2"])
    assert served == [200]
    assert list(tmp_path.iterdir()) == []


def test_limits_are_told_before_anything_is_sent(visit):
    assert "up to 20 s, 2.1 megapixels" in visit.inner_text("#about")


def test_broken_film_is_one_line_and_leaves_nothing(visit, server, tmp_path):
    before = set(server[1].rglob("*"))
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8)
    send(visit, tmp_path / "broken.mp4")
    visit.wait_for_selector("#status .error")
    assert "cannot read 'broken.mp4' as a video" in visit.inner_text("#status")
    assert "Traceback" not in visit.content()
    assert set(server[1].rglob("*")) <= before


def test_cancelled_film_leaves_no_result(visit, server, tmp_path):
    send(visit, make_film(tmp_path / "long.mp4", seconds=19))
    wait_for_line(visit, "with sound")
    visit.click("#go")
    visit.wait_for_function("document.querySelector('#result').innerText.includes('s left')")
    visit.click("#cancel")
    wait_for_line(visit, "Cancelled")
    end = time.monotonic() + 10
    while (left := [*server[1].glob("result-*/*long*")]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    assert visit.is_enabled("#go") and not visit.is_visible("#cancel")


def test_two_people_at_once_get_each_their_own(visit, server, model, tmp_path):
    other = visit.context.new_page()
    other.goto(server[0])
    pages = {"mine": visit, "other": other}
    model.forward.most = 0
    for name, page in pages.items():
        send(page, make_film(tmp_path / f"{name}.mp4", seconds=4))
        wait_for_line(page, f"{name}.mp4")
    for page in pages.values():
        page.click("#go")
    for name, page in pages.items():
        wait_for_line(page, "Marked 4.0 s of film")
        page.wait_for_selector("#result video")
        assert f"{name}_overlay.mp4" in film(page, "src")
    assert model.forward.most == 2


def test_example_of_the_package_can_be_marked(visit):
    visit.click("#examples button")
    wait_for_line(visit, "shapes_1.mp4: 5.0 s, 288 x 288, with sound")


def test_browser_is_told_to_ask_nobody_else(visit, server):
    policy = visit.request.get(server[0]).headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ")
    broken = visit.evaluate(
        """new Promise((tell) => {
            document.addEventListener("securitypolicyviolation", (e) => tell(e.blockedURI));
            fetch("http://127.0.0.2:9/").catch(() => setTimeout(() => tell("asked"), 1000));
        })"""
    )
    assert broken == "http://127.0.0.2:9/"
