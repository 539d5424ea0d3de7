"""A page in the browser: drop a film, see and hear what sounds in it marked.

    avs-jax demo                            http://127.0.0.1:7860, this machine alone
    avs-jax demo --model WORKDIR --host 0.0.0.0 --max_seconds 120

Needs the extra `demo` (Gradio). The page shows the overlay with its sound, a timeline over
spectrogram and waveform that seeks it, a table by second, and gives overlay, masks and timeline to
keep. It calls no other machine, and the browser is told to refuse any: no fonts, no analytics.

What people send lies in a temporary folder, with what was made of it, for --keep_minutes, until
their tab is closed (results) and no longer than this program runs. What cannot be used is removed
at once.
"""

import argparse
import dataclasses
import html
import importlib.util
import logging
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from avs_jax import devices, errors
from avs_jax.config import mark_paths
from avs_jax.data.sounding_shapes import scenes
from avs_jax.data.sounding_shapes.films import write_mp4
from avs_jax.media import partial
from avs_jax.prediction.limited import Limits, Marker, Result, StoppedError, kept_folder
from avs_jax.prediction.model import Model
from avs_jax.prediction.timeline_html import draw_timeline
from avs_jax.weights import open_model, zoo

_log = logging.getLogger(__name__)

_HERE = pathlib.Path(__file__).parent
_EXAMPLES = (2, 5, 11)  # clips of sounding_shapes
_SWEPT_EVERY = 60.0  # seconds
_PORTS = range(7860, 7960)
# Whatever a later Gradio may bring along, the browser asks nobody else for it.
_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    devices.quiet_libraries()
    with partial.removed_on_signals():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    require_gradio()
    port = find_port(args.host, args.port)
    devices.start_jax()
    model = Model(open_model(args.model, args.which, args.config))
    with kept_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where it puts what is sent
        marker = Marker(model, args.fps, args.limits, folder)
        examples = write_examples(folder.with_name("examples"))
        print("trying the model on an example", flush=True)  # it compiles: nobody has to wait later
        trial = Marker(model, args.fps, Limits(), folder)  # which may be longer than is allowed
        result = trial.mark(str(examples[0]), 0.45, threading.Event(), lambda *_: None)
        trial.forget(result.overlay)
        page = build_page(marker, examples, args.model)
        url = launch(page, marker.limits, args.host, port)
        print(f"the page: {url} (Ctrl-C ends it)", flush=True)
        try:
            while True:
                time.sleep(_SWEPT_EVERY)
                marker.sweep()
        finally:
            page.close(verbose=False)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what cannot be is refused here."""
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        "--checkpoint",
        default=zoo.DEFAULT,
        metavar="DIR",
        help=f"{', '.join(zoo.NAMES)} (of the package), WORKDIR of a run, or converted weights "
        f"(default: {zoo.DEFAULT})",
    )
    add("--config", metavar="FILE[:ARGS]", help="the config that converted weights are for")
    add("--which", default="best", help="best, latest or a step (default: best)")
    add("--fps", type=int, help="masks a second (default: 1; of the package's models 4)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all machines may come")
    add("--port", type=int, help="default: the first free one from 7860 on")
    for field in dataclasses.fields(Limits):
        kind = type(field.default)
        about = _ABOUT[field.name]
        dashed = f"--{field.name.replace('_', '-')}"
        add(
            f"--{field.name}",
            dashed,
            type=kind,
            default=field.default,
            metavar="N",
            help=f"{about} (default: {field.default:g})",
        )
    args = parser.parse_args(mark_paths(parser, sys.argv[1:] if argv is None else argv))
    names = [field.name for field in dataclasses.fields(Limits)]
    for name in names:
        if not getattr(args, name) > 0:
            raise errors.BadValueError(f"--{name}={getattr(args, name)}: wanted more than 0.")
    args.limits = Limits(**{name: getattr(args, name) for name in names})
    if args.fps is None:
        args.fps = 4 if zoo.is_zoo(args.model) else 1
    if args.fps < 1:
        raise errors.BadValueError(f"--fps={args.fps}: wanted 1 or more.")
    return args


_ABOUT = {
    "max_seconds": "length of a film",
    "max_megapixels": "size of its pictures",
    "max_megabytes": "size of a file that is sent",
    "max_minutes": "work on one film",
    "max_gigabytes": "disk that all visitors' files may take",
    "keep_minutes": "until files are removed",
    "at_once": "films that are worked on at a time",
}


def require_gradio() -> None:
    """Raises NotFoundError, with what to install, where Gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise errors.NotFoundError('the page needs Gradio: pip install "avs_jax[demo]".')


def write_examples(folder: pathlib.Path) -> list[pathlib.Path]:
    """Clips of `sounding_shapes`, made on the spot."""
    folder.mkdir()
    paths = []
    for number, index in enumerate(_EXAMPLES, 1):
        paths.append(folder / f"shapes_{number}.mp4")
        write_mp4(scenes.plan_clip("ms3", "test", index), paths[-1], fps=12, size=288)
    return paths


# --- page -------------------------------------------------------------------------------------


class Visits:
    """What the page asks for, one line of answer each; visitors are known by their session."""

    def __init__(self, marker: Marker):
        self._marker = marker
        self._stops: dict[str, threading.Event] = {}
        self._results: dict[str, Result] = {}

    def look(self, path: str | None) -> tuple[str, str | None]:
        """On a film that has just come -> (line, the film, or None if it cannot be used)."""
        if path is None:
            return _say(
                "Drop a film, record one, or take shapes that the package draws and plays.", "idle"
            ), None
        try:
            info = self._marker.check(path)
        except Exception as error:
            self._marker.forget(path)
            return _say(_to_line(error, path), "error"), None
        length = "" if info.duration is None else f"{info.duration:.1f} s, "
        name = os.path.basename(path)
        return _say(f"{name}: {length}{info.width} x {info.height}, with sound.", "done"), path

    def mark(self, path: str | None, alpha: float, session: str, tell: Callable):
        """-> (line, the film or None, Result or None)."""
        if path is None:
            return _say("Drop a film first, or take an example.", "error"), None, None
        stop = self._stops[session] = threading.Event()
        self._forget_result(session)
        try:
            result = self._marker.mark(path, alpha, stop, tell)
        except StoppedError:
            return _say("Cancelled; nothing is left of it.", "idle"), path, None
        except Exception as error:
            self._marker.forget(path)
            return _say(_to_line(error, path), "error"), None, None
        self._results[session] = result
        if self._stops.get(session) is not stop:  # the visitor left meanwhile
            self._forget_result(session)
        length = result.described["film"]["seconds"]
        line = f"Marked {length:.1f} s of film in {result.took:.1f} s."
        return _say(line, "done"), path, result

    def stop(self, session: str) -> str:
        if (event := self._stops.get(session)) is not None:
            event.set()
        return _say("Cancelled; nothing is left of it.", "idle")

    def leave(self, session: str) -> None:
        """The tab was closed: its work ends, its result goes."""
        if (event := self._stops.pop(session, None)) is not None:
            event.set()
        self._forget_result(session)

    def _forget_result(self, session: str) -> None:
        if (result := self._results.pop(session, None)) is not None:
            self._marker.forget(result.overlay)


def _say(line: str, kind: str) -> str:
    role = "alert" if kind == "error" else "status"
    return f'<div class="status {kind}" role="{role}">{html.escape(line)}</div>'


def _to_line(error: Exception, path: str) -> str:
    """What went wrong, without the server's folders."""
    if not isinstance(error, errors.InputError):
        _log.error("a visitor's film could not be marked", exc_info=error)
        return "Something went wrong on the server; its log says what."
    return str(error).replace(path, os.path.basename(path)).partition("\n")[0]


_IDLE = _say("Drop a film, record one, or take shapes that are made here.", "idle")


def _show_input(gr, examples: int):
    """The column of what the visitor gives -> its parts, into the page that is being built."""
    film = gr.Video(
        label="Your film",
        sources=["upload", "webcam"],
        include_audio=True,
        webcam_options=gr.WebcamOptions(mirror=False),
        elem_id="film",
    )
    with gr.Row(elem_id="examples"):
        buttons = [
            gr.Button(f"Shapes {number}", size="sm", min_width=80)
            for number in range(1, examples + 1)
        ]
    alpha = gr.Slider(0.1, 0.9, 0.45, step=0.05, label="Opacity", elem_id="alpha")
    go = gr.Button("Mark what sounds", variant="primary", elem_id="go")
    cancel = gr.Button("Cancel", visible=False, elem_id="cancel")
    status = gr.HTML(_IDLE, elem_id="status")
    return film, buttons, alpha, go, cancel, status


def build_page(marker: Marker, examples: Sequence[pathlib.Path], model_name: str):
    """The page, a `gradio.Blocks` that is not served yet."""
    import gradio as gr

    visits = Visits(marker)
    about = (
        "<h1>What sounds here?</h1><p>Drop a film with sound: what is heard is marked in the "
        f"picture, second by second. Model: {html.escape(model_name)}.</p>"
        f'<p class="limits">{html.escape(str(marker.limits))}</p>'
    )
    with gr.Blocks(title="avs_jax: what sounds here?", analytics_enabled=False) as page:
        gr.HTML(about, elem_id="about")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                film, buttons, alpha, go, cancel, status = _show_input(gr, len(examples))
            with gr.Column(scale=3, min_width=300):
                overlay = gr.Video(
                    label="What sounds", interactive=False, buttons=[], elem_id="result"
                )
                with gr.Row(visible=False, elem_id="downloads") as downloads:
                    files = [
                        gr.DownloadButton(label, size="sm", min_width=90)
                        for label in ("Film (.mp4)", "Masks (.zip of PNG)", "Timeline (.json)")
                    ]
        line = gr.HTML(
            "",
            apply_default_css=False,
            js_on_load=(_HERE / "demo.js").read_text(),
            elem_id="timeline",
            visible=False,
        )

        def run(path, alpha, request: gr.Request, progress=gr.Progress()):  # noqa: B008 (Gradio's way)
            progress(0.0, desc="reading the film")
            said, kept, result = visits.mark(
                path, alpha, request.session_hash, lambda part, words: progress(part, desc=words)
            )
            if result is None:
                gone = [gr.update(value=None)] * 3
                return said, kept, None, gr.update(visible=False), *gone, gr.update(visible=False)
            drawn = gr.update(value=draw_timeline(result.described), visible=True)
            made = [result.overlay, result.masks, result.timeline]
            return said, kept, result.overlay, gr.update(visible=True), *made, drawn

        def working(is_working):
            return gr.update(interactive=not is_working), gr.update(visible=is_working)

        def stop(request: gr.Request):
            return visits.stop(request.session_hash), *working(False)

        def leave(request: gr.Request):
            visits.leave(request.session_hash)

        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for button, example in zip(buttons, examples, strict=True):
            taken = button.click(lambda path=str(example): path, None, film, **quick)
            taken.then(visits.look, film, [status, film], **quick)
        for come in (film.upload, film.stop_recording):
            come(visits.look, film, [status, film], **quick)
        begun = go.click(lambda: working(True), None, [go, cancel], **quick)
        marking = begun.then(
            run,
            [film, alpha],
            [status, film, overlay, downloads, *files, line],
            show_progress_on=[overlay],
            concurrency_limit=marker.limits.at_once,
            api_visibility="private",
        )
        marking.then(lambda: working(False), None, [go, cancel], **quick)
        cancel.click(stop, None, [status, go, cancel], cancels=[marking], **quick)
        page.unload(leave)
    return page


class _OwnHostOnly:
    """Answers with a policy by which the browser asks this server alone (ASGI)."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                told = ((b"content-security-policy", _POLICY), (b"referrer-policy", "no-referrer"))
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value.encode()) for name, value in told),
                ]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def find_port(host: str, port: int | None) -> int:
    """The port, or the first of `_PORTS` that is free (Gradio leaves those it tries open).

    Raises:
      BadValueError: it is taken, or there is no such address.
    """
    reason = ""
    for trial in _PORTS if port is None else [port]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            try:
                free.bind((host, trial))
                return free.getsockname()[1]  # of port 0, any
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
    raise errors.BadValueError(
        f"cannot serve the page at {host}, port {port or '7860 to 7959'}: {reason}."
    )


def launch(page, limits: Limits, host: str, port: int) -> str:
    """Serves the page from threads of this process -> its address."""
    import gradio as gr
    from starlette.middleware import Middleware

    # Gradio asks its own server whether it answers: never by way of a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(
            filter(None, [os.environ.get(name), f"127.0.0.1,localhost,{host}"])
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    plain = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Soft(
        primary_hue="pink", font=plain, font_mono=["ui-monospace", "Menlo", "monospace"]
    )
    page.queue(max_size=20, default_concurrency_limit=limits.at_once)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=int(limits.max_megabytes * 1e6),
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme,
        css_paths=str(_HERE / "demo.css"),
        app_kwargs={"middleware": [Middleware(_OwnHostOnly)]},
    )
    return url


if __name__ == "__main__":
    errors.run_program(main)
