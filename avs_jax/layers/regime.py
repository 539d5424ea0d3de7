"""What `train=True` means for a network: whose batch statistics, and which parts sit out.

Every module takes `train` as an argument of its call. What a run decides once about training is a
`Regime`, which `models.get_model` hands to those that act on it: `BatchNorm`, `Dropout`, PVTv2.
"""

import dataclasses

from avs_jax import errors

# Whose statistics BatchNorm takes in training, and whose its running ones follow:
#   global      the whole batch, over all devices: does not change with their number. The default.
#   per_device  each device's own clips. AVSBench, PCMANet and CATR were published with PyTorch's
#               DataParallel: on one GPU it is `global`, on several this. AVESFormer published no
#               code.
#   frozen      the running statistics, which stay: for fine-tuning on few clips.
NORMS = ("global", "per_device", "frozen")

# What the running statistics follow where each device has its own:
#   first  those of the first device: PyTorch's DataParallel keeps the buffers of the first replica
#          alone, DistributedDataParallel hands out those of rank 0 before each step. The default.
#   mean   the mean over devices: less noise, of as many clips as the batch has.
RUNNING_STATISTICS = ("first", "mean")


@dataclasses.dataclass(frozen=True)
class Regime:
    """norm: one of NORMS.

    devices: that share a batch, for norm="per_device".
    two_pass_variance: the variance as the mean of (x - mean)^2. False: in the same pass as the
      mean, from x less the running mean, so that few digits cancel once that has come near. Two
      passes are the exacter, and cost one more all-reduce per BatchNorm (3 instead of 2 with the
      backward pass) where a batch lies on several devices. None: two on CPUs, where the published
      numbers of this repository come from, one elsewhere.
    running_statistics: one of RUNNING_STATISTICS, for norm="per_device".
    frozen: module paths such as "audio_backbone" or "backbone/layer1_0", which run as in evaluation
      even with train=True: BatchNorm by its running statistics, which stay; no dropout.

    Raises:
      UnknownNameError: a norm or a kind of running statistics that does not exist.
    """

    norm: str = "global"
    devices: int = 1
    two_pass_variance: bool | None = None
    running_statistics: str = "first"
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        if self.norm not in NORMS:
            raise errors.unknown_name("norm", self.norm, NORMS)
        if self.running_statistics not in RUNNING_STATISTICS:
            raise errors.unknown_name(
                "running_statistics", self.running_statistics, RUNNING_STATISTICS
            )

    def trains(self, path: tuple[str, ...], train: bool) -> bool:
        """Whether the module at `path` runs as in training."""
        frozen = (tuple(filter(None, name.split("/"))) for name in self.frozen)
        return train and not any(path[: len(start)] == start for start in frozen)
