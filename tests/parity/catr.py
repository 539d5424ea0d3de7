"""CATR (mode="reference") on the fixtures of the published code, one clip: what ours gives.

Layout there: maps [frames channels h w], tokens [tokens frames channels].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax import convert, models
from avs_jax.layers.losses import means
from avs_jax.layers.losses import total as total_of
from avs_jax.layers.set_criterion import layer_losses, make_targets
from avs_jax.models.catr import answer
from tests.parity import fill, halves

BACKBONES = {
    "catr_pvt_s4": "pvt_v2_b5",
    "catr_pvt_s4_448": "pvt_v2_b5",
    "catr_resnet50_s4": "resnet50",
}
# Largest difference of the published code's float32 from its own float64 run. The fusions multiply
# a token by the square of what it attended to, so rounding grows from block to block.
NOISE = {
    "temporal_encoder.layer0": 5.1e-5,
    "temporal_encoder.layer1": 2.2e-4,
    "temporal_encoder.layer2": 1.8e-3,
    "temporal_encoder.output": 1.8e-4,
}
# The pixel decoder's first convolution is linear in that output, and the second takes it up.
READS_OUTPUT = ("spatial_decoder.lay1", "spatial_decoder.lay2")
DEAD = 74  # parameters of the published file that take no part in its output
LOSSES = {  # ours -> published
    "is_referred": "loss_is_referred",
    "dice": "loss_dice",
    "focal": "loss_sigmoid_focal",
    "bce": "bce_loss",
}


@functools.lru_cache(maxsize=2)  # both networks, which several tests take
def convert_weights(network):
    state = {f"audio_backbone.{name}": x for name, x in fill.weights("vggish").items()}
    state |= fill.weights(network)
    return convert.from_torch("catr", state, backbone=BACKBONES[network])


def variables_of(fixture):
    return convert_weights(fixture.removesuffix("_448"))


def make_batch():
    """The ellipse of the fixtures in the first of five frames, the only labelled one."""
    y, x = np.mgrid[:224, :224]
    ellipse = ((y - 100) / 60) ** 2 + ((x - 120) / 80) ** 2 <= 1
    first = np.arange(5) == 0
    return {
        "label": np.where(first[:, None, None], ellipse, False).astype(np.int32)[None],
        "label_mask": first[None],
        "frame_mask": np.ones((1, 5), bool),
    }


def read(tree, path):
    """All outputs of the module at `path`."""
    return [np.asarray(x) for x in functools.reduce(dict.__getitem__, path.split("/"), tree)]


def collect(outputs, found):
    """Our activations by the published code's names, in its layout."""
    channels_first = functools.partial(np.moveaxis, source=-1, destination=1)
    tokens_first = functools.partial(np.swapaxes, axis1=0, axis2=1)

    def module(path, call="__call__"):
        return read(found, f"{path}/{call}")[0]

    pyramid = found["backbone"]["__call__"][0]
    entries = {f"backbone.stage{i}": channels_first(x) for i, x in enumerate(pyramid, start=1)}
    entries |= {f"conv{i}": channels_first(module(f"stage{i}")) for i in (2, 3, 4)}
    entries["vid_embed_proj"] = channels_first(module("visual_tokens"))
    entries["audio_feature"] = module("audio_backbone")
    entries["audio_proj"] = module("audio_norm")[:, None]
    cells = entries["vid_embed_proj"].shape[-1] ** 2
    for i in range(3):
        layers = {"spatial_encoder.layer{}": f"spatial{i}"}
        layers["temporal_encoder.layer{}.norm2"] = f"temporal{i}/layer"
        for name, path in layers.items():
            tokens = tokens_first(module(path))
            entries[name.format(i) + ".visual"] = tokens[:cells]
            entries[name.format(i) + ".audio"] = tokens[cells:]
        visual, audio = found[f"temporal{i}"]["__call__"][0]  # [1 t s d], [1 t d]
        name = f"temporal_encoder.layer{i}"
        entries[f"{name}.av_atten"] = visual.reshape(1, -1, visual.shape[-1]).swapaxes(0, 1)
        entries[f"{name}.memory.visual"] = tokens_first(visual[0])
        if i < 2:  # that of the last block is computed there, and never read
            entries[f"{name}.va_atten"] = tokens_first(audio)
            entries[f"{name}.memory.audio"] = tokens_first(audio).repeat(5, axis=1)
        entries[f"decoder.layer{i}"] = tokens_first(module(f"decoder{i}"))
    gate = channels_first(module("gates/gate"))
    entries["temporal_encoder.gate_conv_call1"] = gate
    entries["temporal_encoder.gate1"] = jax.nn.sigmoid(gate).mean((2, 3))
    entries["temporal_encoder.output1"] = channels_first(module("gates/prelu1"))
    entries["temporal_encoder.output"] = channels_first(module("gates"))
    entries["decoder.hs"] = np.stack(read(found, "decoder_norm/__call__")).swapaxes(1, 2)
    for i in (1, 2, 3, 4):
        entries[f"spatial_decoder.lay{i}"] = channels_first(module(f"pixel_decoder/conv{i}"))
    entries["spatial_decoder.out"] = channels_first(module("pixel_decoder"))
    entries["instance_kernels"] = module("kernel1")[:, :, None]
    for i, prefix in enumerate(("aux0.", "aux1.", "")):
        for name in ("pred_masks", "pred_is_referred"):
            entries[prefix + name] = outputs[name][i].swapaxes(0, 1)
    logits, query = answer(outputs["pred_masks"][-1], outputs["pred_is_referred"][-1], (224, 224))
    entries["inference.mask_logits"] = logits[..., 0].swapaxes(0, 1)
    entries["inference.query"] = query.swapaxes(0, 1)
    return {name: np.asarray(value) for name, value in entries.items()}


def is_compared(module, method):
    """Not all there is, which at 448 x 448 would be 15 GB."""
    inside = len(module.path) > 1 and module.path[0] in ("backbone", "audio_backbone")
    return (
        method == "__call__"
        and not inside
        and len(module.path) <= 2
        and module.name not in ("linear1", "linear2")
    )


def inputs(fixture, dtype):
    """Variables, frames, log-mel."""
    side = 448 if fixture.endswith("448") else 224
    frames = fill.uniform("catr/frames", (5, 3, side, side), -2, 2).transpose(0, 2, 3, 1)[None]
    log_mel = fill.uniform("catr/audio", (5, 1, 96, 64), -4, 1)[:, 0][None]
    cast = functools.partial(jax.tree.map, lambda x: np.asarray(x, dtype))
    return jax.tree.map(jnp.asarray, cast((variables_of(fixture), frames, log_mel)))


def run(fixture, dtype=np.float32):
    """-> our activations by the published names, total loss, terms by layer."""
    with jax.enable_x64(dtype == np.float64):
        model = models.get_model("catr", backbone=BACKBONES[fixture], dtype=np.dtype(dtype).name)
        # At 448 x 448 what little XLA optimises is worth its time, unlike in other tests.
        options = {"xla_backend_optimization_level": 1} if fixture.endswith("448") else {}

        @functools.partial(jax.jit, compiler_options=options or None)
        def decide(variables, seen, log_mel, batch):
            outputs, state = halves.decide(model, variables, seen, log_mel, capture=is_compared)
            total = total_of(models.get_loss("catr")(outputs, batch))
            targets = make_targets(batch["label"], batch["label_mask"], 1, 8)
            layers = [
                layer_losses(
                    outputs["pred_masks"][i],
                    outputs["pred_is_referred"][i],
                    targets,
                    batch["label_mask"],
                    no_object=0.1,
                    class_cost=2.0,
                    dice_cost=7.0,
                    double_sigmoid_bce=True,
                )
                for i in range(3)
            ]
            terms = [means(terms) | {"matched": matched} for terms, matched in layers]
            return outputs, state["intermediates"], total, terms

        variables, frames, log_mel = inputs(fixture, dtype)
        seen, state = halves.see(model, variables, frames, capture=is_compared, options=options)
        outputs, found, total, terms = decide(variables, seen, log_mel, make_batch())
        found |= state["intermediates"]
        return collect(outputs, found), float(total), jax.device_get(terms)


def differences(expected, entries, noise_factor):
    """{entry: (largest difference, limit)}: limit 1e-4 of the spread, or `noise_factor` noises."""
    compared = {}
    for name, value in entries.items():
        if f"{name}@step" in expected:
            value = value[tuple(slice(None, None, s) for s in expected[f"{name}@step"])]
            spread = expected[f"{name}@stats"][1]
        else:
            spread = expected[name].std()
        assert value.shape == expected[name].shape, name
        limit = max(1e-4 * spread + 1e-5, noise_factor * noise(name))
        compared[name] = (float(np.abs(value - expected[name]).max()), float(limit))
    return compared


def noise(name):
    """The published code's own rounding in an entry, where its README states one."""
    if name in READS_OUTPUT:
        return NOISE["temporal_encoder.output"]
    stem = ".".join(name.split(".")[:2])
    if ".norm2." in name:  # within the frames: starts from the fusion of the block before
        stem = f"{stem[:-1]}{int(stem[-1]) - 1}"
    return NOISE.get(stem, 0.0)


def gradients(dtype=np.float32):
    """Of the total loss with respect to all but VGGish, by published names, in PyTorch's layout."""
    fixture = "catr_pvt_s4"
    with jax.enable_x64(dtype == np.float64):
        variables, frames, log_mel = inputs(fixture, dtype)
        sound = variables["params"].pop("audio_backbone")
        statistics = variables["batch_stats"]
        model = models.get_model("catr", backbone=BACKBONES[fixture], dtype=np.dtype(dtype).name)

        @jax.jit
        def decide(params, sound, statistics, seen, log_mel, batch):
            variables = {"params": {**params, "audio_backbone": sound}, "batch_stats": statistics}
            outputs, _ = halves.decide(model, variables, seen, log_mel)
            return total_of(models.get_loss("catr")(outputs, batch))

        def total(params):
            variables = {"params": params, "batch_stats": statistics}
            seen, _ = halves.see(model, variables, frames)
            return decide(params, sound, statistics, seen, log_mel, make_batch())

        grads = jax.grad(total)(variables["params"])
    whole = {"params": {**grads, "audio_backbone": sound}, "batch_stats": statistics}
    named = convert.to_torch("catr", whole, backbone=BACKBONES[fixture])
    statistics = ("running_mean", "running_var")
    return {
        name: grad
        for name, grad in named.items()
        if not name.startswith("audio_backbone.") and not name.endswith(statistics)
    }
