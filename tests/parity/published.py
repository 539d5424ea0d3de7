"""PCMANet and CATR as published, in PyTorch, read from a checkout that the user made.

Only for timing beside ours (`time_published`): nothing of that code is here. What it imports and
does not need (timm, torchvision, sound files, a GPU) is stood in for; its mathematics is untouched.
"""

import contextlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np

from avs_jax import errors
from tests.parity import fill

# network -> (repository and commit, folder in it, file that tells it)
SOURCES = {
    "pcmanet_resnet50": (
        "https://github.com/PrettyPlate/PCMANet at d3df7b5",
        "avs_scripts/avs_s4",
        "model/ResNet_AVSModel.py",
    ),
    "pcmanet_pvt": (
        "https://github.com/PrettyPlate/PCMANet at d3df7b5",
        "avs_scripts/avs_s4",
        "model/PVT_AVSModel.py",
    ),
    "catr_pvt": (
        "https://github.com/aspirinone/CATR.github.io at aa3615c",
        "CATR",
        "model/PVT_AVSModel.py",
    ),
}
# MTTR's, from which CATR descends: its own configuration file was not published.
CATR = {
    "num_encoder_layers": 3,
    "num_decoder_layers": 3,
    "d_model": 256,
    "nheads": 8,
    "dim_feedforward": 2048,
    "dropout": 0.1,
    "aux_loss": True,
    "dice_loss_coef": 5,
    "eos_coef": 0.1,
    "set_cost_is_referred": 2,
    "set_cost_dice": 5,
    "device": "cpu",
}


def find_code(network: str, code: Path) -> Path:
    """The folder of a checkout that holds the network.

    Raises:
      NotFoundError: it does not.
    """
    source, folder, file = SOURCES[network]
    folder = Path(code).expanduser() / folder
    if not (folder / file).is_file():
        raise errors.NotFoundError(f"{folder / file} is not there; --code: a clone of {source}.")
    return folder


def make_published(
    network: str, code: Path, frames: np.ndarray, log_mel: np.ndarray, train: bool
) -> Callable[[], np.ndarray]:
    """A run of the published network on CPU, weights filled as for the fixtures.

    Args:
      code: the checkout. frames: f32[b t h w 3], log_mel: f32[b t 96 64].

    Returns:
      a function: logits f32[...] as that code lays them out; or, with `train`, a step of Adam on
      its S4 loss, [] f32.

    Raises:
      NotFoundError: no checkout there.
    """
    import torch

    folder = find_code(network, code)
    _stand_in(torch)
    sys.path.insert(0, str(folder))
    make = _make_catr if network == "catr_pvt" else _make_pcmanet
    model, sound, forward, loss = make(torch, network, frames, log_mel)
    if not train:

        def run():
            with torch.inference_mode():
                return forward()[0].numpy()

        model.eval()
        sound.eval()
        return run
    model.train()
    sound.eval()
    optimizer = torch.optim.Adam(model.parameters(), 1e-5)

    def step():
        optimizer.zero_grad()
        value = loss(forward())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        return value.detach().numpy()

    return step


def _stand_in(torch) -> None:
    """What the published files touch of a GPU, timm, torchvision, resampy and soundfile."""
    torch.Tensor.cuda = lambda self, *_: self
    torch.nn.Module.cuda = lambda self, *_: self

    class DropPath(torch.nn.Module):
        def __init__(self, rate=0.0):
            super().__init__()
            self.rate = rate

        def forward(self, x):
            if not self.training or not self.rate:
                return x
            kept = torch.rand((len(x),) + (1,) * (x.ndim - 1)) >= self.rate
            return x * kept / (1 - self.rate)

    def add(name, **members):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
        return module

    # As it was in the torchvision that CATR was written for.
    misc = types.SimpleNamespace(interpolate=torch.nn.functional.interpolate)
    ops = add("torchvision.ops", misc=misc)
    add("torchvision", models=add("torchvision.models"), ops=ops, __version__="0.99")
    add("resampy")
    add("soundfile")
    add("timm")
    add("timm.models")
    add(
        "timm.models.layers",
        DropPath=DropPath,
        to_2tuple=lambda x: (x, x),
        trunc_normal_=torch.nn.init.trunc_normal_,
    )
    add("timm.models.registry", register_model=lambda function: function)
    add("timm.models.vision_transformer", _cfg=dict)


def _filled(torch, network: str) -> dict:
    return {name: torch.from_numpy(x) for name, x in fill.weights(network).items()}


def _make_sound(torch):
    from torchvggish import vggish

    sound = vggish.VGG(vggish.make_layers())
    sound.load_state_dict(_filled(torch, "vggish"))
    return sound


@contextlib.contextmanager
def _own_weights(network: type):
    """Without the files of ImageNet's weights, which the constructors load."""
    names = [n for n in ("initialize_weights", "initialize_pvt_weights") if hasattr(network, n)]
    kept = {name: getattr(network, name) for name in names}
    for name in names:
        setattr(network, name, lambda self, **_: None)
    yield
    for name, method in kept.items():
        setattr(network, name, method)


def _make_pcmanet(torch, network, frames, log_mel):
    if network == "pcmanet_resnet50":
        from model.ResNet_AVSModel import PCMANet
    else:
        from model.PVT_AVSModel import PCMANet
    import loss as losses

    with _own_weights(PCMANet):
        model = PCMANet(channel=256)
    model.load_state_dict(_filled(torch, f"{network}_s4"))
    sound = _make_sound(torch)
    clips, size = frames.shape[0], frames.shape[2]
    x = torch.from_numpy(np.moveaxis(frames.reshape(-1, *frames.shape[2:]), -1, 1).copy())
    heard = torch.from_numpy(log_mel.reshape(-1, 1, *log_mel.shape[2:]))
    mask = torch.from_numpy(fill.uniform("pcmanet/mask", (clips, size, size)) > 0.5).float()

    def forward():
        with torch.no_grad():
            audio = sound(heard)
        return model(x, audio)

    def loss(outputs):
        return sum(losses.BCEIOU_loss(x, mask) for x in outputs[:4])

    return model, sound, forward, loss


def _make_catr(torch, network, frames, log_mel):
    from misc import NestedTensor
    from model.PVT_AVSModel import Pred_endecoder, build

    with _own_weights(Pred_endecoder):
        model = Pred_endecoder(channel=256, config=None, **CATR)
    model.load_state_dict(_filled(torch, f"{network}_s4"))
    criterion, _ = build(types.SimpleNamespace(**CATR))
    sound = _make_sound(torch)
    b, t, size = frames.shape[:3]
    x = torch.from_numpy(frames.transpose(1, 0, 4, 2, 3).copy())  # [t b 3 h w], time first
    mask = torch.zeros((t, b, size, size), dtype=torch.bool)
    heard = torch.from_numpy(log_mel.reshape(-1, 1, *log_mel.shape[2:]))
    silent = torch.zeros((b, t), dtype=torch.bool)
    target = torch.from_numpy(fill.uniform("catr/mask", (b, 1, 224, 224)) > 0.5).float()
    targets = [{"masks": x, "referred_instance_idx": 0} for x in target]

    def forward():
        with torch.no_grad():
            audio = sound(heard)
        samples = NestedTensor(x.clone(), mask.clone())
        outputs = model(samples, silent, x.reshape(-1, 3, size, size), audio)
        return outputs["pred_masks"], outputs

    def loss(found):
        outputs = dict(found[1])
        first = torch.tensor([0])
        outputs["pred_masks"] = torch.index_select(outputs["pred_masks"], 0, first)
        outputs["pred_is_referred"] = outputs["pred_is_referred"][0].unsqueeze(0)
        terms, weights = criterion(outputs, [targets]), criterion.weight_dict
        return sum(x * weights[name] for name, x in terms.items() if name in weights)

    return model, sound, forward, loss
