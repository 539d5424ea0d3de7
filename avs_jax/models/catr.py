"""CATR: Combinatorial-Dependence Audio-Queried Transformer for Audio-Visual Video Segmentation.

Published code: github.com/aspirinone/CATR.github.io at aa3615c (a descendant of MTTR and AVSBench).
Of the paper we know the abstract and figure 2, which ships with the code. The two differ, so there
are two modes. Shapes for 224 x 224, n = b * t; 784 visual tokens a frame, of stage 2:

    frame   [n 224 224 3] -> PVTv2-B5 (or ResNet-50) -> 4 stages -> dilated heads [n . . 256]
    log-mel [n 96 64]     -> VGGish (frozen) [n 128] -> Dense, norm -> audio tokens [b t 256]

    mode="reference": what the code does      mode="paper": what the figure shows
    each frame has all t audio tokens         each frame has its own one
    a spatial encoder, and beside it one      blocks in sequence: spatial fusion (self-attention),
      whose blocks also fuse sound and          then temporal fusion of sound and picture
      picture over time
    picture <- sound, then sound <- the       both directions in parallel
      result
    one gate per frame and block, with        one gate per frame, block and channel: the sigmoid of
      convolutions around                       a convolution's mean
    50 learned queries                        50 learned queries, their content is the audio token
    decoder memory: the spatial encoder       decoder memory: the gated maps
    mask features: from the gated maps down   mask features: a pyramid from stage 4 up to 1/4, the
      to stage 4, up to 1/16 [n 14 14 64]       gated maps in it at 1/8 [n 56 56 64]

    decoder [n 50 256] -> per query: class, and a kernel of 64 numbers whose product with the mask
    features is the query's mask. A frame's answer is the mask of its most likely query.

Both modes share the blocks (DETR's post-norm layers), the fusion (a token is multiplied by the
square of what it attended to, as the code does: no residual, no norm) and the criterion. What the
figure leaves open is our choice in `paper`: which maps a gate reads, how the sound enters the
queries, the order of the pyramid (comments in the code claim masks of 56 x 56, i.e. 1/4).

Deviations that change no published number: any number of frames (the code has 5 hard-coded);
parameters that never reach an output do not exist (74 tensors, see `convert`); `frame_mask` keeps
frames that do not exist out of every attention. Two that change training from scratch: no dropout
on attention weights (the code has 0.1 there too), which are never all in memory; linear layers and
1x1 convolutions outside of the transformer start as Linen's do, not as PyTorch's. AVSS is ours, see
`layers/set_criterion.py`.
Published for PVTv2-B5 (mIoU, by third parties): S4 81.4, MS3 59.0, AVSS 32.8.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.layers import losses
from avs_jax.layers.auxiliary import AuxiliaryHeads, auxiliary_losses
from avs_jax.layers.conv import Conv, DilatedHead
from avs_jax.layers.detr import EPSILON, Attention, DecoderLayer, EncoderLayer
from avs_jax.layers.dropout import Dropout
from avs_jax.layers.frames import flatten_clips, run_backbone
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.pixel_decoder import PixelDecoder
from avs_jax.layers.positions import sine_positions_2d
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import rematerialised
from avs_jax.layers.resize import resize_bilinear, resize_masks
from avs_jax.layers.set_criterion import make_targets, set_losses
from avs_jax.types import Array, Bool, Float, Int, PyTree

MODES = ("reference", "paper")
xavier = nn.initializers.xavier_uniform()
_conv3 = functools.partial(Conv, kernel_size=(3, 3), padding=1, kernel_init=xavier)
# Two passes, see backbones/pvt_v2.py.
_layer_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class TemporalBlock(nn.Module):
    """An encoder layer within each frame, then sound and picture multiply each other over the clip.

    Takes the visual tokens and the audio tokens that each frame sees: its own one (a = 1, `paper`)
    or a copy of all t (a = t, `reference`; of what the copies become only the first frame's is
    used, as published). Returns both, the audio tokens as one per frame. The `last` block has no
    way from picture to sound: nothing would read it.
    """

    num_heads: int
    hidden: int
    dropout: float
    parallel: bool  # both directions from the same inputs
    last: bool
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        visual: Float[Array, "b t s d"],
        audio: Float[Array, "b t a d"],
        positions: Float[Array, "s d"],
        frame_mask: Bool[Array, "b t"] | None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t s d"], Float[Array, "b t d"]]:
        b, t, s, d = visual.shape
        layer = EncoderLayer(
            self.num_heads, self.hidden, self.dropout, self.regime, self.dtype, name="layer"
        )
        x = layer(*_frame_tokens(visual, audio, positions, frame_mask), train)
        x = x.reshape(b, t, -1, d)
        sound = x[:, :, s] if audio.shape[2] == 1 else x[:, 0, s:]  # [b t d]
        pixels = x[:, :, :s].reshape(b, t * s, d)

        to_visual = Attention(self.num_heads, dtype=self.dtype, name="audio_to_visual")
        attended = to_visual(pixels, sound, sound, frame_mask)
        fused = pixels * attended * attended
        if not self.last:
            to_audio = Attention(self.num_heads, dtype=self.dtype, name="visual_to_audio")
            value = pixels if self.parallel else fused
            key = value + jnp.tile(positions, (t, 1))
            key_mask = None if frame_mask is None else frame_mask.repeat(s, axis=1)
            attended = to_audio(sound, key, value, key_mask)
            sound = sound * attended * attended
        return fused.reshape(b, t, s, d), sound


def _frame_tokens(visual, audio, positions, frame_mask):
    """Each frame's tokens [n s+a d], their positions (zero for sound), which of them exist."""
    b, t, s, d = visual.shape
    a = audio.shape[2]
    tokens = jnp.concatenate([visual, audio], axis=2).reshape(b * t, s + a, d)
    positions = jnp.concatenate([positions, jnp.zeros((a, d), positions.dtype)])
    if frame_mask is None or a == 1:
        return tokens, positions, None
    own = jnp.ones((b, t, s), bool)
    clip = jnp.broadcast_to(frame_mask[:, None], (b, t, a))
    return tokens, positions, jnp.concatenate([own, clip], axis=2).reshape(b * t, s + a)


class FrameGates(nn.Module):
    """`reference`: one gate per frame for the second and the third block, convolutions around them.

    As published: the second gate is not computed from its blocks but from the first (a sigmoid of a
    sigmoid, mean of its two channels), and of the first only one channel is used.
    """

    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        blocks: list[Float[Array, "n h w d"]],
        frame_mask: Bool[Array, "n"] | None = None,
        train: bool = False,
    ) -> Float[Array, "n h w d"]:
        first, second, third = blocks
        conv = functools.partial(_conv3, dtype=self.dtype)

        def smooth(x, i):
            norm = BatchNorm(self.regime, dtype=self.dtype, name=f"norm{i}")
            x = norm(conv(x.shape[-1], name=f"conv{i}")(x), train, frame_mask)
            return nn.PReLU(negative_slope_init=0.25, name=f"prelu{i}")(x)

        pair = jnp.concatenate([first, second], axis=-1)
        gates = jax.nn.sigmoid(conv(2, name="gate")(pair)).mean((1, 2))  # [n 2]
        again = jax.nn.sigmoid(gates).mean(1)
        x = smooth(gates[:, 0, None, None, None] * second, 1)
        return smooth(x + again[:, None, None, None] * third, 2)


class ChannelGates(nn.Module):
    """`paper`: block i > 0 weighted by a gate per channel made of blocks i - 1 and i; their sum."""

    dtype: Any

    @nn.compact
    def __call__(self, blocks: list[Float[Array, "n h w d"]]) -> Float[Array, "n h w d"]:
        total = 0.0
        for i, (before, block) in enumerate(itertools.pairwise(blocks), start=1):
            conv = _conv3(block.shape[-1], dtype=self.dtype, name=f"gate{i}")
            gate = conv(jnp.concatenate([before, block], axis=-1)).mean((1, 2))
            total += jax.nn.sigmoid(gate)[:, None, None] * block
        return total


def answer(
    masks: Float[Array, "b t q y x"],
    classes: Float[Array, "b t q k1"],
    size: tuple[int, int],
    empty_if_silent: bool = False,
) -> tuple[Float[Array, "b t h w k"], Int[Array, "b t"]]:
    """A layer's predictions -> logits at `size`, and the query that is the least "no object".

    One class: logits of that query's mask, bilinear (published); with `empty_if_silent` at most its
    class logit, so that a frame is empty if "no object" is the likelier (ours). Several: logarithm
    of the sum over queries of class probability times mask probability.
    """
    query = jnp.argmin(jax.nn.softmax(classes)[..., -1], axis=-1).astype(jnp.int32)
    if classes.shape[-1] > 2:
        probabilities = jax.nn.softmax(classes)[..., :-1]
        shares = jax.nn.sigmoid(resize_masks(masks, size))
        return jnp.log(jnp.einsum("btqk,btqhw->bthwk", probabilities, shares) + 1e-8), query
    chosen = jnp.take_along_axis(masks, query[..., None, None, None], axis=2)
    logits = resize_masks(chosen, size)[:, :, 0]
    if empty_if_silent:
        sounding = jnp.take_along_axis(classes, query[..., None, None], axis=2)[:, :, 0]
        sounding = sounding[..., 0] - sounding[..., 1]
        logits = jnp.minimum(logits, sounding[..., None, None])
    return logits[..., None], query


@flax.struct.dataclass
class Seen:
    """Of the picture alone: visual tokens as maps, {stage: map} [n . . d]; size = (h, w)."""

    maps: PyTree
    stages: PyTree
    size: tuple[int, int] = flax.struct.field(pytree_node=False)


class CATR(nn.Module):
    """The whole network. Defaults as published; what the code leaves open is as in MTTR."""

    backbone: nn.Module  # PVTv2-B5; ResNet-50 in the paper's tables
    audio_backbone: nn.Module  # VGGish
    num_classes: int = 1  # 1: does it sound? 71: AVSS, background is one of them
    mode: str = "reference"  # or "paper"
    input_scale: int = 1  # frames are enlarged first; published: 2, from 224 to 448
    dim: int = 256
    num_heads: int = 8
    hidden: int = 2048
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_queries: int = 50
    pixel_widths: tuple[int, ...] = (256, 128, 64, 32)
    mask_dim: int = 64
    norm_groups: int = 8
    dropout: float = 0.1
    empty_if_silent: bool = False  # ours: empty mask if the frame's query is rather "no object"
    mask_padded_frames: bool = False  # out of the backbones' batch statistics too
    num_tags: int = 0  # auxiliary heads, training only; not of the paper
    num_semantic: int = 0
    remat: str | bool = "none"  # of encoders and decoder, see layers/remat.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32

    def setup(self):
        self._check()
        dtype, reference = self.dtype, self.mode == "reference"
        layer = (self.num_heads, self.hidden, self.dropout)
        training = {"regime": self.regime, "dtype": dtype}

        self.audio_tokens = nn.Dense(self.dim, dtype=dtype)
        self.audio_norm = _layer_norm(epsilon=1e-12, dtype=dtype)  # as published
        self.audio_dropout = Dropout(self.dropout, regime=self.regime)
        for i in (2, 3, 4) if reference else (1, 2, 3, 4):
            setattr(self, f"stage{i}", DilatedHead(self.dim, dtype=dtype))
        self.visual_tokens = Conv(self.dim, (1, 1), dtype=dtype)

        spatial = rematerialised(EncoderLayer, self.remat, static_argnums=(4,))
        temporal = rematerialised(TemporalBlock, self.remat, static_argnums=(5,))
        for i in range(self.encoder_layers):
            if reference:
                setattr(self, f"spatial{i}", spatial(*layer, **training))
            last = i == self.encoder_layers - 1
            block = temporal(*layer, parallel=not reference, last=last, **training)
            setattr(self, f"temporal{i}", block)
        self.gates = FrameGates(**training) if reference else ChannelGates(dtype=dtype)

        start = nn.initializers.normal(1.0)
        self.queries = self.param("queries", start, (self.num_queries, self.dim))
        decoder = rematerialised(DecoderLayer, self.remat, static_argnums=(6,))
        for i in range(self.decoder_layers):
            setattr(self, f"decoder{i}", decoder(*layer, **training))
        self.decoder_norm = _layer_norm(epsilon=EPSILON, dtype=dtype)
        self.pixel_decoder = PixelDecoder(
            self.pixel_widths, self.mask_dim, self.norm_groups, dtype=dtype
        )
        self.kernel0 = nn.Dense(self.dim, dtype=dtype)
        self.kernel1 = nn.Dense(self.mask_dim, dtype=dtype)
        self.classes = nn.Dense(self.num_classes + 1)
        self.auxiliary = AuxiliaryHeads(self.num_tags, self.num_semantic)

    def __call__(
        self,
        frames: Float[Array, "b t h w 3"],
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """Frames (normalised; enlarged, their sides are multiples of 32), log-mel -> a dict of

            logits            f32[b t h w k]    of `answer`, at frame size
            query             i32[b t]          the query whose mask a frame shows
            pred_masks        f32[l b t q y x]  mask logits of each decoder layer, at 1/16 or 1/4
            pred_is_referred  f32[l b t q k+1]  class logits; the last class is "no object"

        Frames that `frame_mask` says do not exist stay out of every attention and out of the gates'
        batch statistics; out of the backbones' too with `mask_padded_frames`.

        With `train` and auxiliary heads also "tags" [b t num_tags] and "semantic"
        [b t h/8 w/8 num_semantic]. Raises UnknownNameError for an unknown mode, BadValueError for a
        number of encoder layers that it cannot gate.
        """
        return self.decide(self.see(frames, frame_mask, train), log_mel, frame_mask, train)

    def see(
        self,
        frames: Float[Array, "b t h w 3"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> Seen:
        """What the picture alone gives, whatever the sound: tokens and maps before any fusion."""
        b, t, height, width, _ = frames.shape
        size = (height * self.input_scale, width * self.input_scale)
        enlarged = resize_bilinear(flatten_clips(frames), size)
        counted = frame_mask if self.mask_padded_frames else None
        pyramid = run_backbone(
            self.backbone, enlarged.reshape(b, t, *enlarged.shape[1:]), counted, train
        )
        stages = {
            i: getattr(self, f"stage{i}")(x)
            for i, x in enumerate(pyramid, start=1)
            if i > 1 or self.mode == "paper"
        }
        return Seen(self.visual_tokens(stages[2]), stages, (height, width))

    def decide(
        self,
        seen: Seen,
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """What was seen, and log-mel patches -> as `__call__`."""
        b, t = log_mel.shape[:2]
        counted = frame_mask if self.mask_padded_frames else None
        sound = run_backbone(self.audio_backbone, log_mel, counted, train)
        audio = self.audio_dropout(self.audio_norm(self.audio_tokens(sound)), train)
        audio = audio.reshape(b, t, self.dim)

        _, rows, columns, _ = seen.maps.shape
        positions = sine_positions_2d(rows, columns, self.dim).reshape(-1, self.dim)
        positions = positions.astype(self.dtype)
        visual = seen.maps.reshape(b, t, rows * columns, self.dim)
        gated, content, memory = self._fuse(
            visual, audio, positions, frame_mask, (rows, columns), train
        )
        if self.mode == "reference":
            start, laterals = gated, [None, seen.stages[4], seen.stages[3]]
        else:
            start, laterals = seen.stages[4], [seen.stages[3], gated, seen.stages[1]]
        features = self.pixel_decoder(start, laterals)
        masks, classes = self._predict(self._decode(content, memory, train), features)
        masks, classes = (x.reshape(x.shape[0], b, t, *x.shape[2:]) for x in (masks, classes))
        logits, query = answer(masks[-1], classes[-1], seen.size, self.empty_if_silent)
        outputs = {"logits": logits, "query": query}
        outputs |= {"pred_masks": masks, "pred_is_referred": classes}
        if train or self.is_initializing():
            outputs |= self.auxiliary(sound, seen.maps, b)
        return outputs

    def _check(self):
        if self.mode not in MODES:
            raise errors.unknown_name("mode of catr", self.mode, MODES)
        if self.mode == "reference" and self.encoder_layers != 3:
            why = "the published gates read exactly 3 blocks; use encoder_layers=3, or mode='paper'"
        elif self.encoder_layers < 2:
            why = "a gate reads two blocks; use 2 or more"
        else:
            return
        raise errors.BadValueError(f"encoder_layers={self.encoder_layers}: {why}.")

    def _fuse(self, visual, audio, positions, frame_mask, grid, train):
        """-> gated maps; the queries' content; tokens, positions, mask of the decoder's memory."""
        (b, t, d), reference = audio.shape, self.mode == "reference"
        content = jnp.zeros((b * t, d), self.dtype) if reference else audio.reshape(b * t, d)
        if reference:
            copies = jnp.broadcast_to(audio[:, None], (b, t, t, d))
            tokens, *about = _frame_tokens(visual, copies, positions, frame_mask)
            for i in range(self.encoder_layers):
                tokens = getattr(self, f"spatial{i}")(tokens, *about, train)
        blocks = []
        for i in range(self.encoder_layers):
            copies = jnp.broadcast_to(audio[:, None], (b, t, t, d))
            sound = copies if reference else audio[:, :, None]
            block = getattr(self, f"temporal{i}")
            visual, audio = block(visual, sound, positions, frame_mask, train)
            blocks.append(visual.reshape(b * t, *grid, d))
        if reference:
            exists = None if frame_mask is None else frame_mask.reshape(-1)
            return self.gates(blocks, exists, train), content, (tokens, *about)
        gated = self.gates(blocks)
        return gated, content, (gated.reshape(b * t, -1, d), positions, None)

    def _decode(self, content, memory, train):
        """Content [n d] that every query starts from -> all layers' queries, normed [l n q d]."""
        queries = jnp.asarray(self.queries, self.dtype)
        x = jnp.broadcast_to(content[:, None], (content.shape[0], *queries.shape))
        decoded = []
        for i in range(self.decoder_layers):
            x = getattr(self, f"decoder{i}")(x, queries, *memory, train)
            decoded.append(self.decoder_norm(x))
        return jnp.stack(decoded)

    def _predict(self, decoded, features):
        """Queries, mask features [n y x e] -> mask logits [l n q y x], class logits [l n q k+1]."""
        kernels, float32 = self.kernel1(jax.nn.relu(self.kernel0(decoded))), jnp.float32
        masks = jnp.einsum("lnqe,nyxe->lnqyx", kernels, features, preferred_element_type=float32)
        return masks, self.classes(decoded.astype(jnp.float32))


def query_attention(
    model: nn.Module,
    variables: dict,
    frames: Float[Array, "b t h w 3"],
    log_mel: Float[Array, "b t 96 64"],
    frame_mask: Bool[Array, "b t"] | None = None,
) -> tuple[Float[Array, "b t y x"], Float[Array, "b t"]]:
    """Where the query that answers for a frame looks, in the decoder's last layer.

    -> weights over cells (1/8 of the enlarged frame, mean over heads), and their sum over audio
    tokens, which is 0 in `paper`; all weights of a frame sum to 1. `model` is a CATR, static under
    jit.
    """
    name = f"decoder{model.decoder_layers - 1}"

    def looks(module, method):
        return module.name in ("query", "key") and module.path[:2] == (name, "cross_attention")

    outputs, state = model.apply(
        variables, frames, log_mel, frame_mask, capture_intermediates=looks, mutable="intermediates"
    )
    found = state["intermediates"][name]["cross_attention"]
    b, t, height, width, _ = frames.shape
    cells = (height * model.input_scale // 8, width * model.input_scale // 8)
    query, key = (
        found[role]["__call__"][0].reshape(b, t, -1, model.num_heads, model.dim // model.num_heads)
        for role in ("query", "key")
    )
    query = jnp.take_along_axis(query, outputs["query"][..., None, None, None], axis=2)[:, :, 0]
    scores = jnp.einsum("btHd,btsHd->btHs", query, key) / query.shape[-1] ** 0.5
    if frame_mask is not None and model.mode == "reference":
        own = jnp.ones((b, t, cells[0] * cells[1]), bool)
        clip = jnp.broadcast_to(frame_mask[:, None], (b, t, t))
        scores = jnp.where(jnp.concatenate([own, clip], axis=2)[:, :, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).mean(2)  # [b t s + a]
    visual = weights[..., : cells[0] * cells[1]]
    return visual.reshape(b, t, *cells), 1.0 - visual.sum(-1)


def loss(
    outputs: dict[str, Array],
    batch: dict[str, Array],
    *,
    is_referred_weight: float = 1.0,
    dice_weight: float = 5.0,
    focal_weight: float = 5.0,
    bce_weight: float = 4.0,
    tag_weight: float = 0.0,
    semantic_weight: float = 0.0,
    no_object: float = 0.1,
    class_cost: float = 2.0,
    dice_cost: float = 7.0,
    double_sigmoid_bce: bool = True,
    labelled_frames: int | None = None,
    max_targets: int = 8,
) -> dict[str, losses.Term]:
    """The set criterion of all the decoder's layers, and the auxiliary heads' losses.

    Classes are balanced as it is (AVSS): each is a target of its own, whatever its size.

    Args:
      no_object: weight of queries without a target (MTTR: 0.1).
      class_cost, dice_cost: the matcher's weights (7 is hard-coded in the published code).
      double_sigmoid_bce: as published; False is the ordinary binary cross-entropy.
      labelled_frames: that only the first so many frames have labels (S4: 1), which saves the work
        on the others; None looks at all frames of `label_mask`.
      max_targets: the most classes of a clip that are trained at a time (AVSS).

    Returns:
      The last layer's "is_referred", "dice", "focal" and "bce", the earlier ones' with the number
      of the layer ("dice_0"); "tags", "semantic".
    """
    label, frames = batch["label"], batch["label_mask"] & batch["frame_mask"]
    terms = auxiliary_losses(outputs, label, frames, tag_weight, semantic_weight)
    weights = {
        "is_referred": is_referred_weight,
        "dice": dice_weight,
        "focal": focal_weight,
        "bce": bce_weight,
    }
    used = slice(labelled_frames)
    masks, classes = (outputs[name][:, :, used] for name in ("pred_masks", "pred_is_referred"))
    return terms | set_losses(
        masks,
        classes,
        make_targets(label[:, used], frames[:, used], classes.shape[-1] - 1, max_targets),
        frames[:, used],
        weights,
        no_object=no_object,
        class_cost=class_cost,
        dice_cost=dice_cost,
        double_sigmoid_bce=double_sigmoid_bce,
    )
