#!/usr/bin/env bash
# PyAV 18.1.0 (libavformat 62): added-up packet durations of sound are 1 % short in FLV and Matroska.
#
# Guess: durations of consecutive packets add up to the length of the track, as they do in MP4 and MPEG-TS;
# whoever writes sound on without stamps counts them.
# Seen: 401 AAC packets at 44.1 kHz (9.311 s): MP4 9.311 and MPEG-TS 9.308, but Matroska 9.200 and FLV 9.223:
# 0.09 to 0.11 s of desync in nine seconds. A packet lasts 23.22 ms and both formats say 23. Stamps are right.
# Source: their time base of 1 ms; each duration is rounded by itself, each stamp too, but stamps do not add up.
# So: count samples (packets x frame size / rate), or believe stamps, never the sum of durations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" av==18.1.0 numpy==2.4.6
cd "$folder"
PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import av
import numpy as np

lost = {}
for name in ("mp4", "mpegts", "matroska", "flv"):
    with av.open(f"sound.{name}", "w", format=name) as output:
        stream = output.add_stream("aac", rate=44_100)
        for i in range(400):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), "f4"), "fltp", "stereo")
            frame.sample_rate, frame.pts = 44_100, 1024 * i
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with av.open(f"sound.{name}") as sound:
        packets = [packet for packet in sound.demux(audio=0) if packet.size]
    added = sum(float(packet.duration * packet.time_base) for packet in packets)
    between = float((packets[-1].pts - packets[0].pts) * packets[0].time_base)
    length = len(packets) * 1024 / 44_100
    lost[name] = length - added
    print(f"{name:9} {len(packets)} packets, {length:.3f} s: durations {added:.3f}, stamps {between:.3f}")
    assert abs(between - (len(packets) - 1) * 1024 / 44_100) < 0.002
assert abs(lost["mp4"]) < 0.005 and abs(lost["mpegts"]) < 0.005
assert lost["matroska"] > 0.08 and lost["flv"] > 0.08
PYTHON
