#!/usr/bin/env bash
# PyAV 18.1.0: the frames that `codec_context.decode(None)` gives have a pts but no time base, so their time is NaN.
#
# Guess: the last pictures of a film, which the decoder holds back for reordering, are frames like the others.
# Seen: 23 frames with time_base 1/12800, then 2 from the flush with time_base None: pts 11776 and 12288 are
# there, `frame.time` is NaN (and NaN passes every comparison as False, so they fall out of any time window).
# Source: av/codec/context.py takes the time base from the packet, and a flush has none.
# So: flush by an empty packet that has `stream` and `time_base`, or keep the time base and multiply.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" av==18.1.0 numpy==2.4.6
cd "$folder"
PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import math

import av
import numpy as np

with av.open("film.mp4", "w") as output:
    stream = output.add_stream("libx264", rate=25)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for i in range(25):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * i, np.uint8))
        frame.pts = i
        output.mux(stream.encode(frame))
    output.mux(stream.encode())

with av.open("film.mp4") as film:
    stream = film.streams.video[0]
    packets = [packet for packet in film.demux(stream) if packet.size]
    decoded = [frame for packet in packets for frame in stream.codec_context.decode(packet)]
    flushed = stream.codec_context.decode(None)
print(len(decoded), "frames with time base", decoded[-1].time_base, "the last at", decoded[-1].time)
print(len(flushed), "from the flush:", [(f.pts, f.time_base, f.time) for f in flushed])
assert len(decoded) + len(flushed) == 25 and flushed
assert all(frame.time_base is not None for frame in decoded)
for frame in flushed:
    assert frame.pts is not None and frame.time_base is None and math.isnan(frame.time)
PYTHON
