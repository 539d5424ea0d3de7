"""Trading time for memory: what the backward pass of a block computes again."""

import flax.linen as nn
import jax

from avs_jax import errors

# none    every activation of the forward pass is kept
# dots    of a block, the results of its matrix products; what lies between is computed again
# blocks  of a block its inputs only; about a third more time
POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": None,
}


def read_remat(remat: str | bool) -> str:
    """One of POLICIES; True is "blocks" and False "none". Raises UnknownNameError for others."""
    if isinstance(remat, bool):
        return "blocks" if remat else "none"
    if remat not in POLICIES:
        raise errors.unknown_name("remat", remat, POLICIES)
    return remat


def rematerialised(
    block: type[nn.Module], remat: str | bool, static_argnums: tuple[int, ...] = ()
) -> type[nn.Module]:
    """The class of `block` whose backward pass follows `remat`.

    `static_argnums`: as `nn.remat` counts them, the module itself being 0.

    Raises:
      UnknownNameError: no such policy.
    """
    remat = read_remat(remat)
    if remat == "none":
        return block
    return nn.remat(block, policy=POLICIES[remat], static_argnums=static_argnums)
