"""Where the pictures of a live source go: a film, a pipe, or a browser on this machine.

with open_sink("http://127.0.0.1:8080", fps=25) as sink:
    sink.write(moment, rgb)

Nothing opens a window. What is written is complete after every second, so that a process that is
killed leaves a film that plays.
"""

import contextlib
import http.server
import os
import re
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

import av
import cv2
import numpy as np

from avs_jax import errors
from avs_jax.media import partial
from avs_jax.media.film import local_file
from avs_jax.media.video_writer import check_folder
from avs_jax.types import UInt8

_TICKS = 90_000  # of a film's clock per second, as MPEG
_LOCAL = ("127.0.0.1", "localhost", "::1")
_QUALITY = 80  # of JPEG
_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
_PAGE = b"""<!doctype html><title>avs_jax</title>
<style>body{margin:0;background:#111;display:grid;place-items:center;min-height:100vh}
img{max-width:100vw;max-height:100vh}</style><img src="/stream" alt="what sounds, marked">
"""


@runtime_checkable
class Sink(Protocol):
    """Takes pictures of any size at times that rise."""

    def write(self, moment: int | float, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        """Raises BadValueError where it can take no more."""

    def close(self) -> None:
        """Completes what was written. May be called twice."""


class NoSink:
    """For who wants the figures alone."""

    def write(self, moment: int | float, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        pass

    def close(self) -> None:
        pass


@contextlib.contextmanager
def open_sink(output: str | None, source: str = "", fps: int | float = 25.0) -> Iterator[Sink]:
    """The sink that a name means; closed on leaving, whatever happens.

    Args:
      output: a film's path (.mp4, .mov, .mkv), - for Matroska on stdout, or http://127.0.0.1:PORT
        for a page with the pictures (MJPEG at /stream, the newest at /frame.jpg); None: nowhere.
      source: that the pictures come from, which must not be written over.
      fps: the pictures' usual rate, for the film's header.

    Raises:
      BadValueError: it cannot be written, or is an address that other machines can reach.
    """
    sink: Sink
    if output is None:
        sink = NoSink()
    elif re.match(r"https?:", output):
        sink = MjpegSink(output)
    else:
        if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
            raise errors.BadValueError(f"--output {output!r} is the source; give it another name.")
        sink = FilmSink(output, fps)
    try:
        yield sink
    finally:
        sink.close()


class FilmSink:
    """H.264 in fragments of a second; all pictures at the size of the first, others fitted in."""

    def __init__(self, path: str, fps: int | float = 25.0):
        """path: - is stdout. Raises BadValueError where it cannot be written."""
        self._path, self._fps = path, fps
        self._container = None
        self._is_closed = False
        if path == "-":
            self._hidden, self._target, self._options = None, "pipe:1", {"live": "1"}
            return
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in _SUFFIXES or os.path.isdir(path):
            raise errors.BadValueError(
                f"--output {path!r}: wanted a film's name ({', '.join(_SUFFIXES)}), - for stdout, "
                "or http://127.0.0.1:PORT."
            )
        check_folder(os.path.abspath(path))
        self._hidden = partial.hidden_name(os.path.abspath(path))
        self._target = local_file(self._hidden)
        fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        self._options = {"cluster_time_limit": "1000"} if suffix == ".mkv" else fragments
        self._options["flush_packets"] = "1"

    def write(self, moment: int | float, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        if self._is_closed:
            return
        try:
            if self._container is None:
                self._begin(moment, rgb)
            picture = av.VideoFrame.from_ndarray(_fit(rgb, *self._size), format="rgb24")
            picture = picture.reformat(format="yuv420p")
            picture.time_base = Fraction(1, _TICKS)
            picture.pts = self._last = max(round((moment - self._zero) * _TICKS), self._last + 1)
            # A key frame a second, whatever the rate turns out to be: there a fragment begins.
            if moment >= self._key + 1:
                picture.pict_type, self._key = av.video.frame.PictureType.I, moment
            self._container.mux(self._stream.encode(picture))
        except (OSError, av.FFmpegError) as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._container is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except (OSError, av.FFmpegError) as error:
            if self._path != "-":  # who read the pipe has left
                raise self._cannot_write(error) from error
        finally:
            if self._hidden and os.path.exists(self._hidden):
                os.replace(self._hidden, self._path)  # a disk that is full: what there is plays

    def _begin(self, moment: int | float, rgb: np.ndarray) -> None:
        kind = "matroska" if self._path == "-" else None
        self._container = av.open(
            self._target, "w", format=kind, container_options=self._options, buffer_size=1 << 16
        )
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._size = tuple(side + side % 2 for side in rgb.shape[:2])
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._zero, self._last, self._key = moment, -1, moment
        self._container.start_encoding()

    def _cannot_write(self, error: Exception) -> errors.BadValueError:
        name = "stdout" if self._path == "-" else repr(self._path)
        return errors.BadValueError(
            f"cannot write {name}: {getattr(error, 'strerror', None) or error}."
        )


def _fit(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture within h x w, of its own shape, black around it."""
    if rgb.shape[:2] == (height, width):
        return rgb
    h, w = rgb.shape[:2]
    if height - h in (0, 1) and width - w in (0, 1):  # an odd side, which 4:2:0 cannot have
        return np.pad(rgb, [(0, height - h), (0, width - w), (0, 0)], mode="edge")
    scale = min(height / h, width / w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    fitted = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    fitted[top : top + h, left : left + w] = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA)
    return fitted


class MjpegSink:
    """A page on this machine: / with the pictures, /stream (MJPEG), /frame.jpg (the newest).

    A picture becomes a JPEG when somebody looks, once for all who do. A browser that is slow misses
    pictures; nothing waits for it.
    """

    def __init__(self, address: str):
        """Raises BadValueError for an address that is not this machine's own, or is taken."""
        parts = urlsplit(address)
        try:
            port = parts.port or 0
        except ValueError:
            port = -1
        if parts.scheme != "http" or parts.hostname not in _LOCAL or port < 0:
            raise errors.BadValueError(
                f"--output {address}: wanted http://127.0.0.1:PORT, this machine alone; for others "
                "put a server with a password in front of it."
            )
        self._ready, self._encoding = threading.Condition(), threading.Lock()
        self._number, self._rgb, self._jpeg = 0, None, (0, b"")
        self._is_closed = False
        try:
            self._server = _Server((parts.hostname, port), self)
        except OSError as error:
            raise errors.BadValueError(
                f"--output {address}: cannot listen there ({error.strerror}); take another port."
            ) from error
        self.port = self._server.server_address[1]
        self.address = f"http://{parts.hostname}:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def write(self, moment: int | float, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        with self._ready:
            self._number, self._rgb = self._number + 1, rgb
            self._ready.notify_all()

    def close(self) -> None:
        with self._ready:
            if self._is_closed:
                return
            self._is_closed = True
            self._ready.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def next_jpeg(self, after: int, timeout: float = 10.0) -> tuple[int, bytes] | None:
        """The newest picture, as (number, JPEG), once it is later than number `after`; or None."""
        with self._ready:
            self._ready.wait_for(lambda: self._number > after or self._is_closed, timeout)
            if self._is_closed or self._number <= after:
                return None
            number, rgb = self._number, self._rgb
        with self._encoding:
            if self._jpeg[0] < number:
                options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
                _, data = cv2.imencode(".jpg", rgb[..., ::-1], options)
                self._jpeg = (number, data.tobytes())
            return self._jpeg


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], sink: MjpegSink):
        self.sink = sink
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request, client_address) -> None:
        """Browsers leave in the middle of a picture: no trace of that."""


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 10  # seconds: who does not read is let go

    def do_GET(self) -> None:
        # A page elsewhere may have its own name resolve to this machine, and read along.
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in _LOCAL:
            self.send_error(403)
        elif self.path == "/":
            self._send("text/html", _PAGE)
        elif self.path == "/frame.jpg":
            found = self.server.sink.next_jpeg(0)
            self._send("image/jpeg", found[1]) if found else self.send_error(503)
        elif self.path == "/stream":
            self._stream()
        else:
            self.send_error(404)

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        after = 0
        while found := self.server.sink.next_jpeg(after):
            after, data = found
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")

    def log_message(self, *_args) -> None:
        """Quiet: the figures are what is printed."""
