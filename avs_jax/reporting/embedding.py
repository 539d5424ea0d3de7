"""Pictures, sounds and drawings as text that stands in a page: no file beside it, no network."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from PIL import Image

from avs_jax.media.audio import SAMPLE_RATE
from avs_jax.types import Float, UInt8

_INK = "#010203"  # stands for the page's own ink while a drawing is made


def embed(kind: str, data: bytes) -> str:
    """A data URI; kind: e.g. image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def embed_picture(picture: UInt8[np.ndarray, "h w 3"], quality: int = 80) -> str:
    """RGB as a JPEG."""
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "JPEG", quality=quality, optimize=True)
    return embed("image/jpeg", encoded.getvalue())


def embed_sound(waveform: Float[np.ndarray, "s"]) -> str:
    """16 kHz mono as MP3 of 48 kbit/s, which every browser plays; 6 kB a second.

    What lies beyond [-1, 1] is cut.
    """
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp3") as output:
        stream = output.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = 48_000
        samples = np.clip(waveform, -1, 1).astype(np.float32)[None]
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate = SAMPLE_RATE
        for packet in (*stream.encode(block), *stream.encode(None)):
            output.mux(packet)
    return embed("audio/mpeg", encoded.getvalue())


def embed_drawing(
    draw: Callable[[Any], None], width: float, height: float, name: str, title: str
) -> str:
    """<svg> in the page's ink, on whatever ground, of what `draw` puts onto a matplotlib Figure.

    Args:
      width, height: inches of 72 CSS pixels. name: of the drawing, of its own in the page: ids
        within are made of it. title: what it shows, for who cannot see it; plain text.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings = dict.fromkeys(inked, _INK)
    settings |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # A page's parser knows what SVG is: the names of its standards would be the only addresses.
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}_", svg)
    attributes = f'role="img" aria-label="{title}" style="--width: {width * 96:.0f}px"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1)
