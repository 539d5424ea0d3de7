"""What can be wrong with AVSBench on disk, whether it keeps a clip out, and what to do about it."""

import dataclasses
import typing


class Kind(typing.NamedTuple):
    """A kind of fault: does it keep the clip out of a data set, what it is, what to do about it."""

    fatal: bool
    title: str
    fix: str


_AGAIN = "unpack the release's archive again, or download it again if that does not help"
_FFMPEG = "ffmpeg -i VIDEO -vn -ac 2 -ar 16000 -c:a pcm_s16le OUT.wav"
KINDS = {
    "missing_clip": Kind(True, "clips without any file", _AGAIN),
    "missing_frame": Kind(True, "frames that are missing", _AGAIN),
    "missing_mask": Kind(True, "masks that are missing", _AGAIN),
    "missing_wav": Kind(True, "wavs that are missing", f"{_AGAIN}; or, from the video: {_FFMPEG}"),
    "unreadable_frame": Kind(True, "frames that cannot be read", _AGAIN),
    "unreadable_mask": Kind(True, "masks that cannot be read", _AGAIN),
    "unreadable_wav": Kind(True, "wavs that cannot be read", f"make them again: {_FFMPEG}"),
    "pickled_wav": Kind(
        True,
        "wavs that are pickles",
        f"a pickle can run anything when it is loaded, so it is not; make the wav again: {_FFMPEG}",
    ),
    "empty_wav": Kind(True, "wavs without a sample", f"make them again: {_FFMPEG}"),
    "frame_size": Kind(
        True, "frames of another size than the clip's first", "extract the clip's frames again"
    ),
    "mask_size": Kind(
        True,
        "masks of another size than their frame",
        "put back the release's frames and masks; if you resize, resize both (masks: nearest)",
    ),
    "not_224": Kind(
        False,
        "clips of S4 and MS3 whose frames are not 224 x 224",
        "nothing to do: all are resized; for published comparisons put back the release's frames",
    ),
    "frame_mode": Kind(
        False,
        "frames that are not 8-bit RGB in JPEG or PNG",
        "nothing to do: they are stored as RGB PNG; put back the release's files to keep bytes",
    ),
    "mask_mode": Kind(
        False,
        "masks that are not 8-bit grey (mode L)",
        "check that they show what they should: any colour but black is taken as foreground (S4, "
        "MS3), colours as palette colours (AVSS); the release's masks are of mode L",
    ),
    "mask_values": Kind(
        False,
        "masks with grey values between 0 and 255",
        "check how they were resized (use nearest): values of 128 and more are taken as foreground",
    ),
    "unknown_colour": Kind(
        False,
        "labels with colours or ids that no class has",
        "put back the release's labels; until then such pixels are background",
    ),
    "labels_differ": Kind(
        False,
        "labels_semantic and labels_rgb that disagree",
        "put back the release's labels; labels_semantic is what is used",
    ),
    "wav_rate": Kind(
        False,
        "wavs of another rate than the release's",
        f"nothing to do: they are resampled; for the release's own: {_FFMPEG}",
    ),
    "short_wav": Kind(
        False,
        "wavs shorter than their clip",
        "nothing to do: S4 and MS3 repeat the last 0.96 s, AVSS has silence there; or, from the "
        f"whole video: {_FFMPEG}",
    ),
    "long_wav": Kind(
        False,
        "wavs longer than their clip by a second or more",
        "check that they start with the clip: what comes after its last frame is not used",
    ),
    "silent_wav": Kind(
        False, "wavs that are silent", f"check the video's sound; make them again: {_FFMPEG}"
    ),
    "bad_row": Kind(True, "rows of the table that name no clip", "put back the release's CSV"),
    "duplicate_row": Kind(
        False, "rows of the table that name a clip again", "the first is used; delete the others"
    ),
    "row_count": Kind(
        False,
        "splits with another number of rows than the release's",
        "put back the release's CSV; for a part of AVSBench, --any-count leaves this out",
    ),
    "other_rows": Kind(
        False,
        "splits with other clips than the release's",
        "put back the release's CSV; for clips of your own, --any-count leaves this out",
    ),
    "stray": Kind(
        False,
        "clips that no row of the table names",
        "nothing to do: they are not used; or put back the release's CSV",
    ),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one file of a clip."""

    kind: str
    clip: str
    path: str
    detail: str

    @property
    def fatal(self) -> bool:
        return KINDS[self.kind].fatal
