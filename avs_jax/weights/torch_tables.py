r"""Which entry of a PyTorch `state_dict` goes where: one declarative table per network.

YAMNet's is of a TensorFlow checkpoint, as `tensorflow_files.read_bundle` reads it; its arrays have
our layout already, but for depthwise kernels.

A rule couples a source name with one or several target paths through placeholders and says how the
array changes. The same rule reads both ways (`convert.from_torch`, `convert.to_torch`):

    conv("layer{i}.{j}.conv{k}", "layer{i}_{j}/conv{k}")
        layer3.0.conv2.weight [o i h w]  <->  params/layer3_0/conv2/kernel [h w i o]
        layer3.0.conv2.bias   [o]        <->  params/layer3_0/conv2/bias   [o]

`{i}` stands for digits, `{i:regex}` for that regex, a plain `{i}` in the target for what matched.
Every placeholder of a source occurs in its target. Where two rules lead to one target (torchvision:
`layer3`, AVSBench: `layer3_1`) the first is the one written back to PyTorch. A rule with several
targets splits the entry along its first axis, as packed projections need (`packed_dense`).

To add a network: write a function of those of its fields that change its names, returning a Table,
and enter it in TABLES under the name that `get_backbone` or `get_model` knows:

    def _catr(backbone="pvt_v2_b5", **_):
        return model_table(
            backbone,
            prefix="encoder_backbone.",
            rules=[dense("transformer.audio_proj.fc", "audio_tokens"), ...],
            ignore={r"fusion_module\..*": "never used in forward"},
        )

Backbone and VGGish rules come with `model_table`. What a file has and a table does not want is
named in `ignore` (regex -> reason). Anything else left over, on either side, is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """How an array changes from PyTorch's layout to ours, and back; both without loss."""

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


SAME = Transform("same", lambda x: x, lambda x: x)
# [o i h w] <-> [h w i o]; also of depthwise convolutions, [c 1 h w] <-> [h w 1 c]
CONV = Transform("conv", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# TensorFlow's depthwise kernels [h w c 1] <-> [h w 1 c]
DEPTHWISE = Transform("depthwise", lambda x: x.swapaxes(2, 3), lambda x: x.swapaxes(2, 3))
LINEAR = Transform("linear", lambda x: x.T, lambda x: x.T)
SCALAR = Transform("scalar", lambda x: x.reshape(()), lambda x: x.reshape(1))  # PReLU's one slope


class Rule(NamedTuple):
    """One source name and its targets, "params/..." or "batch_stats/..."; see the module."""

    source: str
    targets: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.targets,) if isinstance(self.targets, str) else self.targets


class Table(NamedTuple):
    """All rules of a network; what to leave out of its files: regex -> reason."""

    rules: tuple[Rule, ...]
    ignore: Mapping[str, str]

    def under(self, prefix: str, target: str) -> "Table":
        """The same for a network that is a part: names start with `prefix`, paths with `target`."""
        return Table(
            tuple(
                Rule(
                    prefix + rule.source,
                    tuple(path.replace("/", f"/{target}/", 1) for path in rule.paths),
                    rule.transform,
                )
                for rule in self.rules
            ),
            {re.escape(prefix) + pattern: reason for pattern, reason in self.ignore.items()},
        )


_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


def template_regex(template: str, patterns: Mapping[str, str] | None = None) -> re.Pattern:
    """A template with placeholders -> the regex it stands for, with named groups.

    `patterns`: of placeholders that are given without one, e.g. those of the other side of a rule.
    """
    parts, end, seen = [], 0, set()
    for match in _PLACEHOLDER.finditer(template):
        name = match[1]
        pattern = match[2] or (patterns or {}).get(name, r"\d+")
        parts.append(re.escape(template[end : match.start()]))
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{pattern})")
        seen.add(name)
        end = match.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def placeholder_patterns(template: str) -> dict[str, str]:
    """{placeholder: its regex}."""
    return {match[1]: match[2] or r"\d+" for match in _PLACEHOLDER.finditer(template)}


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """A template with its placeholders replaced."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


# ---------------------------------------------------------------- rules of whole layers


def conv(source: str, target: str) -> list[Rule]:
    """nn.Conv2d, with or without bias, depthwise too."""
    return [
        Rule(f"{source}.weight", f"params/{target}/kernel", CONV),
        Rule(f"{source}.bias", f"params/{target}/bias"),
    ]


def dense(source: str, target: str) -> list[Rule]:
    """nn.Linear, with or without bias."""
    return [
        Rule(f"{source}.weight", f"params/{target}/kernel", LINEAR),
        Rule(f"{source}.bias", f"params/{target}/bias"),
    ]


def packed_dense(source: str, targets: Iterable[str], separator: str = ".") -> list[Rule]:
    """One nn.Linear whose outputs are those of several Dense layers end to end.

    `separator="_"` is nn.MultiheadAttention's `in_proj_weight`, `in_proj_bias`.
    """
    kernels = tuple(f"params/{target}/kernel" for target in targets)
    biases = tuple(kernel.removesuffix("kernel") + "bias" for kernel in kernels)
    return [
        Rule(f"{source}{separator}weight", kernels, LINEAR),
        Rule(f"{source}{separator}bias", biases),
    ]


def norm(source: str, target: str) -> list[Rule]:
    """nn.LayerNorm, nn.GroupNorm."""
    return [
        Rule(f"{source}.weight", f"params/{target}/scale"),
        Rule(f"{source}.bias", f"params/{target}/bias"),
    ]


def batch_norm(source: str, target: str) -> list[Rule]:
    """nn.BatchNorm2d; its running statistics go to batch_stats."""
    return [
        *norm(source, target),
        Rule(f"{source}.running_mean", f"batch_stats/{target}/mean"),
        Rule(f"{source}.running_var", f"batch_stats/{target}/var"),
    ]


_IGNORED_EVERYWHERE = {r"(.*\.)?num_batches_tracked": "a counter that nothing reads"}


def table(rules: Iterable[list[Rule] | Rule], ignore: Mapping[str, str] | None = None) -> Table:
    """Rules and lists of rules -> Table. PyTorch's `num_batches_tracked` is always ignored."""
    flat = []
    for rule in rules:
        flat.extend([rule] if isinstance(rule, Rule) else rule)
    return Table(tuple(flat), _IGNORED_EVERYWHERE | dict(ignore or {}))


# ---------------------------------------------------------------- backbones


def _resnet(within_model=False, **_) -> Table:
    """torchvision's names, and AVSBench's, whose layers 3 and 4 exist twice.

    Both are read. Written are torchvision's, and AVSBench's `within_model`: what its code loads.
    """
    rules = [conv("conv1", "conv1"), batch_norm("bn1", "bn1")]
    spellings = ("layer{i}", "layer{i:3|4}_1")
    for layer in reversed(spellings) if within_model else spellings:
        rules += [
            conv(f"{layer}.{{j}}.conv{{k}}", "layer{i}_{j}/conv{k}"),
            batch_norm(f"{layer}.{{j}}.bn{{k}}", "layer{i}_{j}/bn{k}"),
            conv(f"{layer}.{{j}}.downsample.0", "layer{i}_{j}/downsample_conv"),
            batch_norm(f"{layer}.{{j}}.downsample.1", "layer{i}_{j}/downsample_bn"),
        ]
    return table(
        rules,
        ignore={
            r"fc\..*": "ImageNet classifier",
            r"layer[34]_2\..*": "AVSBench's second branch, never used for segmentation",
        },
    )


def _pvt_v2(**_) -> Table:
    block, path = "block{i}.{j}", "block{i}_{j}"
    return table(
        [
            conv("patch_embed{i}.proj", "patch_embed{i}/proj"),
            norm("patch_embed{i}.norm", "patch_embed{i}/norm"),
            norm(f"{block}.norm{{k}}", f"{path}/norm{{k}}"),
            dense(f"{block}.attn.{{part:q|kv|proj}}", f"{path}/attn/{{part}}"),
            conv(f"{block}.attn.sr", f"{path}/attn/sr"),
            norm(f"{block}.attn.norm", f"{path}/attn/norm"),
            dense(f"{block}.mlp.fc{{k}}", f"{path}/mlp/fc{{k}}"),
            conv(f"{block}.mlp.dwconv.dwconv", f"{path}/mlp/dwconv"),
            norm("norm{i}", "norm{i}"),
        ],
        ignore={r"head\..*": "ImageNet classifier"},
    )


def _vggish(**_) -> Table:
    return table(
        [conv("features.{i}", "features_{i}"), dense("embeddings.{i}", "embeddings_{i}")],
        ignore={r"pproc\..*": "PCA post-processing, which the papers leave out"},
    )


def _efficientnet_lite(num_classes=0, **_) -> Table:
    rules = [
        conv("_conv_stem", "conv_stem"),
        batch_norm("_bn0", "bn0"),
        conv("_blocks.{i}._{part:expand|depthwise|project}_conv", "blocks_{i}/{part}_conv"),
        batch_norm("_blocks.{i}._bn{k}", "blocks_{i}/bn{k}"),
    ]
    head = [conv("_conv_head", "conv_head"), batch_norm("_bn1", "bn1"), dense("_fc", "fc")]
    if num_classes:
        return table([*rules, *head])
    return table(rules, ignore={r"_(conv_head|bn1|fc)\..*": "ImageNet's head"})


def _yamnet(num_classes=0, **_) -> Table:
    """Layers are numbered through: convolution, norm, then four for each separable layer."""

    def kernel(index, target, kind="kernel", transform=SAME):
        return Rule(f"layer_with_weights-{index}/{kind}", f"params/{target}/kernel", transform)

    def bias_norm(index, target):
        return [
            Rule(f"layer_with_weights-{index}/beta", f"params/{target}/bias"),
            Rule(f"layer_with_weights-{index}/moving_mean", f"batch_stats/{target}/mean"),
            Rule(f"layer_with_weights-{index}/moving_variance", f"batch_stats/{target}/var"),
        ]

    rules = [kernel(0, "conv1"), bias_norm(1, "bn1")]
    for i in range(13):
        first, layer = 2 + 4 * i, f"layer{i + 2}"
        rules += [
            kernel(first, f"{layer}/depthwise_conv", "depthwise_kernel", DEPTHWISE),
            bias_norm(first + 1, f"{layer}/depthwise_bn"),
            kernel(first + 2, f"{layer}/pointwise_conv"),
            bias_norm(first + 3, f"{layer}/pointwise_bn"),
        ]
    if num_classes:
        rules += [kernel(54, "logits"), Rule("layer_with_weights-54/bias", "params/logits/bias")]
        return table(rules)
    return table(rules, ignore={r"layer_with_weights-54/.*": "AudioSet's head"})


# ---------------------------------------------------------------- models


def model_table(
    backbone: str,
    prefix: str,
    rules: Iterable[list[Rule] | Rule],
    ignore: Mapping[str, str] | None = None,
    audio_backbone: str = "vggish",
) -> Table:
    """A model's own rules, its picture backbone's under `prefix`, its sound backbone's under
    `audio_backbone.` (the published models keep VGGish in a file of its own)."""
    parts = [
        table(rules, ignore),
        TABLES[backbone](within_model=True).under(prefix, "backbone"),
        TABLES[audio_backbone]().under("audio_backbone.", "audio_backbone"),
    ]
    joined = Table((), {})
    for part in parts:
        joined = Table(joined.rules + part.rules, {**joined.ignore, **part.ignore})
    return joined


def _pcmanet(backbone="resnet50", audio_backbone="vggish", **_) -> Table:
    """Published files of S4, MS3 and AVSS; MS3 with PVTv2 calls `aud_fc1` by the name `aud_fc`."""
    rules = [dense(name, "audio_fc") for name in ("aud_fc1", "aud_fc")]
    blocks = {
        "conv{k}": "conv{k}",
        "avga{k}.seq{j}": "avga{k}/seq{j}",
        "gf{k}.seq{j}": "gf{k}/seq{j}",
        "output_conv{k}": "output_conv{k}/seq",
    }
    for source, target in blocks.items():
        rules += [
            conv(f"{source}.0", f"{target}/conv"),
            batch_norm(f"{source}.1", f"{target}/norm"),
        ]
    attention, path = "qsca{k}.attn.transformer.layers.0.0", "qsca{k}/attention"
    rules += [
        conv("output_conv{k}.3", "output_conv{k}/out"),
        dense("avga{k}.fc.{j}", "avga{k}/fc{j}"),
        dense("qsca{k}.aud_fc", "qsca{k}/audio_fc"),
        dense("qsca{k}.attn.to_patch_embedding.1", "qsca{k}/embed"),
        norm(f"{attention}.norm", f"{path}/norm"),
        dense(f"{attention}.fn.{{part:v_to_q|v_to_kv|a_to_qkv}}", f"{path}/{{part}}"),
        dense(f"{attention}.fn.to_out.0", f"{path}/to_out"),
    ]
    prefix = "encoder_backbone." if backbone.startswith("pvt") else "resnet."
    ignore = {r"gf4\.seq2\..*": "stage 4 has no coarser stage to fuse, it is never used"}
    return model_table(backbone, prefix, rules, ignore, audio_backbone)


def _catr(backbone="resnet50", audio_backbone="vggish", **_):
    """The published file, of mode="reference"."""

    def attention(source, target):
        parts = [f"{target}/{part}" for part in ("query", "key", "value")]
        return [
            *packed_dense(f"{source}.in_proj", parts, separator="_"),
            *dense(f"{source}.out_proj", f"{target}/out"),
        ]

    def layer(source, target):
        return [
            *attention(f"{source}.self_attn", f"{target}/self_attention"),
            *dense(f"{source}.linear{{k}}", f"{target}/linear{{k}}"),
            *norm(f"{source}.norm{{k}}", f"{target}/norm{{k}}"),
        ]

    temporal = "transformer.temporal_encoder"
    rules = [
        conv("conv{i}.conv2d_list.{j}", "stage{i}/conv{j}"),
        conv("vid_embed_proj", "visual_tokens"),
        dense("transformer.audio_proj.fc", "audio_tokens"),
        norm("transformer.audio_proj.layer_norm", "audio_norm"),
        layer("transformer.spatial_encoder.layers.{i}", "spatial{i}"),
        layer(f"{temporal}.layers.{{i}}", "temporal{i}/layer"),
        attention(
            f"{temporal}.layers.{{i}}.av_atten.multihead_attn", "temporal{i}/audio_to_visual"
        ),
        attention(
            f"{temporal}.layers.{{i}}.va_atten.multihead_attn", "temporal{i}/visual_to_audio"
        ),
        conv(f"{temporal}.attention_feature.0", "gates/gate"),
        conv(f"{temporal}.output{{i}}.0", "gates/conv{i}"),
        batch_norm(f"{temporal}.output{{i}}.1", "gates/norm{i}"),
        Rule(f"{temporal}.output{{i}}.2.weight", "params/gates/prelu{i}/negative_slope", SCALAR),
        Rule("obj_queries.weight", "params/queries"),
        layer("transformer.decoder.layers.{i}", "decoder{i}"),
        attention("transformer.decoder.layers.{i}.multihead_attn", "decoder{i}/cross_attention"),
        norm("transformer.decoder.norm", "decoder_norm"),
        conv("spatial_decoder.lay{i}", "pixel_decoder/conv{i}"),
        norm("spatial_decoder.gn{i}", "pixel_decoder/norm{i}"),
        conv("spatial_decoder.adapter{i}", "pixel_decoder/adapter{i}"),
        conv("spatial_decoder.out_lay", "pixel_decoder/out"),
        dense("is_referred_head", "classes"),
        dense("instance_kernels_head.layers.{i}", "kernel{i}"),
    ]
    last = r"transformer\.temporal_encoder\.layers\.2"
    ignore = {
        r"conv1\..*": "of the stage at 1/4, whose result nothing reads",
        r"path[1-4]\..*": "never called",
        r"fusion_module\..*": "never called",
        r"transformer\.temporal_encoder\.(av|va)_atten\..*": "never called; each layer has its own",
        r".*\.(av|va)_atten\.vid_embed_proj\..*": "never called",
        rf"{last}\.va_atten\..*": "the last layer's audio tokens, which nothing reads",
    }
    return model_table(backbone, "encoder_backbone.", rules, ignore, audio_backbone)


# network -> function of its fields -> table
TABLES: dict[str, Callable[..., Table]] = {
    "resnet18": _resnet,
    "resnet50": _resnet,
    "pvt_v2_b0": _pvt_v2,
    "pvt_v2_b1": _pvt_v2,
    "pvt_v2_b2": _pvt_v2,
    "pvt_v2_b3": _pvt_v2,
    "pvt_v2_b4": _pvt_v2,
    "pvt_v2_b5": _pvt_v2,
    "vggish": _vggish,
    "efficientnet_lite0": _efficientnet_lite,
    "yamnet": _yamnet,
    "pcmanet": _pcmanet,
    "catr": _catr,
}
