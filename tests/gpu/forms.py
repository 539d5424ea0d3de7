"""What is checked: all of it on a GPU, the least on a CPU, where the check itself is tested."""

from typing import NamedTuple

from avs_jax import models
from avs_jax.benchmarking.variant import Shape
from tests.faults import small_network
from tests.faults.small_network import SmallNetwork


class Attention(NamedTuple):
    """Of frames or clips n: q queries ask k keys, heads of d numbers.

    tiled: by `attend`; else, as in PVTv2, whole. masked: some last keys are not to be looked at, as
    the sound of seconds that a clip does not have.
    """

    n: int
    q: int
    k: int
    heads: int
    d: int
    tiled: bool = True
    masked: bool = False


class Form(NamedTuple):
    """networks, models: {name: fields of `get_model`}, of numbers and of times. clips: first those
    that are timed first. side, pictures: see `timing.make_peaks`. loader_clips: made up."""

    networks: dict[str, dict]
    numbers_shape: Shape
    models: dict[str, dict]
    clips: tuple[int, ...]
    seconds: int
    size: int
    attention: dict[str, Attention]
    side: int
    pictures: int
    loader_clips: int
    rounds: int


def _fields(name: str, backbone: str, **fields) -> dict:
    common = {"backbone": backbone, "audio_backbone": "vggish", "num_classes": 1}
    return {"name": name} | common | fields


_FRAMES = 40  # 8 clips of 5
# tests/gpu/test_check.py compares them with what the models ask for.
ATTENTION = {
    "CATR 448, pixels and sound": Attention(_FRAMES, 3141, 3141, 8, 32, masked=True),
    "the same, no mask": Attention(_FRAMES, 3141, 3141, 8, 32),
    "CATR 448, pixels ask sound": Attention(8, 15680, 5, 8, 32, masked=True),
    "PVTv2 448, stage 1": Attention(_FRAMES, 12544, 196, 1, 64, tiled=False),
    "PVTv2 448, stage 2": Attention(_FRAMES, 3136, 196, 2, 64, tiled=False),
    "PVTv2 448, stage 3": Attention(_FRAMES, 784, 196, 5, 64, tiled=False),
    "PVTv2 448, stage 4": Attention(_FRAMES, 196, 196, 8, 64, tiled=False),
}
FULL = Form(
    # PVTv2-B1 has the layers of B5 and a sixth of its blocks, for which the CPU has to be waited.
    networks={
        "avesformer-resnet50": _fields("avesformer", "resnet50"),
        "pcmanet-resnet50": _fields("pcmanet", "resnet50"),
        "catr-pvt_v2_b1": _fields("catr", "pvt_v2_b1"),
    },
    numbers_shape=Shape(1, 5, 224),
    models={
        "avesformer-resnet50": _fields("avesformer", "resnet50"),
        "pcmanet-resnet50": _fields("pcmanet", "resnet50"),
        "pcmanet-pvt_v2_b5": _fields("pcmanet", "pvt_v2_b5"),
        "catr-pvt_v2_b5": _fields("catr", "pvt_v2_b5"),
    },
    clips=(8, 1, 32),
    seconds=5,
    size=224,
    attention=ATTENTION,
    side=8192,
    pictures=320,
    loader_clips=48,
    rounds=10,
)


class SmallHearing(SmallNetwork):
    """With a sound backbone, for what is timed is trained with that frozen."""

    def decide(self, seen, log_mel, frame_mask=None, train=False):
        b, t, *patch = log_mel.shape
        features = self.audio_backbone(log_mel.reshape(b * t, *patch), train=train)
        return super().decide(seen, features.reshape(b, t, 1, -1), frame_mask, train)


def register() -> None:
    """From now on it is a model by its name: for programs, not for tests of all models."""
    models.MODELS["small_hearing"] = (small_network, SmallHearing)


_SMALL = _fields("small_hearing", "small_resnet", audio_backbone="audio_cnn")
SMALLEST = Form(
    networks={"small": _SMALL},
    numbers_shape=Shape(1, 1, 32),
    models={"small": _SMALL},
    clips=(2, 1),
    seconds=1,
    size=32,
    attention={"masked": Attention(2, 24, 16, 2, 8, masked=True)},
    side=64,
    pictures=1,
    loader_clips=8,
    rounds=2,
)
FORMS = {"full": FULL, "smallest": SMALLEST}
