#!/usr/bin/env bash
# FFmpeg's fflags=nobuffer, which everyone sets for low latency, throws away every packet that was
# read to find out what the streams are: of a pipe, where nothing can be read twice, that is lost.
#
# PyAV 18.1.0 (its wheel's FFmpeg is printed), Linux, CPython 3.11.
# Guess: the flag shortens a queue; all packets still come, only sooner.
# Seen: a film of 2 s in MPEG-TS, 50 pictures, read through a pipe: 50 packets as it is, and under nobuffer
#   only the last 29. Probing takes up to 5 MB or 5 s (probesize, analyzeduration) where it finds less.
# Source: libavformat/demux.c, avformat_find_stream_info puts what it read into the packet buffer
#   unless AVFMT_FLAG_NOBUFFER is set; https://ffmpeg.org/ffmpeg-formats.html says of the flag "Reduce
#   the latency introduced by buffering during initial input streams analysis".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" av==18.1.0 numpy==2.4.6
PYTHONPATH=$folder/packages python3 - "$folder" <<'PYTHON'
import os
import sys
import threading

import av
import numpy as np

folder = sys.argv[1]
film = os.path.join(folder, "film.ts")
with av.open(film, "w", format="mpegts") as output:
    stream = output.add_stream("mpeg2video", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for i in range(50):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * i, np.uint8), "rgb24")
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def read(**options):
    """Stamps of the packets of the film that come through a pipe."""
    pipe = os.path.join(folder, "pipe")
    os.mkfifo(pipe)

    def feed():
        with open(film, "rb") as source, open(pipe, "wb") as sink:
            sink.write(source.read())

    feeder = threading.Thread(target=feed)
    feeder.start()
    with av.open(pipe, format="mpegts", options=options) as source:
        packets = [packet.pts for packet in source.demux(video=0) if packet.size]
    feeder.join()
    os.remove(pipe)
    return packets


whole, hurried = read(), read(fflags="nobuffer")
print(f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}: {len(whole)} packets of 50;", end=" ")
print(f"with fflags=nobuffer {len(hurried)}, the last ones: {hurried == whole[-len(hurried) :]}")
assert len(whole) == 50, "a pipe loses packets by itself"
assert len(hurried) < 45 and hurried == whole[len(whole) - len(hurried) :], "this has changed"
PYTHON
