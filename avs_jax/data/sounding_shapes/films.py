"""Clips of `sounding_shapes` as films that any player shows, drawn at any rate and size."""

import os

import av

from avs_jax import errors
from avs_jax.data.sounding_shapes import scenes, timbres


def write_mp4(plan: scenes.Plan, path: str | os.PathLike, fps: int = 8, size: int = 192) -> None:
    """Writes a clip as a video (H.264, AAC) of `fps` frames a second, with its sound.

    Frame j shows the scene at j / fps: with an even `fps`, the frame at k + 0.5 s is the data
    set's frame k.

    Args:
      plan: see `scenes.plan_clip`; the clip of a data set is that of the same subset, split,
      index, seed. path: of the file, overwritten. fps: frames a second. size: side of the
      pictures, even.

    Raises:
      BadValueError: odd size, or the file cannot be written.
    """
    if size % 2 or fps < 1:
        raise errors.BadValueError(f"size={size}, fps={fps}: wanted an even size and fps >= 1.")
    scene = scenes.Scene(plan, size)
    try:
        container = av.open(os.fspath(path), "w", format="mp4")
    except OSError as error:
        raise errors.BadValueError(f"cannot write {path}: {error.strerror}.") from None
    with container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "14"})
        video.width, video.height, video.pix_fmt = size, size, "yuv420p"
        sound = container.add_stream("aac", rate=timbres.SAMPLE_RATE, layout="mono")
        sound.bit_rate = 96_000
        for j in range(plan.seconds * fps):
            frame = av.VideoFrame.from_ndarray(scene.show(j / fps)[0], format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(scenes.record(plan)[None], "fltp", "mono")
        samples.sample_rate = timbres.SAMPLE_RATE
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
