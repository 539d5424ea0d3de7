"""PCMANet in the published code's terms: its fixtures' inputs, and what our network gives for them.

Layout there: maps [frames channels h w], tokens [frames tokens channels], frames clip by clip.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from avs_jax import convert, models
from avs_jax.backbones.resnet import max_pool
from avs_jax.layers.losses import means
from avs_jax.layers.losses import total as total_of
from avs_jax.models.pcmanet import lay_out, pool_tokens
from tests.parity import fill, halves

NETWORKS = {  # fixture -> fields of the model
    "pcmanet_resnet50_s4": {"backbone": "resnet50", "groups": 4},
    "pcmanet_pvt_s4": {"backbone": "pvt_v2_b5", "groups": 8},
}
STAGES = (1, 2, 3, 4)

# Stored entry -> our module in `backbone`.
RESNET_MODULES = {
    "resnet.conv1": "conv1",
    "resnet.layer1.0": "layer1_0",
    "resnet.layer1": "layer1_2",
    "resnet.layer2.0": "layer2_0",
    "resnet.layer2": "layer2_3",
    "resnet.layer3_1.0": "layer3_0",
    "resnet.layer3_1": "layer3_5",
    "resnet.layer4_1.0": "layer4_0",
    "resnet.layer4_1": "layer4_2",
}
PVT_MODULES = {
    "encoder_backbone.patch_embed1.proj": "patch_embed1/proj",
    "encoder_backbone.patch_embed1.norm": "patch_embed1/norm",
    "encoder_backbone.patch_embed2.norm": "patch_embed2/norm",
    "encoder_backbone.block1.0.attn": "block1_0/attn",
    "encoder_backbone.block1.0.mlp": "block1_0/mlp",
}
PVT_MODULES |= {
    f"encoder_backbone.block{i}.{j}": f"block{i}_{j}"
    for i, j in ((1, 0), (1, 2), (2, 0), (2, 5), (3, 0), (3, 20), (3, 39), (4, 0), (4, 2))
}
CAPTURED = {f"backbone/{name}" for name in (*RESNET_MODULES.values(), *PVT_MODULES.values())}
CAPTURED |= {"backbone", "backbone/bn1"}
CAPTURED_INSIDE = ("block1_0",)  # attn and mlp


def companion(name):
    return json.loads((fill.FOLDER / "expected" / f"{name}.json").read_text())


def variables_of(fixture, gains=None):
    """The filled weights, converted as a published file would be; `gains` instead of the file's."""
    state = fill.weights(fixture)
    if gains is not None:
        for name, gain in gains.items():
            state[name] = fill.weight(name, state[name].shape) * np.float32(gain)
    state |= {f"audio_backbone.{name}": x for name, x in fill.weights("vggish").items()}
    return convert.from_torch("pcmanet", state, **NETWORKS[fixture])


def to_torch(fixture, tree):
    """Parameters or gradients, and statistics -> by the reference's names, in its layout."""
    return convert.to_torch("pcmanet", tree, **NETWORKS[fixture])


def is_stored(module, method):
    """Which modules' outputs the fixtures hold, about: some of the backbone, blocks of the decoder.

    Keeping those of all modules would take gigabytes.
    """
    path = module.path
    if path[:1] == ("backbone",):
        return "/".join(path) in CAPTURED
    return len(path) > 0 and path[-1] not in ("conv", "norm") and method == "__call__"


def flatten(state):
    """What was captured, by "path/of/module/method"."""
    return traverse_util.flatten_dict(state.get("intermediates", {}), sep="/")


def run(fixture, variables, frames, log_mel, target, *, train=False):
    """Outputs, intermediates, new statistics, losses, gradients of all but VGGish.

    `target` bool[b 224 224]: of the first frame of each clip, the only labelled one in S4.
    """
    # Picture backbone in evaluation mode while the decoder trains, as in the training fixture.
    model = models.get_model("pcmanet", **NETWORKS[fixture], frozen=("backbone",))
    loss = models.get_loss("pcmanet")
    b, t = frames.shape[:2]
    first = np.arange(t) == 0
    batch = {
        "label": np.where(first[:, None, None], target[:, None], False).astype(np.int32),
        "label_mask": np.broadcast_to(first, (b, t)),
        "frame_mask": np.ones((b, t), bool),
    }
    learnt, statistics = dict(variables["params"]), variables["batch_stats"]
    frozen = learnt.pop("audio_backbone")
    frames, log_mel = jnp.asarray(frames), jnp.asarray(log_mel)
    mode = {"train": train, "capture": False if train else is_stored}

    @jax.jit
    def decide(learnt, frozen, statistics, seen, log_mel, batch):
        variables = {"params": {**learnt, "audio_backbone": frozen}, "batch_stats": statistics}
        outputs, state = halves.decide(model, variables, seen, log_mel, **mode)
        terms = loss(outputs, batch)
        return total_of(terms), (means(terms), outputs, state)

    def total(learnt):
        variables = {"params": learnt, "batch_stats": statistics}
        seen, found = halves.see(model, variables, frames, **mode, apart=CAPTURED_INSIDE)
        value, (parts, outputs, state) = decide(
            learnt, frozen, found["batch_stats"], seen, log_mel, batch
        )
        return value, (parts, outputs, state["batch_stats"], flatten(found) | flatten(state))

    (value, (parts, outputs, updated, sown)), gradients = jax.value_and_grad(total, has_aux=True)(
        learnt
    )
    losses = [float(parts[f"output{k}"]) for k in STAGES]
    zeros = {"audio_backbone": jax.tree.map(jnp.zeros_like, frozen)}
    learnt = {"params": gradients | zeros, "batch_stats": updated}
    return {
        "losses": np.array([*losses, float(value)]),
        "outputs": outputs,
        "sown": sown,
        "state": to_torch(fixture, learnt),
    }


def evaluate(fixture):
    """A fixture of the evaluation mode, one clip of five frames -> what `run` gives, `entries`."""
    frames = fill.uniform("pcmanet/frames", (5, 3, 224, 224), -2, 2)
    log_mel = fill.uniform("pcmanet/audio", (5, 1, 96, 64), -4, 1)
    target = fill.uniform("pcmanet/mask", (1, 224, 224)) > 0.5
    inputs = np.moveaxis(frames, 1, -1)[None], log_mel[None, :, 0]
    ours = run(fixture, variables_of(fixture), *inputs, target)
    sown = ours.pop("sown")
    of_backbone = resnet_entries if "resnet" in fixture else pvt_entries
    entries = decoder_entries(ours["outputs"], sown) | of_backbone(sown)
    entries["losses"] = ours["losses"]
    return ours | {"entries": {name: np.asarray(x) for name, x in entries.items()}}


def train():
    """The training fixture: batch statistics in the decoder, two clips of blocky frames."""
    fixture = "pcmanet_resnet50_s4"
    low = fill.uniform("pcmanet/a_train_frames", (10, 3, 14, 14), -2, 2)
    frames = low.repeat(16, axis=2).repeat(16, axis=3)
    frames = np.moveaxis(frames, 1, -1).reshape(2, 5, 224, 224, 3)
    log_mel = fill.uniform("pcmanet/a_train_audio", (10, 1, 96, 64), -4, 1)
    target = fill.uniform("pcmanet/a_train_mask", (2, 224, 224)) > 0.5
    variables = variables_of(fixture, companion(f"{fixture}_train")["gains"])
    return run(fixture, variables, frames, log_mel.reshape(2, 5, 96, 64), target, train=True)


def maps(x):
    """[n h w c] or [b t h w c] -> [frames c h w]."""
    x = np.asarray(x)
    return np.moveaxis(x.reshape(-1, *x.shape[-3:]), -1, 1)


def tokens(x):
    """[b t s d] or [n h w d] -> [frames tokens d]."""
    x = np.asarray(x)
    return x.reshape(5, -1, x.shape[-1])


def resnet_entries(sown):
    normed = sown["backbone/bn1/__call__"][0]
    entries = {
        name: maps(sown[f"backbone/{ours}/__call__"][0]) for name, ours in RESNET_MODULES.items()
    }
    return entries | {"resnet.maxpool": maps(max_pool(nn.relu(normed)))}


def pvt_entries(sown):
    entries = {}
    for name, ours in PVT_MODULES.items():
        x = sown[f"backbone/{ours}/__call__"][0]
        entries[name] = maps(x) if name.endswith(".proj") else tokens(x)
    for i, x in enumerate(sown["backbone/__call__"][0]):
        entries[f"encoder_backbone.{i}"] = maps(x)
    return entries


def decoder_entries(outputs, sown):
    def called(name):
        return sown[f"{name}/__call__"][0]

    entries = {
        "audio_feature": called("audio_backbone"),
        "aud_fc1": called("audio_fc"),
        "per": outputs["kept"],
    }
    for k in STAGES:
        sound, pixels = (np.asarray(x).reshape(5, -1, 256) for x in called(f"qsca{k}/attention"))
        guidance, handed_on = called(f"qsca{k}")
        fused = called(f"avga{k}")
        pooled = pool_tokens(fused, 1 if k == 4 else 2)
        guide = lay_out(jnp.asarray(pixels), pooled.shape[1:3], False)
        entries |= {
            f"conv{k}": maps(called(f"conv{k}")),
            f"avga{k}.seq1": maps(called(f"avga{k}/seq1")),
            f"avga{k}.fc": nn.relu(called(f"avga{k}/fc1")),
            f"avga{k}": maps(fused),
            f"qsca{k}.gap": maps(pooled),
            f"qsca{k}.aud_fc": called(f"qsca{k}/audio_fc").reshape(5, -1),
            f"qsca{k}.attn.to_patch_embedding": tokens(called(f"qsca{k}/embed")),
            f"qsca{k}.attn.transformer": np.concatenate([sound, pixels], axis=1),
            f"qsca{k}.attn.0": maps(guide),
            f"qsca{k}.attn.1": sound[:, 0],
            f"qsca{k}.0": maps(guidance),
            f"qsca{k}.1": handed_on.reshape(5, -1),
            f"gf{k}": maps(called(f"gf{k}")),
            f"output_conv{k}": maps(outputs["stage_logits"][k - 1]),
            f"output{k}": maps(outputs["outputs"][k - 1]),
        }
    for k, mask in zip((4, 3, 2), outputs["masks"], strict=True):
        entries[f"mask{k}"] = maps(mask[..., None]).astype(np.uint8)
    return entries


def entries(fixture):
    """Every entry of a fixture, whole, in the published code's layout."""
    return evaluate(fixture)["entries"]
