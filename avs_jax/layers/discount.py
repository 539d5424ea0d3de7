"""What speaks against a mask, taken off its logits."""

from avs_jax.types import Array, Float


def discount_logits(
    logits: Float[Array, "n h w k"], discount: Float[Array, "n h w 1"]
) -> Float[Array, "n h w k"]:
    """Adds the discount to the logit of "it sounds". Of a softmax over classes the background,
    class 0, gets it with the other sign."""
    if logits.shape[-1] == 1:
        return logits + discount
    return logits.at[..., :1].add(-discount)


def mark_nothing(logits: Float[Array, "n h w k"]) -> Float[Array, "n h w k"]:
    """Logits of a mask without a pixel. What would have been likelier still is, so that a map of
    probabilities can be looked at: from all alike it could not be told where it came nearest."""
    if logits.shape[-1] == 1:
        return logits - 30.0
    return logits.at[..., 0].add(30.0)
