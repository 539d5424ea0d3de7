"""What `train=True` means for a network: whose batch statistics, and which parts sit out.

Every module takes `train` as an argument of its call. What a run decides once about training is a
`Regime`, which `models.get_model` hands to the layers that act on it: `BatchNorm` and `Dropout`.
"""

import dataclasses

from avs_jax import errors

# Whose statistics BatchNorm takes in training, and whose its running ones follow:
#   global      the whole batch, over all devices: does not change with their number. The default.
#   per_device  each device's own clips; the running ones follow the first device, as with PyTorch's
#               DataParallel, which keeps the buffers of the first replica alone. AVSBench, PCMANet
#               and CATR were published with DataParallel: on one GPU it is `global`, on several
#               this. AVESFormer published no code.
#   frozen      the running statistics, which stay: for fine-tuning on few clips.
NORMS = ("global", "per_device", "frozen")


@dataclasses.dataclass(frozen=True)
class Regime:
    """norm: one of NORMS.

    devices: that share a batch, for norm="per_device".
    two_pass_variance: the variance as the mean of (x - mean)^2. False: in the same pass as the
      mean, from x less the running mean, so that few digits cancel once that has come near. Two
      passes are the exacter, and cost one more all-reduce per BatchNorm (3 instead of 2 with the
      backward pass) where a batch lies on several devices. None: two on CPUs, where the published
      numbers of this repository come from, one elsewhere.
    frozen: module paths such as "audio_backbone" or "backbone/layer1_0", which run as in evaluation
      even with train=True: BatchNorm by its running statistics, which stay; no dropout.

    Raises:
      UnknownNameError: a norm that does not exist.
    """

    norm: str = "global"
    devices: int = 1
    two_pass_variance: bool | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        if self.norm not in NORMS:
            raise errors.unknown_name("norm", self.norm, NORMS)

    def trains(self, path: tuple[str, ...], train: bool) -> bool:
        """Whether the module at `path` runs as in training."""
        frozen = (tuple(filter(None, name.split("/"))) for name in self.frozen)
        return train and not any(path[: len(start)] == start for start in frozen)
