"""PCMANet: progressive confident masking attention network for audio-visual segmentation.

Paper: "Progressive Confident Masking Attention Network for Audio-Visual Segmentation"
(arXiv 2406.02345); published code: github.com/PrettyPlate/PCMANet at d3df7b5.

Shapes through the net at 224 x 224, n = b * t, coarse to fine (stage 4, 3, 2, 1):

    picture    pyramid [n 7 7 .] [n 14 14 .] [n 28 28 .] [n 56 56 .] -> 3x3 convolution to 256
    sound      log-mel [n 96 64] -> frozen VGGish [n 128] -> one token a frame [n 256]
    AVGA       the map, each group of channels weighted by its cosine with the sound
    QSCA       the map as 7, 7, 14, 28 squared tokens: uncertain ones ask the clip's sounds, the
               sound asks all pixels of the clip; -> guidance map, and the next stage's sound
    GF         the map + coarser decoding + guidance;  HEAD  logits of the stage
    CIM        1 where these logits are uncertain: the tokens that still ask in the next stage

The four logits at frame size are all supervised; the finest is the answer. Masked attention is
computed for all tokens and multiplied by the mask: equal to gathering the selected tokens (a test
says so) with static shapes, so the whole network is one jit at any share of selected tokens.

The default is what the published code does, which is not always what the paper says. Each
correction is a field, False by default; `configs/pcmanet.py:corrected=true` sets them all:

    restore_token_order                the code reshapes tokens [s c] to a map [c h w] without
                                       transposing, which mixes space and channels
    gradient_through_masked_attention  the code writes the attention of the masked stages (3, 2, 1)
                                       under no_grad: their queries, keys and values never learn
    mask_padded_frames                 in the code frames that do not exist (AVSS) take part in the
                                       attention of their clip and in the statistics of BatchNorm

Deviations that change no output: parameters that the code never uses do not exist here (stage 4's
second fusion convolution, ResNet's second branch of layers 3 and 4). Flax's running variance is the
biased one (PyTorch multiplies by n / (n - 1)): less than 1e-3 from 1000 pixels a batch on.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.layers import losses
from avs_jax.layers.auxiliary import AuxiliaryHeads, auxiliary_losses
from avs_jax.layers.resize import resize_bilinear
from avs_jax.types import Array, Bool, Float, PyTree

STAGES = (4, 3, 2, 1)  # coarse to fine: strides 32, 16, 8, 4


def _fan_in_uniform(fan_in: int) -> Callable:
    """PyTorch's default for the weight and the bias of Linear and Conv2d: +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """A linear layer, initialised as PyTorch's."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
        init = _fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features)).astype(self.dtype)
        # Two dimensions: XLA's CPU matmul is about 1.6x slower on [n tokens d].
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        if self.use_bias:
            y += self.param("bias", init, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """A square convolution of stride 1 with bias, initialised as PyTorch's.

    The kernel is [k k c/groups e]; only 1x1 convolutions have groups.
    """

    features: int
    kernel: int
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w e"]:
        size, width = self.kernel, x.shape[-1] // self.groups
        init = _fan_in_uniform(size**2 * width)
        kernel = self.param("kernel", init, (size, size, width, self.features)).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if size > 1:
            dims = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, dims) + bias
        # 1x1 as matmuls: the gradient of XLA's grouped convolution is 20x slower on CPUs.
        grouped = x.reshape(-1, self.groups, width)
        kernel = kernel.reshape(width, self.groups, -1)
        y = jnp.einsum("ngc,cge->nge", grouped, kernel)
        return y.reshape(*x.shape[:-1], self.features) + bias


class ConvNormRelu(nn.Module):
    """Convolution with bias, BatchNorm, ReLU."""

    features: int
    kernel: int = 3
    groups: int = 1
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w e"]:
        x = Conv(self.features, self.kernel, self.groups, self.dtype, name="conv")(x)
        norm = nn.BatchNorm(
            not self.train,
            momentum=0.9,
            use_fast_variance=False,  # see backbones/resnet.py
            dtype=self.dtype,
            name="norm",
        )
        return nn.relu(norm(x))


def _length(x):
    """Euclidean along the last axis, at least 1e-12; the gradient at zero is zero, not NaN."""
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    positive = squared > 0
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return jnp.maximum(length, 1e-12)


class AVGA(nn.Module):
    """Audio-visual group attention: each group of channels times its cosine with the sound."""

    groups: int
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], sound: Float[Array, "n d"]
    ) -> Float[Array, "n h w c"]:
        channels = x.shape[-1]
        conv = partial(ConvNormRelu, channels, 1, train=self.train, dtype=self.dtype)
        x = conv(groups=self.groups, name="seq1")(x)
        # Two linear layers with nothing between them, as published.
        guide = Dense(channels, dtype=self.dtype, name="fc0")(sound)
        guide = nn.relu(Dense(channels // self.groups, dtype=self.dtype, name="fc1")(guide))
        self.sow("intermediates", "guide", guide)
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        cosine = jnp.einsum("nhwgc,nc->nhwg", grouped, guide / _length(guide))
        weighted = grouped * (cosine[..., None] / _length(grouped))
        return conv(name="seq2")(weighted.reshape(x.shape))


class CrossModalAttention(nn.Module):
    """Sounds ask all pixels of their clip, selected pixels ask all sounds of their clip.

    Added to the input. A pixel that is not selected gets the bias of the output projection alone.
    `gradient_through_mask` False cuts the gradient of selected pixels, as published.
    """

    num_heads: int
    gradient_through_mask: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        sounds: Float[Array, "b t d"],
        pixels: Float[Array, "b t s d"],
        select: Bool[Array, "b t s"] | None = None,
        frame_mask: Bool[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t s d"]]:
        """`select` None: all pixels ask. `frame_mask`: the frames that are looked at; None: all."""
        dim = sounds.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")
        project = partial(Dense, use_bias=False, dtype=self.dtype)
        a, v = norm(sounds), norm(pixels)
        a = project(3 * dim, name="a_to_qkv")(a).reshape(*a.shape[:-1], 3, self.num_heads, -1)
        q_a, k_a, v_a = jnp.moveaxis(a, -3, 0)  # each [b t h e]
        q_v = project(dim, name="v_to_q")(v).reshape(*v.shape[:-1], self.num_heads, -1)
        v = project(2 * dim, name="v_to_kv")(v).reshape(*v.shape[:-1], 2, self.num_heads, -1)
        k_v, v_v = jnp.moveaxis(v, -3, 0)  # each [b t s h e]
        bias = jnp.zeros((1, 1, 1, 1))  # [b 1 1 t]
        if frame_mask is not None:  # finite, so that a clip without frames stays finite
            bias = jnp.where(frame_mask, 0.0, jnp.finfo(jnp.float32).min)[:, None, None, :]
        scale = (dim // self.num_heads) ** -0.5

        scores = jnp.einsum("bqhe,btshe->bhqts", q_a, k_v).astype(jnp.float32) * scale
        weights = jax.nn.softmax(scores + jnp.expand_dims(bias, -1), axis=(-2, -1))
        heard = jnp.einsum("bhqts,btshe->bqhe", weights.astype(self.dtype), v_v)

        scores = jnp.einsum("bqshe,bthe->bhqst", q_v, k_a).astype(jnp.float32) * scale
        weights = jax.nn.softmax(scores + jnp.expand_dims(bias, -2), axis=-1)
        seen = jnp.einsum("bhqst,bthe->bqshe", weights.astype(self.dtype), v_a)
        if select is not None:
            seen = seen * select[..., None, None].astype(seen.dtype)
            if not self.gradient_through_mask:
                seen = jax.lax.stop_gradient(seen)

        out = Dense(dim, dtype=self.dtype, name="to_out")
        return (
            sounds + out(heard.reshape(sounds.shape)),
            pixels + out(seen.reshape(pixels.shape)),
        )


class QSCA(nn.Module):
    """Query-selected cross-attention over the frames of a clip -> guidance map, sound.

    stride: pixels of the map per token; tokens are means over stride x stride pixels.
    restore_token_order: see the head of this file.
    """

    num_heads: int
    num_clips: int
    stride: int
    restore_token_order: bool = False
    gradient_through_mask: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        sound: Float[Array, "n c"],
        select: Bool[Array, "n hs ws"] | None = None,
        frame_mask: Bool[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n c"]]:
        n, h, w, c = x.shape
        rows, columns = h // self.stride, w // self.stride
        pooled = x.reshape(n, rows, self.stride, columns, self.stride, c).mean((2, 4))
        self.sow("intermediates", "pooled", pooled)
        sound = Dense(c, dtype=self.dtype, name="audio_fc")(sound)
        tokens = Dense(c, dtype=self.dtype, name="embed")(pooled)
        clips = (self.num_clips, n // self.num_clips)
        sound, tokens = CrossModalAttention(
            self.num_heads, self.gradient_through_mask, self.dtype, name="attention"
        )(
            sound.reshape(*clips, c),
            tokens.reshape(*clips, -1, c),
            None if select is None else select.reshape(*clips, -1),
            frame_mask,
        )
        if self.restore_token_order:
            guidance = tokens.reshape(n, rows, columns, c)
        else:  # [n s c] read as [n c h w], as published
            guidance = jnp.moveaxis(tokens.reshape(n, c, rows, columns), 1, -1)
        self.sow("intermediates", "map", guidance)
        return resize_bilinear(guidance, (h, w)), sound.reshape(n, c)


def uncertain_mask(logits: Float[Array, "*n k"], confidence: float = 0.99) -> Bool[Array, "*n"]:
    """CIM, the confidence-induced mask: True where a pixel is still uncertain.

    The probability (of sound for k = 1, of the likeliest class else) lies in [1 - confidence,
    confidence]. 0.99 is published.
    """
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        p = jax.nn.sigmoid(logits[..., 0])
    else:
        p = jax.nn.softmax(logits).max(-1)
    return (p >= 1 - confidence) & (p <= confidence)


class GF(nn.Module):
    """Guided fusion of a stage's map with the coarser stage's decoding and with the guidance."""

    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        guidance: Float[Array, "n h w c"],
        coarser: Float[Array, "n hc wc c"] | None = None,
    ) -> Float[Array, "n h w c"]:
        conv = partial(ConvNormRelu, x.shape[-1], train=self.train, dtype=self.dtype)
        if coarser is None:
            fused = x + conv(name="seq1")(guidance)
        else:
            coarser = resize_bilinear(coarser, x.shape[1:3])
            fused = x + conv(name="seq1")(coarser) + conv(name="seq2")(guidance)
        return conv(name="seq3")(fused)


class Head(nn.Module):
    """Logits of a stage at its own resolution."""

    hidden: int
    num_classes: int
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
        x = ConvNormRelu(self.hidden, train=self.train, dtype=self.dtype, name="seq")(x)
        return Conv(self.num_classes, 1, dtype=self.dtype, name="out")(x).astype(jnp.float32)


def _statistics_over(frame_mask: Array | None) -> AbstractContextManager:
    """Inside, BatchNorm of maps takes its batch statistics from the frames in `frame_mask`."""
    if frame_mask is None:
        return nullcontext()

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            kwargs = {**kwargs, "mask": frame_mask.reshape(-1, 1, 1, 1)}
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


class PCMANet(nn.Module):
    """The whole network. The defaults are those of the published code for PVTv2-B5."""

    backbone: nn.Module  # published: ResNet-50 and PVTv2-B5
    audio_backbone: nn.Module  # published: VGGish
    num_classes: int = 1  # 1: does it sound? 71: AVSS
    dim: int = 256
    num_heads: int = 8
    groups: int = 8  # of AVGA; published: 4 for S4 with ResNet-50, 8 elsewhere
    head_width: int = 128  # hidden channels of the output heads
    confidence: float = 0.99  # beyond it, on either side, a token asks no more
    restore_token_order: bool = False  # corrections of the published code, see the file's docstring
    gradient_through_masked_attention: bool = False
    mask_padded_frames: bool = False
    masking: bool = True  # False: every token asks at every stage (for comparison)
    freeze_audio: bool = True  # published: VGGish is not trained
    num_tags: int = 0  # auxiliary heads, training only; not of the paper
    num_semantic: int = 0
    remat: bool = False  # recompute the decoder's blocks in the backward pass, to save memory
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "b t h w 3"],
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, PyTree]:
        """Frames (normalised) and their log-mel patches -> logits and what led to them.

        Args:
          frames: h and w multiples of 32.
          frame_mask: frames that exist; None = all. The others' features are set to zero first.

        Returns:
          logits: f32[b t h w k], those of stage 1.
          outputs: the logits of stages 1, 2, 3, 4 at frame size; all are supervised.
          stage_logits: the same at their own resolution, h/4 .. h/32.
          masks: bool[b t h/s w/s] made from stages 4, 3, 2 (s = 32, 16, 8): True = uncertain, asks
            in the next stage.
          kept: f32[3], share of True in each of the masks.
          tags, semantic: with `train` and auxiliary heads, see `layers/auxiliary.py`.

        Raises:
          BadValueError: sizes that do not divide.
        """
        b, t, height, width, _ = frames.shape
        self._check(height, width)
        looked_at = frame_mask if self.mask_padded_frames else None
        with _statistics_over(looked_at):
            sound = self.audio_backbone(
                log_mel.reshape(b * t, 96, 64), train=train and not self.freeze_audio
            )
            pyramid = self.backbone(frames.reshape(b * t, height, width, 3), train=train)
            if self.freeze_audio:
                sound = jax.lax.stop_gradient(sound)
            maps = {
                stage: ConvNormRelu(self.dim, train=train, dtype=self.dtype, name=f"conv{stage}")(x)
                for stage, x in enumerate(pyramid, start=1)
            }
            if frame_mask is not None:
                exists = frame_mask.reshape(-1)
                sound = sound * exists[:, None]
                maps = {stage: x * exists[:, None, None, None] for stage, x in maps.items()}
            token = Dense(self.dim, dtype=self.dtype, name="audio_fc")(sound)
            logits, masks = self._decode(maps, token, b, looked_at, train)
            heads = AuxiliaryHeads(self.num_tags, self.num_semantic, name="auxiliary")
            auxiliary = heads(sound, maps[2], b) if train or self.is_initializing() else {}

        def unfold(x):
            return x.reshape(b, t, *x.shape[1:])

        outputs = [unfold(resize_bilinear(logits[k], (height, width))) for k in (1, 2, 3, 4)]
        shown = jnp.ones((b, t, 1, 1), bool) if looked_at is None else looked_at[..., None, None]
        masks = tuple(unfold(mask) for mask in masks)
        return {
            "logits": outputs[0],
            "outputs": tuple(outputs),
            "stage_logits": tuple(unfold(logits[k]) for k in (1, 2, 3, 4)),
            "masks": masks,
            "kept": jnp.stack([m.mean(where=jnp.broadcast_to(shown, m.shape)) for m in masks]),
        } | auxiliary

    def _decode(self, maps, token, num_clips, frame_mask, train):
        """Maps by stage, the sound's token [n d] -> logits by stage, masks of stages 4, 3, 2."""
        block = nn.remat if self.remat else lambda module: module
        common = {"train": train, "dtype": self.dtype}
        guided = {
            stage: block(AVGA)(self.groups, **common, name=f"avga{stage}")(x, token)
            for stage, x in maps.items()
        }
        logits, masks = {}, []
        sound, decoded, mask = token, None, None
        for stage in STAGES:
            x = guided[stage]
            guidance, sound = block(QSCA)(
                self.num_heads,
                num_clips,
                1 if stage == 4 else 2,
                self.restore_token_order,
                self.gradient_through_masked_attention,
                self.dtype,
                name=f"qsca{stage}",
            )(x, sound, mask, frame_mask)
            decoded = block(GF)(**common, name=f"gf{stage}")(x, guidance, decoded)
            head = block(Head)(
                self.head_width, self.num_classes, **common, name=f"output_conv{stage}"
            )
            logits[stage] = head(decoded)
            if stage == 1:
                break
            uncertain = uncertain_mask(logits[stage], self.confidence)
            if mask is not None:  # once certain, always certain
                uncertain &= mask.repeat(2, axis=1).repeat(2, axis=2)
            masks.append(uncertain)
            mask = uncertain if self.masking else None
        return logits, masks

    def _check(self, height, width):
        if height % 32 or width % 32:
            raise errors.BadValueError(
                f"frames are {height} x {width}; PCMANet needs multiples of 32, its "
                "coarsest stride: resize or crop them."
            )
        for name in ("num_heads", "groups"):
            if self.dim % getattr(self, name):
                raise errors.BadValueError(
                    f"dim={self.dim} is not divisible by {name}={getattr(self, name)}; "
                    "use a divisor of dim."
                )


def loss(
    outputs: dict[str, PyTree],
    batch: dict[str, Array],
    *,
    stage_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    tag_weight: float = 0.0,
    semantic_weight: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """As published: of the four outputs, over the labelled frames (S4: `label_mask` on the first).

    One class: binary cross-entropy (logarithm clamped at -100) + soft IoU. More: cross-entropy.
    Auxiliary heads are ours. -> total, {"output1".."output4": losses, "tags", "semantic": theirs,
    "kept4".."kept2": share of tokens that the mask of that stage keeps}.
    """
    label = batch["label"]
    frames = batch["label_mask"] & batch["frame_mask"]
    sounding = (label > 0).astype(jnp.float32)
    parts, total = {}, 0.0
    for stage, (logits, weight) in enumerate(
        zip(outputs["outputs"], stage_weights, strict=True), 1
    ):
        if logits.shape[-1] == 1:
            logits = logits[..., 0]
            value = losses.bce_clamped(logits, sounding) + losses.soft_iou(logits, sounding)
        else:
            value = losses.cross_entropy(logits, label)
        parts[f"output{stage}"] = losses.weighted_mean(value, frames)
        total += weight * parts[f"output{stage}"]
    heads = {name: outputs[name] for name in ("tags", "semantic") if name in outputs}
    auxiliary = auxiliary_losses(heads, label, frames)
    for name, weight in (("tags", tag_weight), ("semantic", semantic_weight)):
        total += weight * auxiliary.get(name, 0.0)
    kept = dict(zip(("kept4", "kept3", "kept2"), outputs["kept"], strict=True))
    return total, parts | auxiliary | kept
